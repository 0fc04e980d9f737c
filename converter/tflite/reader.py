"""A .tflite file as plain typed data.

For: `read_file()`: operators with version and options, tensors with type, shape and quantization, constants
as arrays. It serves whoever looks at a finished file: the lint of a target, an audit, a test.
Not for: writing (`converter.tflite`), running (`converter.litert`), or further subgraphs, which are counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from converter.tflite.errors import TFLiteError
from converter.tflite.schema import FILE_IDENTIFIER, TYPES, schema

Array = NDArray[Any]
_FILE_BYTES_MAX = 2**31 - 1
_KINDS = {
    value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")
}  # fmt: skip
_DTYPES = {value: name for name, value in vars(schema.TensorType).items() if not name.startswith("_")}
_NAMES = {number: name for name, number in TYPES.items()}
_PADDINGS = {schema.Padding.SAME: "SAME", schema.Padding.VALID: "VALID"}
_ACTIVATIONS = {
    value: name for name, value in vars(schema.ActivationFunctionType).items() if not name.startswith("_")
}  # fmt: skip

Option = bool | int | float | str | tuple[int, ...]
"""Value of one option of an operator."""


class Quantization(Struct, frozen=True, kw_only=True):
    """Scales of a tensor, as many zero points, and the axis that they belong to where there are several."""

    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int

    @property
    def per_axis(self) -> bool:
        """Whether there are several."""
        return len(self.scales) > 1


class FileTensor(Struct, frozen=True, kw_only=True):
    """One tensor.

    Attributes:
        name: its own.
        dtype: NumPy's word for it, or the schema's in small letters where NumPy has none.
        shape: of the file.
        fixed: whether no axis is declared free.
        quantization: None where it has none.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    fixed: bool
    quantization: Quantization | None


class FileOperator(Struct, frozen=True, kw_only=True):
    """One operator.

    Attributes:
        index: its place in the order in which they run.
        kind: the schema's name, such as `CONV_2D`; of a custom one its own.
        version: of the operator.
        inputs: places of tensors; -1 is one that is left out.
        outputs: places of tensors.
        options: by the schema's field; padding and activation by name.
    """

    index: int
    kind: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Option]

    def option(self, name: str, default: int = 0) -> int:
        """A number among the options."""
        value = self.options.get(name, default)
        return int(value) if isinstance(value, bool | int | float) else default

    @property
    def padding(self) -> str:
        """`SAME`, `VALID`, or empty."""
        return str(self.options.get("padding", ""))

    @property
    def activation(self) -> str:
        """The fused one; `NONE` where there is none."""
        return str(self.options.get("fusedActivationFunction", "NONE"))


class File(Struct, frozen=True, kw_only=True):
    """The main graph of a file.

    Attributes:
        tensors: by place.
        operators: in the order in which they run.
        inputs: places.
        outputs: places.
        constants: values by place of tensor; those of types that NumPy lacks are raw bytes.
        subgraphs: how many there are, this one among them.
        description: of the model, for people.
    """

    tensors: tuple[FileTensor, ...]
    operators: tuple[FileOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: Mapping[int, Array]
    subgraphs: int
    description: str

    def given(self, operator: FileOperator, number: int) -> FileTensor | None:
        """The tensor that an operator reads at that place; None where it reads none."""
        place = self.place(operator, number)
        return None if place is None else self.tensors[place]

    def place(self, operator: FileOperator, number: int) -> int | None:
        """Where that tensor lies."""
        if number >= len(operator.inputs) or operator.inputs[number] < 0:
            return None
        return operator.inputs[number]

    def values(self, operator: FileOperator, number: int) -> Array | None:
        """The constant that an operator reads at that place; None where it is none."""
        place = self.place(operator, number)
        return None if place is None else self.constants.get(place)

    def made(self, operator: FileOperator) -> tuple[FileTensor, ...]:
        """What an operator gives."""
        return tuple(self.tensors[place] for place in operator.outputs if place >= 0)


def read_file(content: bytes) -> File:
    """The main graph.

    Raises:
        TFLiteError: `tflite_malformed`: these bytes are no .tflite file, or it contradicts itself.
    """
    if content[4:8] != FILE_IDENTIFIER or len(content) > _FILE_BYTES_MAX:
        raise TFLiteError("tflite_malformed", "the bytes do not begin as a .tflite file does")
    try:
        model = schema.ModelT.InitFromPackedBuf(bytearray(content), 0)
        return _file(model, content)
    except TFLiteError:
        raise
    except Exception as error:
        raise TFLiteError(
            "tflite_malformed", f"the .tflite file cannot be read: {type(error).__name__}: {error}"
        ) from error


def _file(model: Any, content: bytes) -> File:  # noqa: ANN401 - the schema has no types
    graphs = model.subgraphs or []
    if not graphs:
        raise TFLiteError("tflite_malformed", "the .tflite file holds no graph")
    graph, codes = graphs[0], model.operatorCodes or []
    tensors = tuple(_tensor(one) for one in _items(graph.tensors))
    constants = {}
    for place, one in enumerate(_items(graph.tensors)):
        data = _payload(model.buffers[one.buffer], content)
        if data.size:
            constants[place] = _values(data, tensors[place])
    operators = tuple(_operator(i, one, codes) for i, one in enumerate(_items(graph.operators)))
    named = [place for one in operators for place in (*one.inputs, *one.outputs)]
    ends = (*_integers(graph.inputs), *_integers(graph.outputs))
    if any(not -1 <= place < len(tensors) for place in named) or any(
        not 0 <= place < len(tensors) for place in ends
    ):
        raise TFLiteError("tflite_malformed", f"a tensor is named that is not among the {len(tensors)}")
    return File(
        tensors=tensors, operators=operators, inputs=_integers(graph.inputs),
        outputs=_integers(graph.outputs), constants=constants, subgraphs=len(graphs),
        description=_text(model.description),
    )  # fmt: skip


def _tensor(one: Any) -> FileTensor:  # noqa: ANN401 - the schema has no types
    shape, free = _integers(one.shape), _integers(one.shapeSignature)
    found = one.quantization
    scales = () if found is None or found.scale is None else tuple(float(x) for x in found.scale)
    quantization = None
    if scales:
        zeros = _integers(found.zeroPoint) or (0,) * len(scales)
        quantization = Quantization(scales=scales, zero_points=zeros, axis=int(found.quantizedDimension))
    return FileTensor(
        name=_text(one.name),
        dtype=_NAMES.get(one.type, _DTYPES.get(one.type, "unknown").lower()),
        shape=shape,
        fixed=not any(axis < 0 for axis in (*free, *shape)),
        quantization=quantization,
    )


def _payload(buffer: Any, content: bytes) -> Array:  # noqa: ANN401 - the schema has no types
    """A buffer's bytes, which large files keep behind the flatbuffer (schema.fbs: `offset` above 1)."""
    if buffer.offset > 1:
        if buffer.offset + buffer.size > len(content):
            raise TFLiteError("tflite_malformed", f"a buffer reaches beyond the file's {len(content)} bytes")
        return np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
    return np.zeros(0, np.uint8) if buffer.data is None else np.asarray(buffer.data, np.uint8)


def _values(data: Array, tensor: FileTensor) -> Array:
    """Little-endian bytes as the tensor says; raw where NumPy has no such type.

    Raises:
        TFLiteError: `tflite_malformed`: they are fewer or more than the shape says.
    """
    if tensor.dtype not in TYPES:
        return data
    kind = np.dtype(tensor.dtype).newbyteorder("<")
    wanted = int(np.prod(tensor.shape, dtype=np.int64)) * kind.itemsize
    if data.nbytes != wanted:
        raise TFLiteError(
            "tflite_malformed", f"constant {tensor.name!r} has {data.nbytes} bytes, its shape says {wanted}"
        )
    return data.view(kind).reshape(tensor.shape)


def _operator(index: int, one: Any, codes: Any) -> FileOperator:  # noqa: ANN401 - the schema has no types
    code = codes[one.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    kind = _KINDS.get(number, f"OPERATOR_{number}")
    return FileOperator(
        index=index,
        kind=_text(code.customCode) or kind if kind == "CUSTOM" else kind,
        version=int(code.version),
        inputs=_integers(one.inputs),
        outputs=_integers(one.outputs),
        options=dict(_options(one.builtinOptions)) | dict(_options(one.builtinOptions2)),
    )


def _options(given: Any) -> Iterator[tuple[str, Option]]:  # noqa: ANN401 - the schema has no types
    for name, value in vars(given).items() if given is not None else ():
        if name == "padding":
            yield name, _PADDINGS[value]
        elif name == "fusedActivationFunction":
            yield name, _ACTIVATIONS[value]
        elif isinstance(value, bool | int | float | str):
            yield name, value
        elif value is not None:
            yield name, _integers(value)


def _items(vector: Any) -> Any:  # noqa: ANN401 - the schema has no types
    return [] if vector is None else vector


def _integers(vector: Any) -> tuple[int, ...]:  # noqa: ANN401 - the schema has no types
    return () if vector is None else tuple(int(x) for x in vector)


def _text(value: Any) -> str:  # noqa: ANN401 - the schema has no types
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""
