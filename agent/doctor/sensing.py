"""PURE. Power, temperature and throttling: what reads, what is missing on this board.

For: judging one look at the sensors.
Not for: reading them (`agent.adapters.probe_sensors`).
"""

from __future__ import annotations

from msgspec import Struct

from agent.doctor.finding import Finding, ok, problem, unknown, warning

HOT_C = 80.0
"""A Raspberry Pi slows down from 80 degrees on, most others from 85 to 100."""

_BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}


class SensorFacts(Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        board: its name, or "unknown".
        power_sensor: its name; None without one.
        watts: its reading; None where it gave none.
        unreadable: files and tools of a sensor that are there and refuse to be read.
        temperature_c: hottest zone of the processor.
        throttled: held back now; None where nothing can tell.
        throttled_before: held back at some time since the start; None where nothing can tell.
        firmware_bits: `vcgencmd get_throttled`, on a Raspberry Pi.
    """

    board: str = "unknown"
    power_sensor: str | None = None
    watts: float | None = None
    unreadable: tuple[str, ...] = ()
    temperature_c: float | None = None
    throttled: bool | None = None
    throttled_before: bool | None = None
    firmware_bits: int | None = None


def sensors(facts: SensorFacts) -> list[Finding]:
    """The three kinds."""
    return [_power(facts), _temperature(facts), _throttling(facts)]


def _power(facts: SensorFacts) -> Finding:
    name = "power"
    if facts.power_sensor is not None and facts.watts is not None:
        return ok(name, f"{facts.power_sensor} reads {facts.watts:.2f} W")
    refused = ", ".join(facts.unreadable)
    allow = "let the agent's user read it: `usermod -aG video shallop` for vcgencmd, a udev rule for /sys"
    if facts.power_sensor is not None:
        return warning(
            name, f"{facts.power_sensor} is there and gives no reading; {refused}".rstrip("; "), allow
        )
    if refused:
        return warning(name, f"no power is read: {refused} cannot be read by this user", allow)
    board = "" if facts.board == "unknown" else f" ({facts.board})"
    detail = f"no sensor for the whole board{board}: energy reads unknown, its limits are inconclusive"
    return unknown(name, detail, "an INA219 or INA226 on the supply would give one; nothing is ever guessed")


def _temperature(facts: SensorFacts) -> Finding:
    if facts.temperature_c is None:
        return unknown("temperature", "no thermal zone of this board can be read")
    reading = f"{facts.temperature_c:.1f} degrees Celsius"
    if facts.temperature_c >= HOT_C:
        detail = f"{reading}: trials will be held back and repeated"
        return warning("temperature", detail, "cool it: a heat sink, a fan, shade, less load")
    return ok("temperature", reading)


def _throttling(facts: SensorFacts) -> Finding:
    name = "throttling"
    supply_or_heat = (
        "a supply of the board's rating with a short thick cable (under-voltage), or cooling (heat)"
    )
    bits = facts.firmware_bits
    if facts.throttled is None:
        return unknown(name, "nothing on this board tells whether heat or the supply holds it back")
    if facts.throttled:
        why = ", ".join(throttle_words(bits)) if bits is not None else "the supply or heat"
        return problem(name, f"held back right now: {why}; a trial would be void", supply_or_heat)
    if facts.throttled_before:
        why = f" ({', '.join(throttle_words(bits >> 16))})" if bits is not None else ""
        return warning(name, f"not now, but since the machine started{why}", supply_or_heat)
    known = "" if facts.throttled_before is not None else "; whether it was before is not known"
    return ok(name, f"not held back{known}")


def throttle_words(bits: int) -> list[str]:
    """What the low four bits of `vcgencmd get_throttled` mean (Raspberry Pi's own documentation).

    >>> throttle_words(0b0101)
    ['under-voltage', 'throttled']
    """
    return [word for bit, word in _BITS.items() if bits >> bit & 1]
