"""Writes LayerNormalization out, for targets that take integers only.

Requires: scale and offset are initializers. Ensures: no LayerNormalization of one output; its means,
difference, variance, x ** -0.5 and products stand in its place, each an operator that INT8 kernels have. On
a CPU the whole operator in float is better, so this pass is not among `converter.passes.PASSES`.
Not for: one whose mean or deviation is read.

y = (x - mean) * (variance + epsilon) ** -0.5 * scale + offset, over the axes from `axis` on (ONNX,
LayerNormalization).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converter.passes.opset import opset_of
from converter.passes.walk import attribute, is_op, shapes_of

_OPSET_AXES_INPUT = 18


def open_layer_norm(model: onnx.ModelProto) -> int:
    """Opens in place; returns the number of LayerNormalizations that went."""
    if not any(is_op(node, "LayerNormalization") for node in model.graph.node):
        return 0
    shapes, constants = shapes_of(model), {tensor.name for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    changes = 0
    for node in model.graph.node:
        rank = len(shapes.get(node.input[0], ())) if node.input else 0
        plain = is_op(node, "LayerNormalization") and not any(node.output[1:])
        if plain and rank and all(name in constants for name in node.input[1:] if name):
            nodes += _opened(model, node, rank)
            changes += 1
        else:
            nodes.append(node)
    kept = list(nodes)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return changes


def _opened(model: onnx.ModelProto, node: onnx.NodeProto, rank: int) -> list[onnx.NodeProto]:
    x, made = node.input[0], node.output[0]
    axes = list(range(int(attribute(node, "axis", -1)) % rank, rank))

    def constant(name: str, value: object, dtype: type = np.float32) -> str:
        full = f"{made}_{name}"
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), full))
        return full

    def op(kind: str, part: str, *inputs: str, **more: object) -> onnx.NodeProto:
        return helper.make_node(kind, inputs, [part], name=f"{node.name or made}_{part}", **more)

    def mean(part: str, source: str) -> onnx.NodeProto:
        if opset_of(model) >= _OPSET_AXES_INPUT:
            return op("ReduceMean", part, source, constant(f"{part}_axes", axes, np.int64), keepdims=1)
        return op("ReduceMean", part, source, axes=axes, keepdims=1)

    names = {part: f"{made}_{part}" for part in ("mean", "difference", "square", "variance", "sum", "inverse",
                                                 "normal", "scaled")}  # fmt: skip
    offset = node.input[2] if len(node.input) > 2 else ""
    epsilon = constant("epsilon", float(attribute(node, "epsilon", 1e-5)))
    written = [
        mean(names["mean"], x),
        op("Sub", names["difference"], x, names["mean"]),
        op("Mul", names["square"], names["difference"], names["difference"]),
        mean(names["variance"], names["square"]),
        op("Add", names["sum"], names["variance"], epsilon),
        op("Pow", names["inverse"], names["sum"], constant("exponent", -0.5)),
        op("Mul", names["normal"], names["difference"], names["inverse"]),
        op("Mul", names["scaled"] if offset else made, names["normal"], node.input[1]),
    ]
    return [*written, op("Add", made, names["scaled"], offset)] if offset else written
