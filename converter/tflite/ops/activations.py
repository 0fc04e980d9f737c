"""Activations that stand alone: what no operator before them has fused.

For: Sigmoid, Tanh, HardSwish, LeakyRelu, PRelu, Elu.
Not for: Relu and Clip (`bounds`), HardSigmoid, Softmax, Gelu, which have modules of their own.
"""

from __future__ import annotations

import numpy as np

from converter.tflite.errors import TFLiteError
from converter.tflite.lowering import Lowering
from converter.tflite.ops.entry import Entry
from converter.tflite.ops.pieces import binary, fits, fixed_output, options_of, scalar, unary
from converter.tflite.reading import Op, Traits

_KINDS = {"Elu": "ELU", "HardSwish": "HARD_SWISH", "Sigmoid": "LOGISTIC", "Tanh": "TANH"}


def plain(b: Lowering, op: Op) -> None:
    """Writes an activation that has no settings."""
    value = b.value(op.inputs[0])
    kind = _KINDS[op.op_type]
    unary(b, kind, value.tensor, fixed_output(b, op, kind, value.axes))


def elu(b: Lowering, op: Op) -> None:
    """Writes one Elu: where alpha is not TFLite's 1, alpha times that of min(x, 0), plus max(x, 0)."""
    alpha, value = float(op.attributes.get("alpha", 1.0)), b.value(op.inputs[0])
    if alpha == 1.0:
        plain(b, op)
        return
    if op.integer:
        raise TFLiteError("tflite_attribute", f"{op.where} has alpha {alpha} on integers, TFLite's has 1")
    made = b.output(op, value.axes)
    below = binary(b, "MINIMUM", [value.tensor, scalar(b, 0.0, f"{made.name}_zero")], f"{made.name}_below")
    curve = unary(b, "ELU", below, f"{made.name}_curve")
    scaled = binary(b, "MUL", [curve, scalar(b, alpha, f"{made.name}_alpha")], f"{made.name}_scaled")
    binary(b, "ADD", [scaled, unary(b, "RELU", value.tensor, f"{made.name}_above")], made)


def leaky_relu(b: Lowering, op: Op) -> None:
    """Writes one LeakyRelu."""
    value = b.value(op.inputs[0])
    options = options_of("LEAKY_RELU")
    options.alpha = float(op.attributes.get("alpha", 0.01))
    b.add("LEAKY_RELU", [value.tensor], [b.output(op, value.axes)], options)


def p_relu(b: Lowering, op: Op) -> None:
    """Writes one PRelu; its slope spreads over the input and needs the input's other axes."""
    (tensor, slope), axes = b.operands(op, op.inputs)
    if slope.quant is not None and slope.quant.axis is not None:
        raise TFLiteError("tflite_quantization", f"the slope of {op.where} is stored per channel")
    if slope.values is not None and slope.values.size == 1:
        # tflite-runtime 2.14 reads beyond a slope of one element.
        whole = np.broadcast_to(slope.values, (*(1,) * (len(axes) - 1), tensor.shape[-1]))
        slope = b.new_constant(np.ascontiguousarray(whole), f"{slope.name}_of_all", slope.quant)
    b.add("PRELU", [tensor, slope], [b.output(op, axes)])


_INTEGER = Traits(integer=True)

ENTRIES = {
    "Elu": Entry(lower=elu, traits=_INTEGER),
    "HardSwish": Entry(lower=plain, traits=_INTEGER),
    "LeakyRelu": Entry(lower=leaky_relu, traits=_INTEGER),
    "PRelu": Entry(lower=p_relu, traits=Traits(integer=True, constants=(1,))),
    "Sigmoid": Entry(lower=plain, traits=Traits(integer=True, fits=fits("LOGISTIC"))),
    "Tanh": Entry(lower=plain, traits=Traits(integer=True, fits=fits("TANH"))),
}
