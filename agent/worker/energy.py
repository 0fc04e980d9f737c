"""Energy of one inference, from whatever power sensor the device has.

For: an idle window, then load windows, the median of them; gross in watts, idle-subtracted in millijoules an
inference (FACTS.md section 5). Without a sensor every figure is None, never zero, and no time is spent.
Not for: estimates from a model of the board; those are not measured and would never gate anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from agent.adapters.power import PowerSensor, find_sensor
from agent.measure import Window, energy_per_inference_mj
from agent.worker.job import TrialSettings
from wire.measures import Measure

SAMPLE_S = 0.1


class Power(Struct, frozen=True, kw_only=True):
    """As `wire.measures.TrialResult` has it."""

    energy_mj: Measure | None = None
    power_watts_idle: float | None = None
    power_watts_load: float | None = None
    power_sensor: str | None = None


def measure(root: Path, settings: TrialSettings, infer: Callable[[int], object]) -> Power:
    """Runs `infer(i)` through the load windows and reads the sensor meanwhile."""
    sensor = find_sensor(root)
    if sensor is None:
        return Power()
    idle = _window(sensor, settings.energy_window_s, None)
    loads = [_window(sensor, settings.energy_window_s, infer) for _ in range(settings.energy_windows)]
    figures = energy_per_inference_mj(idle, loads)
    if figures is None:
        return Power(power_sensor=sensor.name)
    return Power(
        energy_mj=figures.net,
        power_watts_idle=figures.watts_idle,
        power_watts_load=figures.watts_load,
        power_sensor=sensor.name,
    )


def _window(sensor: PowerSensor, length_s: float, infer: Callable[[int], object] | None) -> Window:
    """Mean power over one window, and how many inferences ran in it."""
    readings: list[float] = []
    started = time.monotonic()
    due, count = started, 0
    sensor.watts()
    while (now := time.monotonic()) < started + length_s:
        if now >= due:
            due = now + SAMPLE_S
            watts = sensor.watts()
            if watts is not None:
                readings.append(watts)
        if infer is None:
            time.sleep(SAMPLE_S / 4)
        else:
            infer(count)
            count += 1
    return Window(seconds=time.monotonic() - started, watts=tuple(readings), inferences=count)
