"""What the glue of a delta is made of: parts of the base that lie in it nearly as they are, and the rest.

For: matching bytes of which nothing is known, as bsdiff does (C. Percival, "Naive differences of executable
code", 2003): exact matches of `WINDOW` bytes are seeds, each grown for as long as at least half of the
bytes agree.
Not for: tensors (`fleet.deltas.plan`).
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

WINDOW = 8
MATCH_BYTES_MIN = 24
"""A shorter one costs more than its bytes."""
INDEX_MAX = 32 * 1024**2
"""Places of the base that are indexed; a larger base is indexed at every second place, or third."""
_RUN = 32
_GROWN_AT_ONCE = 64 * 1024


class Match(Struct, frozen=True):
    """Bytes of the new file that nearly are the base's."""

    new_at: int
    base_at: int
    size: int


class Matcher:
    """Finds parts of a base; the index is made when it is first needed."""

    def __init__(self, base: Bytes) -> None:
        """`base` is the whole old file."""
        self._base = base
        self._values: NDArray[np.uint64] | None = None
        self._places = np.zeros(0, dtype=np.int64)

    def matches(self, new: Bytes, first: int, last: int, expected: int, matches_max: int) -> list[Match]:
        """Matches within new[first:last], in order and apart; `expected` is the base's likeliest place."""
        found: list[Match] = []
        at, shift = first, expected - first
        seeds, places = self._seeds(new, first, last)
        while at + WINDOW <= last and len(found) < matches_max:
            seed = self._next_seed(new, (at, last), shift, (seeds, places))
            if seed is None:
                break
            match = self._grown(new, seed, at, last)
            if match.size >= MATCH_BYTES_MIN:
                found.append(match)
                at, shift = match.new_at + match.size, match.base_at - match.new_at
            else:
                at = max(at, seed[0]) + 1
        return found

    def _next_seed(
        self,
        new: Bytes,
        where: tuple[int, int],
        shift: int,
        known: tuple[NDArray[np.int64], NDArray[np.int64]],
    ) -> tuple[int, int] | None:
        """The next place of `new` whose window lies in the base; the last match's shift is tried first."""
        at, last = where
        seeds, places = known
        index = int(np.searchsorted(seeds, at))
        if index == len(seeds):
            return None
        place, base_at = int(seeds[index]), int(places[index])
        likely = place + shift
        if 0 <= likely <= len(self._base) - WINDOW and place + WINDOW <= last:
            same = self._base[likely : likely + WINDOW] == new[place : place + WINDOW]
            base_at = likely if same.all() else base_at
        return place, base_at

    def _grown(self, new: Bytes, seed: tuple[int, int], first: int, last: int) -> Match:
        place, base_at = seed
        size = WINDOW
        while True:
            count = min(_GROWN_AT_ONCE, last - place - size, len(self._base) - base_at - size)
            if count <= 0:
                break
            near = (
                new[place + size : place + size + count]
                == self._base[base_at + size : base_at + size + count]
            )
            kept = _agreeing(near)
            size += kept
            if kept < count:
                break
        while place > first and base_at > 0 and new[place - 1] == self._base[base_at - 1]:
            place, base_at, size = place - 1, base_at - 1, size + 1
        return Match(place, base_at, size)

    def _seeds(self, new: Bytes, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places of `new` whose windows lie in the base, and where."""
        none = np.zeros(0, dtype=np.int64)
        if last - first < WINDOW or len(self._base) < WINDOW:
            return none, none
        if self._values is None:
            self._make_index()
        values = self._values
        if values is None:
            return none, none
        windows = _windows(new[first:last])
        slots = np.minimum(np.searchsorted(values, windows), len(values) - 1)
        hits = np.flatnonzero(values[slots] == windows)
        return hits + first, self._places[slots[hits]]

    def _make_index(self) -> None:
        windows = _windows(self._base)
        step = 1 + len(windows) // INDEX_MAX
        places = np.arange(0, len(windows), step)
        order = np.argsort(windows[places], kind="stable")
        self._places = places[order]
        self._values = windows[self._places]


def _windows(data: Bytes) -> NDArray[np.uint64]:
    """Every eight neighbouring bytes as a number."""
    count = len(data) - WINDOW + 1
    found = np.zeros(count, dtype=np.uint64)
    for i in range(WINDOW):
        found |= data[i : i + count].astype(np.uint64) << np.uint64(8 * i)
    return found


def _agreeing(near: NDArray[np.bool_]) -> int:
    """How far to go on: up to the last equal byte before a run of which less than half agrees."""
    whole = len(near) // _RUN
    sums = near[: whole * _RUN].reshape(whole, _RUN).sum(axis=1)
    bad = np.flatnonzero(sums < _RUN // 2)
    end = int(bad[0]) * _RUN if len(bad) else len(near)
    if end == len(near):
        return end
    rest = near[end : end + _RUN]
    extra = int(np.argmin(rest)) if not rest.all() else len(rest)
    end += extra
    equal = np.flatnonzero(near[:end])
    return int(equal[-1]) + 1 if len(equal) else 0
