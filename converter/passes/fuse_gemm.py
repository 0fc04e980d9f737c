"""Makes a Gemm of MatMul and Add, and gives every Gemm a bias of one axis.

Requires: weights are initializers. Ensures: no Add of a constant row to a MatMul of a matrix by a constant
matrix, and no constant Gemm bias of another shape than [N] where it stands for one row: a bias of [1, N]
makes onnxruntime's per-channel quantizer raise (FACTS.md, trap 3).
Not for: products of higher rank, which Gemm does not take.
"""

from __future__ import annotations

import numpy as np
import onnx

from converter.passes.walk import View, attribute, is_op, shapes_of


def fuse_gemm(model: onnx.ModelProto) -> int:
    """Fuses in place; returns how many nodes went or had their bias changed."""
    view, shapes = View(model), shapes_of(model)
    changes = 0
    for node in list(view.graph.node):
        if is_op(node, "Add"):
            changes += _fuse(view, node, shapes)
        elif is_op(node, "Gemm") and len(node.input) > 2 and node.input[2]:
            changes += _flat_bias(view, node)
    return changes


def _row(view: View, name: str, columns: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None:
    """A constant that is added to every row, as [columns]."""
    value = view.array(name)
    if value is None or value.dtype != np.float32 or value.ndim > 2:
        return None
    if value.size == 1:
        return np.full(columns, value.reshape(-1)[0], dtype=np.float32)
    fits = value.shape in {(columns,), (1, columns)}
    return value.reshape(columns).astype(np.float32) if fits else None


def _fuse(view: View, add: onnx.NodeProto, shapes: dict[str, tuple[int | str | None, ...]]) -> bool:
    for product, other in (tuple(add.input), tuple(reversed(add.input))):
        node = view.maker(product, "MatMul")
        if node is None or len(shapes.get(node.input[0], ())) != 2 or node.input[0] in view.constants:
            continue
        weight = view.array(node.input[1])
        if weight is None or weight.ndim != 2 or weight.dtype != np.float32:
            continue
        row = _row(view, other, weight.shape[1])
        if row is None:
            continue
        bias = other if view.constants[other].dims == [len(row)] else view.add(f"{add.output[0]}_bias", row)
        view.remove(node)
        add.op_type = "Gemm"
        view.set_inputs(add, node.input[0], node.input[1], bias)
        return True
    return False


def _flat_bias(view: View, node: onnx.NodeProto) -> bool:
    weight, bias = view.array(node.input[1]), view.array(node.input[2])
    if weight is None or bias is None or (bias.ndim == 1 and bias.size != 1):
        return False
    columns = weight.shape[0 if attribute(node, "transB", 0) else 1]
    row = _row(view, node.input[2], columns)
    if row is None or bias.shape == (columns,):
        return False
    view.set_inputs(node, node.input[0], node.input[1], view.add(f"{node.output[0]}_bias", row))
    return True
