"""The power sensor of the whole machine, where it has one.

For: finding the one sensor that stands for the board's total, the most direct first, and reading it; and, by
a name of its own, the model of a board that has none.
Not for: passing an estimate for a sensor. A machine without a sensor has none; a Raspberry Pi 4 is one.

A reading that fails is None, never zero.
"""

from __future__ import annotations

from pathlib import Path

from agent.adapters.power_common import PowerSensor
from agent.adapters.power_jetson import ina3221_hwmon, ina3221_iio
from agent.adapters.power_linux import battery, monitor_chip, rapl
from agent.adapters.power_model import board_model
from agent.adapters.power_rpi import pmic

__all__ = ["PowerSensor", "find_model", "find_sensor"]

_KINDS = (ina3221_hwmon, ina3221_iio, pmic, monitor_chip, battery, rapl)
"""The last knows the processor only, and says so in its name."""


def find_sensor(root: Path) -> PowerSensor | None:
    """The machine's sensor that is there and answers; None is "unknown"."""
    for look in _KINDS:
        sensor = look(root)
        if sensor is not None:
            return sensor
    return None


def find_model(root: Path) -> PowerSensor | None:
    """What stands in for a sensor that the board does not have: an estimate, and never proof."""
    return board_model(root)
