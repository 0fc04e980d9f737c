"""Energy of one inference, from whatever power sensor the device has.

For: an idle window, then load windows, the sensor read on a thread of its own meanwhile so that a slow
sensor does not slow what it measures; the arithmetic is `agent.measure`'s (FACTS.md section 5).
Where the board has no sensor but a published model, the figures are that model's, marked as estimated, and
little time is spent on them. Without either every figure is None, never zero.
Not for: letting an estimate decide anything (`wire.sla` looks past it).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from agent.adapters.power import PowerSensor, find_model, find_sensor
from agent.adapters.thermal import throttled_between, throttling
from agent.measure import Window, energy_per_inference_mj
from agent.worker.job import TrialSettings
from wire.measures import Measure, Source

SAMPLE_S = 0.1
ESTIMATE_WINDOW_S = 2.0
"""A model has no noise to be waited out, and its figure decides nothing."""
_SAMPLES_MIN = 10
"""A window shorter than ten samples is sampled faster."""


class Power(Struct, frozen=True, kw_only=True):
    """As `wire.measures.TrialResult` has it."""

    energy_mj: Measure | None = None
    energy_mj_gross: Measure | None = None
    power_watts_idle: float | None = None
    power_watts_load: float | None = None
    power_sensor: str | None = None
    remarks: tuple[str, ...] = ()
    """For the trial's notes."""


def measure(
    root: Path,
    settings: TrialSettings,
    infer: Callable[[int], object],
    between: Callable[[], None] = lambda: None,
) -> Power:
    """Runs `infer(i)` through the load windows and reads the sensor meanwhile; `between` runs after each."""
    sensor = find_sensor(root) or find_model(root)
    if sensor is None:
        return Power()
    length_s = min(settings.energy_window_s, ESTIMATE_WINDOW_S if sensor.estimate else math.inf)
    before = throttling(root)
    idle = _window(sensor, length_s, None)
    if not idle.watts:
        return Power(power_sensor=sensor.name)
    loads = []
    for _ in range(settings.energy_windows):
        loads.append(_window(sensor, length_s, infer))
        between()
    held_back = throttled_between(before, throttling(root))
    figures = energy_per_inference_mj(idle, loads, throttled=held_back)
    if figures is None:
        return Power(power_sensor=sensor.name)
    remark = sensor.remark(figures.watts_load)
    source = Source.ESTIMATED if sensor.estimate else Source.MEASURED
    return Power(
        energy_mj=replace(figures.net, source=source),
        energy_mj_gross=replace(figures.gross, source=source),
        power_watts_idle=figures.watts_idle,
        power_watts_load=figures.watts_load,
        power_sensor=sensor.name,
        remarks=() if remark is None else (remark,),
    )


def _window(sensor: PowerSensor, length_s: float, infer: Callable[[int], object] | None) -> Window:
    """Power over one window, and how many inferences ran in it."""
    readings: list[float] = []
    ended = threading.Event()
    sensor.watts()  # a counter of energy begins to count here
    every_s = min(SAMPLE_S, length_s / _SAMPLES_MIN)
    reader = threading.Thread(target=_read_until, args=(sensor, every_s, ended, readings), daemon=True)
    reader.start()
    started, count = time.monotonic(), 0
    try:
        while (left_s := started + length_s - time.monotonic()) > 0:
            if infer is None:
                time.sleep(left_s)
            else:
                infer(count)
                count += 1
    finally:
        seconds = time.monotonic() - started
        ended.set()
        reader.join()
    return Window(seconds=seconds, watts=tuple(readings), inferences=count)


def _read_until(sensor: PowerSensor, every_s: float, ended: threading.Event, readings: list[float]) -> None:
    """Readings every so often, and at least one, however late this thread is given its turn."""
    while not (ended.wait(every_s) and readings):
        watts = sensor.watts()
        if watts is not None:
            readings.append(watts)
        if ended.is_set():
            return
