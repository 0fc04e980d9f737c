"""Folds the slope of a HardSigmoid into the multiplication before it.

Requires: weights are initializers. Ensures: no HardSigmoid directly after a Conv, ConvTranspose or Gemm whose
output nothing else reads; a Clip to [0, 1] stands there instead. max(0, min(1, alpha y + beta)) is a Clip of
what the product gives with its weights times alpha and its bias times alpha plus beta. No runtime here has an
integer kernel for HardSigmoid, and TFLite has no such operator at all; a Clip costs nothing once it is
quantized, for the range of its output says the same.
Not for: a HardSigmoid behind anything else.
"""

from __future__ import annotations

import numpy as np
import onnx

from converter.passes.fold_batch_norm import PRODUCTS, channels_of, scaled_by
from converter.passes.opset import opset_of
from converter.passes.walk import View, attribute, is_op, set_attribute

_OPSET_CLIP_INPUTS = 11
_ALPHA, _BETA = 0.2, 0.5
"""ONNX's defaults."""


def fold_hard_sigmoid(model: onnx.ModelProto) -> int:
    """Folds in place; returns the number of HardSigmoids that went."""
    view = View(model)
    inputs = opset_of(model) >= _OPSET_CLIP_INPUTS
    changes = 0
    for node in list(view.graph.node):
        if inputs and is_op(node, "HardSigmoid"):
            changes += _folded(view, node)
    for tensor in [tensor for tensor in view.graph.initializer if not view.reads[tensor.name]]:
        view.graph.initializer.remove(tensor)
    return changes


def _folded(view: View, node: onnx.NodeProto) -> bool:
    product = view.maker(node.input[0], *PRODUCTS)
    channels = None if product is None else channels_of(view, product)
    if product is None or channels is None:
        return False
    alpha, beta = attribute(node, "alpha", _ALPHA), attribute(node, "beta", _BETA)
    if not scaled_by(view, product, node.output[0], np.full(channels, alpha), np.full(channels, beta)):
        return False
    bounds = [view.add(f"{node.output[0]}_{end}", np.array(value, dtype=np.float32))
              for end, value in (("low", 0.0), ("high", 1.0))]  # fmt: skip
    node.op_type = "Clip"
    set_attribute(node, "alpha", None)
    set_attribute(node, "beta", None)
    view.set_inputs(node, node.input[0], *bounds)
    return True
