"""Computes what depends on constants alone.

Requires: constants are initializers. Ensures: no operator of the main graph has only constants as inputs,
but for random ones, Q/DQ (a weight's pair is how it is stored), operators with subgraphs, and those whose
result is much larger than what it is made of.
Not for: shapes (`fold_shapes`), which depend on an input's type and not on its values.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx
from onnx import helper

from converter.passes.walk import QDQ, Array, View, is_op, nests
from converter.runtime import open_session

_NEVER = frozenset(
    {"Bernoulli", "Constant", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
     "RandomUniformLike", "SequenceConstruct", "SequenceEmpty", *QDQ}
)  # fmt: skip
_GROWTH_BYTES_MAX = 64 * 1024
"""A result may be this much larger than its inputs; an Expand of a scalar to an image is not stored."""
_GROWS = frozenset({"ConstantOfShape", "Expand", "Pad", "Range", "Resize", "Tile", "Upsample"})
"""Their results' sizes depend on values: what they would need is worked out before they run."""


def fold_constants(model: onnx.ModelProto) -> int:
    """Folds in place; returns how many nodes went."""
    view = View(model)
    changes = 0
    for node in list(view.graph.node):
        names = [name for name in node.input if name]
        if not names or node.op_type in _NEVER or not is_op(node, node.op_type) or nests(node):
            continue
        if all(name in view.constants for name in names) and not view.outputs & set(node.output):
            changes += _fold(model, view, node, sorted(set(names)))
    return changes


def _fold(model: onnx.ModelProto, view: View, node: onnx.NodeProto, names: list[str]) -> bool:
    given = sum(view.constants[name].ByteSize() for name in names)
    if node.op_type in _GROWS and _grown_bytes(view, node) > given + _GROWTH_BYTES_MAX:
        return False
    results = _computed(model, view, node, names)
    if not all(isinstance(result, np.ndarray) and result.dtype.kind in "biuf" for result in results.values()):
        return False
    if sum(result.nbytes for result in results.values()) > given + _GROWTH_BYTES_MAX:
        return False
    view.remove(node)
    for name, result in results.items():
        view.rename(name, view.add(f"{name}_folded", result))
    return True


def _grown_bytes(view: View, node: onnx.NodeProto) -> float:
    """At most what a growing operator's result takes, 8 bytes an element; infinity where it is not told."""
    values = [view.array(name) if name else None for name in node.input]
    first = values[0]
    if first is None:
        return float("inf")
    if node.op_type == "ConstantOfShape":
        return 8.0 * prod(float(size) for size in first)
    if node.op_type in {"Expand", "Tile"} and len(values) > 1 and values[1] is not None:
        return 8.0 * max(first.size, 1) * prod(max(float(size), 1.0) for size in values[1])
    if node.op_type == "Range" and len(values) == 3 and values[1] is not None and values[2] is not None:
        steps = (float(values[1]) - float(first)) / (float(values[2]) or 1.0)
        return 8.0 * max(steps, 0.0)
    return float("inf")


def _computed(model: onnx.ModelProto, view: View, node: onnx.NodeProto, names: list[str]) -> dict[str, Array]:
    """The node's results by name, from the runtime itself."""
    outputs = [name for name in node.output if name]
    values = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph([node], "constant", [], values, [view.constants[name] for name in names])
    alone = helper.make_model(graph, opset_imports=model.opset_import, ir_version=max(model.ir_version, 4))
    session = open_session(alone.SerializeToString(), optimization="DISABLE_ALL")
    return dict(zip(outputs, session.run(outputs, {}), strict=True))
