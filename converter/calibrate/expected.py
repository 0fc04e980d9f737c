"""What a range costs, as expected from a histogram.

For: mean squared error of quantizing with a range, and the Kullback-Leibler divergence that entropy
calibration minimizes; both take values as evenly spread within a bin.
Not for: searching the best range (`converter.calibrate.ranges`), or the effect on a model's outputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from converter.calibrate.histogram import Histogram

Floats = NDArray[np.float64]

_MISSING = 1e-6
"""Share of probability that a level is taken to have where the range leaves it none: KL stays finite."""


class Grid(Struct, frozen=True, kw_only=True):
    """Integer type of a quantized tensor."""

    bits: int
    symmetric: bool

    @property
    def levels(self) -> int:
        """Steps are one fewer; a symmetric grid leaves its lowest value out, so that it is symmetric."""
        return int(2**self.bits - self.symmetric)


def mean_squared_error(histogram: Histogram, low: Floats, high: Floats, grid: Grid) -> Floats:
    """Expected squared error per value, for ranges `low[i]` to `high[i]` that hold zero; float64 `[n]`.

    The error of value u (in steps) is (u - q(u))^2 with q the nearest level; its integral from zero is
    n/12 + (u - n)^3/3 at level n = q(u), also beyond the last level, where it is what clipping costs.
    """
    held = np.flatnonzero(histogram.counts)
    if not held.size:
        return np.zeros(len(low))
    counts = histogram.counts[held] / histogram.total
    left = (histogram.first + held) * histogram.width
    step = np.maximum((high - low) / (grid.levels - 1), np.finfo(np.float64).tiny)[:, None]
    bottom = np.round(low[:, None] / step)
    top = bottom + grid.levels - 1
    a, b = left[None, :] / step, (left + histogram.width)[None, :] / step
    mean = (_integral(b, bottom, top) - _integral(a, bottom, top)) / (b - a)
    answer: Floats = (np.maximum(mean, 0.0) * counts).sum(axis=1) * step[:, 0] ** 2
    return answer


def _integral(u: Floats, bottom: Floats, top: Floats) -> Floats:
    level = np.clip(np.round(u), bottom, top)
    rest = u - level
    return level / 12.0 + rest * rest * rest / 3.0


def divergence(counts: NDArray[Any], first: int, start: int, stop: int, grid: Grid) -> float:
    """KL(P || Q) of keeping bins `start` to `stop` (exclusive), in nats.

    P are the kept bins, what lies outside added to the outermost ones; Q are the kept bins as the levels of
    `grid` tell them: each level's share spread evenly over its occupied bins (TensorRT's calibration,
    Migacz 2017, for any zero point). Values that are exactly zero are in neither: they are a level.

    Args:
        counts: of all bins.
        first: of the first bin, its lower edge in widths.
        start: first kept bin.
        stop: behind the last kept bin, above `start`.
        grid: the integer type.
    """
    kept = counts[start:stop].astype(np.float64)
    p = kept.copy()
    p[0] += counts[:start].sum()
    p[-1] += counts[stop:].sum()
    step = max((stop - start) / (grid.levels - 1), 1e-12)
    centers = first + np.arange(start, stop) + 0.5
    places = np.round(centers / step).astype(np.int64)
    places -= places[0]
    occupied = kept > 0
    sums = np.bincount(places, weights=kept)
    sizes = np.bincount(places, weights=occupied)
    q = np.where(occupied, sums[places] / np.maximum(sizes[places], 1.0), 0.0)
    total, inside = float(p.sum()), float(kept.sum())
    if inside <= 0.0:
        return float("inf")
    q = np.maximum(q / inside, _MISSING / len(q))
    p, q = p / total, q / q.sum()
    some = p > 0
    return float((p[some] * np.log(p[some] / q[some])).sum())
