"""Moves a Pad of zeros into the convolution or pooling that reads it.

Requires: pads are constants. Ensures: no constant Pad by zero at both ends of spatial axes before a Conv,
or before an AveragePool that can count it, or before a MaxPool that it cannot change, with nothing else
reading it. A padded copy of the tensor is not made then, and quantized it would be one rounding more.
Not for: other modes and values, batch or channel axes, negative pads, or pooling that rounds sizes up.
"""

from __future__ import annotations

import numpy as np
import onnx

from converter.passes.walk import View, attribute, is_op, set_attribute

_NEVER_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp")


def fuse_pad(model: onnx.ModelProto) -> int:
    """Fuses in place; returns how many Pad nodes went."""
    view = View(model)
    changes = 0
    for node in list(view.graph.node):
        if not is_op(node, "Conv", "AveragePool", "MaxPool"):
            continue
        # A chain of Pads goes one by one.
        while (pad := view.maker(node.input[0], "Pad")) is not None and _fused(view, pad, node):
            view.remove(pad)
            changes += 1
    return changes


def _fused(view: View, pad: onnx.NodeProto, node: onnx.NodeProto) -> bool:
    added = _zero_pads(view, pad)
    if added is None or attribute(node, "auto_pad", b"NOTSET") not in {b"NOTSET", b""}:
        return False
    own = list(attribute(node, "pads", [0] * len(added)))
    if len(own) != len(added) or attribute(node, "ceil_mode", 0):
        return False
    total = [a + b for a, b in zip(own, added, strict=True)]
    if not is_op(node, "Conv"):
        kernel = attribute(node, "kernel_shape")
        if any(pad >= side for pad, side in zip(total, (*kernel, *kernel), strict=True)):
            return False
    if is_op(node, "MaxPool"):
        # Zero is what a maximum of values that are never negative cannot fall below.
        maker = view.makers.get(pad.input[0])
        if maker is None or not is_op(maker, *_NEVER_NEGATIVE):
            return False
    if is_op(node, "AveragePool"):
        # What a Pad adds is always counted, a pool's own pads only where it says so.
        if any(own) and not attribute(node, "count_include_pad", 0):
            return False
        set_attribute(node, "count_include_pad", 1)
    set_attribute(node, "pads", total)
    view.set_inputs(node, pad.input[0], *list(node.input)[1:])
    return True


def _zero_pads(view: View, pad: onnx.NodeProto) -> list[int] | None:
    """Pads of the spatial axes, begins then ends, if a Pad adds zeros and only there."""
    if attribute(pad, "mode", b"constant") != b"constant" or (len(pad.input) > 3 and pad.input[3]):
        return None
    if len(pad.input) > 1:
        found = view.array(pad.input[1])
        value = view.array(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else np.zeros(1)
        if found is None or value is None or value.size != 1 or float(value.reshape(-1)[0]) != 0.0:
            return None
        pads = [int(size) for size in found]
    else:
        pads = list(attribute(pad, "pads", []))
        if attribute(pad, "value", 0.0) != 0.0:
            return None
    rank = len(pads) // 2
    if rank < 3 or any(size < 0 for size in pads) or any((*pads[:2], *pads[rank : rank + 2])):
        return None
    return [*pads[2:rank], *pads[rank + 2 :]]
