"""Which tensor of the base a tensor of the new file comes from, and how it is predicted.

For: pairing tensors by name and shape, then by shape and order; and choosing for each the prediction whose
differences cost least: the old values, the old values at a new scale, or nothing.
Not for: coding (`fleet.deltas.encoder`).

Why scales matter: a weight q stands for q times its channel's scale s, and fine-tuning moves s with the
channel's largest weight, so that all of a channel's integers change where its real weights hardly did; old q
times s_old / s_new is near the new q. A bias's int32 follows its own scale in the same way, and a bias's
scale, which is the input's scale times the weight's, follows both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fleet.deltas.elements import Differences, cost_bits, differences
from fleet.deltas.tensors import Tensor
from wire import delta_format as df

Bytes = NDArray[np.uint8]

CODED_BYTES_MIN = 48
"""A smaller tensor is glue."""
NEIGHBOURS = 12
"""How far from a tensor, in its file's list, its scales are looked for."""
_WORTH_BITS, _WORTH_SHARE = 200, 1.01
"""What another prediction must save before it is worth being written down."""
_SEARCHED_BYTES = 256 * 1024
"""Of a larger tensor, the predictions are compared on its first part."""


class Pair(Struct, frozen=True):
    """A tensor of the new file, and of the base where one fits."""

    new: Tensor
    old: Tensor | None


class Choice(Struct, frozen=True):
    """How a changed tensor is coded. `referring`: its scaling names a vector of the new file."""

    pair: Pair
    prediction: int
    scaling: df.Scaling | None
    coded: Differences
    bits: float

    @property
    def referring(self) -> bool:
        """Whether the decoder must have written something else before."""
        return self.scaling is not None and self.scaling.count > 0


def pairs(old: Sequence[Tensor], new: Sequence[Tensor]) -> list[Pair]:
    """Each tensor of the new file with its predecessor, none of which has two successors."""
    unused = {_key(one): one for one in old}
    found: dict[int, Tensor] = {}
    for place, one in enumerate(new):
        twin = unused.pop(_key(one), None)
        if twin is not None:
            found[place] = twin
    by_shape: dict[tuple[object, ...], list[Tensor]] = defaultdict(list)
    for one in reversed([one for one in old if _key(one) in unused]):
        by_shape[(one.kind, one.shape, one.span.size_bytes)].append(one)
    for place, one in enumerate(new):
        rest = by_shape[(one.kind, one.shape, one.span.size_bytes)]
        if place not in found and rest:
            found[place] = rest.pop()
    return [Pair(one, found.get(place)) for place, one in enumerate(new)]


def _key(one: Tensor) -> tuple[object, ...]:
    return (one.name, one.kind, one.shape, one.span.size_bytes)


class Planner:
    """Chooses for one pair of files."""

    def __init__(self, base: Bytes, new: Bytes, found: Sequence[Pair]) -> None:
        """`found` in the order of the new file's list."""
        self._files = (base, new)
        self._pairs = found
        self._referring: set[int] = set()

    def choices(self) -> list[Choice]:
        """For every tensor that changed and is worth it."""
        return [
            choice
            for place, pair in enumerate(self._pairs)
            if pair.new.span.size_bytes >= CODED_BYTES_MIN and not self.equal(pair)
            if (choice := self._choose(place, pair)) is not None
        ]

    def equal(self, pair: Pair) -> bool:
        """Whether the tensor is the base's."""
        return pair.old is not None and bool(np.array_equal(*self._bytes(pair)))

    def _bytes(self, pair: Pair) -> tuple[Bytes, Bytes]:
        old, new = pair.old, pair.new
        there = self._files[0][old.span.offset : old.end] if old else self._files[0][:0]
        return there, self._files[1][new.span.offset : new.end]

    def _choose(self, place: int, pair: Pair) -> Choice | None:
        old, new = self._bytes(pair)
        kind, part = pair.new.kind, slice(0, _SEARCHED_BYTES)
        costs: list[tuple[float, int, df.Scaling | None]] = []
        if kind == df.BYTES:
            costs.append((self._cost(kind, None, new[part], None), df.NONE, None))
        if pair.old is not None:
            costs.append((self._cost(kind, old[part], new[part], None), df.OLD, None))
            for scaling in self._scalings(place, pair):
                cost = self._cost(kind, old[part], new[part], scaling) * _WORTH_SHARE + _WORTH_BITS
                costs.append((cost, df.SCALED, scaling))
        if not costs:
            return None
        _, prediction, chosen = min(costs, key=lambda one: one[0])
        coded = differences(kind, None if prediction == df.NONE else old, new, chosen, self._files)
        bits = cost_bits(kind, coded.values)
        if kind != df.BYTES and bits >= 8 * len(new):
            return None
        if chosen is not None and chosen.count:
            self._referring.add(place)
        return Choice(pair, prediction, chosen, coded, bits)

    def _cost(self, kind: int, old: Bytes | None, new: Bytes, scaling: df.Scaling | None) -> float:
        return cost_bits(kind, differences(kind, old, new, scaling, self._files).values)

    def _scalings(self, place: int, pair: Pair) -> Iterator[df.Scaling]:
        """Scalings that may fit, the gain of a common factor among them."""
        inverse = pair.new.kind in {df.FLOAT16, df.FLOAT32}
        if pair.new.kind != df.BYTES:
            yield from self._gained(pair, df.Scaling(inverse=inverse))
        for near in self._vectors_near(place):
            count = near.new.span.size_bytes // 4
            inner = _inner(pair.new, count)
            if inner is None or near.old is None or self.equal(near):
                continue
            scaling = df.Scaling(
                1.0, count, inner, near.old.span.offset, near.new.span.offset, inverse, pair.new.zero
            )
            yield scaling
            if pair.new.kind != df.BYTES:
                yield from self._gained(pair, scaling)

    def _gained(self, pair: Pair, scaling: df.Scaling) -> Iterator[df.Scaling]:
        """The same with the gain that the largest elements have in common."""
        form = {df.INT16: "<i2", df.INT32: "<i4", df.FLOAT16: "<f2", df.FLOAT32: "<f4"}[pair.new.kind]
        with np.errstate(all="ignore"):
            old, new = (one.copy().view(form).astype(np.float64) for one in self._bytes(pair))
            gains = new / (old * _factors(scaling, self._files, len(old)))
        largest = np.abs(old) >= np.median(np.abs(old))
        gains = gains[largest & np.isfinite(gains) & (gains != 0.0)]
        if len(gains):
            yield _with_gain(scaling, float(np.median(gains)))

    def _vectors_near(self, place: int) -> Iterator[Pair]:
        """Float32 vectors near in the list whose own coding needs no other vector."""
        first, last = max(0, place - NEIGHBOURS), place + NEIGHBOURS + 1
        floats = self._pairs[place].new.kind == df.FLOAT32
        for other in range(first, min(last, len(self._pairs))):
            pair = self._pairs[other]
            if other == place or pair.new.kind != df.FLOAT32 or other in self._referring:
                continue
            if floats and other > place:
                continue  # it may come to need this one
            yield pair


def _with_gain(scaling: df.Scaling, gain: float) -> df.Scaling:
    return df.Scaling(
        gain, scaling.count, scaling.inner, scaling.base_at, scaling.new_at, scaling.inverse, scaling.zero
    )


def _factors(scaling: df.Scaling, files: tuple[Bytes, Bytes], count: int) -> NDArray[np.float64]:
    if not scaling.count:
        return np.ones(count)
    with np.errstate(all="ignore"):
        base, new = (
            one[at : at + 4 * scaling.count].copy().view("<f4").astype(np.float64)
            for one, at in zip(files, (scaling.base_at, scaling.new_at), strict=True)
        )
        quotients = new / base if scaling.inverse else base / new
    found: NDArray[np.float64] = quotients[(np.arange(count) // scaling.inner) % scaling.count]
    return found


def _inner(tensor: Tensor, count: int) -> int | None:
    """How many neighbours share a scale, if so many scales fit one axis of the tensor or all of it."""
    elements = tensor.span.size_bytes // df.WIDTHS[tensor.kind]
    if count == 1:
        return elements
    for axis in (0, len(tensor.shape) - 1, 1):
        if axis < len(tensor.shape) and tensor.shape[axis] == count:
            inner = int(np.prod(tensor.shape[axis + 1 :], dtype=np.int64))
            return inner if elements % (inner * count) == 0 else None
    return None
