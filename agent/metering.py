"""PURE. Hours of the local day, such as those in which nothing is fetched because a line is dear then.

For: reading windows of local time such as "07:00-22:00", and judging a moment by them.
Not for: knowing the time (`agent.adapters.system`), or waiting: a refused fetch is tried again later, on a
clock of durations, so a wrong or jumping clock holds nothing up for longer than one wait.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from msgspec import Struct

from agent.errors import NotYetError

_DAY_MIN = 24 * 60
_SECONDS_CHARS = len("2026-01-01T00:00:00")
_WINDOW = re.compile(r"([01]\d|2[0-4]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)")


class Hours(Struct, frozen=True):
    """A window of every day, in minutes of the local day; it may reach over midnight."""

    start_min: int
    end_min: int

    def hold(self, minute: int) -> bool:
        """Whether that minute of the day lies in it; its end does not."""
        if self.start_min < self.end_min:
            return self.start_min <= minute < self.end_min
        return minute >= self.start_min or minute < self.end_min

    def __str__(self) -> str:
        return "-".join(f"{at // 60:02d}:{at % 60:02d}" for at in (self.start_min, self.end_min))


class LocalTime(Struct, frozen=True, kw_only=True):
    """What a machine knows of the time of day.

    Attributes:
        minute: of the local day, 0 to 1439.
        synchronised: whether the clock is known to be right.
    """

    minute: int
    synchronised: bool


def windows(texts: Iterable[str]) -> tuple[Hours, ...]:
    """The windows that were written down.

    Raises:
        ValueError: not of the form "07:00-22:00", empty, or together the whole day, in which nothing
            would ever be fetched.
    """
    found = hours_of(texts, "metered_hours")
    if found and all(any(hours.hold(minute) for hours in found) for minute in range(_DAY_MIN)):
        raise ValueError("metered_hours cover the whole day: nothing would ever be fetched")
    return found


def hours_of(texts: Iterable[str], key: str) -> tuple[Hours, ...]:
    """The windows that were written down under a key of the configuration.

    Raises:
        ValueError: with the key, of what is not of the form "07:00-22:00", or is empty.
    """
    return tuple(_window(text, key) for text in texts)


def _window(text: str, key: str) -> Hours:
    match = _WINDOW.fullmatch(text)
    if match is None:
        raise ValueError(f"{key}: {text[:40]!r} is no window of the day such as 07:00-22:00")
    start_h, start_m, end_h, end_m = (int(word) for word in match.groups())
    start, end = start_h * 60 + start_m, end_h * 60 + end_m
    if start >= _DAY_MIN or end > _DAY_MIN or start == end:
        raise ValueError(f"{key}: {text!r} is empty or beyond 24:00")
    return Hours(start, end)


def behind(now_text: str, signed_at: str) -> bool:
    """Whether a clock shows less than the highest time that anybody signed, so that it must be wrong.

    Args:
        now_text: RFC 3339 in UTC, with whatever follows the seconds.
        signed_at: the same; empty where nothing was signed.
    """
    return now_text[:_SECONDS_CHARS] < signed_at[:_SECONDS_CHARS]


def require_unmetered(hours: Iterable[Hours], local: LocalTime) -> None:
    """Lets a moment pass in which something may be fetched.

    Raises:
        NotYetError: `metered_hours`, or `clock_unsynchronised`: there are such hours, and whether it is one
            of them is not known. The order's deadline, a duration, bounds either wait.
    """
    kept = tuple(hours)
    if not kept:
        return
    if not local.synchronised:
        raise NotYetError(
            "clock_unsynchronised",
            "metered_hours are set and this machine's clock is not synchronised; see to its NTP",
        )
    for one in kept:
        if one.hold(local.minute):
            now = f"{local.minute // 60:02d}:{local.minute % 60:02d}"
            raise NotYetError("metered_hours", f"nothing is fetched in {one} local time, it is {now}")
