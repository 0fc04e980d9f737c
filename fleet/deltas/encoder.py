"""A delta from one file to another, as `agent.worker.delta` reads it.

For: `encode()`: tensors by their predictions, the rest as glue, all in the bytes of `wire.delta_format`.
Not for: deciding for which files deltas are made (`fleet.deltas.offers`).

Memory is the host's: a few dozen times the size of the files where all tensors changed.
"""

from __future__ import annotations

import lzma

import msgspec
import numpy as np
from numpy.typing import NDArray

from fleet.deltas.elements import packed, tokens_of
from fleet.deltas.glue import Matcher
from fleet.deltas.plan import Choice, Pair, Planner, pairs
from fleet.deltas.tensors import tensors_of
from fleet.deltas.tokens import code, lanes_for
from wire import delta_format as df

ALGORITHM = df.ALGORITHM

Bytes = NDArray[np.uint8]

_STREAM_ORDER = ((df.FLOAT32, False), (df.FLOAT32, True), (df.FLOAT16, False), (df.FLOAT16, True),
                 (df.INT32, False), (df.INT16, False), (df.BYTES, False))  # fmt: skip
"""Scales before what refers to them; integers refer to floats only, so whether they refer does not matter."""
_GLUE_MATCHES_MAX = 20_000
_ALIKE = 0.5
_TRIED_TWICE_BYTES = 4 * 1024**2


def encode(base: bytes, new: bytes) -> bytes | None:
    """The delta; None where it would not be smaller than nine tenths of the new file."""
    if not new:
        return None
    delta = _Encoder(base, new).encode()
    return delta if len(delta) < 0.9 * len(new) else None


class _Encoder:
    def __init__(self, base: bytes, new: bytes) -> None:
        self._base, self._new = np.frombuffer(base, dtype=np.uint8), np.frombuffer(new, dtype=np.uint8)
        self._pairs = pairs(tensors_of(base), tensors_of(new))
        self._matcher = Matcher(self._base)
        self._operations: list[df.Operation] = []
        self._glue: list[bytes] = []
        self._base_at = 0

    def encode(self) -> bytes:
        """The whole delta."""
        planner = Planner(self._base, self._new, self._pairs)
        choices = self._worthwhile(planner.choices())
        used = [key for key in _STREAM_ORDER if any(_stream_key(one) == key for one in choices)]
        by_new = {one.pair.new.span.offset: one for one in choices}
        self._lay_out(planner, by_new, used)
        streams, parts = [], []
        for key in used:
            mine = [one for one in choices if _stream_key(one) == key]
            stream, content = _stream(key[0], sorted(mine, key=lambda one: one.pair.new.span.offset))
            streams.append(stream)
            parts.append(content)
        return self._assembled(streams, parts)

    def _worthwhile(self, choices: list[Choice]) -> list[Choice]:
        """Without those that LZMA2 alone makes smaller, as it does where values repeat."""
        return [
            one
            for one in choices
            if one.prediction != df.NONE or 8 * len(_lzma(self._bytes_of(one.pair), preset=1)) > one.bits
        ]

    def _bytes_of(self, pair: Pair) -> bytes:
        return self._new[pair.new.span.offset : pair.new.end].tobytes()

    def _lay_out(self, planner: Planner, by_new: dict[int, Choice], used: list[tuple[int, bool]]) -> None:
        """Operations and glue in the order of the new file."""
        fixed = [
            pair
            for pair in self._pairs
            if pair.new.span.offset in by_new
            or (pair.old is not None and len(self._bytes_of(pair)) >= 64 and planner.equal(pair))
        ]
        at = 0
        for pair in sorted(fixed, key=lambda one: one.new.span.offset):
            start, old = pair.new.span.offset, pair.old
            self._glue_between(at, start, None if old is None else old.span.offset)
            choice = by_new.get(start)
            if choice is None:
                self._add(df.COPY, pair.new.span.size_bytes, old.span.offset if old else 0)
            else:
                base_at = None if choice.prediction == df.NONE or old is None else old.span.offset
                number = used.index(_stream_key(choice))
                self._add(df.CODED, pair.new.span.size_bytes, base_at, number, choice)
            at = pair.new.end
        self._glue_between(at, len(self._new), len(self._base))

    def _add(
        self, kind: int, size: int, base_at: int | None, stream: int = 0, choice: Choice | None = None
    ) -> None:
        skip = 0
        if base_at is not None:
            skip, self._base_at = base_at - self._base_at, base_at + size
        prediction, scaling = (df.NONE, None) if choice is None else (choice.prediction, choice.scaling)
        self._operations.append(df.Operation(kind, size, skip, stream, prediction, scaling))

    def _glue_between(self, first: int, last: int, base_last: int | None) -> None:
        """Glue of new[first:last]; `base_last` is where the base's next tensor begins, if there is one."""
        size = last - first
        if not size:
            return
        for base_first in {self._base_at, (base_last or 0) - size}:
            if 0 <= base_first <= len(self._base) - size and self._alike(first, base_first, size):
                self._sum(first, base_first, size)
                return
        room = max(0, _GLUE_MATCHES_MAX - len(self._operations) // 2)
        at = first
        for match in self._matcher.matches(self._new, first, last, self._base_at, room):
            self._literal(at, match.new_at)
            self._sum(match.new_at, match.base_at, match.size)
            at = match.new_at + match.size
        self._literal(at, last)

    def _alike(self, first: int, base_first: int, size: int) -> bool:
        near = self._new[first : first + size] == self._base[base_first : base_first + size]
        return size < 1 << 16 and bool(near.mean() > _ALIKE)

    def _sum(self, first: int, base_first: int, size: int) -> None:
        difference = self._new[first : first + size] - self._base[base_first : base_first + size]
        if difference.any():
            self._add(df.SUM, size, base_first)
            self._glue.append(difference.tobytes())
        else:
            self._add(df.COPY, size, base_first)

    def _literal(self, first: int, last: int) -> None:
        if last > first:
            self._add(df.LITERAL, last - first, None)
            self._glue.append(self._new[first:last].tobytes())

    def _assembled(self, streams: list[df.Stream], parts: list[bytes]) -> bytes:
        glue = _lzma(b"".join(self._glue))
        head = df.Head(len(self._base), len(self._new), len(glue), tuple(self._operations), tuple(streams))
        plain = msgspec.msgpack.encode(head)
        small = _lzma(plain)
        sizes = df.HEAD_SIZES.pack(len(small), len(plain))
        return b"".join([df.MAGIC, sizes, small, glue, *parts])


def _stream_key(choice: Choice) -> tuple[int, bool]:
    floats = choice.pair.new.kind in {df.FLOAT16, df.FLOAT32}
    return choice.pair.new.kind, choice.referring and floats


def _stream(kind: int, choices: list[Choice]) -> tuple[df.Stream, bytes]:
    values = np.concatenate([one.coded.values for one in choices])
    known = np.concatenate([one.coded.known for one in choices])
    tokens, low, lengths = tokens_of(kind, values)
    lanes = lanes_for(len(values), sum(one.bits for one in choices))
    coded, raw = code(kind, tokens, known, lanes), packed(low, lengths)
    return df.Stream(kind, lanes, len(values), len(coded), len(raw)), coded + raw


def _lzma(data: bytes, preset: int | None = None) -> bytes:
    """LZMA2, the better of two settings where there is little of it."""
    small = preset is None and len(data) <= _TRIED_TWICE_BYTES
    chosen = preset or (9 | lzma.PRESET_EXTREME if small else 6)
    tried = [lzma.compress(data, lzma.FORMAT_RAW, filters=[_filter(chosen, four)]) for four in {False, small}]
    return min(tried, key=len)


def _filter(preset: int, four: bool) -> dict[str, int]:
    """For text and structures, or for arrays of numbers of four bytes."""
    position = {"lc": 0, "lp": 2, "pb": 2} if four else {"lc": 3, "lp": 0, "pb": 0}
    return {"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": df.DICTIONARY_BYTES, **position}
