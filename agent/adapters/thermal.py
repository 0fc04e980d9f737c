"""How warm and how fast the machine is, and whether heat or a weak supply holds it back.

For: a trial's figures to say under what conditions they were made.
Not for: acting on it. Every file is looked for below `root`, so that tests bring a tree of their own.
"""

from __future__ import annotations

import re
from pathlib import Path

from msgspec import Struct

from agent.adapters.sensors import hwmons, number, read_number, read_text, vcgencmd

_NOW = 0b1111
"""`vcgencmd get_throttled`, bits 0 to 3: under-voltage, capped, throttled, soft temperature limit."""
_SINCE_BOOT = _NOW << 16
"""Bits 16 to 19: the same has occurred since the machine started."""
_COOLING = re.compile(r"(thermal-)?cpufreq-.*|Processor")
"""Cooling devices that work by slowing the processor (Documentation/driver-api/thermal/sysfs-api.rst): of the
device tree's zones by their names in older and newer kernels, and ACPI's."""
_PROCESSOR = re.compile(r"cpu|x86_pkg_temp|soc|tj")
_NO_TEMPERATURE = re.compile(r"pmic|fan|acpitz", re.IGNORECASE)
"""Zones that stand still (the Jetson Nano's PMIC-Die always says 100) or are computed from others."""
_PLAUSIBLE_C = (-55.0, 150.0)


class Throttling(Struct, frozen=True, kw_only=True):
    """One look.

    Attributes:
        now: held back at this moment.
        past: what the machine remembers, to be compared with a later look: sticky bits and event counts,
            none of which ever falls while it runs.
    """

    now: bool
    past: tuple[int, ...] = ()


def throttling(root: Path) -> Throttling | None:
    """Whether the machine is held back, by all that can tell; None where nothing here can."""
    signs = (_firmware(root) or _supply_alarm(root), _core_events(root), _cooling(root), _over_current(root))
    looks = [sign for sign in signs if sign is not None]
    if not looks:
        return None
    return Throttling(
        now=any(look.now for look in looks), past=tuple(count for look in looks for count in look.past)
    )


_FLAGS = ("under_voltage", "frequency_capped", "throttled", "soft_temperature_limit")
"""`vcgencmd get_throttled`, names of bits 0 to 3, and of 16 to 19."""


def raised_flags(root: Path) -> tuple[str, ...] | None:
    """Names of what holds the machine back or has since it started; None where nothing here can tell.

    A flag never falls while the machine runs, but for the kernel's alarm, which tells of now only.
    """
    bits = _firmware_bits(root)
    if bits is not None:
        held = (bits | bits >> 16) & _NOW
        return tuple(name for number, name in enumerate(_FLAGS) if held & 1 << number)
    alarm = _supply_alarm(root)
    if alarm is not None:
        return ("under_voltage",) if alarm.now else ()
    events = _core_events(root)
    if events is not None:
        return ("core_throttled",) if any(events.past) else ()
    return None


def throttled_between(before: Throttling | None, after: Throttling | None) -> bool | None:
    """PURE. Whether it was held back at either look or in between; None where neither look could tell."""
    looks = [look for look in (before, after) if look is not None]
    if not looks:
        return None
    rose = before is not None and after is not None and before.past != after.past
    return rose or any(look.now for look in looks)


def _firmware(root: Path) -> Throttling | None:
    """Raspberry Pi: the firmware's own bits."""
    bits = _firmware_bits(root)
    return None if bits is None else Throttling(now=bool(bits & _NOW), past=(bits & _SINCE_BOOT,))


def _firmware_bits(root: Path) -> int | None:
    found = re.match(r"\s*throttled=0x([0-9a-fA-F]{1,8})\s*$", vcgencmd(root, "get_throttled") or "")
    return None if found is None else int(found[1], 16)


def _supply_alarm(root: Path) -> Throttling | None:
    """Raspberry Pi without the tool: the kernel's under-voltage alarm."""
    for name, folder in hwmons(root):
        alarm = read_number(folder / "in0_lcrit_alarm")
        if name == "rpi_volt" and alarm is not None:
            return Throttling(now=bool(alarm))
    return None


def _core_events(root: Path) -> Throttling | None:
    """Intel: how often each core and package was throttled since the machine started."""
    counters = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_throttle_count")
    counts = [read_number(path) for path in sorted(counters)]
    known = tuple(int(count) for count in counts if count is not None)
    return Throttling(now=False, past=known) if known else None


def _cooling(root: Path) -> Throttling | None:
    """Any machine whose kernel slows the processor against heat: it does so while the state is above 0."""
    states = [
        read_number(folder / "cur_state")
        for folder in (root / "sys/class/thermal").glob("cooling_device*")
        if _COOLING.fullmatch(read_text(folder / "type") or "")
    ]
    known = [state for state in states if state is not None]
    return Throttling(now=any(state > 0 for state in known)) if known else None


def _over_current(root: Path) -> Throttling | None:
    """Jetson: how often the module was slowed because its supply sagged or gave too much."""
    counts = [
        read_number(path)
        for name, folder in hwmons(root)
        if name == "soctherm_oc"
        for path in sorted(folder.glob("oc*_event_cnt"))
    ]
    known = tuple(int(count) for count in counts if count is not None)
    return Throttling(now=False, past=known) if known else None


def cpu_mhz(root: Path) -> float | None:
    """Frequency of the fastest core at this moment, in megahertz; None where nothing tells.

    cpufreq counts in kilohertz (Documentation/admin-guide/pm/cpufreq.rst); x86 without it says megahertz in
    /proc/cpuinfo.
    """
    cores = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    found = [khz / 1000 for path in cores if (khz := read_number(path)) is not None]
    if not found:
        said = re.findall(
            r"^cpu MHz\s*:\s*([0-9.]{1,12})$", read_text(root / "proc/cpuinfo") or "", re.MULTILINE
        )
        found = [mhz for text in said if (mhz := number(text)) is not None]
    return max((mhz for mhz in found if mhz > 0), default=None)


def temperatures_c(root: Path) -> dict[str, float]:
    """Degrees Celsius of each thermal zone that answers, by type; the hotter of two of one type."""
    found: dict[str, float] = {}
    for folder in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        kind, millidegrees = read_text(folder / "type"), read_number(folder / "temp")
        if not kind or millidegrees is None or _NO_TEMPERATURE.search(kind):
            continue
        value = millidegrees / 1000
        if _PLAUSIBLE_C[0] <= value <= _PLAUSIBLE_C[1]:
            found[kind] = max(value, found.get(kind, value))
    return found


def temperature_c(root: Path) -> float | None:
    """The hottest zone of the processor, else the hottest zone there is; None without any."""
    zones = temperatures_c(root)
    processor = [value for kind, value in zones.items() if _PROCESSOR.search(kind.lower())]
    return max(processor or zones.values(), default=None)
