"""PURE. A value that the whole process shares, and that is replaced whole while it runs.

For: the keys and certificates of a registry that nobody starts again (`fleet.succession`). Whoever holds a
`Current` reads `now` at each use and keeps no copy.
Not for: deciding what follows, or when.

The rule that keeps old signatures out: it is replaced inside a transaction, and what ends in the database is
signed by what `now` says inside its own. Transactions follow one another, so what was written before is
signed anew by the one that replaces, and what is written after is signed by the new keys.
"""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Current(Generic[T]):
    """One value at a time."""

    def __init__(self, value: T) -> None:
        self._value = value

    @property
    def now(self) -> T:
        """The one that counts."""
        return self._value

    def succeed(self, value: T) -> None:
        """Puts another in its place."""
        self._value = value
