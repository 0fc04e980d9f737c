"""A tensor-wise delta applied: base and delta in, the new file out.

For: reading a delta of `wire.delta_format`, which may be anyone's, with memory that does not grow with the
model: the head (at most `HEAD_BYTES_MAX`), an LZMA2 dictionary, and one block of elements at a time. What is
not right ends in a named error, and leaves no output.
Not for: whether the output is the file that was wanted; its SHA-256 is checked by whoever ordered it.
"""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from agent.worker.delta_elements import Files, Placed, decode_stream
from agent.worker.delta_tokens import truncated
from wire import delta_format as df
from wire.errors import ContentError

_PIECE_BYTES = 256 * 1024
_FILTERS = [{"id": lzma.FILTER_LZMA2, "dict_size": df.DICTIONARY_BYTES}]


def apply_delta(base: Path, delta: Path, output: Path, size_bytes: int) -> None:
    """Writes `output`, exactly `size_bytes` long, from `base` and `delta`.

    Raises:
        ContentError: `delta_invalid`: it is no delta of this kind, or contradicts itself;
            `delta_wrong_base`: it is for a base of another size; `delta_wrong_size`: it announces another
            size; `delta_truncated`: a part of it ends early.
        OSError: of the files.
    """
    try:
        with base.open("rb") as old, delta.open("rb") as part, delta.open("rb") as raw:
            head = _read_head(part, base.stat().st_size, delta.stat().st_size, size_bytes)
            placed = _places(head)
            with output.open("w+b") as new:
                new.truncate(size_bytes)
                _write(head, placed, old, part, raw, new)
    except ContentError:
        output.unlink(missing_ok=True)
        raise


def _write(
    head: df.Head, placed: list[Placed], old: BinaryIO, part: BinaryIO, raw: BinaryIO, new: BinaryIO
) -> None:
    at = part.tell()
    _Glue(part, head.glue_bytes).write(placed, old, new)
    at += head.glue_bytes
    for number, stream in enumerate(head.streams):
        part.seek(at)
        raw.seek(at + stream.token_bytes)
        mine = [one for one in placed if one.operation.kind == df.CODED and one.operation.stream == number]
        decode_stream(Files(old, new, part, raw), stream, mine)
        at += stream.token_bytes + stream.raw_bytes


def _read_head(part: BinaryIO, base_bytes: int, delta_bytes: int, size_bytes: int) -> df.Head:
    """The head, once it agrees with the sizes of the files.

    Raises:
        ContentError: as `apply_delta`.
    """
    start = part.read(len(df.MAGIC) + df.HEAD_SIZES.size)
    _require(
        start.startswith(df.MAGIC) and len(start) == len(df.MAGIC) + df.HEAD_SIZES.size, "it has no head"
    )
    packed, size = df.HEAD_SIZES.unpack_from(start, len(df.MAGIC))
    _require(packed <= delta_bytes and size <= df.HEAD_BYTES_MAX, f"its head has {packed} and {size} bytes")
    unpacked = _Unpacker(part, packed).read(size)
    try:
        head = msgspec.msgpack.decode(unpacked, type=df.Head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(f"its head cannot be read ({error})") from None
    if head.base_bytes != base_bytes:
        raise ContentError(
            "delta_wrong_base", f"the delta is for a base of {head.base_bytes} bytes, not {base_bytes}"
        )
    if head.new_bytes != size_bytes:
        raise ContentError(
            "delta_wrong_size", f"the delta makes {head.new_bytes} bytes, {size_bytes} are wanted"
        )
    part.seek(len(start) + packed)
    streams = sum(one.token_bytes + one.raw_bytes for one in head.streams)
    total = len(start) + packed + head.glue_bytes + streams
    if total != delta_bytes:
        code = "delta_truncated" if total > delta_bytes else "delta_invalid"
        raise ContentError(code, f"the delta's parts have {total} bytes, its file has {delta_bytes}")
    return head


def _places(head: df.Head) -> list[Placed]:
    """Where each operation reads and writes, once all lie within the files and fill the new one.

    Raises:
        ContentError: `delta_invalid`.
    """
    placed, new_at, base_at = [], 0, 0
    elements = [0] * len(head.streams)
    for one in head.operations:
        if one.reads_base:
            base_at += one.skip
            _require(0 <= base_at <= head.base_bytes - one.size_bytes, "an operation reads beyond the base")
        placed.append(Placed(one, new_at, base_at))
        new_at += one.size_bytes
        base_at += one.size_bytes if one.reads_base else 0
        if one.kind == df.CODED:
            _require(one.stream < len(head.streams), f"an operation names stream {one.stream}")
            width = df.WIDTHS[head.streams[one.stream].kind]
            _require(one.size_bytes % width == 0, "a tensor ends within an element")
            elements[one.stream] += one.size_bytes // width
        _require((one.prediction == df.SCALED) == (one.scaling is not None), "a scaling is not as predicted")
        if one.scaling is not None:
            _check_scaling(one.scaling, head)
    slow = any(one.elements > df.STEPS_MAX * one.lanes < df.STEPS_MAX * df.LANES_MAX for one in head.streams)
    _require(not slow, "a stream has too few lanes for its elements")
    _require(new_at == head.new_bytes, f"its operations make {new_at} bytes of {head.new_bytes}")
    _require(elements == [one.elements for one in head.streams], "its streams do not have the elements named")
    return placed


def _check_scaling(scaling: df.Scaling, head: df.Head) -> None:
    size = 4 * scaling.count
    _require(scaling.count <= df.BLOCK_ELEMENTS, f"a scale of {scaling.count} elements")
    inside = scaling.base_at + size <= head.base_bytes and scaling.new_at + size <= head.new_bytes
    _require(inside, "a scale lies beyond the files")


class _Unpacker:
    """LZMA2 of a known size, a piece at a time."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS)

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes.

        Raises:
            ContentError: `delta_truncated`, or `delta_invalid`: it is no LZMA2.
        """
        found = bytearray()
        while len(found) < size:
            piece = b""
            if self._decoder.needs_input:
                piece = self._file.read(min(_PIECE_BYTES, self._left))
                self._left -= len(piece)
            if self._decoder.eof or (self._decoder.needs_input and not piece):
                raise truncated("a compressed part ends")
            try:
                found += self._decoder.decompress(piece, max_length=size - len(found))
            except lzma.LZMAError as error:
                raise _invalid(f"a compressed part cannot be read ({error})") from None
        return bytes(found)


class _Glue:
    """What is not a coded tensor: literal bytes, copies, and copies with differences."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._packed = _Unpacker(file, size)

    def write(self, placed: list[Placed], old: BinaryIO, new: BinaryIO) -> None:
        """Writes all of it, in the order of the output."""
        for one in placed:
            if one.operation.kind == df.CODED:
                continue
            new.seek(one.new_at)
            if one.operation.kind != df.LITERAL:
                old.seek(one.base_at)
            left = one.operation.size_bytes
            while left:
                size = min(left, _PIECE_BYTES)
                new.write(self._piece(one.operation.kind, size, old))
                left -= size

    def _piece(self, kind: int, size: int, old: BinaryIO) -> bytes:
        if kind == df.LITERAL:
            return self._packed.read(size)
        base = old.read(size)
        if len(base) != size:
            raise truncated("the base ends")
        if kind == df.COPY:
            return base
        differences = np.frombuffer(self._packed.read(size), dtype=np.uint8)
        return (np.frombuffer(base, dtype=np.uint8) + differences).tobytes()


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise _invalid(message)


def _invalid(message: str) -> ContentError:
    return ContentError("delta_invalid", f"the delta cannot be used: {message}")
