"""Whether bytes are a TFLite file that keeps the format's rules; the writer checks its own files with it.

For: `verify()`: every offset within the file, buffers as large as their tensors and aligned, each tensor made
once and before it is read, quantization that fits its tensor, signatures that name what is there.
Not for: whether kernels accept what is written (the runtime says that), or further subgraphs.

LiteRT verifies a file's offsets against the schema when it loads it, and nothing of the rest; what breaks a
rule there is found while it runs, or not at all. Rules: schema.fbs of TensorFlow Lite, version 3.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np

from converter.tflite.errors import TFLiteError
from converter.tflite.schema import FILE_IDENTIFIER, SCHEMA_VERSION, TYPES, schema

_ALIGNMENT = 16
_PLACEHOLDER = 127
"""What old readers see of an operator whose number is larger than a byte."""
_NAMES = {number: name for name, number in TYPES.items()}
_KINDS = frozenset(value for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_"))
_BROKEN = (struct.error, IndexError, ValueError, TypeError, AttributeError, OverflowError, UnicodeDecodeError)
"""What the schema's classes raise where an offset leads nowhere."""


def verify(content: bytes) -> None:
    """Nothing, if the file is sound.

    Raises:
        TFLiteError: `tflite_file`: what is wrong first.
    """
    try:
        _File(content).verify()
    except _BROKEN as error:
        raise TFLiteError("tflite_file", f"an offset of the .tflite file leads nowhere: {error}") from error


def _wrong(text: str) -> TFLiteError:
    return TFLiteError("tflite_file", f"the .tflite file is not sound: {text}")


class _File:
    """One file being verified."""

    def __init__(self, content: bytes) -> None:
        if content[4:8] != FILE_IDENTIFIER:
            raise _wrong("its identifier is not TFL3")
        self._size = len(content)
        self._model = schema.Model.GetRootAs(content, 0)
        if self._model.Version() != SCHEMA_VERSION:
            raise _wrong(f"its schema has version {self._model.Version()}")
        if self._model.SubgraphsLength() < 1:
            raise _wrong("it holds no graph")
        self._graph = self._model.Subgraphs(0)
        self._sizes = self._buffers()
        self._empty: set[int] = set()

    def verify(self) -> None:
        self._codes()
        constants = self._tensors()
        self._order(constants)
        self._signatures()
        for i in self._counted(self._model.MetadataLength()):
            self._within(self._model.Metadata(i).Buffer(), len(self._sizes), "a metadata entry's buffer")

    def _counted(self, length: int) -> range:
        """Places of a vector whose elements take 4 bytes or more."""
        if length * 4 > self._size:
            raise _wrong(f"a vector of {length} elements is longer than the file")
        return range(length)

    @staticmethod
    def _within(place: int, count: int, what: str) -> int:
        if not 0 <= place < count:
            raise _wrong(f"{what} is {place}, there are {count}")
        return place

    def _buffers(self) -> list[int]:
        """Sizes; number 0 is empty by convention, for it stands for no data."""
        sizes = []
        for i in self._counted(self._model.BuffersLength()):
            buffer = self._model.Buffers(i)
            size = buffer.DataLength()
            if size:
                start = buffer._tab.Vector(buffer._tab.Offset(4))  # noqa: SLF001 - flatc gives no other way
                if start + size > self._size:
                    raise _wrong(f"buffer {i} reaches beyond the end")
                if start % _ALIGNMENT:
                    raise _wrong(f"buffer {i} begins at byte {start}, which is no multiple of {_ALIGNMENT}")
            sizes.append(size)
        if not sizes or sizes[0]:
            raise _wrong("buffer 0 is not empty")
        return sizes

    def _codes(self) -> None:
        for i in self._counted(self._model.OperatorCodesLength()):
            code = self._model.OperatorCodes(i)
            kind, old = code.BuiltinCode(), code.DeprecatedBuiltinCode()
            if kind not in _KINDS or old != min(kind, _PLACEHOLDER):
                raise _wrong(f"operator code {i} is {kind} to new readers and {old} to old ones")
            if code.Version() < 1:
                raise _wrong(f"operator code {i} has version {code.Version()}")

    def _tensors(self) -> list[bool]:
        """Which tensors are constants; each is checked by itself."""
        found = []
        names: Counter[bytes] = Counter()
        for i in self._counted(self._graph.TensorsLength()):
            tensor = self._graph.Tensors(i)
            names[tensor.Name()] += 1
            found.append(self._tensor(i, tensor))
        twice = [name for name, count in names.items() if count > 1 or not name]
        if twice:
            raise _wrong(f"tensors share the name {twice[0]!r}")
        return found

    def _tensor(self, place: int, tensor: Any) -> bool:  # noqa: ANN401 - the schema has no types
        what = f"tensor {place} {(tensor.Name() or b'').decode('utf-8', 'replace')}"
        if tensor.Type() not in _NAMES:
            raise _wrong(f"{what} has type {tensor.Type()}, which is not written here")
        shape = [tensor.Shape(i) for i in self._counted(tensor.ShapeLength())]
        if any(size < 0 for size in shape):
            raise _wrong(f"{what} has shape {shape}")
        dtype = np.dtype(_NAMES[tensor.Type()])
        if 0 in shape:
            # Its constants have no bytes, and look like tensors that somebody makes.
            self._empty.add(place)
        size = self._sizes[self._within(tensor.Buffer(), len(self._sizes), f"the buffer of {what}")]
        if size and size != prod(shape) * dtype.itemsize:
            raise _wrong(f"{what} of shape {shape} and type {dtype} has a buffer of {size} bytes")
        quantization = tensor.Quantization()
        if quantization is not None and quantization.ScaleLength():
            self._quantized(what, quantization, shape, dtype)
        return bool(size)

    def _quantized(self, what: str, quantization: Any, shape: list[int], dtype: np.dtype[Any]) -> None:  # noqa: ANN401
        scales = quantization.ScaleAsNumpy()
        zeros = quantization.ZeroPointAsNumpy() if quantization.ZeroPointLength() else np.zeros(0, np.int64)
        if len(scales) != len(zeros):
            raise _wrong(f"{what} has {len(scales)} scales and {len(zeros)} zero points")
        if len(scales) > 1:
            axis = self._within(quantization.QuantizedDimension(), len(shape), f"the scales' axis of {what}")
            if len(scales) != shape[axis]:
                raise _wrong(f"{what} of shape {shape} has {len(scales)} scales along axis {axis}")
        if not (np.isfinite(scales) & (scales > 0)).all():
            raise _wrong(f"{what} has a scale that is not a positive number")
        if dtype.kind not in "iu":
            raise _wrong(f"{what} has scales and type {dtype}")
        limits = np.iinfo(dtype)
        low, high = (0, 0) if dtype == np.int32 else (int(limits.min), int(limits.max))
        if not ((zeros >= low) & (zeros <= high)).all():
            raise _wrong(f"{what} has a zero point outside of {low} to {high}")

    def _order(self, constants: list[bool]) -> None:
        """Each tensor is given, constant or made by one operator, and that before it is read."""
        graph, known = self._graph, [*constants]
        for place in self._places(graph.Inputs, graph.InputsLength(), len(known)):
            if known[place]:
                raise _wrong(f"input {place} is a constant, or given twice")
            known[place] = True
        for i in self._counted(graph.OperatorsLength()):
            self._operator(i, known)
        made = self._places(graph.Outputs, graph.OutputsLength(), len(known))
        for place in (*made, *range(len(known))):
            if not known[place] and place not in self._empty:
                raise _wrong(f"tensor {place} is made by nobody")

    def _operator(self, number: int, known: list[bool]) -> None:
        """Whether what it reads is known; what it makes is known then."""
        operator = self._graph.Operators(number)
        codes = self._model.OperatorCodesLength()
        self._within(operator.OpcodeIndex(), codes, f"the code of operator {number}")
        for j in self._counted(operator.InputsLength()):
            place = operator.Inputs(j)
            if place == -1 or place in self._empty:
                continue
            if not known[self._within(place, len(known), f"an input of operator {number}")]:
                raise _wrong(f"operator {number} reads tensor {place} before it is made")
        for place in self._places(operator.Outputs, operator.OutputsLength(), len(known)):
            if known[place]:
                raise _wrong(f"operator {number} makes tensor {place}, which is there already")
            known[place] = True

    def _places(self, get: Any, length: int, count: int) -> Iterable[int]:  # noqa: ANN401 - a bound method
        return [self._within(get(i), count, "a tensor's place") for i in self._counted(length)]

    def _signatures(self) -> None:
        graph = self._graph
        inputs = [graph.Inputs(i) for i in range(graph.InputsLength())]
        outputs = [graph.Outputs(i) for i in range(graph.OutputsLength())]
        for i in self._counted(self._model.SignatureDefsLength()):
            one = self._model.SignatureDefs(i)
            given = [one.Inputs(j) for j in self._counted(one.InputsLength())]
            made = [one.Outputs(j) for j in self._counted(one.OutputsLength())]
            for entries, places, what in ((given, inputs, "inputs"), (made, outputs, "outputs")):
                names = [entry.Name() for entry in entries]
                if None in names or len(set(names)) < len(names):
                    raise _wrong(f"the {what} of signature {i} share a name")
                if sorted(entry.TensorIndex() for entry in entries) != sorted(places):
                    raise _wrong(f"the {what} of signature {i} are not the graph's")
