"""PURE. How often an address may fail to name itself before it has to wait.

For: keeping a flood of wrong tokens from the database and the log. A token's 256 random bits cannot be
guessed at any rate; this is about load, not about secrecy.
Not for: requests that are let in, which are not counted.

Behind one address (a proxy, a shared network) there may be both a flood and people: a token that was good
from there a moment ago is looked at even while the address has to wait.
"""

from __future__ import annotations

from collections import OrderedDict

FAILURES_MAX = 10
WINDOW_S = 60.0
REMEMBERED_MAX = 4096
"""Addresses, and good tokens' hashes, that are remembered; the oldest go first."""


class Attempts:
    """Failures by address in a fixed window, and who was let in lately; not shared between processes."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._good: OrderedDict[tuple[str, str], float] = OrderedDict()

    def wait_s(self, address: str, token: str, now: float) -> float:
        """How long whoever speaks from there has to wait before the token is looked at; 0: not at all.

        Args:
            address: of the other side.
            token: a hash of it, never the token.
            now: seconds on a clock that does not step.
        """
        since, count = self._failures.get(address, (now, 0))
        if count < FAILURES_MAX or now - since >= WINDOW_S:
            return 0.0
        if now - self._good.get((address, token), now - WINDOW_S) < WINDOW_S:
            return 0.0
        return since + WINDOW_S - now

    def failed(self, address: str, now: float) -> None:
        """Notes a failure."""
        since, count = self._failures.pop(address, (now, 0))
        self._failures[address] = (now, 1) if now - since >= WINDOW_S else (since, count + 1)
        _bound(self._failures)

    def passed(self, address: str, token: str, now: float) -> None:
        """Notes that a token was good."""
        self._good.pop((address, token), None)
        self._good[address, token] = now
        _bound(self._good)


def _bound(remembered: OrderedDict[str, tuple[float, int]] | OrderedDict[tuple[str, str], float]) -> None:
    while len(remembered) > REMEMBERED_MAX:
        remembered.popitem(last=False)
