"""PURE. Whether bytes are an ONNX model that can be what it says, before any runtime opens it.

For: the device, which gets model files from elsewhere. `examined()` walks the protobuf wire format down to
every graph, node, attribute and tensor, without decoding values and without recursion. It refuses what is cut
off, nested or numbered absurdly, or has tensors that ask for more bytes than there are, and names the inputs,
outputs and files of weights, so that those can be compared with what was promised.
Not for: what operators mean, or whether the runtime knows them: it says so itself.

Field numbers: onnx.proto3 of onnx 1.20. A field of another wire type than its own is unknown to protobuf, and
is passed over here as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from msgspec import Struct

from wire.onnx_walk import _BYTES, _VARINT, WalkError, _Field, _field, _packed, _varint

FIELDS_MAX = 500_000
"""Of the whole file: ten times what a network of three thousand nodes has, and a second of work on x86-64."""
AXES_BYTES_MAX = 640
"""Of a tensor's packed sizes: no tensor has sixty-four axes."""
GRAPHS_DEEP_MAX = 16
OPSET_MAX = 200
IR_MAX = 100
SHOWN_CHARS_MAX = 80

_MODEL, _TRAINING, _FUNCTION, _GRAPH, _NODE, _ATTRIBUTE, _SPARSE, _TENSOR, _OPSET, _EDGE = range(10)
_PARTS: dict[int, dict[int, int]] = {
    _MODEL: {7: _GRAPH, 8: _OPSET, 20: _TRAINING, 25: _FUNCTION},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
    _FUNCTION: {7: _NODE, 9: _OPSET, 11: _ATTRIBUTE},
    _GRAPH: {1: _NODE, 5: _TENSOR, 11: _EDGE, 12: _EDGE, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
}
"""Messages within messages: kind of the one, field, kind of the other."""
_INPUT = 11
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA, _ENTRY, _LOCATION = 1, 2, 8, 9, 13, 14
_EXTERNAL = 1
_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128,
    16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
"""Of one element, by TensorProto.DataType; text has no fixed size."""
_TYPED = frozenset({4, 5, 6, 7, 10, 11})
"""Fields that hold values by their type."""
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*){0,7}", re.ASCII)
PATH_CHARS_MAX = 200


class Edge(Struct, frozen=True):
    """An input or output; None is what the file leaves open.

    Attributes:
        data_type: TensorProto's number.
        shape: with None for a free axis.
    """

    name: str
    data_type: int | None
    shape: tuple[int | None, ...] | None


class External(Struct, frozen=True):
    """Where the values of a tensor lie outside the file.

    Attributes:
        path: beside the model: no way up, no absolute path, nothing hidden.
        offset: in that file, in bytes.
        size_bytes: that the tensor takes; None where its type has no fixed size.
    """

    path: str
    offset: int
    size_bytes: int | None


class Examined(Struct, frozen=True, kw_only=True):
    """What a model says of itself; `inputs` are those that a caller must give."""

    inputs: tuple[Edge, ...]
    outputs: tuple[Edge, ...]
    external: tuple[External, ...]


def examined(
    content: bytes | memoryview, *, fields_max: int = FIELDS_MAX, paths: re.Pattern[str] = PLAIN
) -> Examined:
    """What the model in these bytes takes, gives and needs.

    Args:
        content: of the whole file.
        fields_max: that are looked at; a host has more time than a device.
        paths: what a file of weights may be called.

    Raises:
        WalkError: `not_protobuf`: they are cut off, or no protobuf; `not_onnx`: it is no model, or asks for
            more than is there; `external_path`: weights that lie somewhere else than beside the model.
    """
    found = _Found(memoryview(content), fields_max, paths)
    found.walk()
    if not found.graphs or not found.opsets:
        raise WalkError("not_onnx", "it holds no graph or names no operator set")
    named = {edge.name for edge in found.inputs} & found.initializers
    return Examined(
        inputs=tuple(edge for edge in found.inputs if edge.name not in named),
        outputs=tuple(found.outputs),
        external=tuple(found.external),
    )


class _Found:
    """One walk over a file, with what it came upon."""

    def __init__(self, view: memoryview, fields_max: int, paths: re.Pattern[str]) -> None:
        self._view = view
        self._left = self._fields_max = fields_max
        self._paths = paths
        self.graphs = 0
        self.opsets = 0
        self.inputs: list[Edge] = []
        self.outputs: list[Edge] = []
        self.initializers: set[str] = set()
        self.external: list[External] = []

    def walk(self) -> None:
        """Every message of a kind in `_PARTS`, from a list of those that wait: no recursion to run out of."""
        waiting = [(_MODEL, 0, len(self._view), 0)]
        while waiting:
            kind, start, end, depth = waiting.pop()
            if kind == _GRAPH:
                depth += 1
                self.graphs += 1
                if depth > GRAPHS_DEEP_MAX:
                    raise WalkError("not_onnx", f"its graphs lie more than {GRAPHS_DEEP_MAX} deep")
            main = kind == _GRAPH and depth == 1
            for field in self.fields(start, end):
                part = self._part(kind, field)
                if part in {_TENSOR, _EDGE}:
                    self._leaf(part, field, main=main)
                elif part is not None:
                    waiting.append((part, field.start, field.end, depth))

    def _part(self, kind: int, field: _Field) -> int | None:
        """Which kind of message a field is; the numbers of versions are looked at on the way."""
        if field.wire_type == _VARINT:
            if (kind, field.number) == (_MODEL, 1):
                self._bounded(field, IR_MAX, "IR version")
            elif (kind, field.number) == (_OPSET, 2):
                self._bounded(field, OPSET_MAX, "operator set")
                self.opsets += 1
        return _PARTS.get(kind, {}).get(field.number) if field.wire_type == _BYTES else None

    def _leaf(self, part: int, field: _Field, *, main: bool) -> None:
        if part == _TENSOR:
            name = self._tensor(field)
            if main:
                self.initializers.add(name)
        elif main:
            (self.inputs if field.number == _INPUT else self.outputs).append(self._edge(field))

    def fields(self, start: int, end: int) -> Iterator[_Field]:
        """The fields of one message.

        Raises:
            WalkError: `not_protobuf`; `not_onnx`: there are more than a model has.
        """
        position = start
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise WalkError("not_onnx", f"it has more than {self._fields_max} fields")
            field = _field(self._view, position, end)
            position = field.end
            yield field

    def _value(self, field: _Field) -> int:
        return _varint(self._view, field.start, field.end)[0]

    def _text(self, field: _Field) -> str:
        return bytes(self._view[field.start : field.end]).decode("utf-8", "replace")

    def _bounded(self, field: _Field, most: int, what: str) -> None:
        value = self._value(field)
        if not 1 <= value <= most:
            raise WalkError("not_onnx", f"its {what} is {value}; there is none such")

    # --- tensors

    def _tensor(self, whole: _Field) -> str:
        """Its name, once it asks for no more bytes than it has."""
        numbers: dict[int, int] = {}
        spans: dict[int, _Field] = {}
        count, typed, entries = 1, 0, []
        for field in self.fields(whole.start, whole.end):
            if field.number == _DIMS:
                count = self._counted(count, field)
            elif field.number in _TYPED:
                typed += field.end - field.start
            elif field.number == _ENTRY and field.wire_type == _BYTES:
                entries.append(field)
            elif field.wire_type == _VARINT:
                numbers[field.number] = self._value(field)
            else:
                spans[field.number] = field
        name = self._text(spans[_NAME]) if _NAME in spans else ""
        kind, raw = numbers.get(_DATA_TYPE, 0), spans.get(_RAW_DATA)
        bits = _BITS.get(kind)
        size = None if bits is None else -(-count * bits // 8)
        if entries or numbers.get(_LOCATION) == _EXTERNAL:
            self.external.append(self._external(name, entries, size))
        elif raw is not None and size not in {None, raw.end - raw.start}:
            held = raw.end - raw.start
            raise WalkError("not_onnx", f"tensor {_shown(name)} takes {size} bytes and has {held}")
        elif raw is None and kind and count > max(1, 8 * typed):
            raise WalkError("not_onnx", f"tensor {_shown(name)} has {count} elements in {typed} bytes")
        return name

    def _counted(self, count: int, field: _Field) -> int:
        """Elements, with the sizes in this field; a negative size is a very large one here."""
        if field.wire_type == _VARINT:
            return min(count * self._value(field), 2**63)
        if field.wire_type != _BYTES or field.end - field.start > AXES_BYTES_MAX:
            raise WalkError("not_onnx", "a tensor has more axes than there are")
        for size in _packed(self._view, field):
            count = min(count * size, 2**63)
        return count

    def _external(self, name: str, entries: list[_Field], size: int | None) -> External:
        told: dict[str, str] = {}
        for entry in entries:
            pair = {
                field.number: self._text(field)
                for field in self.fields(entry.start, entry.end)
                if field.number in {1, 2} and field.wire_type == _BYTES
            }
            told[pair.get(1, "")] = pair.get(2, "")
        path = told.get("location", "")
        if not self._paths.fullmatch(path) or len(path) > PATH_CHARS_MAX:
            raise WalkError(
                "external_path",
                f"the weights of {_shown(name)} are said to lie in {_shown(path)}, no file beside it",
            )
        offset, length = told.get("offset", "0"), told.get("length")
        numbers = [offset] if length is None else [offset, length]
        if not all(re.fullmatch("[0-9]{1,15}", number) for number in numbers):
            raise WalkError("not_onnx", f"the place of {_shown(name)} in {path} is no number")
        if length is not None and size is not None and int(length) != size:
            raise WalkError("not_onnx", f"tensor {_shown(name)} takes {size} bytes and is given {length}")
        return External(path, int(offset), size if length is None else int(length))

    # --- inputs and outputs

    def _edge(self, whole: _Field) -> Edge:
        name = ""
        found: tuple[int | None, tuple[int | None, ...] | None] = (None, None)
        for field in self.fields(whole.start, whole.end):
            if field.wire_type == _BYTES and field.number == 1:
                name = self._text(field)
            elif field.wire_type == _BYTES and field.number == 2:
                for kind in self.fields(field.start, field.end):
                    if kind.number == 1 and kind.wire_type == _BYTES:
                        found = self._tensor_type(kind)
        return Edge(name, *found)

    def _tensor_type(self, whole: _Field) -> tuple[int | None, tuple[int | None, ...] | None]:
        data_type, shape = None, None
        for field in self.fields(whole.start, whole.end):
            if field.number == 1 and field.wire_type == _VARINT:
                data_type = self._value(field)
            elif field.number == 2 and field.wire_type == _BYTES:
                axes = [one for one in self.fields(field.start, field.end) if one.number == 1]
                shape = tuple(self._axis(axis) for axis in axes)
        return data_type, shape

    def _axis(self, whole: _Field) -> int | None:
        size = None
        for field in self.fields(whole.start, whole.end):
            if field.number == 1 and field.wire_type == _VARINT:
                size = self._value(field)
        return size


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARS_MAX else text[:SHOWN_CHARS_MAX] + "...")
