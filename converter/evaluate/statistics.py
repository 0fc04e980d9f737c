"""Intervals of whatever a metric is, by resampling samples.

For: the paired bootstrap of a candidate against the baseline, and how many samples a proof would need.
Not for: proportions and McNemar's table, whose intervals `wire.figures` computes without chance.

The resamples are drawn from a fixed seed: the same figures come out each time, and the candidate and the
baseline are resampled alike, which is what makes the comparison paired.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wire.figures import Interval
from wire.measures import Measure

RESAMPLES = 1000
SEED = 20261121
_BLOCK_BYTES = 32 * 1024**2
_Z_ONE_SIDED_5 = 1.6448536269514722
_Z_POWER_80 = 0.8416212335729143

Floats = NDArray[np.float64]
Counts = NDArray[Any]


class Score(Protocol):
    """A metric of one set of answers, ready to be resampled."""

    @property
    def n(self) -> int:
        """Number of samples."""

    def value(self, counts: Counts) -> Floats:
        """The metric where sample `i` stands `counts[r, i]` times; counts are `[r,n]`, the result `[r]`.

        NaN where a resample leaves the metric undefined.
        """


def point(score: Score) -> float:
    """The metric of the samples themselves."""
    return float(score.value(np.ones((1, score.n), np.int64))[0])


def resampled(scores: tuple[Score, ...], resamples: int = RESAMPLES) -> tuple[Floats, ...]:
    """The metric of each, over the same resamples of the samples: `[resamples]` each."""
    blocks = [[score.value(counts) for score in scores] for counts in _blocks(scores[0].n, resamples)]
    return tuple(np.concatenate([block[i] for block in blocks]) for i in range(len(scores)))


def _blocks(n: int, resamples: int) -> Iterator[Counts]:
    rng = np.random.default_rng(SEED)
    size = max(1, min(resamples, _BLOCK_BYTES // (8 * n)))
    for start in range(0, resamples, size):
        rows = min(size, resamples - start)
        drawn = rng.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)


def interval_of(values: Floats, centre: float) -> Interval | None:
    """95% percentile interval (Efron and Tibshirani 1993, section 13.3), reaching to the point at least.

    None where fewer than half of the resamples have a value.
    """
    known = values[np.isfinite(values)]
    if len(known) * 2 < len(values) or not math.isfinite(centre):
        return None
    low, high = np.quantile(known, [0.025, 0.975])
    return Interval(min(float(low), centre), max(float(high), centre))


def measured(values: Floats, centre: float, n: int) -> Measure | None:
    """The figure with its interval; None where it is not a number."""
    if not math.isfinite(centre):
        return None
    interval = interval_of(values, centre) if n > 1 else None
    if interval is None:
        return Measure(value=centre, n=n)
    return Measure(value=centre, low=interval.low, high=interval.high, n=n)


def samples_needed_for(margin: float, spread: float, n: int) -> int | None:
    """Samples that would prove a limit, with 80% power at one-sided 5% (normal approximation).

    Args:
        margin: distance of the estimate from the limit, on the good side positive.
        spread: standard deviation of the estimate over resamples of `n` samples; it falls with sqrt(n).
        n: samples now.

    Returns:
        `(1.645 + 0.842)^2 n spread^2 / margin^2`; None where the estimate misses the limit, or nothing
        varies.
    """
    if margin <= 0.0 or spread <= 0.0 or not math.isfinite(spread):
        return None
    return math.ceil((_Z_ONE_SIDED_5 + _Z_POWER_80) ** 2 * n * (spread / margin) ** 2)
