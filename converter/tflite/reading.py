"""A float or QDQ graph as the writer reads it: pairs resolved, activations fused.

For: `read()`: from ONNX to a plain list of operators, each of which computes in integers or in float, with
every tensor's shape, type and quantization. Where an operator stands between DequantizeLinear and
QuantizeLinear and LiteRT has an INT8 kernel for it, it reads and writes the stored integers; any other pair
becomes QUANTIZE or DEQUANTIZE.
Not for: layouts and TFLite's operators (`converter.tflite.lowering`, `converter.tflite.ops`).

Unsigned integers become signed by subtracting 128 from values and zero points: TFLite's INT8 kernels are
signed (https://ai.google.dev/edge/litert/models/quantization_spec), and the reals stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from msgspec import Struct
from numpy.typing import NDArray
from onnx import numpy_helper

from converter.model import element_types
from converter.quantize.qparams import QParams
from converter.tflite.errors import TFLiteError
from converter.tflite.shapes import fix, inferred

Array = NDArray[Any]
_BOUNDS = {(0.0, float("inf")): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}


class Traits(Struct, frozen=True, kw_only=True):
    """What reading must know of an operator.

    Attributes:
        integer: LiteRT has an INT8 kernel that does what ONNX means between the pairs.
        constants: places of float constants that must be stored as integers for that kernel; at any other
            place a float constant is a setting (bounds, scales, a padding value).
        fuses: a Relu or Clip behind it becomes its fused activation.
        settings: float constants that the kernel's meaning hangs on, by place; with others the operator
            computes in float.
        fits: whether the kernel, whose output has parameters of its own, can give its numbers under these;
            where it cannot, the operator computes in float.
    """

    integer: bool = False
    constants: tuple[int, ...] = ()
    fuses: bool = False
    settings: Mapping[int, float] = {}
    fits: Callable[[QParams], bool] | None = None


class Constant(Struct, frozen=True, kw_only=True, eq=False):
    """Stored numbers; with `quant`, integers that stand for reals."""

    values: Array
    quant: QParams | None = None


class Op(Struct, frozen=True, kw_only=True, eq=False):
    """One operator.

    Attributes:
        name: of the ONNX node.
        op_type: ONNX's.
        inputs: tensors, "" where one is left out; an integer operator's are the stored ones.
        outputs: tensors; an integer operator's are the stored ones.
        attributes: values by name, strings decoded.
        activation: fused, by the schema's name.
        integer: computes on stored integers.
    """

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    activation: str = "NONE"
    integer: bool = False

    @property
    def where(self) -> str:
        """For errors."""
        return f"{self.op_type} {self.name}"


class Source(Struct, frozen=True, kw_only=True, eq=False):
    """The graph, read.

    Attributes:
        ops: in an order in which they can run.
        constants: by name.
        shapes: of every tensor, logical.
        dtypes: numpy's names; `int8` for stored activations.
        quants: of stored activations, by name.
        inputs: names of the graph's inputs.
        outputs: names of the graph's outputs.
        aliases: by the name that ONNX's float operators read (behind a pair), the stored tensor.
        opset: of the default domain.
    """

    ops: tuple[Op, ...]
    constants: Mapping[str, Constant]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    quants: Mapping[str, QParams]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    aliases: Mapping[str, str]
    opset: int


def read(model: onnx.ModelProto, traits: Mapping[str, Traits], batch: int) -> Source:
    """The graph with its pairs resolved.

    Args:
        model: float or QDQ; it is not changed.
        traits: of every operator that can be written, by ONNX type.
        batch: length of free first axes.

    Raises:
        TFLiteError: `tflite_operator`, `tflite_shape`, `tflite_type`, `tflite_quantization`.
    """
    fixed, shapes = fix(model, batch)
    return _Reader(fixed, shapes, traits).read()


class _Reader:
    """One graph being read."""

    def __init__(
        self, model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]], traits: Mapping[str, Traits]
    ) -> None:
        graph = model.graph
        self._model, self._traits = model, traits
        self._shapes = dict(shapes)
        self._types = element_types(inferred(model))
        self._constants: dict[str, Constant] = {
            tensor.name: Constant(values=numpy_helper.to_array(tensor)) for tensor in graph.initializer
        }
        self._nodes = list(graph.node)
        self._outputs = tuple(value.name for value in graph.output)
        self._inputs = tuple(v.name for v in graph.input if v.name not in self._constants)
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self._nodes:
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)
        self._quants: dict[str, QParams] = {}
        self._aliases: dict[str, str] = {}
        self._stored: dict[str, str] = {}
        self._done: set[str] = set()

    def read(self) -> Source:
        """Pairs first, for an operator is judged by what stands around it."""
        for node in self._nodes:
            if node.op_type == "QuantizeLinear":
                self._quantize(node)
            elif node.op_type == "DequantizeLinear":
                self._dequantize(node)
        ops = [op for node in self._nodes for op in self._op(node)]
        needed = {name for op in ops for name in op.inputs} | set(self._outputs)
        ops = [op for op in ops if op.op_type != "DequantizeLinear" or op.outputs[0] in needed]
        names = {n for op in ops for n in (*op.inputs, *op.outputs)} | set(self._inputs) | set(self._outputs)
        return Source(
            ops=tuple(ops), constants=self._constants, shapes=self._shapes,
            dtypes={name: self._dtype(name) for name in names if name and name not in self._constants},
            quants=self._quants, inputs=self._inputs, outputs=self._outputs, aliases=self._aliases,
            opset=next(o.version for o in self._model.opset_import if o.domain in {"", "ai.onnx"}),
        )  # fmt: skip

    def _quantize(self, node: onnx.NodeProto) -> None:
        if node.input[0] in self._constants:
            raise TFLiteError(
                "tflite_quantization", f"QuantizeLinear {node.name} reads a constant; store it as integers"
            )
        params = self._params(node, None)
        if params.axis is not None:
            raise TFLiteError(
                "tflite_quantization",
                f"QuantizeLinear {node.name} quantizes an activation per channel, TFLite per tensor",
            )
        self._quants[node.output[0]] = params

    def _dequantize(self, node: onnx.NodeProto) -> None:
        name, result = node.input[0], node.output[0]
        constant = self._constants.get(name)
        if constant is not None:
            params = self._params(node, constant.values)
            values = constant.values
            if values.dtype == np.uint8:
                values = (values.astype(np.int16) - 128).astype(np.int8)
            self._constants[result] = Constant(values=values, quant=params)
            self._shapes.setdefault(result, tuple(values.shape))
            return
        params = self._params(node, None)
        known = self._quants.get(name)
        if known is None:
            self._quants[name] = params
        elif not known.same_as(params):
            raise TFLiteError(
                "tflite_quantization", f"DequantizeLinear {node.name} reads {name} with other parameters"
            )
        self._aliases[result] = name

    def _params(self, node: onnx.NodeProto, values: Array | None) -> QParams:
        """Of a pair's node, signed; `values` are the constant's that it reads."""
        scale = self._number(node, 1)
        zero = self._number(node, 2) if len(node.input) > 2 and node.input[2] else None
        stored = values.dtype if values is not None else np.dtype(np.uint8) if zero is None else zero.dtype
        zeros = np.zeros(scale.shape, dtype=stored) if zero is None else zero
        if stored not in {np.dtype(np.int8), np.dtype(np.uint8), np.dtype(np.int32)} or scale.ndim > 1:
            how = "in blocks" if scale.ndim > 1 else f"as {stored}"
            raise TFLiteError(
                "tflite_quantization", f"{node.op_type} {node.name} stores {how}, TFLite as int8"
            )
        if scale.dtype != np.float32:
            raise TFLiteError("tflite_type", f"the scale of {node.op_type} {node.name} is {scale.dtype}")
        axis = None
        if scale.ndim and (scale.size > 1 or values is not None):
            rank = len(self._shapes[node.input[0]])
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1) % max(rank, 1)
        if stored == np.uint8:
            zeros = (zeros.astype(np.int16) - 128).astype(np.int8)
        if axis is None:
            scale, zeros = scale.reshape(()), zeros.reshape(())
        return QParams(scale=scale, zero_point=zeros, dtype="i32" if stored == np.int32 else "i8", axis=axis)

    def _number(self, node: onnx.NodeProto, place: int) -> Array:
        constant = self._constants.get(node.input[place])
        if constant is None:
            raise TFLiteError(
                "tflite_quantization", f"the parameters of {node.op_type} {node.name} are no constants"
            )
        return constant.values

    def _op(self, node: onnx.NodeProto) -> list[Op]:
        if node.name in self._done:
            return []
        if node.op_type == "QuantizeLinear":
            same = self._stored.get(node.input[0])
            written = same is not None and self._aliases.get(node.output[0], node.output[0]) == same
            return [] if written else [self._plain(node, integer=node.input[0] in self._aliases)]
        if node.op_type == "DequantizeLinear":
            return [] if node.output[0] in self._constants else [self._plain(node, integer=False)]
        traits = self._traits.get(node.op_type)
        if traits is None or node.domain not in {"", "ai.onnx"}:
            domain = "" if node.domain in {"", "ai.onnx"} else f" of domain {node.domain}"
            raise TFLiteError(
                "tflite_operator", f"{node.op_type} {node.name}{domain} cannot be written as TFLite here"
            )
        activation, exact = self._fused(node) if traits.fuses else ("NONE", tuple(node.output))
        integer = traits.integer and self._is_integer(node, traits, exact)
        outputs = tuple(self._stored.get(name, name) for name in exact) if integer else exact
        return [self._plain(node, integer=integer, outputs=outputs, activation=activation)]

    def _plain(
        self, node: onnx.NodeProto, *, integer: bool, outputs: tuple[str, ...] = (), activation: str = "NONE"
    ) -> Op:
        if integer:
            inputs = tuple(self._aliases.get(name, name) for name in node.input)
        else:
            inputs = tuple(self._real(name) for name in node.input)
        if node.op_type == "DequantizeLinear":
            inputs = (self._canonical(node.input[0]),)
        return Op(
            name=node.name, op_type=node.op_type, inputs=inputs, outputs=outputs or tuple(node.output),
            attributes={a.name: _plain_value(a) for a in node.attribute}, activation=activation,
            integer=integer,
        )  # fmt: skip

    def _real(self, name: str) -> str:
        """A stored constant as float32, for an operator that computes in float."""
        constant = self._constants.get(name)
        if constant is None or constant.quant is None:
            return name
        real = f"{name}_real"
        if real not in self._constants:
            self._constants[real] = Constant(values=_reals(constant.values, constant.quant))
            self._shapes[real] = tuple(constant.values.shape)
        return real

    def _canonical(self, stored: str) -> str:
        return self._aliases.get(stored, stored)

    def _fused(self, node: onnx.NodeProto) -> tuple[str, tuple[str, ...]]:
        """The activation that alone reads this node's output, and what is written then."""
        readers = self._readers.get(node.output[0], [])
        if len(node.output) != 1 or len(readers) != 1 or node.output[0] in self._outputs:
            return "NONE", tuple(node.output)
        name = _BOUNDS.get(self._bounds(readers[0]) or (0.0, 0.0))
        if name is None:
            return "NONE", tuple(node.output)
        self._done.add(readers[0].name)
        return name, (readers[0].output[0],)

    def _bounds(self, node: onnx.NodeProto) -> tuple[float, float] | None:
        """What a Relu or Clip lets through."""
        if node.op_type == "Relu":
            return 0.0, float("inf")
        if node.op_type != "Clip":
            return None
        found = {a.name: a.f for a in node.attribute}
        bounds = [found.get("min", -float("inf")), found.get("max", float("inf"))]
        for place, name in enumerate(list(node.input)[1:3]):
            if name:
                constant = self._constants.get(name)
                if constant is None or constant.quant is not None or constant.values.size != 1:
                    return None
                bounds[place] = float(constant.values.reshape(-1)[0])
        return bounds[0], bounds[1]

    def _is_integer(self, node: onnx.NodeProto, traits: Traits, exact: tuple[str, ...]) -> bool:
        """Whether the node stands between pairs; notes then which stored tensors it writes."""
        if not all(self._is_set(node, place, wanted) for place, wanted in traits.settings.items()):
            return False
        reads = False
        for place, name in enumerate(node.input):
            constant = self._constants.get(name)
            if constant is not None:
                plain = constant.quant is None and constant.values.dtype.kind == "f"
                if plain and place in traits.constants:
                    return False
                # What an operator picks from a stored table is stored, whatever says which.
                reads = reads or (constant.quant is not None and place in traits.constants)
            elif name in self._aliases:
                reads = True
            elif name and self._dtype(name) == "float32":
                return False
        written = {name: self._behind(name) for name in exact if name and self._dtype(name) == "float32"}
        if not reads or any(stored is None for stored in written.values()):
            return False
        fits = traits.fits
        if fits is not None and not all(fits(self._quants[s]) for s in written.values() if s is not None):
            return False
        self._stored |= {name: stored for name, stored in written.items() if stored is not None}
        return True

    def _is_set(self, node: onnx.NodeProto, place: int, wanted: float) -> bool:
        found = self._constants.get(node.input[place]) if place < len(node.input) else None
        single = found is not None and found.quant is None and found.values.size == 1
        return single and found is not None and float(found.values.reshape(-1)[0]) == wanted

    def _behind(self, name: str) -> str | None:
        """The stored tensor that alone is made of a float one; None where others read the float itself."""
        readers = self._readers.get(name, [])
        if not readers or name in self._outputs or any(n.op_type != "QuantizeLinear" for n in readers):
            return None
        first, *others = (str(node.output[0]) for node in readers)
        if any(not self._quants[first].same_as(self._quants[other]) for other in others):
            return None
        self._aliases |= dict.fromkeys(others, first)
        self._aliases |= {k: first for k, stored in self._aliases.items() if stored in others}
        return first

    def _dtype(self, name: str) -> str:
        if name in self._quants:
            return "int8"
        element = self._types.get(name, onnx.TensorProto.UNDEFINED)
        if element == onnx.TensorProto.UNDEFINED:
            raise TFLiteError("tflite_type", f"the element type of {name} is not known")
        found = str(onnx.helper.tensor_dtype_to_np_dtype(element))
        if found not in {"float32", "int8", "uint8", "int32", "int64", "bool"}:
            raise TFLiteError("tflite_type", f"{name} is {found}, which TFLite's kernels do not take")
        return found


def _reals(values: Array, quant: QParams) -> Array:
    """(stored - zero point) * scale, as DequantizeLinear computes it, in float32."""
    shape = [1] * values.ndim
    if quant.axis is not None:
        shape[quant.axis] = -1
    zero = quant.zero_point.astype(np.int32).reshape(shape if quant.axis is not None else ())
    scale = quant.scale.reshape(shape if quant.axis is not None else ())
    return np.asarray((values.astype(np.int32) - zero).astype(np.float32) * scale, dtype=np.float32)


def _plain_value(attribute: onnx.AttributeProto) -> Any:  # noqa: ANN401 - as many types as attributes have
    value = onnx.helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value
