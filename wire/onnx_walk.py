"""PURE. Where the tensors' payloads lie in an ONNX file.

For: cutting a file at tensor boundaries without decoding it (`wire.chunks.cut`), by walking the protobuf
wire format down ModelProto.graph (7), GraphProto.initializer (5) and TensorProto.raw_data (9).
Not for: reading values, subgraphs, or typed fields such as float_data: those bytes are cut like any.

Protobuf encoding: https://protobuf.dev/programming-guides/encoding/ ; field numbers: onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from wire.chunks import Span
from wire.errors import ShallopError

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_DIMS, _DATA_TYPE, _NAME = 1, 2, 8
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_BYTES_MAX = 10


class WalkError(ShallopError):
    """Bytes that are not protobuf."""


class Initializer(Struct, frozen=True):
    """One tensor with its payload.

    Attributes:
        data_type: TensorProto's number for it: 1 float32, 3 int8, 6 int32.
    """

    name: str
    data_type: int
    shape: tuple[int, ...]
    span: Span


class _Field(Struct, frozen=True):
    number: int
    wire_type: int
    start: int
    end: int


def tensor_spans(content: bytes | memoryview) -> tuple[Span, ...]:
    """Offset and size of every initializer's raw_data, in the file's order; empty ones are left out.

    Raises:
        WalkError: `not_protobuf`: the bytes end within a field or hold an unknown wire type.
    """
    view = memoryview(content)
    spans = []
    for graph in _fields(view, 0, len(view), _GRAPH):
        for tensor in _fields(view, graph.start, graph.end, _INITIALIZER):
            for raw in _fields(view, tensor.start, tensor.end, _RAW_DATA):
                spans.append(Span(raw.start, raw.end - raw.start))  # noqa: PERF401 - three loops deep
    return tuple(span for span in spans if span.size_bytes)


def initializers(content: bytes | memoryview) -> tuple[Initializer, ...]:
    """Every initializer that has raw_data, in the file's order.

    Raises:
        WalkError: as `tensor_spans`.
    """
    view = memoryview(content)
    return tuple(
        found
        for graph in _fields(view, 0, len(view), _GRAPH)
        for tensor in _fields(view, graph.start, graph.end, _INITIALIZER)
        if (found := _initializer(view, tensor)) is not None
    )


def _initializer(view: memoryview, tensor: _Field) -> Initializer | None:
    name, data_type, shape, span = "", 0, [], None
    position = tensor.start
    while position < tensor.end:
        field = _field(view, position, tensor.end)
        if field.number == _DIMS and field.wire_type == _VARINT:
            shape.append(_varint(view, field.start, field.end)[0])
        elif field.number == _DIMS and field.wire_type == _BYTES:
            shape += _packed(view, field)
        elif field.number == _DATA_TYPE and field.wire_type == _VARINT:
            data_type = _varint(view, field.start, field.end)[0]
        elif field.number == _NAME and field.wire_type == _BYTES:
            name = bytes(view[field.start : field.end]).decode("utf-8", "replace")
        elif field.number == _RAW_DATA and field.wire_type == _BYTES:
            span = Span(field.start, field.end - field.start)
        position = field.end
    return Initializer(name, data_type, tuple(shape), span) if span and span.size_bytes else None


def _packed(view: memoryview, field: _Field) -> list[int]:
    found, position = [], field.start
    while position < field.end:
        value, position = _varint(view, position, field.end)
        found.append(value)
    return found


def boundaries(content: bytes | memoryview) -> tuple[int, ...]:
    """Offsets at which a tensor's payload begins or ends.

    Raises:
        WalkError: as `tensor_spans`.
    """
    spans = tensor_spans(content)
    return tuple(edge for span in spans for edge in (span.offset, span.offset + span.size_bytes))


def _fields(view: memoryview, start: int, end: int, number: int) -> Iterator[_Field]:
    """Length-delimited fields of that number within one message."""
    position = start
    while position < end:
        field = _field(view, position, end)
        if field.number == number and field.wire_type == _BYTES:
            yield field
        position = field.end


def _field(view: memoryview, position: int, end: int) -> _Field:
    key, start = _varint(view, position, end)
    wire_type = key & 7
    if wire_type == _BYTES:
        size, start = _varint(view, start, end)
    elif wire_type == _VARINT:
        _, after = _varint(view, start, end)
        size = after - start
    elif wire_type in {_FIXED32, _FIXED64}:
        size = 4 if wire_type == _FIXED32 else 8
    else:
        raise WalkError("not_protobuf", f"wire type {wire_type} at byte {position}")
    if start + size > end:
        raise WalkError("not_protobuf", f"the field at byte {position} reaches beyond its message")
    return _Field(key >> 3, wire_type, start, start + size)


def _varint(view: memoryview, position: int, end: int) -> tuple[int, int]:
    """A base-128 number and where it ends."""
    value = 0
    for i in range(_VARINT_BYTES_MAX):
        if position + i >= end:
            break
        byte = view[position + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, position + i + 1
    raise WalkError("not_protobuf", f"the number at byte {position} does not end")
