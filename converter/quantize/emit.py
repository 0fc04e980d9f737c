"""From a plan to a graph with QuantizeLinear and DequantizeLinear.

For: a valid, minimal and deterministic QDQ graph: weights and biases stored as integers, each activation
quantized once, subgraphs and everything unnamed left in float.
Not for: deciding anything (`converter.quantize.plan`).

A tensor that an integer node makes keeps its name behind the pair, so whoever reads it (subgraphs and graph
outputs too) reads what the integer kernel gives. A tensor made in float keeps its name before the pair, and
only integer nodes read behind it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from converter.passes.names import name_nodes
from converter.passes.opset import opset_of
from converter.passes.strip import strip
from converter.quantize.operators import OPERATORS, Role
from converter.quantize.plan import Plan
from converter.quantize.qparams import QParams, quantize, quantize_bias
from converter.quantize.twin_rules import TWIN_OPERATORS

_OPSET_16_BITS = 21
_MICROSOFT = "com.microsoft"


def emit(model: onnx.ModelProto, plan: Plan) -> onnx.ModelProto:
    """The quantized graph.

    Args:
        model: the FP32 graph that the plan was made of; it is not changed.
        plan: what is quantized.

    Ensures: equal arguments give equal bytes; no initializer is left that nothing reads.
    """
    return _Writer(model, plan).write()


class _Writer:
    """One graph in the making."""

    def __init__(self, model: onnx.ModelProto, plan: Plan) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        name_nodes(self._model)
        self._plan = plan
        self._operators = TWIN_OPERATORS if plan.twin else OPERATORS
        graph = self._model.graph
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._taken = {name for node in graph.node for name in (*node.input, *node.output, node.name)}
        self._taken |= set(self._constants) | {value.name for value in graph.input}
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: list[onnx.TensorProto] = []
        self._behind: dict[str, str] = {}
        self._again: dict[str, list[tuple[QParams, str]]] = {}
        self._stored: dict[str, list[tuple[QParams | None, NDArray[Any], str]]] = {}
        self._params: dict[tuple[str, str], list[tuple[QParams, tuple[str, str]]]] = {}
        self._microsoft = False

    def write(self) -> onnx.ModelProto:
        graph = self._model.graph
        for value in graph.input:
            if value.name in self._plan.activations and value.name not in self._constants:
                self._quantize_behind(value.name)
        absorbed = {name for name in self._plan.integer.values() if name}
        output_of = {node.name: node.output[0] for node in graph.node if node.name in absorbed}
        for node in graph.node:
            if node.name in self._plan.integer:
                self._integer(node, output_of)
            elif node.name not in absorbed:
                self._float(node)
        return self._finished()

    def _float(self, node: onnx.NodeProto) -> None:
        self._nodes.append(node)
        for name in node.output:
            if name in self._plan.activations:
                self._quantize_behind(name)

    def _quantize_behind(self, name: str) -> None:
        """A pair behind a tensor made in float; integer nodes read its result."""
        self._behind[name] = self._pair(name, name, self._new(f"{name}_dequantized"))

    def _integer(self, node: onnx.NodeProto, output_of: dict[str, str]) -> None:
        made = onnx.NodeProto()
        made.CopyFrom(node)
        for place, name in enumerate(made.input):
            made.input[place] = self._operand(node, place, name)
        absorbed = self._plan.integer[node.name]
        if absorbed:
            made.output[0] = output_of[absorbed]
        pairs = []
        for place, name in enumerate(made.output):
            if name in self._plan.activations:
                made.output[place] = self._new(f"{name}_exact")
                pairs.append((made.output[place], name))
        self._nodes.append(made)
        for exact, name in pairs:
            self._pair(exact, name, name)

    def _operand(self, node: onnx.NodeProto, place: int, name: str) -> str:
        """What an integer node reads at one place."""
        weight, bias = self._plan.weights.get(node.name), self._plan.biases.get(node.name)
        operator = self._operators[node.op_type]
        if weight is not None and place == operator.weight:
            values = numpy_helper.to_array(self._constants[name])
            return self._constant(name, quantize(values, weight.params), weight.params)
        if bias is not None and place == operator.bias:
            values = numpy_helper.to_array(self._constants[name]).reshape(-1)
            values = np.broadcast_to(values, (bias.channels,))
            return self._bias(name, quantize_bias(values, bias.scale), bias.scale)
        reads = operator.activations is None or place in operator.activations
        edge = self._plan.edges.get((node.name, name)) if reads else None
        if edge is not None:
            return self._requantized(name, edge)
        if reads and name in self._plan.constants and operator.role is not Role.SAME_SCALE:
            params = self._plan.constants[name]
            values = numpy_helper.to_array(self._constants[name])
            return self._constant(name, quantize(values, params), params)
        return self._behind.get(name, name) if reads else name

    def _requantized(self, name: str, params: QParams) -> str:
        """A tensor or constant in other parameters than its own; nodes that want the same share it."""
        if name in self._constants:
            values = numpy_helper.to_array(self._constants[name])
            return self._constant(name, quantize(values, params), params)
        known = self._again.setdefault(name, [])
        for other, result in known:
            if params.same_as(other):
                return result
        # What is made in float is read exactly and rounded once; else `name` stands behind its own pair.
        result = self._pair(name, name, self._new(f"{name}_requantized"), params)
        known.append((params, result))
        return result

    def _pair(self, source: str, tensor: str, result: str, params: QParams | None = None) -> str:
        """QuantizeLinear and DequantizeLinear of an activation, named after it."""
        params = self._plan.activations[tensor] if params is None else params
        scale, zero = self._scale_of(tensor, params)
        stored = self._new(f"{tensor}_quantized")
        self._node("QuantizeLinear", [source, scale, zero], stored, params)
        self._node("DequantizeLinear", [stored, scale, zero], result, params)
        return result

    def _constant(self, name: str, stored: NDArray[Any], params: QParams) -> str:
        """A constant stored as integers; users with equal numbers and scales share it."""
        known = self._stored.setdefault(name, [])
        for other, values, result in known:
            if other is not None and params.same_as(other) and np.array_equal(values, stored):
                return result
        scale, zero = self._scale_of(name, params)
        tensor = self._tensor(f"{name}_quantized", stored)
        result = self._new(f"{name}_dequantized")
        self._node("DequantizeLinear", [tensor, scale, zero], result, params)
        known.append((params, stored, result))
        return result

    def _bias(self, name: str, stored: NDArray[np.int32], scale: NDArray[np.float32]) -> str:
        """As int32 with zero point 0, left out as ONNX allows."""
        tensor = self._tensor(f"{name}_quantized", stored)
        spread = self._tensor(f"{name}_quantized_scale", scale)
        zero = self._tensor(f"{name}_quantized_zero_point", np.zeros(scale.shape, dtype=np.int32))
        result = self._new(f"{name}_dequantized")
        axis = {} if not scale.ndim else {"axis": 0}
        self._nodes.append(
            helper.make_node(
                "DequantizeLinear", [tensor, spread, zero], [result], name=f"{result}_node", **axis
            )
        )
        return result

    def _node(self, op_type: str, inputs: list[str], output: str, params: QParams) -> None:
        extra: dict[str, Any] = {} if params.axis is None else {"axis": params.axis}
        if params.dtype in {"u16", "i16"} and opset_of(self._model) < _OPSET_16_BITS:
            extra["domain"] = _MICROSOFT
            self._microsoft = True
        name = self._new(f"{output}_{op_type}")
        self._nodes.append(helper.make_node(op_type, inputs, [output], name=name, **extra))

    def _scale_of(self, name: str, params: QParams) -> tuple[str, str]:
        """Initializers of scale and zero point, one pair for each QParams of a name."""
        known = self._params.setdefault((name, params.dtype), [])
        for other, names in known:
            if params.same_as(other):
                return names
        names = (
            self._tensor(f"{name}_scale", params.scale),
            self._tensor(f"{name}_zero_point", params.zero_point),
        )
        known.append((params, names))
        return names

    def _tensor(self, name: str, values: NDArray[Any]) -> str:
        made = self._new(name)
        self._tensors.append(
            numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), made)
        )
        return made

    def _new(self, wanted: str) -> str:
        """A name that the graph does not hold yet."""
        name, number = wanted, 2
        while name in self._taken:
            name, number = f"{wanted}_{number}", number + 1
        self._taken.add(name)
        return name

    def _finished(self) -> onnx.ModelProto:
        """The model with the new nodes, and without what nothing reads."""
        graph = self._model.graph
        read = _read(self._nodes) | {value.name for value in graph.output}
        kept = [tensor for tensor in graph.initializer if tensor.name in read]
        dropped = set(self._constants) - {tensor.name for tensor in kept}
        inputs = [value for value in graph.input if value.name not in dropped]
        for field, values in (
            (graph.node, self._nodes), (graph.initializer, [*kept, *self._tensors]), (graph.input, inputs),
        ):  # fmt: skip
            copies = list(values)
            del field[:]
            field.extend(copies)
        del graph.value_info[:]
        if self._microsoft and all(o.domain != _MICROSOFT for o in self._model.opset_import):
            self._model.opset_import.append(helper.make_opsetid(_MICROSOFT, 1))
        strip(self._model)
        return self._model


def _read(nodes: Any) -> set[str]:  # noqa: ANN401 - a list, or protobuf's repeated field
    """Every name that nodes and their subgraphs read."""
    found: set[str] = set()
    for node in nodes:
        found.update(node.input)
        for attribute in node.attribute:
            for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                found |= _read(graph.node) | {value.name for value in graph.output}
    return found
