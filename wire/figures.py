"""PURE. The statistics of figures that cross between the programs.

For: computing an interval, a percentile or a paired comparison in one way, whether the host, a device
or the registry does it; a figure is only comparable if all three agree on how it was made.
Not for: deciding anything (see `wire.sla`), or measuring (the converter's evaluate, the agent's worker).

Standard library only, so that the agent's daemon can use it: the inputs are plain sequences of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

_Z95 = 1.9599639845400536
"""97.5% point of the normal distribution; `statistics.NormalDist` would be 0.4 MiB of every agent."""


class Interval(Struct, frozen=True):
    """A two-sided interval; `low <= high`."""

    low: float
    high: float


class PairedCounts(Struct, frozen=True, kw_only=True):
    """How two classifiers did on the same samples; the four cells of McNemar's table.

    Attributes:
        both: samples that both got right.
        candidate_only: right by the candidate alone.
        reference_only: right by the reference (baseline or incumbent) alone.
        neither: right by none.
    """

    both: int
    candidate_only: int
    reference_only: int
    neither: int

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.both + self.candidate_only + self.reference_only + self.neither

    def __add__(self, other: PairedCounts) -> PairedCounts:
        return PairedCounts(
            both=self.both + other.both,
            candidate_only=self.candidate_only + other.candidate_only,
            reference_only=self.reference_only + other.reference_only,
            neither=self.neither + other.neither,
        )


def percentile(values: Sequence[float], fraction: float) -> float:
    """The `fraction` quantile by linear interpolation (Hyndman and Fan's type 7, as numpy does).

    Raises:
        ValueError: no values, or a fraction outside [0, 1].
    """
    if not values or not 0.0 <= fraction <= 1.0:
        raise ValueError(f"percentile {fraction} of {len(values)} values is not defined")
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def wilson_interval(successes: int, n: int) -> Interval:
    """95% score interval of a proportion (Wilson 1927); honest at 0 and at `n`, unlike Wald's.

    Raises:
        ValueError: `n` is not positive or `successes` is outside [0, n].
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is not a proportion")
    p, z2 = successes / n, _Z95 * _Z95
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At the edges the exact bound is 0 or 1; rounding must not leave it just outside the point.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(low, high)


def paired_delta_interval(counts: PairedCounts) -> Interval:
    """95% interval of candidate minus reference accuracy on the same samples.

    Agresti and Min (2005): Wald's paired interval after adding half a sample to each cell, which keeps
    its coverage when few samples disagree.

    Raises:
        ValueError: no samples.
    """
    if counts.n == 0:
        raise ValueError("no samples to compare")
    n = counts.n + 2.0
    b, c = counts.candidate_only + 0.5, counts.reference_only + 0.5
    delta = (b - c) / n
    half = _Z95 * math.sqrt(max(0.0, b + c - (b - c) ** 2 / n)) / n
    return Interval(max(-1.0, delta - half), min(1.0, delta + half))


def paired_ratio_interval(counts: PairedCounts) -> Interval | None:
    """95% interval of candidate accuracy over reference accuracy on the same samples.

    The paired interval of the difference, divided by the reference's accuracy on those very samples.
    None where the reference got nothing right: there is no ratio to zero.

    Raises:
        ValueError: no samples.
    """
    delta = paired_delta_interval(counts)
    right = counts.both + counts.reference_only
    if right == 0:
        return None
    reference = right / counts.n
    return Interval(max(0.0, 1.0 + delta.low / reference), 1.0 + delta.high / reference)


def t_quantile(degrees: int) -> float:
    """97.5% quantile of Student's t, to within 2% from two degrees of freedom on.

    Cornish-Fisher expansion about the normal (Abramowitz and Stegun 26.7.5); the first two are exact.

    Raises:
        ValueError: no degree of freedom.
    """
    if degrees < 1:
        raise ValueError("an interval needs two values")
    if degrees <= 2:
        return (12.706204736432095, 4.302652729911275)[degrees - 1]
    z, v = _Z95, float(degrees)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )


def mean_interval(values: Sequence[float]) -> Interval:
    """95% interval of a mean: Wilson's where all values are 0 or 1, else Student's t.

    Raises:
        ValueError: no values.
    """
    n = len(values)
    if n and all(value in {0.0, 1.0} for value in values):
        return wilson_interval(int(math.fsum(values)), n)
    if n < 2:
        raise ValueError(f"{n} values have no interval")
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = t_quantile(n - 1) * math.sqrt(variance / n)
    return Interval(mean - half, mean + half)


def mean_ratio_interval(values: Sequence[float], reference: Sequence[float]) -> Interval | None:
    """95% interval of the ratio of two means over the same samples; None where the reference's is zero.

    Linearised (Cochran 1977, section 6.3): the ratio r has the standard error of the mean of
    `(value - r reference) / mean(reference)`.

    Raises:
        ValueError: fewer than two values, or lengths that differ.
    """
    if len(values) != len(reference) or len(values) < 2:
        raise ValueError(f"{len(values)} and {len(reference)} values make no pairs to compare")
    n, below = len(values), math.fsum(reference) / len(values)
    if below == 0.0:
        return None
    ratio = math.fsum(values) / n / below
    squares = math.fsum(((a - ratio * b) / below) ** 2 for a, b in zip(values, reference, strict=True))
    half = t_quantile(n - 1) * math.sqrt(squares / (n - 1) / n)
    return Interval(ratio - half, ratio + half)


def sign_test_p_value(counts: PairedCounts) -> float:
    """One-sided exact McNemar p-value that the candidate is no worse than the reference.

    Small means harm: among samples on which they disagree, the reference is right too often to be luck
    (binomial tail, P(X >= reference_only) with X ~ Bin(disagreements, 1/2)). 1.0 without disagreement.
    """
    m, k = counts.candidate_only + counts.reference_only, counts.reference_only
    if m == 0:
        return 1.0
    log_half = m * math.log(2)
    tail = math.fsum(
        math.exp(math.lgamma(m + 1) - math.lgamma(i + 1) - math.lgamma(m - i + 1) - log_half)
        for i in range(k, m + 1)
    )
    return min(1.0, tail)


def median_interval(values: Sequence[float]) -> Interval:
    """Distribution-free interval of the median, at least 95% where six or more values allow it.

    Order statistics (Conover 1999, section 3.2): the k-th smallest and k-th largest value, with the
    largest k whose binomial tail stays below 2.5%. With fewer than six values no such k exists and the
    whole range is returned.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values")
    ordered, n = sorted(values), len(values)
    tail, k = 0.0, 0
    for i in range(n):
        tail += math.exp(math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2))
        if tail > 0.025:
            break
        k = i + 1
    k = max(k, 1)
    return Interval(ordered[k - 1], ordered[n - k])
