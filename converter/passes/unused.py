"""Stores nothing twice and nothing for nobody.

Requires: nothing. Ensures (`drop_unused`): every node and initializer of the main graph reaches an output
or a subgraph; (`share_constants`): large initializers of equal type, shape and bytes are one.
Not for: biases and small constants, which stay apart: quantized, a bias takes the scale of its own layer,
and a repair that scales one layer's constants must not reach another's.
"""

from __future__ import annotations

import hashlib

import onnx
from onnx import numpy_helper

from converter.passes.walk import View, is_op

_SHARED_BYTES_MIN = 1024


def drop_unused(model: onnx.ModelProto) -> int:
    """Drops in place; returns how many nodes and initializers went."""
    view = View(model)
    dead = []
    for node in reversed(list(view.graph.node)):
        if not any(view.reads[name] for name in node.output if name):
            view.remove(node)
            dead.append(node.op_type)
    unread = [tensor for tensor in view.graph.initializer if not view.reads[tensor.name]]
    for tensor in unread:
        view.graph.initializer.remove(tensor)
    return len(dead) + len(unread)


def share_constants(model: onnx.ModelProto) -> int:
    """Shares in place; returns how many initializers lost their readers to an equal one."""
    view = View(model)
    biases = {
        node.input[2]
        for node in view.graph.node
        if is_op(node, "Conv", "ConvTranspose", "Gemm") and len(node.input) > 2
    }
    first: dict[tuple[int, tuple[int, ...], str], str] = {}
    doubles = 0
    for tensor in view.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.name in biases | view.outputs or array.nbytes < _SHARED_BYTES_MIN:
            continue
        key = (int(tensor.data_type), tuple(tensor.dims), hashlib.sha256(array.tobytes()).hexdigest())
        same = first.setdefault(key, tensor.name)
        if same != tensor.name and view.reads[tensor.name]:
            view.rename(tensor.name, same)
            doubles += 1
    return doubles
