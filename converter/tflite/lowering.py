"""From ONNX operators to TFLite's: the builder that every operator's lowering writes to.

For: where each tensor lies and in which order of axes. Layouts are followed, not repaired: a tensor keeps the
layout in which its maker gives it, Transpose only renames axes, operators that do not care take what comes,
and a TRANSPOSE is written where an operator needs another order than the one at hand, once for all that need
it.
Not for: single operators (`converter.tflite.ops`), or reading ONNX (`converter.tflite.reading`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from converter.quantize.qparams import QParams, of_weight, quantize
from converter.tflite.errors import TFLiteError
from converter.tflite.layout import Axes, Shape, between, channels_last, identity, is_free, laid
from converter.tflite.options import Options
from converter.tflite.reading import Constant, Op, Source
from converter.tflite.schema import schema
from converter.tflite.tensors import Graph, Operator, Tensor
from converter.tflite.versions import version_of

Array = NDArray[Any]
_RANK_MAX = 6
"""Of what TRANSPOSE takes in every runtime supported."""


class Value(Struct, frozen=True, kw_only=True, eq=False):
    """Where an ONNX tensor lies.

    Attributes:
        tensor: in the file, with shape `laid(shape, axes)`.
        shape: logical, ONNX's.
        axes: layout.
        order: where a flattened image was left in the file's order: for each place along the last axis, the
            place that ONNX means. Only readers that put their weights into the same order see such a value.
    """

    tensor: Tensor
    shape: Shape
    axes: Axes
    order: Array | None = None


class Lowering:
    """One file in the making; operators' lowerings call it."""

    def __init__(self, source: Source, options: Options) -> None:
        self.source = source
        self.options = options
        self.graph = Graph(operators=[], inputs={}, outputs={})
        self._values: dict[str, Value] = {}
        self._laid: dict[tuple[int, Axes], Tensor] = {}
        self._pending: dict[int, Tensor] = {}
        self._readers: dict[str, list[Op]] = {}
        for op in source.ops:
            for name in dict.fromkeys(op.inputs):
                self._readers.setdefault(name, []).append(op)

    # What ONNX says.

    def shape(self, name: str) -> Shape:
        """Logical shape of a tensor."""
        return self.source.shapes[name]

    def readers(self, name: str) -> Sequence[Op]:
        """Operators that read a tensor, each once."""
        return self._readers.get(name, ())

    def constant(self, name: str) -> Constant | None:
        """A constant's stored numbers and how they are stored; None for what is computed."""
        return self.source.constants.get(name)

    def numbers(self, op: Op, place: int, default: Array | None = None) -> Array:
        """A setting that ONNX gives as an input: it must be a constant.

        Raises:
            TFLiteError: `tflite_attribute`: it is computed, or missing without a default.
        """
        name = op.inputs[place] if place < len(op.inputs) else ""
        found = self.constant(name)
        if found is not None and found.quant is None:
            return found.values
        if not name and default is not None:
            return default
        raise TFLiteError("tflite_attribute", f"input {place} of {op.where} is no constant")

    def quant(self, name: str) -> QParams | None:
        """How a computed tensor is stored; None for plain numbers."""
        return self.source.quants.get(name)

    # Tensors.

    def value(self, name: str) -> Value:
        """Where a tensor lies; a constant becomes one of the file, in ONNX's order."""
        found = self._values.get(name)
        if found is None:
            constant = self.constant(name)
            if constant is None:
                raise TFLiteError("tflite_layout", f"{name} is read before it is made")
            tensor = self.new_constant(constant.values, name, constant.quant)
            found = Value(tensor=tensor, shape=tensor.shape, axes=identity(len(tensor.shape)))
            self._values[name] = found
        return found

    def take(self, name: str, axes: Axes | None = None) -> Tensor:
        """The tensor in the given layout, by default ONNX's own; moves it only if it must."""
        value = self.value(name)
        want = identity(len(value.shape)) if axes is None else axes
        if value.order is not None:
            raise TFLiteError("tflite_layout", f"{name} was flattened in the file's order")
        if value.axes == want:
            return value.tensor
        key = (id(value.tensor), between(value.axes, want))
        if key not in self._laid:
            self._laid[key] = self._moved(value, want, name)
        return self._laid[key]

    def _moved(self, value: Value, want: Axes, name: str) -> Tensor:
        shape, tensor = laid(value.shape, want), value.tensor
        permutation = between(value.axes, want)
        if tensor.values is not None:
            quant = tensor.quant
            if quant is not None and quant.axis is not None:
                quant = QParams(
                    scale=quant.scale, zero_point=quant.zero_point, dtype=quant.dtype,
                    axis=permutation.index(quant.axis),
                )  # fmt: skip
            return self.new_constant(tensor.values.transpose(permutation), f"{name}_laid", quant)
        if is_free(value.shape, value.axes, want):
            return self.reshape(tensor, shape, f"{name}_laid")
        if len(shape) > _RANK_MAX:
            raise TFLiteError("tflite_rank", f"{name} has {len(shape)} axes that must change their order")
        made = self.new(f"{name}_laid", shape, tensor.dtype, tensor.quant)
        order = self.new_constant(np.array(permutation, dtype=np.int32), f"{name}_axes")
        self.add("TRANSPOSE", [tensor, order], [made], schema.TransposeOptionsT())
        return made

    def new(self, name: str, shape: Shape, dtype: str, quant: QParams | None = None) -> Tensor:
        """A computed tensor that ONNX does not know."""
        return Tensor(name=name, shape=shape, dtype=dtype, quant=quant)

    def new_constant(self, values: Array, name: str, quant: QParams | None = None) -> Tensor:
        """A constant of the file; `quant`'s axis is in the order of `values`."""
        values = np.asarray(values)
        if values.dtype == np.float64:
            values = values.astype(np.float32)
        return Tensor(
            name=name, shape=tuple(values.shape), dtype=str(values.dtype), values=values, quant=quant
        )

    def integers(self, values: Sequence[int], name: str) -> Tensor:
        """A constant vector of int32, as most of TFLite's settings are."""
        return self.new_constant(np.array(values, dtype=np.int32), name)

    def weight(self, values: Array, name: str, axis: int | None) -> Tensor:
        """A float weight in the file's order, stored as the options say.

        Args:
            values: float32.
            name: of the tensor.
            axis: of the output channels; None where the kernel takes one scale only.
        """
        if self.options.weights == "float16":
            half = self.new_constant(values.astype(np.float16), f"{name}_float16")
            made = self.new(name, half.shape, "float32")
            self.add("DEQUANTIZE", [half], [made], schema.DequantizeOptionsT(), version=3)
            return made
        if self.options.weights == "dynamic_int8" and axis is not None:
            params = of_weight(np.ascontiguousarray(values, dtype=np.float32), "i8", axis)
            return self.new_constant(quantize(values, params), name, params)
        return self.new_constant(values, name)

    def output(
        self, op: Op, axes: Axes | None = None, *, place: int = 0, like: Tensor | None = None
    ) -> Tensor:
        """The tensor for one of the operator's outputs.

        Args:
            op: whose output it is.
            axes: layout in which the kernel gives it; ONNX's by default.
            place: which output.
            like: a stored tensor whose scale and zero point the kernel gives back unchanged; where ONNX wants
                others, a QUANTIZE follows.
        """
        name = op.outputs[place]
        shape = self.shape(name)
        axes = identity(len(shape)) if axes is None else axes
        dtype, quant = self.source.dtypes[name], self.quant(name)
        made = self.new(name, laid(shape, axes), dtype, quant)
        self._values[name] = Value(tensor=made, shape=shape, axes=axes)
        if (
            like is not None
            and quant is not None
            and like.quant is not None
            and not quant.same_as(like.quant)
        ):
            inner = self.new(f"{name}_unscaled", made.shape, dtype, like.quant)
            self._pending[id(inner)] = made
            return inner
        return made

    def rename(self, op: Op, value: Value, place: int = 0) -> None:
        """An operator that computes nothing: its output is `value`, under another name or with other axes."""
        name = op.outputs[place]
        quant = self.quant(name)
        if value.tensor.quant is not None and quant is not None and not quant.same_as(value.tensor.quant):
            made = self.new(name, value.tensor.shape, value.tensor.dtype, quant)
            self.add("QUANTIZE", [value.tensor], [made], schema.QuantizeOptionsT())
            value = Value(tensor=made, shape=value.shape, axes=value.axes, order=value.order)
        self._values[name] = value

    # Operators.

    def add(
        self, kind: str, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor],
        options: Any = None, *, version: int | None = None,  # noqa: ANN401 - the schema has no types
    ) -> None:  # fmt: skip
        """Appends one operator; its version is the table's for the first input's type by default."""
        first = next((t for t in inputs if t is not None and t.quant is not None), inputs[0])
        dtype, rank = ("float32", 0) if first is None else (first.dtype, len(first.shape))
        self.graph.operators.append(
            Operator(
                kind=kind, inputs=tuple(inputs), outputs=tuple(outputs), options=options,
                version=version_of(kind, dtype, rank) if version is None else version,
            )
        )  # fmt: skip
        for made in outputs:
            wanted = self._pending.pop(id(made), None)
            if wanted is not None:
                self.add("QUANTIZE", [made], [wanted], schema.QuantizeOptionsT())

    def reshape(self, tensor: Tensor, shape: Shape, name: str) -> Tensor:
        """The same numbers under another shape."""
        if tensor.shape == shape:
            return tensor
        if tensor.values is not None:
            if tensor.quant is not None and tensor.quant.axis is not None:
                raise TFLiteError(
                    "tflite_layout", f"{tensor.name} is stored per channel and cannot be reshaped"
                )
            return self.new_constant(tensor.values.reshape(shape), name, tensor.quant)
        made = self.new(name, shape, tensor.dtype, tensor.quant)
        self.reshape_into(tensor, made)
        return made

    def reshape_into(self, tensor: Tensor, made: Tensor) -> None:
        """A RESHAPE to a tensor that is there already."""
        options = schema.ReshapeOptionsT()
        options.newShape = list(made.shape)
        self.add("RESHAPE", [tensor, self.integers(made.shape, f"{made.name}_shape")], [made], options)

    def operands(self, op: Op, names: Sequence[str]) -> tuple[list[Tensor], Axes]:
        """Operands of an operator that works element by element with broadcasting, in one layout.

        The layout is the one of the largest computed operand of full rank; of two as large, of one not in
        ONNX's order. Operands of lower rank get leading axes of length 1, as broadcasting means them.

        Returns:
            The tensors, all with as many axes as the output, and their layout.
        """
        rank = len(self.shape(op.outputs[0]))
        axes, largest = identity(rank), (-1, False)
        for name in names:
            found = self._values.get(name)
            if found is None or len(found.shape) != rank or found.tensor.values is not None:
                continue
            size = (prod(found.shape), found.axes != identity(rank))
            if size > largest:
                axes, largest = found.axes, size
        return [self._operand(name, rank, axes) for name in names], axes

    def _operand(self, name: str, rank: int, axes: Axes) -> Tensor:
        value = self.value(name)
        if len(value.shape) == rank:
            return self.take(name, axes)
        if not value.shape and value.tensor.values is not None:
            return value.tensor
        shape = (1,) * (rank - len(value.shape)) + value.shape
        if is_free(shape, identity(rank), axes):
            return self.reshape(self.take(name), laid(shape, axes), f"{name}_spread")
        return self._spread(name, shape, axes)

    def _spread(self, name: str, shape: Shape, axes: Axes) -> Tensor:
        """An operand of lower rank whose axes change their order under the wanted layout."""
        whole = self.reshape(self.take(name), shape, f"{name}_spread")
        value = Value(tensor=whole, shape=shape, axes=identity(len(shape)))
        key = (id(whole), axes)
        if key not in self._laid:
            self._laid[key] = self._moved(value, axes, f"{name}_spread")
        return self._laid[key]

    # The edges of the file.

    def open(self, wants_channels_last: Callable[[str], bool]) -> None:
        """The graph's inputs; images lie with channels last where a convolution comes first."""
        for name in self.source.inputs:
            shape = self.shape(name)
            axes = channels_last(len(shape)) if wants_channels_last(name) else identity(len(shape))
            quant = self._edge_quant(name)
            if quant is None:
                tensor = self.new(name, laid(shape, axes), self.source.dtypes[name], self.quant(name))
            else:
                tensor = self.new(name, laid(shape, axes), self.options.edge, quant)
            self.graph.inputs[name] = tensor
            self._values[name] = Value(tensor=tensor, shape=shape, axes=axes)

    def _edge_quant(self, name: str) -> QParams | None:
        """How an input is stored in the file, if all that reads it reads it quantized alike."""
        if self.options.edge == "float32" or self.source.dtypes[name] != "float32":
            return None
        readers = self.readers(name)
        found = [self.quant(op.outputs[0]) for op in readers if op.op_type == "QuantizeLinear"]
        first = found[0] if found else None
        if (
            first is None
            or len(found) < len(readers)
            or any(one is None or not one.same_as(first) for one in found)
        ):
            raise TFLiteError(
                "tflite_quantization",
                f"input {name} is not quantized for all that reads it, so the file's input cannot be "
                f"{self.options.edge}",
            )
        return _edged(first, self.options.edge)

    def close(self) -> None:
        """The graph's outputs, under ONNX's names, with channels last or in ONNX's order.

        Each has a tensor of its own, so that it can bear its name.
        """
        taken = {id(tensor) for tensor in self.graph.inputs.values()}
        for name in self.source.outputs:
            stored = self.source.aliases.get(name)
            if self.options.edge != "float32" and self._is_real(name):
                if stored is None:
                    raise TFLiteError(
                        "tflite_quantization",
                        f"output {name} is made in float, so the file's output cannot be {self.options.edge}",
                    )
                tensor = self._edge_output(stored)
            else:
                tensor = self._settled(name)
            if id(tensor) in taken:
                copied = self.new(name, tensor.shape, tensor.dtype, tensor.quant)
                self.reshape_into(tensor, copied)
                tensor = copied
            taken.add(id(tensor))
            self.graph.outputs[name] = tensor

    def _is_real(self, name: str) -> bool:
        constant = self.constant(name)
        return (self.source.dtypes[name] if constant is None else str(constant.values.dtype)) == "float32"

    def _settled(self, name: str) -> Tensor:
        value = self.value(name)
        rank = len(value.shape)
        kept = value.axes if value.axes == channels_last(rank) else identity(rank)
        tensor = self.take(name, kept)
        self._values[name] = Value(tensor=tensor, shape=value.shape, axes=kept)
        return tensor

    def _edge_output(self, stored: str) -> Tensor:
        tensor = self._settled(stored)
        if self.options.edge == "int8" or tensor.quant is None:
            return tensor
        made = self.new(f"{stored}_{self.options.edge}", tensor.shape, "uint8", _edged(tensor.quant, "uint8"))
        self.add("QUANTIZE", [tensor], [made], schema.QuantizeOptionsT())
        return made

    def placed(self) -> Mapping[str, Value]:
        """Where every ONNX tensor lies that the file holds."""
        return self._values


def _edged(params: QParams, edge: str) -> QParams:
    """Parameters as the file's edge stores them."""
    if edge != "uint8":
        return params
    zero = (params.zero_point.astype(np.int16) + 128).astype(np.uint8)
    return QParams(scale=params.scale, zero_point=zero, dtype="u8")
