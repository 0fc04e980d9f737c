"""Looks at this machine before an order begins, where `admission` in the configuration asks for it.

For: reading charge, heat and the time of day, only what is asked, and letting `agent.preconditions` judge it.
Not for: a machine that asks for nothing: it never loads this.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from agent.adapters.sensors import read_number, read_text
from agent.adapters.thermal import temperature_c
from agent.metering import LocalTime, behind
from agent.ports import Clock
from agent.preconditions import Conditions, Judged, Rules, Supply, judge, require

log = logging.getLogger(__name__)

SUPPLIES_MAX = 64
_CHARS_MAX = 40
_PERCENT = (0.0, 100.0)


class Readiness:
    """The preconditions of one machine.

    Args:
        rules: what is asked.
        clock: of the machine.
        signed_at: the highest time that anybody signed; a clock below it is wrong.
        root: below which /sys is looked for.
    """

    def __init__(self, rules: Rules, clock: Clock, signed_at: Callable[[], str], root: Path) -> None:
        self._rules, self._clock, self._signed_at, self._root = rules, clock, signed_at, root
        self._told: set[str] = set()

    def require(self) -> None:
        """Lets an order begin; what nobody can tell is logged once.

        Raises:
            NotYetError: `battery_low`, `too_hot`, `outside_window` or `clock_unsynchronised`.
        """
        judged = self.judged()
        for one in judged:
            if one.holds is None and one.key not in self._told:
                self._told.add(one.key)
                log.warning("admission.%s holds nothing up, it is unknown: %s", one.key, one.detail)
        require(judged)

    def judged(self) -> tuple[Judged, ...]:
        """How each precondition stands now."""
        rules = self._rules
        now = Conditions(
            supplies=supplies(self._root) if rules.battery_percent_min is not None else None,
            temperature_c=temperature_c(self._root) if rules.temperature_c_max is not None else None,
            local=self._local() if rules.window else None,
        )
        return judge(rules, now)

    def _local(self) -> LocalTime:
        local = self._clock.local()
        if behind(self._clock.now_text(), self._signed_at()):
            return replace(local, synchronised=False)
        return local


def supplies(root: Path) -> tuple[Supply, ...] | None:
    """The machine's own supplies and batteries; None where they cannot be listed.

    A mouse's or a pen's battery has the scope "Device" and is left out, as is a bay without a battery
    (Documentation/ABI/testing/sysfs-class-power).
    """
    folder = root / "sys/class/power_supply"
    try:
        folders = sorted(folder.iterdir())[:SUPPLIES_MAX]
    except FileNotFoundError:
        return ()
    except OSError:
        return None
    found = map(_supply, folders)
    return tuple(one for one in found if one is not None)


def _supply(folder: Path) -> Supply | None:
    if read_text(folder / "scope") == "Device" or read_number(folder / "present") == 0:
        return None
    percent, online = read_number(folder / "capacity"), read_number(folder / "online")
    if percent is not None and not _PERCENT[0] <= percent <= _PERCENT[1]:
        percent = None
    return Supply(
        name=folder.name[:_CHARS_MAX],
        kind=(read_text(folder / "type") or "")[:_CHARS_MAX],
        percent=percent,
        status=(read_text(folder / "status") or "")[:_CHARS_MAX],
        online=None if online is None else online > 0,
    )
