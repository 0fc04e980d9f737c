"""Puts activations together that an exporter took apart.

Requires: bounds are constants. Ensures: Max and Min with constants are Clip or Relu; a Clip or Relu that
another one makes needless is gone; HardSigmoid and, from opset 14, HardSwish are one operator each. Taken
apart, each step would be quantized with a range of its own.
Not for: x * sigmoid(x) and the Erf form of Gelu, which onnxruntime fuses itself (docs/adr/0004).
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from converter.passes.opset import opset_of
from converter.passes.walk import View, attribute, is_op, set_attribute

_OPSET_CLIP_INPUTS = 11
_OPSET_HARD_SWISH = 14
_NEAR = 1e-6


def fuse_activations(model: onnx.ModelProto) -> int:
    """Fuses in place; returns how many nodes went or became another operator."""
    view, opset = View(model), opset_of(model)
    if opset < _OPSET_CLIP_INPUTS:
        return 0
    changes = 0
    for node in list(view.graph.node):
        if is_op(node, "Max", "Min"):
            changes += _to_clip(view, node)
        if is_op(node, "Clip", "Relu"):
            changes += _join_clips(view, node)
        if is_op(node, "Div", "Mul"):
            changes += _hard_sigmoid(view, node)
        if is_op(node, "Mul") and opset >= _OPSET_HARD_SWISH:
            changes += _hard_swish(view, node)
    return changes


def _with_constant(view: View, node: onnx.NodeProto) -> tuple[str, float] | None:
    """The one input that is computed and the constant of one element beside it."""
    if len(node.input) != 2:
        return None
    for x, other in (tuple(node.input), tuple(reversed(node.input))):
        value = view.scalar(other)
        # A constant of higher rank would give the result another shape.
        if value is not None and x not in view.constants and len(view.constants[other].dims) <= 1:
            return x, value
    return None


def _to_clip(view: View, node: onnx.NodeProto) -> bool:
    """Max(x, c) or Min(x, c) becomes Clip."""
    found = _with_constant(view, node)
    if found is None:
        return False
    x, bound = found
    low, high = (bound, math.inf) if node.op_type == "Max" else (-math.inf, bound)
    _make_clip(view, node, x, low, high)
    return True


def _make_clip(view: View, node: onnx.NodeProto, x: str, low: float, high: float) -> None:
    """Turns a node into the Clip or Relu of `x` with those bounds."""
    del node.attribute[:]
    if low == 0.0 and high == math.inf:
        node.op_type = "Relu"
        view.set_inputs(node, x)
        return
    node.op_type = "Clip"
    names = [
        view.add(f"{node.output[0]}_{side}", np.asarray(bound, dtype=np.float32))
        if math.isfinite(bound)
        else ""
        for side, bound in (("low", low), ("high", high))
    ]
    view.set_inputs(node, x, *(names if names[1] else names[:1]))


def _bounds(view: View, node: onnx.NodeProto) -> tuple[float, float] | None:
    """Of a Clip or Relu; None where they are computed."""
    if is_op(node, "Relu"):
        return 0.0, math.inf
    found = [-math.inf, math.inf]
    for i, name in enumerate(node.input[1:3]):
        value = view.scalar(name) if name else found[i]
        if value is None:
            return None
        found[i] = value
    return found[0], found[1]


def _join_clips(view: View, node: onnx.NodeProto) -> bool:
    """One Clip of two in a row; a Clip from zero without an end is a Relu."""
    after = _bounds(view, node)
    if after is None:
        return False
    before = view.maker(node.input[0], "Clip", "Relu")
    inner = None if before is None else _bounds(view, before)
    if before is None or inner is None:
        plain = is_op(node, "Clip") and after[0] == 0.0 and after[1] >= float(np.finfo(np.float32).max)
        if plain:
            _make_clip(view, node, node.input[0], 0.0, math.inf)
        return plain
    low, high = (min(max(bound, after[0]), after[1]) for bound in inner)
    x = before.input[0]
    view.remove(before)
    _make_clip(view, node, x, low, high)
    return True


def _hard_sigmoid(view: View, node: onnx.NodeProto) -> bool:
    """Clip(x + 3, 0, 6) / 6, or times a sixth, becomes HardSigmoid."""
    found = _with_constant(view, node)
    if found is None or (is_op(node, "Div") and found[0] != node.input[0]):
        return False
    factor = found[1] if is_op(node, "Mul") else 1 / found[1] if found[1] else 0.0
    clip = view.maker(found[0], "Clip")
    x = None if clip is None else _plus_three(view, clip)
    if clip is None or x is None or abs(factor - 1 / 6) > _NEAR:
        return False
    _drop_plus_three(view, clip)
    node.op_type = "HardSigmoid"
    set_attribute(node, "alpha", 1 / 6)
    set_attribute(node, "beta", 0.5)
    view.set_inputs(node, x)
    return True


def _plus_three(view: View, clip: onnx.NodeProto) -> str | None:
    """`x` of Clip(x + 3, 0, 6)."""
    add = view.maker(clip.input[0], "Add")
    found = None if add is None else _with_constant(view, add)
    fits = found is not None and found[1] == 3.0 and _bounds(view, clip) == (0.0, 6.0)
    return found[0] if found is not None and fits else None


def _drop_plus_three(view: View, clip: onnx.NodeProto) -> None:
    add = view.makers[clip.input[0]]
    view.remove(clip)
    view.remove(add)


def _hard_swish(view: View, node: onnx.NodeProto) -> bool:
    """X * HardSigmoid(x), or (x * Clip(x + 3, 0, 6)) / 6 with the product in `node`, becomes HardSwish."""
    for x, other in (tuple(node.input), tuple(reversed(node.input))):
        gate = view.maker(other, "HardSigmoid")
        if gate is not None and gate.input[0] == x and _is_sixth(gate):
            view.remove(gate)
            _make_hard_swish(view, node, x)
            return True
        clip = view.maker(other, "Clip")
        if clip is not None and _plus_three(view, clip) == x and _divided_by_six(view, node):
            _drop_plus_three(view, clip)
            _make_hard_swish(view, node, x)
            return True
    return False


def _is_sixth(gate: onnx.NodeProto) -> bool:
    alpha, beta = float(attribute(gate, "alpha", 0.2)), float(attribute(gate, "beta", 0.5))
    return abs(alpha - 1 / 6) < _NEAR and abs(beta - 0.5) < _NEAR


def _divided_by_six(view: View, node: onnx.NodeProto) -> bool:
    """Whether the product goes nowhere but into a division by 6; if so, that is taken out."""
    for after in view.graph.node:
        if is_op(after, "Div", "Mul") and node.output[0] in after.input and view.maker(node.output[0], "Mul"):
            found = _with_constant(view, after)
            if (
                found is None
                or found[0] != node.output[0]
                or (is_op(after, "Div") and after.input[0] != found[0])
            ):
                return False
            factor = found[1] if is_op(after, "Mul") else 1 / found[1] if found[1] else 0.0
            return abs(factor - 1 / 6) < _NEAR and view.bypass(after)
    return False


def _make_hard_swish(view: View, node: onnx.NodeProto, x: str) -> None:
    node.op_type = "HardSwish"
    del node.attribute[:]
    view.set_inputs(node, x)
