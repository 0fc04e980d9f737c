"""PURE. How often somebody may do something: a bucket of tries for each name, in a table that cannot grow.

For: addresses and devices that ask for certificates.
Not for: who they are, or what happens to a try that is refused.
"""

from __future__ import annotations

NAMES_MAX = 10_000
"""Names remembered; above that the one that was quiet for longest is forgotten."""


class Rates:
    """A bucket for each name: `burst` tries at once, and one more every `60 / per_minute` seconds.

    A name that was never seen has a full bucket. Whoever speaks under ever new names is bounded by what
    names cost (an address, a certificate), and not here.
    """

    def __init__(self, per_minute: float, burst: int, names_max: int = NAMES_MAX) -> None:
        self._per_s = per_minute / 60.0
        self._burst = float(burst)
        self._names_max = names_max
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, name: str, now: float) -> bool:
        """Takes one try; whether there was one.

        Args:
            name: whose.
            now: seconds on a clock that does not go backwards.
        """
        left = self._filled(name, now)
        allowed = left >= 1.0
        # Put in anew, so that the table's order is that of the last tries.
        self._left.pop(name, None)
        self._left[name] = (left - 1.0 if allowed else left, now)
        if len(self._left) > self._names_max:
            del self._left[next(iter(self._left))]
        return allowed

    def left(self, name: str, now: float) -> bool:
        """Whether there is a try left; nothing is taken."""
        return self._filled(name, now) >= 1.0

    def _filled(self, name: str, now: float) -> float:
        left, since = self._left.get(name, (self._burst, now))
        return min(self._burst, left + max(0.0, now - since) * self._per_s)
