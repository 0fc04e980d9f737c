"""PURE. How the tensor-wise delta `tensor-1` lies in its bytes, and the tables that both its ends share.

For: the types, limits and integer tables of which `fleet.deltas` makes a delta and `agent.worker.delta`
reads one (docs/adr/0010-delta.md has the reasons). In order: `MAGIC`, the head's two sizes (`HEAD_SIZES`),
the head (this module's `Head` as MessagePack, LZMA2), the glue (LZMA2), and for each stream its coded
tokens and its raw bits.
Not for: arithmetic on arrays, which needs numpy.

The new file is the outputs of the operations, one after the other. Operations of kind CODED take the
elements of a tensor from a stream: a token for each, by a range coder (rANS, Duda 2013, arXiv:1311.2540)
whose tables follow what was decoded so far, and for wide elements the low bits as they are.
"""

from __future__ import annotations

import struct
from typing import Annotated

from msgspec import Meta, Struct

from wire.bundle import FILE_BYTES_MAX

ALGORITHM = "tensor-1"
MAGIC = b"SHDT1\n"
HEAD_SIZES = struct.Struct("<II")
"""Bytes of the head as it lies in the file, and decompressed."""

HEAD_BYTES_MAX = 16 * 1024**2
OPERATIONS_MAX = 100_000
STREAMS_MAX = 8
LANES_MAX = 1024
STEPS_MAX = 16 * 1024
"""Elements that one lane may have unless there are `LANES_MAX`: what decoding costs goes by the steps."""
BLOCK_ELEMENTS = 128 * 1024
"""Elements that are decoded at once; what the decoder holds in memory is a multiple of it."""
DICTIONARY_BYTES = 4 * 1024**2
"""Of the LZMA2 parts; the decoder needs that much memory."""

LITERAL, COPY, SUM, CODED = range(4)
"""Bytes of the glue; of the base; their sum modulo 256; or elements of a stream."""

BYTES, INT16, INT32, FLOAT16, FLOAT32 = range(5)
"""Kinds of elements. Floats are handled as integers in the order of their values."""
WIDTHS = (1, 2, 4, 2, 4)

NONE, OLD, SCALED = range(3)
"""What an element is predicted to be: 0; the base's; or the base's times a ratio."""

PRECISION_BITS = 16
TOTAL = 1 << PRECISION_BITS
STATE_MIN = 1 << 16
"""A lane's state lies between this and 2^32."""

Size = Annotated[int, Meta(ge=0, le=FILE_BYTES_MAX)]


class Scaling(Struct, frozen=True, array_like=True):
    """By which ratio the base's elements are scaled: `gain`, times a quotient of two float32 vectors.

    Attributes:
        gain: of all elements; a ratio that is not finite counts as 1.
        count: elements of each vector; 0 where there is none.
        inner: neighbouring elements of the tensor that share a vector's element.
        base_at: where the vector lies in the base.
        new_at: where it lies in the new file; its bytes come from an operation of the glue or of an
            earlier stream.
        inverse: the quotient is new / base (a scale follows another scale) instead of base / new (an
            integer shrinks where its scale grows).
        zero: the byte that stands for 0; for elements of kind BYTES.
    """

    gain: float = 1.0
    count: Size = 0
    inner: Annotated[int, Meta(ge=1, le=FILE_BYTES_MAX)] = 1
    base_at: Size = 0
    new_at: Size = 0
    inverse: bool = False
    zero: Annotated[int, Meta(ge=0, le=255)] = 0


class Operation(Struct, frozen=True, array_like=True):
    """The next `size_bytes` of the new file.

    Attributes:
        kind: LITERAL, COPY, SUM or CODED.
        size_bytes: of output.
        skip: where its part of the base begins, counted from the end of the last operation's that had one.
        stream: of CODED.
        prediction: of CODED: NONE, OLD or SCALED.
        scaling: of SCALED.
    """

    kind: Annotated[int, Meta(ge=0, le=3)]
    size_bytes: Annotated[int, Meta(ge=1, le=FILE_BYTES_MAX)]
    skip: Annotated[int, Meta(ge=-FILE_BYTES_MAX, le=FILE_BYTES_MAX)] = 0
    stream: Annotated[int, Meta(ge=0, le=STREAMS_MAX - 1)] = 0
    prediction: Annotated[int, Meta(ge=0, le=2)] = NONE
    scaling: Scaling | None = None

    @property
    def reads_base(self) -> bool:
        """Whether it has a part of the base."""
        return self.kind in {COPY, SUM} or (self.kind == CODED and self.prediction != NONE)


class Stream(Struct, frozen=True, array_like=True):
    """Elements of one kind, of the operations that name it, in their order.

    Attributes:
        kind: BYTES to FLOAT32.
        lanes: states of the coder, which take turns.
        elements: of all its operations.
        token_bytes: of the lanes' states and words.
        raw_bytes: of the low bits.
    """

    kind: Annotated[int, Meta(ge=0, le=4)]
    lanes: Annotated[int, Meta(ge=1, le=LANES_MAX)]
    elements: Annotated[int, Meta(ge=1, le=FILE_BYTES_MAX)]
    token_bytes: Size
    raw_bytes: Size


class Head(Struct, frozen=True, array_like=True):
    """What a delta consists of; `base_bytes` and `new_bytes` are the sizes of the two files."""

    base_bytes: Size
    new_bytes: Size
    glue_bytes: Size
    operations: Annotated[tuple[Operation, ...], Meta(max_length=OPERATIONS_MAX)]
    streams: Annotated[tuple[Stream, ...], Meta(max_length=STREAMS_MAX)]


# The model of the range coder. A lane keeps an average of how large the last elements' differences were
# (`activity`); it chooses the table for the next. All of it is integers, so both ends agree anywhere.

ACTIVITY_SHIFT = 3
"""The average moves by 1/8 of the difference."""
ACTIVITY_SCALE = 32
NARROW_CLASSES = 32
WIDE_CLASSES = 72
FRACTIONS = 4
"""Tables for how far a scaled prediction lies from a whole number; the first also for all others."""


def narrow_magnitudes() -> list[int]:
    """How large a token of kind BYTES is: log2(1 + |d|) by eighths, d the signed difference."""
    return [ACTIVITY_SCALE * (((1 + min(token, 256 - token)) ** 8).bit_length() - 1) for token in range(256)]


def narrow_classes() -> list[int]:
    """The table's number for each activity from 0 to the largest: fine below 1, then by quarters of a bit."""
    top = max(narrow_magnitudes())
    return [min(NARROW_CLASSES - 1, _class_of(one)) for one in range(top + 1)]


def _class_of(activity: int) -> int:
    fine = (8, 20, 36, 56, 80, 108, 140, 176, 216, 260, 310)
    below = sum(activity >= edge for edge in fine)
    return below if below < len(fine) else len(fine) + (activity - fine[-1]) // 72


def wide_magnitudes() -> list[int]:
    """How large a token of the wide kinds is: its number of bits, and the two that follow the first."""
    return [
        ACTIVITY_SCALE * (8 * (token >> 3) + (2 * (token >> 1 & 3) if token >> 3 else 0))
        for token in range(256)
    ]


WIDE_SHIFT = 7
"""Tables of the wide kinds are half a bit apart."""
BIT = 8 * ACTIVITY_SCALE
"""One bit, in units of activity."""
WIDE_START = 14 * BIT
INCREMENT = 64
"""What one token adds to its count."""
REBUILD_FIRST = 128
REBUILD_SHIFT = 2
REBUILD_MAX = 16 * 1024
"""Tables are made again after the first number of tokens, each time that their number grew by a quarter, and
at least each time that so many more have passed."""
COUNTS_MAX = 1 << 17
"""A table that counted more is halved, so that it forgets the tensors before."""


def priors(kind: int) -> list[list[int]]:
    """Counts of every table's tokens before anything was seen: those of its class's magnitude lead."""
    if kind != BYTES:
        return _prior([(one << WIDE_SHIFT) + BIT // 4 for one in range(WIDE_CLASSES)], wide_magnitudes())
    classes = narrow_classes()
    firsts = [classes.index(one) if one in classes else len(classes) for one in range(NARROW_CLASSES)]
    return [table for table in _prior(firsts, narrow_magnitudes()) for _ in range(FRACTIONS)]


def _prior(centres: list[int], magnitudes: list[int]) -> list[list[int]]:
    sizes = {one: magnitudes.count(one) for one in magnitudes}
    steps = [[abs(one - centre) // (2 * ACTIVITY_SCALE) for one in magnitudes] for centre in centres]
    return [
        [8192 // ((4 + d * d) * sizes[one]) for d, one in zip(row, magnitudes, strict=True)] for row in steps
    ]
