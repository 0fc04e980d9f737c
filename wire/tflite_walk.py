"""PURE. What a `.tflite` file holds, read off its bytes without the schema's classes.

For: the main graph's operators and tensors (`walk`), where the constants' payloads lie (`tensor_spans`), so
that a file is cut at them without being decoded, and its metadata (`metadata_of`).
Not for: writing (`converter.tflite`), values, or further subgraphs.

FlatBuffers' layout: https://flatbuffers.dev/internals/ ; fields by number: TFLite's schema.fbs, version 3.
Every offset is checked, for the file may be anyone's; and because any number of offsets may lead to the same
bytes, a file of a few megabytes could stand for terabytes: what is read in all is bounded by its size.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

from msgspec import Struct

from wire.chunks import Span
from wire.errors import ShallopError

IDENTIFIER = b"TFL3"
SIGNATURE = "serving_default"

_VECTOR_MAX = 1_000_000
_TIMES_MAX, _BYTES_MORE = 8, 1024**2
"""A file's vectors are read up to that many times its size, and so many bytes more: writers share few."""
_CALL_BYTES = 16
"""What it costs to look a vector up, in the same currency."""
_MODEL_CODES, _MODEL_GRAPHS, _MODEL_DESCRIPTION, _MODEL_BUFFERS, _MODEL_METADATA = 1, 2, 3, 4, 6
_CODE_OLD, _CODE_CUSTOM, _CODE_VERSION, _CODE_NEW = 0, 1, 2, 3
_GRAPH_TENSORS, _GRAPH_INPUTS, _GRAPH_OUTPUTS, _GRAPH_OPERATORS = 0, 1, 2, 3
_TENSOR_SHAPE, _TENSOR_TYPE, _TENSOR_BUFFER, _TENSOR_NAME, _TENSOR_QUANTIZATION = 0, 1, 2, 3, 4
_QUANTIZATION_SCALE, _QUANTIZATION_ZERO, _QUANTIZATION_AXIS = 2, 3, 6
_OPERATOR_CODE, _OPERATOR_INPUTS, _OPERATOR_OUTPUTS = 0, 1, 2
_METADATA_NAME, _METADATA_BUFFER = 0, 1
_MODEL_SIGNATURES, _SIGNATURE_KEY, _SIGNATURE_GRAPH, _TENSOR_SPARSITY = 7, 2, 4, 6
_BUFFER_OFFSET, _BUFFER_SIZE = 1, 2
_TYPES = {
    0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 5: "string", 6: "bool", 7: "int16",
    9: "int8", 10: "float64", 12: "uint64", 15: "uint32", 16: "uint16", 17: "int4",
}  # fmt: skip


_BITS = {
    0: 32, 1: 16, 2: 32, 3: 8, 4: 64, 6: 8, 7: 16, 8: 64, 9: 8, 10: 64, 11: 128, 12: 64, 15: 32, 16: 16,
    17: 4,
}  # fmt: skip
"""Of one element by type; text, resources and variants have no fixed size."""
_WIDTHS = {0: 4, 1: 2, 2: 4, 4: 8, 7: 2, 10: 8, 12: 8, 15: 4, 16: 2}
"""Bytes of one element by type; the others have one."""


class WalkError(ShallopError):
    """Bytes that are no TFLite file."""


class Tensor(Struct, frozen=True, kw_only=True):
    """One tensor.

    Attributes:
        name: its own.
        shape: of the file; fixed.
        dtype: NumPy's word for it, or `type N` where it has none.
        constant: whether its values stand in the file.
        scales: of its quantization; empty where it has none.
        zero_points: as many.
        axis: that the scales belong to, where there are several.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    constant: bool
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    axis: int = 0


class Operator(Struct, frozen=True, kw_only=True):
    """One operator; `inputs` and `outputs` are places of tensors, -1 one that is left out."""

    code: int
    custom: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Constant(Struct, frozen=True):
    """A tensor whose values stand in the file, and where its scales do."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    span: Span
    scales: Span | None


class Graph(Struct, frozen=True, kw_only=True):
    """The main graph.

    Attributes:
        operators: in the order in which they run.
        tensors: by place.
        inputs: places.
        outputs: places.
        description: of the model.
        subgraphs: how many there are, this one among them.
    """

    operators: tuple[Operator, ...]
    tensors: tuple[Tensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    description: str
    subgraphs: int


def walk(content: bytes | memoryview) -> Graph:
    """The main graph of a file.

    Raises:
        WalkError: `not_tflite`: it is none, or an offset leads out of it.
    """
    model = _model(content)
    graphs = list(model.tables(_MODEL_GRAPHS))
    if not graphs:
        raise WalkError("not_tflite", "the file holds no graph")
    codes = [
        (max(one.int8(_CODE_OLD), one.int32(_CODE_NEW)), one.text(_CODE_CUSTOM), one.int32(_CODE_VERSION, 1))
        for one in model.tables(_MODEL_CODES)
    ]
    filled = [size > 0 for _, size in _payloads(model)]
    tensors = tuple(_tensor(one, filled) for one in graphs[0].tables(_GRAPH_TENSORS))
    operators = tuple(_operator(one, codes, len(tensors)) for one in graphs[0].tables(_GRAPH_OPERATORS))
    return Graph(
        operators=operators,
        tensors=tensors,
        inputs=_places(graphs[0].int32s(_GRAPH_INPUTS), len(tensors)),
        outputs=_places(graphs[0].int32s(_GRAPH_OUTPUTS), len(tensors)),
        description=model.text(_MODEL_DESCRIPTION),
        subgraphs=len(graphs),
    )


def tensor_spans(content: bytes | memoryview) -> tuple[Span, ...]:
    """Offset and size of every buffer's payload, in the order of the file; empty ones are left out.

    Raises:
        WalkError: as `walk`.
    """
    found = {(offset, size) for offset, size in _payloads(_model(content)) if size}
    return tuple(Span(offset, size) for offset, size in sorted(found))


def payloads(content: bytes | memoryview) -> tuple[tuple[Span, int], ...]:
    """Where each constant of the main graph lies, with the bytes of one element; each payload once.

    Raises:
        WalkError: as `walk`.
    """
    model = _model(content)
    spans, found = list(_payloads(model)), {}
    for graph in model.tables(_MODEL_GRAPHS):
        for one in graph.tables(_GRAPH_TENSORS):
            place = one.int32(_TENSOR_BUFFER)
            offset, size = spans[place] if 0 <= place < len(spans) else (0, 0)
            width = _WIDTHS.get(one.int8(_TENSOR_TYPE), 1)
            if size and size % width == 0:
                found[Span(offset, size)] = width
    return tuple(sorted(found.items(), key=lambda one: one[0].offset))


def constants(content: bytes | memoryview) -> tuple[Constant, ...]:
    """Constants of all graphs, in their order; each payload once.

    Raises:
        WalkError: as `walk`.
    """
    model = _model(content)
    spans, found = list(_payloads(model)), {}
    for graph in model.tables(_MODEL_GRAPHS):
        for one in graph.tables(_GRAPH_TENSORS):
            place, kind = one.int32(_TENSOR_BUFFER), one.int8(_TENSOR_TYPE)
            offset, size = spans[place] if 0 <= place < len(spans) else (0, 0)
            scaled = one.table(_TENSOR_QUANTIZATION)
            at, count = scaled.vector(_QUANTIZATION_SCALE, 4) if scaled is not None else (0, 0)
            if size and Span(offset, size) not in found:
                found[Span(offset, size)] = Constant(
                    one.text(_TENSOR_NAME),
                    _TYPES.get(kind, f"type {kind}"),
                    one.int32s(_TENSOR_SHAPE),
                    Span(offset, size),
                    Span(at, 4 * count) if count else None,
                )
    return tuple(found.values())


def boundaries(content: bytes | memoryview) -> tuple[int, ...]:
    """Offsets at which a constant's payload begins or ends.

    Raises:
        WalkError: as `walk`.
    """
    spans = tensor_spans(content)
    return tuple(edge for span in spans for edge in (span.offset, span.offset + span.size_bytes))


def metadata_of(content: bytes | memoryview) -> dict[str, bytes]:
    """The file's metadata entries by name.

    Raises:
        WalkError: as `walk`.
    """
    model, view = _model(content), memoryview(content)
    spans = list(_payloads(model))
    found = {}
    for one in model.tables(_MODEL_METADATA):
        place = one.int32(_METADATA_BUFFER)
        if not 0 <= place < len(spans):
            raise WalkError("not_tflite", f"a metadata entry names buffer {place}, there are {len(spans)}")
        offset, size = spans[place]
        model.work.spend(size)
        found[one.text(_METADATA_NAME)] = bytes(view[offset : offset + size])
    return found


def edges(content: bytes | memoryview) -> tuple[dict[str, int], dict[str, int]]:
    """Places of inputs and outputs by name: those of the signature `SIGNATURE`, else the tensors' own.

    Raises:
        WalkError: as `walk`.
    """
    model = _model(content)
    for one in model.tables(_MODEL_SIGNATURES):
        if one.text(_SIGNATURE_KEY) == SIGNATURE and not one.int32(_SIGNATURE_GRAPH):
            inputs, outputs = (
                {entry.text(0): entry.int32(1) for entry in one.tables(side)} for side in (0, 1)
            )
            return inputs, outputs
    graph = walk(content)
    inputs, outputs = (
        {graph.tensors[place].name: place for place in places if place >= 0}
        for places in (graph.inputs, graph.outputs)
    )
    return inputs, outputs


def require_payloads(content: bytes | memoryview) -> None:
    """Returns if every constant has the bytes that its shape and type ask for.

    Raises:
        WalkError: `not_tflite`: one has less or more, or lies beyond the file.
    """
    model = _model(content)
    for buffer in model.tables(_MODEL_BUFFERS):
        offset, size = buffer.uint64(_BUFFER_OFFSET), buffer.uint64(_BUFFER_SIZE)
        if offset > 1 and offset + size > len(content):
            raise WalkError("not_tflite", f"a buffer at byte {offset} reaches beyond the file")
    spans = list(_payloads(model))
    for graph in model.tables(_MODEL_GRAPHS):
        for one in graph.tables(_GRAPH_TENSORS):
            place, width = one.int32(_TENSOR_BUFFER), _BITS.get(one.int8(_TENSOR_TYPE))
            size = spans[place][1] if 0 <= place < len(spans) else 0
            if not size or width is None or one.table(_TENSOR_SPARSITY) is not None:
                continue
            wanted = -(-math.prod(one.int32s(_TENSOR_SHAPE)) * width // 8)
            if wanted != size:
                name = one.text(_TENSOR_NAME)[:80]
                raise WalkError("not_tflite", f"tensor {name!r} takes {wanted} bytes and has {size}")


class _Work:
    """How many bytes of vectors may still be read."""

    def __init__(self, size_bytes: int) -> None:
        self._left = _TIMES_MAX * size_bytes + _BYTES_MORE

    def spend(self, size_bytes: int) -> None:
        """Counts a vector.

        Raises:
            WalkError: `not_tflite`: no writer makes such a file.
        """
        self._left -= _CALL_BYTES + size_bytes
        if self._left < 0:
            raise WalkError("not_tflite", "its vectors overlap so often that they stand for far more bytes")


class _Table:
    """A FlatBuffers table: fields by number, each may be left out."""

    def __init__(self, view: memoryview, start: int, work: _Work) -> None:
        self._view, self._start, self.work = view, start, work
        self._fields = start - _number(view, "<i", start)
        self._size = _number(view, "<H", self._fields)

    def _place(self, field: int) -> int:
        """Where a field's value lies; 0 where it is left out."""
        entry = 4 + 2 * field
        if entry + 2 > self._size:
            return 0
        offset = _number(self._view, "<H", self._fields + entry)
        return self._start + offset if offset else 0

    def int8(self, field: int, default: int = 0) -> int:
        """A signed byte."""
        return self._scalar("<b", field, default)

    def int32(self, field: int, default: int = 0) -> int:
        """A signed number of four bytes; unsigned ones of this schema stay below 2^31."""
        return self._scalar("<i", field, default)

    def uint64(self, field: int) -> int:
        """An unsigned number of eight bytes."""
        return self._scalar("<Q", field, 0)

    def _scalar(self, form: str, field: int, default: int) -> int:
        place = self._place(field)
        return _number(self._view, form, place) if place else default

    def table(self, field: int) -> _Table | None:
        """A table within this one."""
        place = self._place(field)
        if not place:
            return None
        return _Table(self._view, place + _number(self._view, "<I", place), self.work)

    def tables(self, field: int) -> Iterator[_Table]:
        """A vector of tables."""
        start, count = self.vector(field, 4)
        for place in range(start, start + 4 * count, 4):
            yield _Table(self._view, place + _number(self._view, "<I", place), self.work)

    def text(self, field: int) -> str:
        """A string; empty where it is left out."""
        start, count = self.vector(field, 1)
        return bytes(self._view[start : start + count]).decode("utf-8", "replace")

    def int32s(self, field: int) -> tuple[int, ...]:
        """A vector of numbers of four bytes."""
        return self._values(field, "i", 4)

    def int64s(self, field: int) -> tuple[int, ...]:
        """A vector of numbers of eight bytes."""
        return self._values(field, "q", 8)

    def floats(self, field: int) -> tuple[float, ...]:
        """A vector of float32."""
        start, count = self.vector(field, 4)
        return struct.unpack_from(f"<{count}f", self._view, start)

    def _values(self, field: int, form: str, width: int) -> tuple[int, ...]:
        start, count = self.vector(field, width)
        return struct.unpack_from(f"<{count}{form}", self._view, start)

    def vector(
        self, field: int, width: int, count_max: int = _VECTOR_MAX, *, content: bool = True
    ) -> tuple[int, int]:
        """Where a vector's first element lies and how many there are; (0, 0) where it is left out.

        Without `content` nobody reads the elements, only where they are.
        """
        place = self._place(field)
        if not place:
            return 0, 0
        start = place + _number(self._view, "<I", place)
        count = _number(self._view, "<I", start)
        if count > count_max or start + 4 + count * width > len(self._view):
            raise WalkError("not_tflite", f"the vector at byte {start} reaches beyond the file")
        self.work.spend(count * width if content else 0)
        return start + 4, count


def _model(content: bytes | memoryview) -> _Table:
    view = memoryview(content)
    if bytes(view[4:8]) != IDENTIFIER:
        raise WalkError("not_tflite", "the bytes do not begin as a TFLite file's do")
    return _Table(view, _number(view, "<I", 0), _Work(len(view)))


def _payloads(model: _Table) -> Iterator[tuple[int, int]]:
    """Offset and size of each buffer, by place."""
    for buffer in model.tables(_MODEL_BUFFERS):
        yield buffer.vector(0, 1, count_max=2**31, content=False)


def _tensor(one: _Table, filled: list[bool]) -> Tensor:
    buffer, kind = one.int32(_TENSOR_BUFFER), one.int8(_TENSOR_TYPE)
    if not 0 <= buffer < len(filled):
        raise WalkError("not_tflite", f"a tensor names buffer {buffer}, there are {len(filled)}")
    scaled = one.table(_TENSOR_QUANTIZATION)
    return Tensor(
        name=one.text(_TENSOR_NAME),
        shape=one.int32s(_TENSOR_SHAPE),
        dtype=_TYPES.get(kind, f"type {kind}"),
        constant=filled[buffer],
        scales=() if scaled is None else scaled.floats(_QUANTIZATION_SCALE),
        zero_points=() if scaled is None else scaled.int64s(_QUANTIZATION_ZERO),
        axis=0 if scaled is None else scaled.int32(_QUANTIZATION_AXIS),
    )


def _operator(one: _Table, codes: list[tuple[int, str, int]], n_tensors: int) -> Operator:
    place = one.int32(_OPERATOR_CODE)
    if not 0 <= place < len(codes):
        raise WalkError("not_tflite", f"an operator names code {place}, there are {len(codes)}")
    code, custom, version = codes[place]
    return Operator(
        code=code,
        custom=custom,
        version=version,
        inputs=_places(one.int32s(_OPERATOR_INPUTS), n_tensors),
        outputs=_places(one.int32s(_OPERATOR_OUTPUTS), n_tensors),
    )


def _places(places: tuple[int, ...], n_tensors: int) -> tuple[int, ...]:
    if any(not -1 <= place < n_tensors for place in places):
        raise WalkError("not_tflite", f"a tensor is named that is not among the {n_tensors} of the file")
    return places


def _number(view: memoryview, form: str, place: int) -> int:
    if not 0 <= place <= len(view) - struct.calcsize(form):
        raise WalkError("not_tflite", f"an offset leads to byte {place}, the file has {len(view)}")
    found: int = struct.unpack_from(form, view, place)[0]
    return found
