"""PURE. The preconditions that the configuration asks for, and whether they hold now.

For: a line for each that is configured; one that does not hold is no fault, an order waits for it.
Not for: judging them (`agent.preconditions`), or reading anything (`agent.adapters.readiness`).
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.doctor.finding import Finding, ok, unknown, warning
from agent.preconditions import Judged

_REMEDIES = {
    "battery_low": "orders wait: charge it or connect the mains, or lower `admission.battery_percent_min`",
    "too_hot": "orders wait: cool it (a heat sink, a fan, shade), or raise `admission.temperature_c_max`",
    "outside_window": "nothing to do, orders wait for the window; give them deadlines that reach into it",
    "clock_unsynchronised": "orders wait: start an NTP client, or remove `admission.window`",
}
_UNKNOWN = "orders do not wait for what cannot be read; remove it from `admission` where it never can"


def admission(judged: Iterable[Judged]) -> list[Finding]:
    """One line for each."""
    return [_line(one) for one in judged]


def _line(one: Judged) -> Finding:
    name = f"admission:{one.key.partition('_')[0]}"
    if one.holds is None:
        return unknown(name, f"{one.detail}: holds nothing up", _UNKNOWN)
    if one.holds:
        return ok(name, one.detail)
    return warning(name, f"{one.code}: {one.detail}", _REMEDIES[one.code])
