"""From tokens to elements: a stream of a delta, block by block, written into the new file.

For: the parts of tensors within each block, their predictions from the base, their low bits, and their
bytes at their places of the output.
Not for: the coder of the tokens (`agent.worker.delta_tokens`), or the glue (`agent.worker.delta`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.worker.delta_tokens import TokenReader, truncated
from wire import delta_format as df
from wire.delta_model import (
    exponents,
    from_ordered,
    ordered,
    predicted_bytes,
    predicted_wide,
    ratios,
)

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

_NOTHING = np.zeros(0, dtype="<f4")


class Placed(Struct, frozen=True):
    """An operation with its place in the output and in the base."""

    operation: df.Operation
    new_at: int
    base_at: int


class _Part(Struct, frozen=True):
    """Neighbouring elements of one tensor within one block."""

    placed: Placed
    first: int
    count: int


class _Prediction(Struct, frozen=True):
    values: Ints
    known: Ints
    turned: NDArray[np.bool_] | None


class Files(Struct, frozen=True):
    """The three open files; the delta is opened twice, for tokens and raw bits are read side by side."""

    base: BinaryIO
    output: BinaryIO
    tokens: BinaryIO
    raw: BinaryIO


def decode_stream(files: Files, stream: df.Stream, work: Sequence[Placed]) -> None:
    """Writes all tensors of a stream; `files.tokens` and `files.raw` stand where its parts begin.

    Raises:
        ContentError: `delta_truncated`.
        OSError: of the output's disk.
    """
    tokens, raw = TokenReader(files.tokens, stream), _LowBits(files.raw, stream.raw_bytes)
    vectors: dict[int, tuple[NDArray[Any], NDArray[Any]]] = {}
    for block in _blocks(stream.kind, work):
        predictions = [_predict(files, stream.kind, part, vectors) for part in block]
        found = tokens.block(np.concatenate([one.known for one in predictions]))
        differences = _signed(found) if stream.kind == df.BYTES else raw.differences(found)
        at = 0
        for part, one in zip(block, predictions, strict=True):
            data = _element_bytes(stream.kind, one, differences[at : at + part.count])
            files.output.seek(part.placed.new_at + part.first * df.WIDTHS[stream.kind])
            files.output.write(data.data)
            at += part.count


def _blocks(kind: int, work: Sequence[Placed]) -> Iterator[list[_Part]]:
    """Parts of the tensors, in blocks of `BLOCK_ELEMENTS`; the last is what is left."""
    block: list[_Part] = []
    room = df.BLOCK_ELEMENTS
    for placed in work:
        first, left = 0, placed.operation.size_bytes // df.WIDTHS[kind]
        while left:
            count = min(left, room)
            block.append(_Part(placed, first, count))
            first, left, room = first + count, left - count, room - count
            if not room:
                yield block
                block, room = [], df.BLOCK_ELEMENTS
    if block:
        yield block


def _predict(files: Files, kind: int, part: _Part, vectors: dict[int, Any]) -> _Prediction:
    operation, width = part.placed.operation, df.WIDTHS[kind]
    if operation.prediction == df.NONE:
        zeros = np.zeros(part.count, dtype=np.int64)
        return _Prediction(zeros, zeros, None)
    old = _read(files.base, part.placed.base_at + part.first * width, part.count * width)
    if operation.scaling is None:
        if kind == df.BYTES:
            return _Prediction(old.astype(np.int64), np.zeros(part.count, dtype=np.int64), None)
        values = ordered(np, kind, old)
        return _Prediction(values, exponents(np, kind, values), None)
    if part.placed.new_at not in vectors:
        vectors.clear()  # of the tensor before; only one tensor's are held
        vectors[part.placed.new_at] = _vectors(files, operation.scaling)
    base, new = vectors[part.placed.new_at]
    factors = ratios(np, operation.scaling, base, new, part.first, part.count)
    if kind == df.BYTES:
        return _Prediction(*predicted_bytes(np, old, factors, operation.scaling.zero))
    values = predicted_wide(np, kind, old, factors)
    return _Prediction(values, exponents(np, kind, values), None)


def _vectors(files: Files, scaling: df.Scaling) -> tuple[NDArray[Any], NDArray[Any]]:
    """The two float32 vectors; what the output does not hold yet reads as zeros."""
    if not scaling.count:
        return _NOTHING, _NOTHING
    base = _read(files.base, scaling.base_at, 4 * scaling.count)
    new = _read(files.output, scaling.new_at, 4 * scaling.count)
    return base.view("<f4"), new.view("<f4")


def _read(file: BinaryIO, at: int, size: int) -> Bytes:
    file.seek(at)
    data = file.read(size)
    if len(data) != size:
        raise truncated("the base or the output ends")
    return np.frombuffer(data, dtype=np.uint8)


def _signed(tokens: Bytes) -> Ints:
    return tokens.view(np.int8).astype(np.int64)


def _element_bytes(kind: int, prediction: _Prediction, differences: Ints) -> Bytes:
    if prediction.turned is not None:
        differences = np.where(prediction.turned, -differences, differences)
    values = prediction.values + differences
    if kind == df.BYTES:
        return (values & 255).astype(np.uint8)
    found: Bytes = from_ordered(np, kind, values)
    return found


class _LowBits:
    """The bits of wide differences below the first three, as they are, lowest bit first."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size
        self._kept = np.zeros(0, dtype=np.uint8)
        self._bit = 0

    def differences(self, tokens: Bytes) -> Ints:
        """The signed differences that these tokens begin."""
        token = tokens.astype(np.int64)
        bits = np.minimum(token >> 3, 32)
        low = np.maximum(bits - 3, 0)
        top = _top(bits, token >> 1 & 3)
        size = (top << low) | self._take(low)
        found: Ints = np.where(token & 1, -size, size)
        found[token == 1] = -(1 << 31)
        return found

    def _take(self, lengths: Ints) -> Ints:
        """Numbers of so many bits each."""
        ends = np.cumsum(lengths) + self._bit
        needed = -(-int(ends[-1]) // 8) if len(ends) else 0
        if needed > len(self._kept):
            fresh = self._file.read(min(needed - len(self._kept), self._left))
            self._left -= len(fresh)
            self._kept = np.concatenate([self._kept, np.frombuffer(fresh, dtype=np.uint8)])
        if needed > len(self._kept):
            raise truncated("the low bits of a stream end")
        padded = np.concatenate([self._kept, np.zeros(8, dtype=np.uint8)])
        starts = ends - lengths
        whole = np.zeros(len(lengths), dtype=np.int64)
        for i in range(5):  # 29 bits from any bit of a byte on lie in five bytes
            whole |= padded[(starts >> 3) + i].astype(np.int64) << (8 * i)
        end = int(ends[-1]) if len(ends) else self._bit
        self._kept, self._bit = self._kept[end >> 3 :], end & 7
        found: Ints = (whole >> (starts & 7)) & ((1 << lengths) - 1)
        return found


def _top(bits: Ints, following: Ints) -> Ints:
    """The first one, two or three bits of a number of `bits` bits."""
    one, two = (bits > 0).astype(np.int64), 2 | (following & 1)
    return np.where(bits >= 3, 4 | following, np.where(bits == 2, two, one))
