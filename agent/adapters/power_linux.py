"""What the Linux kernel itself offers on any machine: monitor chips, batteries, the processor's counter.

For: `power1_input` of hwmon (microwatts), power_supply (microvolts and microamperes) and RAPL (microjoules
that wrap around).
Not for: a graphics card's or a drive's own sensor, which is not the machine's: a hwmon counts only where its
name is that of a chip that watches a supply.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from agent.adapters.power_common import PowerSensor, Reader, product, scaled, summed
from agent.adapters.sensors import hwmons, read_number, read_text

_MONITOR = re.compile(r"(ina2\d\d|ltc29\d\d|adm127\d|power_meter)(-.*)?")
_TOTAL_LABEL = re.compile(r"vin|vdd_in|input|total|system", re.IGNORECASE)


def monitor_chip(root: Path) -> PowerSensor | None:
    """A power monitor; of several the one whose label says that it is the input, else none: never a guess."""
    chips = [
        (name, folder)
        for name, folder in hwmons(root)
        if _MONITOR.fullmatch(name) and read_number(folder / "power1_input") is not None
    ]
    if len(chips) > 1:
        chips = [chip for chip in chips if _TOTAL_LABEL.fullmatch(read_text(chip[1] / "power1_label") or "")]
    if len(chips) != 1:
        return None
    name, folder = chips[0]
    return PowerSensor(f"hwmon_{name}", scaled(folder / "power1_input", 1e-6))


def battery(root: Path) -> PowerSensor | None:
    """A battery while it discharges; on the mains it does not see what the machine uses."""
    for folder in sorted((root / "sys/class/power_supply").glob("*")):
        if read_text(folder / "type") == "Battery":
            read = _discharge(folder)
            if read() is not None:
                return PowerSensor("battery", read)
    return None


def _discharge(folder: Path) -> Reader:
    direct = scaled(folder / "power_now", 1e-6)
    computed = product(folder / "voltage_now", folder / "current_now", 1e-12)

    def read() -> float | None:
        if read_text(folder / "status") != "Discharging":
            return None
        watts = direct()
        return computed() if watts is None else abs(watts)

    return read


def rapl(root: Path, now: Callable[[], float] = time.monotonic) -> PowerSensor | None:
    """The energy counters of all processor packages; core and memory domains lie inside and are left out."""
    counters = []
    for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        is_package = (read_text(folder / "name") or "").startswith("package-")
        if is_package and read_number(folder / "energy_uj") is not None:
            wrap_uj = read_number(folder / "max_energy_range_uj")
            counters.append(EnergyCounter(folder / "energy_uj", wrap_uj, now).watts)
    return PowerSensor("rapl_package", summed(counters)) if counters else None


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
        used_uj = energy - last[0]
        if used_uj < 0:
            if self._wrap_uj is None:
                return None
            used_uj += self._wrap_uj
        return used_uj / 1e6 / (now - last[1]) if used_uj >= 0 else None
