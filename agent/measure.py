"""PURE. What only a device computes: energy per inference, and the class of its processor.

For: when a machine is fit for another run; gross and idle-subtracted energy, the median over load windows
(FACTS.md section 5: an idle window, at least five load windows, both figures, void where the machine was held
back); and the name under which the registry pools answers of processors that compute alike.
Not for: reading sensors (`agent.adapters.power`), statistics that the host shares (`wire.figures`), or
which figures count before the SLA (`agent.judging`).
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence

from msgspec import Struct

from wire.figures import median_interval, percentile
from wire.measures import Measure

LOAD_WINDOWS_MIN = 5


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


def energy_per_inference_mj(
    idle: Window, loads: Sequence[Window], *, throttled: bool | None
) -> Energy | None:
    """Energy per inference in millijoules.

    Each load window gives 1000 x mean watts x seconds / inferences; the figure is the median of the windows
    with the median's interval. A net figure below zero is told as it came: noise, not a gift.

    Returns:
        None where a window has no reading or no inference, where there are fewer than five load windows,
        or where the machine was held back meanwhile: a slowed machine is not the machine.
    """
    if throttled or not idle.watts or len(loads) < LOAD_WINDOWS_MIN:
        return None
    if any(not window.watts or not window.inferences for window in loads):
        return None
    watts_idle = statistics.fmean(idle.watts)
    gross = [1000 * statistics.fmean(w.watts) * w.seconds / w.inferences for w in loads]
    net = [1000 * (statistics.fmean(w.watts) - watts_idle) * w.seconds / w.inferences for w in loads]
    return Energy(
        gross=_median(gross),
        net=_median(net),
        watts_idle=watts_idle,
        watts_load=percentile([statistics.fmean(w.watts) for w in loads], 0.5),
    )


COOL_WITHIN_C = 5.0
"""As cool as before, for all that a trial can tell: sensors step by a degree or more."""
_SPARE = 1.1
"""A run takes a little longer than the last one, once the machine is warm."""


def has_cooled(now_c: float | None, cool_c: float | None, *, held_back: bool) -> bool:
    """Whether a machine is fit for another run.

    Args:
        now_c: its temperature; None where it has no sensor, and being held back is all there is to go by.
        cool_c: what it was when the trial began.
        held_back: at this moment.
    """
    if held_back:
        return False
    return now_c is None or cool_c is None or now_c <= cool_c + COOL_WITHIN_C


def fits(needed_s: float, left_s: float) -> bool:
    """Whether there is time for another run that takes as long as the last one took."""
    return needed_s * _SPARE < left_s


def _median(values: Sequence[float]) -> Measure:
    interval = median_interval(values)
    return Measure(value=percentile(values, 0.5), low=interval.low, high=interval.high, n=len(values))


# Which kernels a runtime picks, most capable first; answers may differ from one class to the next, since
# x86 without VNNI saturates at 16 bits (FACTS.md section 1) and sums are taken in another order.
_X86 = (
    ("vnni", ("avx512_vnni", "avx_vnni")),
    ("avx512", ("avx512bw",)),
    ("avx2", ("avx2",)),
    ("baseline", ("sse2",)),
)
_ARM64 = (("i8mm", ("i8mm",)), ("dotprod", ("asimddp",)), ("baseline", ("asimd",)))
_CLASSES = {
    "x86_64": ("x86-64", _X86),
    "amd64": ("x86-64", _X86),
    "aarch64": ("aarch64", _ARM64),
    "arm64": ("aarch64", _ARM64),
}


def cpu_class(arch: str, features: Collection[str]) -> str | None:
    """Processors of one class give the same answers: such as `x86-64-vnni` or `aarch64-dotprod`.

    Args:
        arch: as `uname -m` gives it; one without classes is its own.
        features: the flags of /proc/cpuinfo.

    Returns:
        None where the features are not known, or none of them is.
    """
    family = _CLASSES.get(arch.lower())
    if family is None:
        return arch if arch and arch != "unknown" else None
    prefix, classes = family
    return next((f"{prefix}-{name}" for name, any_of in classes if set(any_of) & set(features)), None)
