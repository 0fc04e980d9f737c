"""What an emitted QDQ graph does to the tensors of the FP32 graph.

For: the switchboard's assignment, read from the very graph that is emitted: so the searches try what will
run, and whoever emits need not speak of the switchboard.
Not for: QOperator graphs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from converter.repair.graph import attribute
from converter.repair.switchboard import Array, Assignment, FakeQuant

_DEFAULT_AXIS = 1


def read_assignment(emitted: onnx.ModelProto, plain: onnx.ModelProto) -> Assignment:
    """Fake quantizers and dequantized weights by the names of the FP32 graph.

    A Q/DQ pair belongs to the FP32 tensor whose name its input or its output bears or begins with. Biases in
    32 bits are left in float: their steps are far below what they are added to.
    """
    constants = {tensor.name: tensor for tensor in emitted.graph.initializer}
    weights = {t.name for t in plain.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    tensors = {name for node in plain.graph.node for name in (*node.input, *node.output)} - weights
    results = {
        node.input[0]: node.output[0] for node in emitted.graph.node if node.op_type == "DequantizeLinear"
    }
    activations: dict[str, FakeQuant] = {}
    found: dict[str, Array] = {}
    for node in emitted.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[1] in constants:
            name = _stem(tensors, node.input[0], results.get(node.output[0], ""))
            if name is not None:
                activations[name] = _fake(constants, node)
        elif node.op_type == "DequantizeLinear" and node.input[0] in constants:
            name = _stem(weights, node.input[0], node.output[0])
            if name is not None and constants[node.input[0]].data_type != onnx.TensorProto.INT32:
                found[name] = _dequantized(constants, node)
    return Assignment(activations=activations, weights=found)


def _stem(known: set[str], *names: str) -> str | None:
    """The known name that one of the names is, or begins with before an underscore; the longest."""
    for name in names:
        parts = name.split("_")
        for end in range(len(parts), 0, -1):
            if "_".join(parts[:end]) in known:
                return "_".join(parts[:end])
    return None


def _fake(constants: Mapping[str, onnx.TensorProto], node: onnx.NodeProto) -> FakeQuant:
    scale, zero = _scale_and_zero(constants, node)
    kind = np.iinfo(zero.dtype)
    point = int(zero.reshape(-1)[0])
    step = float(scale.reshape(-1)[0])
    return FakeQuant(step=step, low=float(int(kind.min) - point), high=float(int(kind.max) - point))


def _scale_and_zero(
    constants: Mapping[str, onnx.TensorProto], node: onnx.NodeProto
) -> tuple[NDArray[np.float32], NDArray[np.integer]]:
    """Scale and zero point; without one it is 0 of the type that the operator has then, uint8."""
    scale = numpy_helper.to_array(constants[node.input[1]]).astype(np.float32)
    if len(node.input) > 2 and node.input[2]:
        return scale, numpy_helper.to_array(constants[node.input[2]])
    return scale, np.zeros((), dtype=np.uint8)


def _dequantized(constants: Mapping[str, onnx.TensorProto], node: onnx.NodeProto) -> Array:
    scale, zero = _scale_and_zero(constants, node)
    values = numpy_helper.to_array(constants[node.input[0]]).astype(np.float32)
    shape = [1] * values.ndim
    if scale.size > 1:
        shape[attribute(node, "axis", _DEFAULT_AXIS)] = -1
    zeros, scale = (one.reshape(shape if one.size > 1 else ()) for one in (zero.astype(np.float32), scale))
    return np.asarray((values - zeros) * scale, dtype=np.float32)


def island_nodes(plain: onnx.ModelProto, quantized: Collection[str], islands: Collection[str]) -> list[int]:
    """Places in the graph of each island's producer and readers (FACTS.md, trap 5), in order.

    Operators with an unquantized tensor between them are one kernel (a convolution and its Relu) or float
    already: they go together. With the Relu alone in float, what goes into it would be quantized instead.

    Args:
        plain: the FP32 graph.
        quantized: tensors that are quantized where there are no islands.
        islands: some of them.
    """
    constants = {tensor.name for tensor in plain.graph.initializer}
    between = {name for node in plain.graph.node for name in (*node.input, *node.output) if name}
    between -= constants | set(quantized)
    touching: dict[str, list[int]] = defaultdict(list)
    for place, node in enumerate(plain.graph.node):
        for name in (*node.input, *node.output):
            touching[name].append(place)
    found: set[int] = set()
    todo = [place for name in islands for place in touching[name]]
    while todo:
        place = todo.pop()
        if place not in found:
            found.add(place)
            node = plain.graph.node[place]
            todo += [
                other for name in (*node.input, *node.output) if name in between for other in touching[name]
            ]
    return sorted(found)


def island_planner(plain: onnx.ModelProto, full: Assignment) -> Callable[[frozenset[str]], Assignment]:
    """From full quantization to the assignment with islands, by the rule that emitters follow.

    A tensor or weight stays quantized where an operator touches it that is not of an island.
    """

    def planner(islands: frozenset[str]) -> Assignment:
        inside = set(island_nodes(plain, full.activations, islands))
        outside = (node for place, node in enumerate(plain.graph.node) if place not in inside)
        touched = {name for node in outside for name in (*node.input, *node.output)}
        return Assignment(
            activations={k: v for k, v in full.activations.items() if k in touched and k not in islands},
            weights={k: v for k, v in full.weights.items() if k in touched},
        )

    return planner
