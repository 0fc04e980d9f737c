"""Under what conditions a trial measures, and measuring again where they were not fair.

For: looking at heat and supply between inferences, never during one; declaring a run void in which the
machine was held back; letting it cool and running again, a bounded number of times and only while there is
time for it.
Not for: reading the sensors (`agent.adapters.thermal`), or what a void run means for the limits
(`agent.judging`).
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from msgspec import Struct

from agent.adapters.thermal import Throttling, temperature_c, throttled_between, throttling
from agent.measure import fits, has_cooled
from agent.worker.job import TrialSettings

LOOK_EVERY_S = 1.0
_COOLING_POLL_S = 0.5

T = TypeVar("T")
_Measured = tuple[T, bool | None]


class Watch:
    """Remembers whether the machine was held back at any look since the first.

    Args:
        root: of the machine's tree.
        clock: seconds.
    """

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._root, self._clock = root, clock
        self._last: Throttling | None = None
        self._held_back: bool | None = None
        self._look()

    def glance(self) -> None:
        """Looks if it is time to; to be called between inferences, as often as one likes."""
        if self._clock() >= self._due_s:
            self._look()

    def ended(self) -> bool | None:
        """Looks once more; None where no look could tell."""
        self._look()
        return self._held_back

    def _look(self) -> None:
        look = throttling(self._root)
        found = throttled_between(self._last, look)
        if found is not None:
            self._held_back = bool(self._held_back) or found
        self._last = look or self._last
        self._due_s = self._clock() + LOOK_EVERY_S


class Settled(Struct, Generic[T], frozen=True, kw_only=True):
    """The run that counts, or the last one where none does.

    Attributes:
        throttled: whether it too was held back; None where nothing here can tell.
        void: runs before it that were held back and do not count.
        gave_up: why there was no further run, in words; empty where there was no need of one.
    """

    run: T
    throttled: bool | None
    void: int
    gave_up: str = ""


def settle(
    root: Path, settings: TrialSettings, began_s: float, measure: Callable[[], _Measured[T]]
) -> Settled[T]:
    """Measures until a run was fair, `throttled_repeats_max` times more at most.

    Args:
        root: of the machine's tree.
        settings: the bounds.
        began_s: when the trial began, on time.monotonic's clock; it has `wall_s_max` in all.
        measure: one run, and whether the machine was held back in it.
    """
    cool_c = temperature_c(root)
    void = 0
    while True:
        _cool(root, cool_c, settings.cooling_s_max)
        started_s, started_cpu_s = time.monotonic(), time.process_time()
        run, throttled = measure()
        if not throttled:
            return Settled(run=run, throttled=throttled, void=void)
        why = _no_more(settings, void, began_s, started_s, started_cpu_s)
        if why:
            return Settled(run=run, throttled=True, void=void, gave_up=why)
        void += 1


def _no_more(
    settings: TrialSettings, void: int, began_s: float, started_s: float, started_cpu_s: float
) -> str:
    """Why there is no further run after one that began at `started_s`; empty if there is."""
    if void >= settings.throttled_repeats_max:
        return f"throttled_repeats_max is {settings.throttled_repeats_max}"
    now_s, cpu_s = time.monotonic(), time.process_time()
    cpu_limit_s, _ = resource.getrlimit(resource.RLIMIT_CPU)
    cpu_left_s = float("inf") if cpu_limit_s == resource.RLIM_INFINITY else cpu_limit_s - cpu_s
    if not fits(now_s - started_s + settings.cooling_s_max, settings.wall_s_max - (now_s - began_s)):
        return "there is no time left for another run"
    if not fits(cpu_s - started_cpu_s, cpu_left_s):
        return "there is no processor time left for another run"
    return ""


def _cool(root: Path, cool_c: float | None, cooling_s_max: float) -> None:
    """Waits until nothing holds the machine back and it is about as cool as it was; not for ever."""
    end = time.monotonic() + cooling_s_max
    while (left_s := end - time.monotonic()) > 0:
        look = throttling(root)
        if look is None or has_cooled(temperature_c(root), cool_c, held_back=look.now):
            return
        time.sleep(min(_COOLING_POLL_S, left_s))
