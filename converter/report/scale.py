"""PURE. Axes: from figures to places on paper, and the ticks beside them.

For: linear and logarithmic axes of the report's charts.
Not for: what is drawn along them (`converter.report.charts`).
"""

from __future__ import annotations

import math

from msgspec import Struct

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_TICKS_WANTED = 5
_LOG_FROM = 6.0
"""A spread of this factor squeezes half of the points into a fifth of a linear axis."""
_PAD = 0.06
_SAME = 1e-9
"""Of the larger figure: what differs by less is one figure, spelled by floating point."""


class Axis(Struct, frozen=True, kw_only=True):
    """One axis; `start` and `end` are places of `low` and `high`, in any unit of length.

    Attributes:
        low: smallest figure shown; above zero on a logarithmic axis.
        high: largest figure shown, above `low`.
        start: where `low` lies.
        end: where `high` lies; below `start` for an axis that points up a screen.
        log: whether equal lengths are equal factors.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where a figure lies; one beyond an end lies on that end."""
        kept = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(kept / self.low) / math.log(self.high / self.low)
        else:
            share = (kept - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> tuple[float, ...]:
        """Round figures within the axis, about five of them."""
        return _log_ticks(self.low, self.high) if self.log else _linear_ticks(self.low, self.high)


def axis(low: float, high: float, start: float, end: float, *, positive: bool = False) -> Axis:
    """An axis with some room beyond the figures at both ends.

    Args:
        low: smallest figure; `low` and `high` may be equal.
        high: largest figure.
        start: where the low end lies.
        end: where the high end lies.
        positive: figures are above zero and ratios matter: logarithmic where they spread by a factor of
            six or more.
    """
    if positive and low > 0.0 and high / low >= _LOG_FROM:
        room = (high / low) ** _PAD
        return Axis(low=low / room, high=high * room, start=start, end=end, log=True)
    spread = high - low
    largest = max(abs(low), abs(high), 1e-3)
    room = _PAD * spread if spread > _SAME * largest else _PAD * largest
    return Axis(low=low - room, high=high + room, start=start, end=end)


def _linear_ticks(low: float, high: float) -> tuple[float, ...]:
    rough = (high - low) / _TICKS_WANTED
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * one for one in _STEPS if power * one >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step), math.floor(high / step)
    return tuple(i * step for i in range(first, last + 1))


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Fewer to a decade where there are more decades."""
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    spread = high / low
    fine = (1.0, 2.0, 3.0, 5.0) if spread < 30.0 else (1.0, 2.0, 5.0) if spread < 1000.0 else (1.0,)
    every = (10.0**power * one for power in powers for one in fine)
    return tuple(value for value in every if low <= value <= high)
