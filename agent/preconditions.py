"""PURE. Whether an order may begin now: the battery's charge, the machine's heat, the hours for changes.

For: judging what was read against what `admission` in the configuration asks; an order that meets it not
waits in ADMITTING and is tried again, until its deadline, which is a duration.
Not for: reading anything (`agent.adapters.readiness`), waiting (`agent.lifecycle`), or rollbacks, which never
pass here. What is not known holds nothing up, save the time of day: hours need a clock that is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

from msgspec import Struct

from agent.errors import NotYetError
from agent.metering import Hours, LocalTime

Key = Literal["battery_percent_min", "temperature_c_max", "window"]

_DAY_MIN = 24 * 60
_MAINS = ("Mains", "USB", "Wireless")
"""Beginnings of the types of what feeds a machine (Documentation/ABI/testing/sysfs-class-power, `type`)."""


class Rules(Struct, frozen=True, kw_only=True):
    """What is asked; None and nothing for what is not.

    Attributes:
        battery_percent_min: of a machine that has a battery and is not on mains.
        temperature_c_max: degrees Celsius of the hottest zone.
        window: hours of the local day in which an order may begin.
    """

    battery_percent_min: float | None = None
    temperature_c_max: float | None = None
    window: tuple[Hours, ...] = ()


class Supply(Struct, frozen=True, kw_only=True):
    """What feeds the machine, or stores what feeds it, as the kernel tells of it.

    Attributes:
        name: of its folder.
        kind: such as "Battery", "Mains", "USB"; empty where it could not be read, as it may be a battery.
        percent: of a battery's charge; None where it does not tell.
        status: of a battery, such as "Discharging".
        online: whether it feeds the machine now; None where it does not tell.
    """

    name: str
    kind: str
    percent: float | None = None
    status: str = ""
    online: bool | None = None


class Conditions(Struct, frozen=True, kw_only=True):
    """How things are; what nothing asks for need not be read.

    Attributes:
        supplies: all of the machine's own; None where they could not be listed.
        temperature_c: of the hottest zone; None without one that answers.
        local: the time of day.
    """

    supplies: tuple[Supply, ...] | None = None
    temperature_c: float | None = None
    local: LocalTime | None = None


class Judged(Struct, frozen=True, kw_only=True):
    """One precondition.

    Attributes:
        key: in the configuration.
        holds: None where nobody can tell, which holds nothing up.
        code: of the reason, where it does not hold.
        detail: what was found, with the figures.
        again_s_max: no later than this another look is due; None where nothing is known of it.
    """

    key: Key
    holds: bool | None
    code: str
    detail: str
    again_s_max: float | None = None


def judge(rules: Rules, now: Conditions) -> tuple[Judged, ...]:
    """Each precondition that is asked, in the order in which it is told."""
    found = []
    if rules.battery_percent_min is not None:
        found.append(_battery(rules.battery_percent_min, now.supplies))
    if rules.temperature_c_max is not None:
        found.append(_temperature(rules.temperature_c_max, now.temperature_c))
    if rules.window:
        found.append(_window(rules.window, now.local))
    return tuple(found)


def require(judged: Iterable[Judged]) -> None:
    """Lets a moment pass in which nothing speaks against an order.

    Raises:
        NotYetError: by the first that does not hold, with the words of all of them.
    """
    against = [one for one in judged if one.holds is False]
    if against:
        dues = [one.again_s_max for one in against if one.again_s_max is not None]
        detail = "; ".join(one.detail for one in against)
        raise NotYetError(against[0].code, detail, again_s_max=min(dues, default=None))


def _battery(least: float, supplies: tuple[Supply, ...] | None) -> Judged:
    """Of several the emptiest counts: how much of the whole each one is, is not known."""
    say = _saying("battery_percent_min", "battery_low")
    if supplies is None:
        return say(None, "/sys/class/power_supply cannot be read")
    batteries = [one for one in supplies if one.kind in {"Battery", ""}]
    if not batteries:
        return say(True, "this machine has no battery")
    feeding = next((one for one in supplies if one.kind.startswith(_MAINS) and one.online), None)
    if feeding is not None:
        return say(True, f"on mains ({feeding.name})")
    known = [(one.percent, one) for one in batteries if one.percent is not None]
    if not known:
        return say(None, f"{batteries[0].name} does not tell its charge")
    percent, emptiest = min(known, key=lambda pair: pair[0])
    status = emptiest.status or "status unknown"
    return say(
        percent >= least,
        f"{emptiest.name} is at {percent:g}% ({status}) and not on mains, "
        f"admission.battery_percent_min is {least:g}",
    )


def _temperature(most: float, found: float | None) -> Judged:
    say = _saying("temperature_c_max", "too_hot")
    if found is None:
        return say(None, "no thermal zone of this machine can be read")
    return say(found <= most, f"{found:.1f} degrees Celsius, admission.temperature_c_max is {most:g}")


def _window(hours: tuple[Hours, ...], local: LocalTime | None) -> Judged:
    if local is None or not local.synchronised:
        detail = "admission.window is set and this machine's clock is not synchronised; see to its NTP"
        return _saying("window", "clock_unsynchronised")(False, detail)
    named = ", ".join(map(str, hours))
    detail = f"it is {local.minute // 60:02d}:{local.minute % 60:02d} local time, admission.window is {named}"
    if any(one.hold(local.minute) for one in hours):
        return _saying("window", "outside_window")(True, detail)
    # The clock tells minutes, so that what waits comes in the window's first minute, never before it.
    wait_min = min((one.start_min - local.minute) % _DAY_MIN for one in hours)
    return _saying("window", "outside_window", again_s_max=60.0 * wait_min)(False, detail)


def _saying(key: Key, code: str, again_s_max: float | None = None) -> Callable[[bool | None, str], Judged]:
    def say(holds: bool | None, detail: str) -> Judged:
        return Judged(key=key, holds=holds, code=code, detail=detail, again_s_max=again_s_max)

    return say
