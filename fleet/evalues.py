"""PURE. Evidence that may be looked at after every report: e-values.

For: the harm tests and proofs of `fleet.gates`, and the arithmetic of what a fleet is large enough for.
Not for: limits, verdicts, or pooling (`fleet.evidence`).

An e-value is a betting account that starts at 1 and, if the hypothesis is true, is not expected to grow,
whatever is looked at and however often. It ever reaches 1/a with probability at most a (Ville 1939), so a
gate may look after every report; FACTS.md section 4 has what looking costs otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

from wire.figures import PairedCounts

BETS = 24
"""Stakes mixed in a betting e-value; more change the third digit."""


def _log_binomial(n: int, k: int, p: float) -> float:
    choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return choose + k * math.log(p) + (n - k) * math.log1p(-p)


def _log_sum(terms: Iterable[float]) -> float:
    values = list(terms)
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))


def _exp(log_e: float) -> float:
    """Capped where a float ends; such an account has long said enough."""
    return math.exp(min(log_e, 700.0))


def success_harm_e_value(failures: int, n: int, failure_rate: float) -> float:
    """Evidence that devices fail more often than `failure_rate` (called r).

    A mixture of likelihood ratios of theta against r, theta from Beta(1, b) cut off below r: under any
    true rate at or below r each ratio is a supermartingale. b is about 1/(2r), so that the bets lie at
    small multiples of r. With f failures and s successes the integral over theta is
    b B(f+1, s+b) P(X <= f) / (1-r)^b with X ~ Bin(f+s+b, r).

    Raises:
        ValueError: counts or rate out of range.
    """
    _check_counts(failures, n, failure_rate)
    b = max(1, round(0.5 / failure_rate))
    tail = _log_sum(_log_binomial(n + b, k, failure_rate) for k in range(failures + 1))
    prior = math.log(b) - b * math.log1p(-failure_rate)
    return _exp(_log_mixture(failures, n, failure_rate, b) + tail + prior)


def proof_e_value(failures: int, n: int, failure_rate: float) -> float:
    """Evidence that devices fail less often than `failure_rate`; theta uniform below it.

    The integral is B(f+1, s+1) P(X >= f+1), X ~ Bin(n+1, failure_rate).

    Raises:
        ValueError: counts or rate out of range.
    """
    _check_counts(failures, n, failure_rate)
    tail = _log_sum(_log_binomial(n + 1, k, failure_rate) for k in range(failures + 1, n + 2))
    return _exp(_log_mixture(failures, n, failure_rate) + tail - math.log(failure_rate))


def _check_counts(failures: int, n: int, failure_rate: float) -> None:
    if not 0 <= failures <= n or not 0.0 < failure_rate < 1.0:
        raise ValueError(f"{failures} failures of {n} at a rate of {failure_rate} are not defined")


def _log_mixture(failures: int, n: int, rate: float, b: int = 1) -> float:
    """Log of B(f+1, s+b) over the likelihood at `rate`."""
    beta = math.lgamma(failures + 1) + math.lgamma(n - failures + b) - math.lgamma(n + b + 1)
    return beta - failures * math.log(rate) - (n - failures) * math.log1p(-rate)


@lru_cache(maxsize=256)
def proof_devices_min(success_rate: float, confidence: float) -> int:
    """The least number of devices, all succeeding, that shows `success_rate`.

    The least n with (1 - q^(n+1)) / ((n+1) (1-q) q^n) >= 1/(1-confidence), q = success_rate: 43 devices
    for 90% at 95% confidence, 88 for 95%.
    """
    n = 1
    while proof_e_value(0, n, 1.0 - success_rate) < 1.0 / (1.0 - confidence):
        n += max(1, n // 200)
    while n > 1 and proof_e_value(0, n - 1, 1.0 - success_rate) >= 1.0 / (1.0 - confidence):
        n -= 1
    return n


def harm_e_value(counts: PairedCounts, drop_max: float) -> float:
    """Evidence that the candidate's accuracy is more than `drop_max` below the reference's.

    Per sample d = +1 (right by the candidate alone), -1 (by the reference alone) or 0. If the true drop
    is at most `drop_max`, a stake l on it multiplies the account by 1 + l (-d - drop_max), whose mean is
    at most 1. With drop_max 0 this is an anytime-valid sign test: agreement changes nothing.
    """
    return _bets(counts.candidate_only, counts.reference_only, counts.both + counts.neither, drop_max)


def no_harm_e_value(counts: PairedCounts, drop_max: float) -> float:
    """Evidence that the candidate's accuracy is less than `drop_max` below the reference's.

    The opposite bet: 1 + l (d + drop_max), whose mean is at most 1 if the true drop is `drop_max` or
    more.
    """
    return _bets(counts.reference_only, counts.candidate_only, counts.both + counts.neither, -drop_max)


def _bets(against: int, for_: int, same: int, margin: float) -> float:
    """Stakes l mixed evenly over (0, 1/(1 + margin)), on steps +1 (`for_`), -1 and 0, less the margin."""
    logs = []
    for step in range(1, BETS + 1):
        stake = step / (BETS + 1) / (1.0 + margin)
        logs.append(
            against * math.log1p(-stake * (1.0 + margin))
            + for_ * math.log1p(stake * (1.0 - margin))
            + same * math.log1p(-stake * margin)
        )
    return _exp(_log_sum(logs) - math.log(BETS))


@lru_cache(maxsize=256)
def proof_samples_min(drop_max: float, confidence: float) -> int:
    """The least number of samples, candidate and reference alike on each, that shows `drop_max`.

    About ln(BETS / (1 - confidence)) / drop_max at most: 460 samples for one point at 95% confidence.
    """
    low, high = 0, 1
    while no_harm_e_value(_alike(high), drop_max) < 1.0 / (1.0 - confidence):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        shown = no_harm_e_value(_alike(middle), drop_max) >= 1.0 / (1.0 - confidence)
        low, high = (low, middle) if shown else (middle, high)
    return high


def _alike(n: int) -> PairedCounts:
    return PairedCounts(both=n, candidate_only=0, reference_only=0, neither=0)
