"""PURE. Arithmetic that only a device needs: energy per inference from windows of power readings.

For: gross and idle-subtracted energy, the median over load windows (FACTS.md section 5: an idle window, at
least five load windows, report both).
Not for: reading sensors (`agent.adapters.power`), or statistics that the host shares (`wire.figures`).
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from msgspec import Struct

from wire.figures import median_interval, percentile
from wire.measures import Measure


class Window(Struct, frozen=True, kw_only=True):
    """Power over a stretch of time.

    Attributes:
        seconds: how long.
        watts: readings, evenly spread.
        inferences: run meanwhile; 0 in an idle window.
    """

    seconds: float
    watts: tuple[float, ...]
    inferences: int = 0


class Energy(Struct, frozen=True, kw_only=True):
    """Per inference, in millijoules; net has the idle power subtracted."""

    gross: Measure
    net: Measure
    watts_idle: float
    watts_load: float


def energy_per_inference_mj(idle: Window, loads: Sequence[Window]) -> Energy | None:
    """Energy per inference; None where a window has no reading or no inference.

    Each load window gives mean power x seconds / inferences; the figure is the median of the windows with
    the median's interval. A net figure below zero is told as it came: noise, not a gift.
    """
    if not idle.watts or not loads or any(not w.watts or not w.inferences for w in loads):
        return None
    watts_idle = fmean(idle.watts)
    gross = [1000 * fmean(w.watts) * w.seconds / w.inferences for w in loads]
    net = [1000 * (fmean(w.watts) - watts_idle) * w.seconds / w.inferences for w in loads]
    return Energy(
        gross=_median(gross),
        net=_median(net),
        watts_idle=watts_idle,
        watts_load=percentile([fmean(w.watts) for w in loads], 0.5),
    )


def _median(values: Sequence[float]) -> Measure:
    interval = median_interval(values)
    return Measure(value=percentile(values, 0.5), low=interval.low, high=interval.high, n=len(values))
