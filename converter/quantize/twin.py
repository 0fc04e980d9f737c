"""Whether a TFLite twin of a Q/DQ graph exists.

For: `check_twin()`, which holds any Q/DQ graph, ours or a user's, against the rules of
`converter.quantize.twin_rules`.
Not for: choosing scales (`converter.quantize.twin_scales`), or writing TFLite (`converter.tflite`, which says
what of a graph is left in float too).

*Equal* means: scales bit-equal in float32, zero points equal once 128 is taken from those of uint8. A node
counts as integer where it stands between pairs, as runtimes read Q/DQ graphs: what it reads comes from
DequantizeLinear, and only QuantizeLinear read its outputs, behind a Relu or Clip if there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from msgspec import Struct
from numpy.typing import NDArray
from onnx import numpy_helper

from converter.quantize.operators import Operator, Role
from converter.quantize.plan import weight_axis
from converter.quantize.qparams import Floats
from converter.quantize.twin_rules import MOVES, RESCALED, TWIN_OPERATORS
from converter.quantize.view import View

_PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})


class _Stored(Struct, frozen=True, kw_only=True, eq=False):
    """How a Q or DQ node stores, unsigned 8-bit zero points shifted to signed.

    Attributes:
        scale: float32 as it stands, any shape.
        zero: signed, int32.
        dtype: of the stored numbers, by numpy's name.
        axis: of a scale with several numbers.
    """

    scale: Floats
    zero: NDArray[np.int32]
    dtype: str
    axis: int | None

    def same_as(self, other: _Stored) -> bool:
        """Bit-equal scale, equal zero point."""
        return self.scale.tobytes() == other.scale.tobytes() and np.array_equal(self.zero, other.zero)

    @property
    def words(self) -> str:
        """For people."""
        return f"{float(self.scale.flat[0]):.9g} / {int(self.zero.flat[0])}"


def check_twin(model: onnx.ModelProto) -> tuple[str, ...]:
    """What stands against a TFLite twin of a Q/DQ graph, in the graph's order; empty where one exists.

    Args:
        model: with Q/DQ pairs whose parameters are initializers; it is not changed.
    """
    return tuple(_Checker(model).findings())


class _Checker:
    """One graph being read."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._view = View(model, TWIN_OPERATORS)
        self._tensors = {tensor.name: tensor for tensor in self._view.model.graph.initializer}
        self._stored = {n.name: self._read(n) for n in self._view.nodes if n.op_type in _PAIR}

    def findings(self) -> Iterator[str]:
        for node in self._view.nodes:
            if node.op_type in _PAIR:
                yield from self._check_pair(node)
                continue
            operator = self._operator(node)
            if operator is None:
                continue
            if operator.role is Role.WEIGHTED and self._source(node, 1) is not None:
                yield from self._check_weighted(node)
            if self._is_integer(node):
                yield from self._check_scales(node, operator)

    def _operator(self, node: onnx.NodeProto) -> Operator | None:
        return self._view.operators.get(node.op_type) if node.domain in {"", "ai.onnx"} else None

    def _read(self, node: onnx.NodeProto) -> _Stored | None:
        """None where the parameters are no constants."""
        scale, zero = self._array(node, 1), self._array(node, 2)
        if scale is None or (zero is None and len(node.input) > 2 and node.input[2]):
            return None
        values = self._tensors.get(node.input[0])
        dtype = "uint8" if zero is None else str(zero.dtype)
        if zero is None and values is not None:
            dtype = str(numpy_helper.to_array(values).dtype)
        zeros = np.zeros(scale.shape, np.int32) if zero is None else zero.astype(np.int32)
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1) if scale.size > 1 else None
        rank = self._view.rank(node.input[0]) if values is None else len(values.dims)
        if axis is not None and rank:
            axis %= rank
        shift = 128 if dtype == "uint8" else 0
        return _Stored(
            scale=np.asarray(scale).reshape(-1), zero=zeros.reshape(-1) - shift, dtype=dtype, axis=axis
        )  # fmt: skip

    def _array(self, node: onnx.NodeProto, place: int) -> NDArray[Any] | None:
        tensor = self._tensors.get(node.input[place]) if len(node.input) > place else None
        return None if tensor is None else np.asarray(numpy_helper.to_array(tensor))

    def _source(self, node: onnx.NodeProto, place: int) -> onnx.NodeProto | None:
        """The DequantizeLinear of a constant that a node reads at a place."""
        name = node.input[place] if len(node.input) > place else ""
        maker = self._view.producer.get(name)
        constant = maker is not None and maker.op_type in _PAIR and maker.input[0] in self._tensors
        return maker if constant else None

    def _into(self, name: str) -> _Stored | None:
        """How the tensor that a DequantizeLinear gives as `name` is stored."""
        maker = self._view.producer.get(name)
        return None if maker is None or maker.op_type != "DequantizeLinear" else self._stored[maker.name]

    def _out_of(self, name: str) -> _Stored | None:
        """How a tensor that only QuantizeLinear read, behind a Relu or Clip perhaps, is stored."""
        readers = self._view.readers.get(name, [])
        if len(readers) == 1 and readers[0].op_type in {"Relu", "Clip"} and name not in self._view.outputs:
            name = readers[0].output[0]
            readers = self._view.readers.get(name, [])
        only = bool(readers) and all(reader.op_type == "QuantizeLinear" for reader in readers)
        shown = name in self._view.outputs or name in self._view.captured
        return self._stored[readers[0].name] if only and not shown else None

    def _is_integer(self, node: onnx.NodeProto) -> bool:
        if self._operator(node) is None:
            return False
        reads = [self._into(name) for name in self._view.activations(node)]
        loose = any(self._view.constant(name) is not None for name in self._parameters(node))
        made = [self._out_of(name) for name in node.output if name in self._view.floats]
        return bool(reads) and None not in reads and not loose and bool(made) and None not in made

    def _parameters(self, node: onnx.NodeProto) -> list[str]:
        """What an integer kernel reads: data, weight and bias; other constants are settings."""
        operator = self._view.operators[node.op_type]
        places = [i for i in (operator.weight, operator.bias) if i is not None and i < len(node.input)]
        return [*self._view.data_inputs(node), *(node.input[i] for i in places)]

    def _check_pair(self, node: onnx.NodeProto) -> Iterator[str]:
        stored, where = self._stored[node.name], f"{node.op_type} {node.name}"
        if stored is None:
            yield f"{where}: its scale or zero point is no constant"
        elif self._view.constant(node.input[0]) is not None:
            yield f"{where}: it quantizes a constant, which TFLite wants stored as integers"
        elif node.input[0] in self._tensors:
            if stored.dtype not in {"int8", "uint8", "int32"}:
                yield f"{where}: a constant stored as {stored.dtype}; TFLite has int8, and int32 for biases"
        elif stored.dtype not in {"int8", "uint8"}:
            yield f"{where}: an activation stored as {stored.dtype}, where TFLite's INT8 kernels take 8 bits"
        elif stored.scale.size != 1:
            yield f"{where}: an activation with a scale per channel, where TFLite takes one"
        else:
            maker = self._view.producer.get(node.input[0])
            given = self._stored.get(maker.name) if maker is not None else None
            if node.op_type == "DequantizeLinear" and given is not None and not given.same_as(stored):
                yield f"{where}: it reads {node.input[0]} as {stored.words}, stored as {given.words}"

    def _check_weighted(self, node: onnx.NodeProto) -> Iterator[str]:
        """A node whose weight is stored: it must be an integer one, with weight and bias by the rules."""
        where, maker = f"{node.op_type} {node.name}", self._source(node, 1)
        weight = None if maker is None else self._stored[maker.name]
        if maker is None or weight is None:
            return
        if not self._is_integer(node):
            yield f"{where}: its weight is stored as integers, but its input, output or bias is not"
            return
        values = numpy_helper.to_array(self._tensors[maker.input[0]])
        signed = values.astype(np.int32) - (128 if weight.dtype == "uint8" else 0)
        if weight.dtype not in {"int8", "uint8"} or (weight.zero != 0).any():
            zero = weight.zero.max()
            yield f"{where}: its weight is not symmetric 8-bit ({weight.dtype}, zero point {zero})"
        elif signed.min(initial=0) < -127:
            yield f"{where}: its weight holds -128, TFLite's are in [-127, 127]"
        if weight.axis not in {None, weight_axis(node, values.ndim)}:
            yield f"{where}: the scales of its weight lie along axis {weight.axis}, not the output channels"
        elif len(node.input) > 2 and node.input[2]:
            yield from self._check_bias(node, weight)

    def _check_bias(self, node: onnx.NodeProto, weight: _Stored) -> Iterator[str]:
        """Stored as int32 around 0 with exactly the product of the scales."""
        where, maker = f"{node.op_type} {node.name}", self._source(node, 2)
        bias, given = None if maker is None else self._stored[maker.name], self._into(node.input[0])
        if bias is None or given is None or given.scale.size != 1:
            yield f"{where}: its bias cannot be held against the scales of input and weight"
            return
        if bias.dtype != "int32" or (bias.zero != 0).any():
            yield f"{where}: its bias is not int32 with zero point 0 ({bias.dtype})"
        wanted = np.asarray(weight.scale * given.scale, dtype=np.float32)
        # A transposed convolution's channels have the scales of their place within a group.
        spread = np.resize(wanted, max(bias.scale.size, wanted.size))
        if spread.tobytes() != np.resize(bias.scale, spread.size).tobytes():
            yield f"{where}: the scale of its bias is not float32(input scale * weight scale)"

    def _check_scales(self, node: onnx.NodeProto, operator: Operator) -> Iterator[str]:
        """Of an integer node: what its kernel prescribes, or gives back unchanged."""
        made = [one for one in map(self._out_of, node.output) if one is not None]
        where = f"{node.op_type} {node.name}"
        if operator.fixed is not None:
            scale, zero = np.float32(operator.fixed.scale), operator.fixed.zero_point
            if made[0].scale.flat[0] != scale or made[0].zero.flat[0] != zero:
                yield f"{where}: its output is stored as {made[0].words}, by rule it is {scale:.9g} / {zero}"
        elif operator.role in MOVES and node.op_type not in RESCALED:
            first, *others = [one for one in map(self._into, self._view.activations(node)) if one is not None]
            unlike = next((one for one in (*others, *made) if not one.same_as(first)), None)
            if unlike is not None:
                yield (
                    f"{where}: its tensors are stored as {first.words} and {unlike.words}, "
                    "and its kernel does not rescale"
                )
