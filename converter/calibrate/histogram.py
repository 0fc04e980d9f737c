"""A histogram that re-bins as its range grows.

For: values of one tensor, batch by batch, in a fixed number of bins whose width is a power of two and
whose edges are multiples of it, so that zero is always an edge and two bins always merge into one. Exact
zeros are counted apart: quantization represents them exactly, and after a Relu they are half of all values.
Not for: choosing ranges (`converter.calibrate.ranges`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.limits import HISTOGRAM_BINS

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

_EXPONENT_MIN = -140
"""Of a bin's width: narrower than the smallest float32 over the number of bins tells nothing apart."""


class Histogram:
    """Counts of finite values.

    Bin `i` of `counts` holds `[(first + i) * width, (first + i + 1) * width)`, zero excepted; the bins
    always reach from at most zero to at least zero.

    Attributes:
        bins: how many there are.
        counts: int64 `[bins]`.
        zeros: values that are exactly zero; they stand in no bin.
        exponent: the width's, to base 2; None before the first value that is not zero.
        first: the first bin's edge, in widths.
    """

    def __init__(self, bins: int = HISTOGRAM_BINS) -> None:
        self.bins = bins
        self.counts: Counts = np.zeros(bins, dtype=np.int64)
        self.zeros = 0
        self.exponent: int | None = None
        self.first = 0

    @property
    def total(self) -> int:
        """All values that were added."""
        return int(self.counts.sum()) + self.zeros

    @property
    def width(self) -> float:
        """Of a bin; 1.0 while there are only zeros."""
        return math.ldexp(1.0, self.exponent or 0)

    @property
    def edges(self) -> Floats:
        """Float64 `[bins + 1]`."""
        return (self.first + np.arange(self.bins + 1, dtype=np.float64)) * self.width

    def add(self, values: NDArray[Any]) -> None:
        """Counts all values; they must be finite."""
        flat = values.reshape(-1).astype(np.float64)
        zeros = int(flat.size - np.count_nonzero(flat))
        if zeros:
            self.zeros += zeros
            flat = flat[flat != 0.0]
        if not flat.size:
            return
        self._reach(float(flat.min()), float(flat.max()))
        places = np.floor(flat / self.width).astype(np.int64) - self.first
        self.counts += np.bincount(places, minlength=self.bins)

    def _reach(self, low: float, high: float) -> None:
        """Widens the bins, by powers of two, until they hold `low`, zero and `high`."""
        span = max(high, 0.0) - min(low, 0.0)
        needed = max(math.frexp(span / self.bins)[1], _EXPONENT_MIN)
        if self.exponent is None:
            self.exponent = needed
        before, start, stop = self.exponent, *self._occupied()
        while True:
            shift = self.exponent - before
            bottom = min(math.floor(low / self.width), start >> shift, 0)
            top = max(math.floor(high / self.width), (stop - 1) >> shift, 0)
            if top - bottom < self.bins:
                break
            self.exponent += 1
        if bottom < self.first or top >= self.first + self.bins or shift:
            self._move(bottom, shift)

    def _occupied(self) -> tuple[int, int]:
        """First and last occupied bin, the last exclusive, in widths; `(0, 1)` where there is none."""
        found = np.flatnonzero(self.counts)
        if not found.size:
            return 0, 1
        return self.first + int(found[0]), self.first + int(found[-1]) + 1

    def _move(self, first: int, shift: int) -> None:
        """Merges `2 ** shift` bins into one each and starts at bin `first` of the wider ones."""
        found = np.flatnonzero(self.counts)
        moved = np.zeros(self.bins, dtype=np.int64)
        np.add.at(moved, ((found + self.first) >> shift) - first, self.counts[found])
        self.counts, self.first = moved, first

    def quantile(self, share: float) -> float:
        """The value below which that share of all values lies, linear within a bin; 0.0 without values."""
        below = int(self.counts[: max(-self.first, 0)].sum())
        wanted = share * self.total
        negative = below > 0 and wanted <= below
        if not self.counts.any() or (not negative and self.zeros and wanted <= below + self.zeros):
            return 0.0
        if not negative:
            wanted -= self.zeros
        sums = np.cumsum(self.counts)
        i = int(min(np.searchsorted(sums, wanted), np.flatnonzero(self.counts)[-1]))
        i = max(i, int(np.flatnonzero(self.counts)[0]))
        inside = (wanted - (sums[i] - self.counts[i])) / self.counts[i]
        return float((self.first + i + min(max(inside, 0.0), 1.0)) * self.width)
