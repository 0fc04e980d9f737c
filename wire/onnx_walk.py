"""PURE. Where the tensors' payloads lie in an ONNX file, and what its graph takes and gives.

For: cutting a file at tensor boundaries without decoding it (`wire.chunks.cut`), by walking the protobuf
wire format down ModelProto.graph (7), GraphProto.initializer (5) and TensorProto.raw_data (9); and holding
a file's inputs and outputs against a manifest (`header`).
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
_IR_VERSION, _INPUT, _OUTPUT = 1, 11, 12
HEADER_FIELDS_MAX = 1_000_000
"""Of one message; a graph has one for each node and each constant."""
_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string",
    9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip
"""TensorProto.DataType by number."""
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


class Edge(Struct, frozen=True):
    """An input or output; None in `shape` is a free axis, and a tensor without a shape has `()`."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class Header(Struct, frozen=True, kw_only=True):
    """What a model says of itself.

    Attributes:
        ir_version: of ONNX's own format.
        inputs: of the graph, constants left out.
        outputs: of the graph.
    """

    ir_version: int
    inputs: tuple[Edge, ...]
    outputs: tuple[Edge, ...]


def header(content: bytes | memoryview) -> Header:
    """Version, inputs and outputs; of no message more than `HEADER_FIELDS_MAX` fields are looked at.

    Raises:
        WalkError: `not_protobuf`; `no_graph`: it is no model, or one with more than one graph;
            `too_many_fields`.
    """
    view = memoryview(content)
    model = _grouped(view, _Field(0, _BYTES, 0, len(view)), {_GRAPH, _IR_VERSION})
    graphs, versions = _messages(model, _GRAPH), _numbers(view, model, _IR_VERSION)
    if len(graphs) != 1 or len(versions) != 1:
        raise WalkError(
            "no_graph", f"the file holds {len(graphs)} graphs and {len(versions)} format versions"
        )
    graph = _grouped(view, graphs[0], {_INITIALIZER, _INPUT, _OUTPUT})
    tensors = [_grouped(view, one, {_NAME}) for one in _messages(graph, _INITIALIZER)]
    constants = {_text(view, tensor, _NAME) for tensor in tensors}
    inputs = [_edge(view, one) for one in _messages(graph, _INPUT)]
    return Header(
        ir_version=versions[0],
        inputs=tuple(one for one in inputs if one.name not in constants),
        outputs=tuple(_edge(view, one) for one in _messages(graph, _OUTPUT)),
    )


def _edge(view: memoryview, value: _Field) -> Edge:
    """ValueInfoProto: name (1), type (2) with tensor_type (1): elem_type (1), shape (2) of dims (1)."""
    fields = _grouped(view, value, {1, 2})
    tensor = _inner(view, _inner(view, fields, 2), 1)
    numbers = _numbers(view, tensor, 1) or [0]
    dims = [_grouped(view, one, {1}) for one in _messages(_inner(view, tensor, 2), 1)]
    sizes = [_numbers(view, dim, 1) for dim in dims]
    shape = tuple(found[-1] if found else None for found in sizes)
    return Edge(_text(view, fields, 1), _DTYPES.get(numbers[-1], f"type {numbers[-1]}"), shape)


_Fields = dict[int, list[_Field]]


def _inner(view: memoryview, fields: _Fields, number: int) -> _Fields:
    """The fields 1 and 2 of a message within another; of several the last one counts."""
    messages = _messages(fields, number)
    return _grouped(view, messages[-1], {1, 2}) if messages else {}


def _messages(fields: _Fields, number: int) -> list[_Field]:
    return [one for one in fields.get(number, []) if one.wire_type == _BYTES]


def _numbers(view: memoryview, fields: _Fields, number: int) -> list[int]:
    found = [one for one in fields.get(number, []) if one.wire_type == _VARINT]
    return [_varint(view, one.start, one.end)[0] for one in found]


def _text(view: memoryview, fields: _Fields, number: int) -> str:
    texts = _messages(fields, number)
    return bytes(view[texts[-1].start : texts[-1].end]).decode("utf-8", "replace") if texts else ""


def _grouped(view: memoryview, message: _Field, wanted: set[int]) -> _Fields:
    """The wanted fields of one message by number, in their order."""
    found: _Fields = {}
    position, count = message.start, 0
    while position < message.end:
        count += 1
        if count > HEADER_FIELDS_MAX:
            raise WalkError("too_many_fields", f"a message has more than {HEADER_FIELDS_MAX} fields")
        field = _field(view, position, message.end)
        if field.number in wanted:
            found.setdefault(field.number, []).append(field)
        position = field.end
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
