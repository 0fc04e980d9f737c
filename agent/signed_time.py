"""PURE. What time it is at least, on a device whose clock may be wrong.

For: the time at which certificates are judged and renewed: the later of the machine's clock and the highest
time that the fleet signed (DESIGN.md section 6), the latter counted on by the clock of durations, so that a
device at 1970 that runs for a year knows of that year.
Not for: deadlines (CLOCK_BOOTTIME alone), or setting any clock.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Seconds = Callable[[], float]


def seconds_of(text: str) -> float | None:
    """Seconds since 1970 of a time as RFC 3339; None where it is none, or does not say its zone.

    >>> seconds_of("2026-11-21T17:00:00+00:00"), seconds_of("2026-11-21T17:00:00Z"), seconds_of("soon")
    (1795280400.0, 1795280400.0, None)
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time.timestamp() if time.tzinfo is not None else None


def text_of(at_s: float) -> str:
    """A time for a person, RFC 3339 in UTC with seconds.

    >>> text_of(0.0)
    '1970-01-01T00:00:00+00:00'
    """
    return datetime.fromtimestamp(min(max(0.0, at_s), 253402300799.0), UTC).isoformat(timespec="seconds")


class SignedTime:
    """The judged time. Any thread may ask: one that is overtaken finds the floor a moment too low."""

    def __init__(self, *, wall_s: Seconds, boot_s: Seconds, signed_s: Seconds) -> None:
        """With the machine's clock, that of durations, and the highest signed time, 0 before the first."""
        self._wall_s, self._boot_s, self._signed_s = wall_s, boot_s, signed_s
        self._floor: tuple[float, float] = (0.0, boot_s())

    def now_s(self) -> float:
        """Seconds since 1970, at least."""
        boot_s, signed_s = self._boot_s(), self._signed_s()
        floor_s, since_s = self._floor
        passed_s = floor_s + max(0.0, boot_s - since_s) if floor_s > 0 else 0.0
        if signed_s > passed_s:
            self._floor, passed_s = (signed_s, boot_s), signed_s
        return max(self._wall_s(), passed_s)
