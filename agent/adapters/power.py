"""The power sensor of the whole machine, where it has one.

For: finding the one sensor that stands for the board's total, the most direct first, and reading it.
Not for: estimates. A machine without a sensor has none; a Raspberry Pi 4 is such a machine.

A reading that fails is None, never zero.
"""

from __future__ import annotations

from pathlib import Path

from agent.adapters.power_common import PowerSensor
from agent.adapters.power_jetson import ina3221_hwmon, ina3221_iio
from agent.adapters.power_linux import battery, monitor_chip, rapl
from agent.adapters.power_rpi import pmic

__all__ = ["PowerSensor", "find_sensor"]

_KINDS = (ina3221_hwmon, ina3221_iio, pmic, monitor_chip, battery, rapl)
"""The last knows the processor only, and says so in its name."""


def find_sensor(root: Path) -> PowerSensor | None:
    """The machine's sensor that is there and answers; None is "unknown"."""
    for look in _KINDS:
        sensor = look(root)
        if sensor is not None:
            return sensor
    return None
