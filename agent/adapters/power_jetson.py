"""Jetson boards: the INA3221 chips that watch their rails.

For: JetPack 5 and newer (hwmon) and JetPack 4 (iio).
Not for: adding up whatever rails there are: the total rail already holds the others, and on an AGX Orin
some would be counted twice. Where no rule below names the board's total, the power is unknown.
"""

from __future__ import annotations

from pathlib import Path

from agent.adapters.power_common import PowerSensor, Reader, product, scaled, summed
from agent.adapters.sensors import read_text

_TOTAL_RAILS: tuple[tuple[str, ...], ...] = (
    ("VDD_IN",),  # Orin Nano, Orin NX, Xavier NX
    ("POM_5V_IN",),  # Nano
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin: no single rail is the total
)
_SHUNT_SUM = "7"
"""The chip's own sum of shunt voltages, which is no rail."""


def ina3221_hwmon(root: Path) -> PowerSensor | None:
    """JetPack 5 and newer: millivolts and milliamperes per rail."""
    rails: dict[str, Reader] = {}
    for label in sorted((root / "sys/bus/i2c/drivers/ina3221").glob("*/hwmon/hwmon*/in?_label")):
        number, name = label.name[2], read_text(label)
        if name and name != "NC" and number != _SHUNT_SUM:
            folder = label.parent
            rails[name] = product(folder / f"in{number}_input", folder / f"curr{number}_input", 1e-6)
    return _total("ina3221", rails)


def ina3221_iio(root: Path) -> PowerSensor | None:
    """JetPack 4: milliwatts per rail."""
    rails: dict[str, Reader] = {}
    for label in sorted((root / "sys/bus/i2c/drivers/ina3221x").glob("*/iio:device*/rail_name_?")):
        name = read_text(label)
        if name and name != "NC":
            rails[name] = scaled(label.with_name(f"in_power{label.name[-1]}_input"), 1e-3)
    return _total("ina3221x", rails)


def _total(name: str, rails: dict[str, Reader]) -> PowerSensor | None:
    for names in _TOTAL_RAILS:
        if set(names) <= set(rails):
            read = summed([rails[rail] for rail in names])
            return None if read() is None else PowerSensor(name, read)
    return None
