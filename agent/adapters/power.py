"""Power sensors: watts of the whole machine, where it can be known.

For: finding the one sensor that stands for the board's total, by the rules of FACTS.md section 5, and
reading it.
Not for: estimates. A machine without a sensor has none; a Raspberry Pi 4 is such a machine.

Never all rails are summed: on a Jetson the total rail already holds the others. Every file is looked for
below `root`. A reading that fails is None, never zero.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from agent.adapters.thermal import read_number, read_text, vcgencmd

_TOTAL_RAILS: tuple[tuple[str, ...], ...] = (
    ("VDD_IN",),  # Orin Nano/NX, Xavier NX
    ("POM_5V_IN",),  # Jetson Nano
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin: no single rail is the total
)
_PMIC = re.compile(r"^\s*(\w+)_([AV])\s+(?:current|volt)\(\d+\)=([0-9.]+)[AV]\s*$", re.MULTILINE)


class PowerSensor:
    """A named source of watts."""

    def __init__(self, name: str, read: Callable[[], float | None]) -> None:
        self.name = name
        self._read = read

    def watts(self) -> float | None:
        """Power now, or since the last reading where the hardware counts energy; None if it does not say."""
        return self._read()


def find_sensor(root: Path) -> PowerSensor | None:
    """The sensor of the whole machine that is there and answers; the most direct one first."""
    for look in (_ina3221_hwmon, _ina3221_iio, _pmic, _hwmon_power, _battery, _rapl):
        sensor = look(root)
        if sensor is not None:
            return sensor
    return None


def _total(rails: dict[str, Callable[[], float | None]]) -> Callable[[], float | None] | None:
    """The sum of the rails that make up the board's total; None where this board's are not known."""
    for names in _TOTAL_RAILS:
        if set(names) <= set(rails):
            readers = [rails[name] for name in names]
            return lambda: _sum([read() for read in readers])
    return None


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _product(one: Path, two: Path, scale: float) -> Callable[[], float | None]:
    def read() -> float | None:
        a, b = read_number(one), read_number(two)
        return None if a is None or b is None else a * b * scale

    return read


def _ina3221_hwmon(root: Path) -> PowerSensor | None:
    """JetPack 5 and newer: millivolts and milliamperes per rail."""
    rails: dict[str, Callable[[], float | None]] = {}
    for label in sorted((root / "sys/bus/i2c/drivers/ina3221").glob("*/hwmon/hwmon*/in?_label")):
        number, name = label.name[2], read_text(label)
        if name and name != "NC" and number != "7":
            folder = label.parent
            rails[name] = _product(folder / f"in{number}_input", folder / f"curr{number}_input", 1e-6)
    read = _total(rails)
    return None if read is None else PowerSensor("ina3221", read)


def _ina3221_iio(root: Path) -> PowerSensor | None:
    """JetPack 4: milliwatts per rail."""
    rails: dict[str, Callable[[], float | None]] = {}
    for label in sorted((root / "sys/bus/i2c/drivers/ina3221x").glob("*/iio:device*/rail_name_?")):
        name, path = read_text(label), label.with_name(f"in_power{label.name[-1]}_input")
        if name:
            rails[name] = _scaled(path, 1e-3)
    read = _total(rails)
    return None if read is None else PowerSensor("ina3221x", read)


def _scaled(path: Path, scale: float) -> Callable[[], float | None]:
    def read() -> float | None:
        value = read_number(path)
        return None if value is None else value * scale

    return read


def pmic_watts(said: str) -> float | None:
    """Sum over the Raspberry Pi 5's rails that have both a current and a voltage; EXT5V and BATT do not."""
    readings = {(name, unit): float(value) for name, unit, value in _PMIC.findall(said)}
    powers = [
        amperes * readings[name, "V"]
        for (name, unit), amperes in readings.items()
        if unit == "A" and (name, "V") in readings
    ]
    return sum(powers) if powers else None


def _pmic(root: Path) -> PowerSensor | None:
    """Raspberry Pi 5: what the power chip feeds into its rails; wall power is about 1.14 x that + 0.6 W."""

    def read() -> float | None:
        said = vcgencmd(root, "pmic_read_adc")
        return None if said is None else pmic_watts(said)

    return PowerSensor("rpi5_pmic", read) if read() is not None else None


def _hwmon_power(root: Path) -> PowerSensor | None:
    """Any hwmon that gives power itself, in microwatts."""
    for path in sorted((root / "sys/class/hwmon").glob("hwmon*/power1_input")):
        if read_number(path) is not None:
            return PowerSensor(f"hwmon_{read_text(path.with_name('name')) or 'unnamed'}", _scaled(path, 1e-6))
    return None


def _battery(root: Path) -> PowerSensor | None:
    """A discharging battery: microvolts and microamperes."""
    for folder in sorted((root / "sys/class/power_supply").glob("*")):
        if read_text(folder / "type") == "Battery" and read_text(folder / "status") == "Discharging":
            read = _product(folder / "voltage_now", folder / "current_now", 1e-12)
            if read() is not None:
                return PowerSensor("battery", read)
    return None


def _rapl(root: Path) -> PowerSensor | None:
    """Intel's energy counter of the processor package; only the processor, and its name says so."""
    folder = root / "sys/class/powercap/intel-rapl:0"
    if read_number(folder / "energy_uj") is None:
        return None
    wrap = read_number(folder / "max_energy_range_uj")
    return PowerSensor("rapl_package", EnergyCounter(folder / "energy_uj", wrap, time.monotonic).watts)


class EnergyCounter:
    """Watts from a counter of microjoules that wraps around.

    Args:
        path: of the counter.
        wrap_uj: the counter's range; None: a step back is not explained and gives no reading.
        now: seconds.
    """

    def __init__(self, path: Path, wrap_uj: float | None, now: Callable[[], float]) -> None:
        self._path, self._wrap_uj, self._now = path, wrap_uj, now
        self._last: tuple[float, float] | None = None

    def watts(self) -> float | None:
        """Mean power since the last call; None on the first."""
        energy, now = read_number(self._path), self._now()
        last, self._last = self._last, None if energy is None else (energy, now)
        if energy is None or last is None or now <= last[1]:
            return None
        used = energy - last[0]
        if used < 0:
            if self._wrap_uj is None:
                return None
            used += self._wrap_uj
        return used / 1e6 / (now - last[1])
