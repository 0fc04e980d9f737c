"""Element by element on one operand, in float but for x ** -0.5: roots, powers, logarithms and the like.

For: Abs, Ceil, Cos, Erf, Exp, Floor, Log, Neg, Pow, Reciprocal, Round, Sign, Sin, Softplus, Softsign, Sqrt.
Not for: activations with INT8 kernels (`activations`).

TFLite has no Erf: it is written as x * P(x^2) / Q(x^2) between -4 and 4, the coefficients those of Eigen's
float erf (Eigen/src/SpecialFunctions, generic_fast_erf), to within 3e-7 of the function.
"""

from __future__ import annotations

from converter.tflite.lowering import Lowering
from converter.tflite.ops.entry import Entry
from converter.tflite.ops.pieces import binary, check_types, scalar, unary
from converter.tflite.reading import Op, Traits
from converter.tflite.tensors import Tensor

_KINDS = {
    "Abs": "ABS", "Ceil": "CEIL", "Cos": "COS", "Exp": "EXP", "Floor": "FLOOR", "Log": "LOG", "Neg": "NEG",
    "Round": "ROUND", "Sign": "SIGN", "Sin": "SIN", "Sqrt": "SQRT",
}  # fmt: skip
_ERF_BOUND = 4.0
_ERF_ABOVE = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_ERF_BELOW = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
    -1.42647390514189e-02,
)  # fmt: skip
"""Of x^12 down to x^0, and of x^8 down to x^0."""


def plain(b: Lowering, op: Op) -> None:
    """Writes an operator that TFLite has under a name of its own."""
    tensor, made = _ends(b, op)
    unary(b, _KINDS[op.op_type], tensor, made)


def _ends(b: Lowering, op: Op) -> tuple[Tensor, Tensor]:
    """What is read and what is written, in the same layout."""
    value = b.value(op.inputs[0])
    check_types(op, [value.tensor], {"float32"})
    return value.tensor, b.output(op, value.axes)


def reciprocal(b: Lowering, op: Op) -> None:
    """Writes one Reciprocal."""
    tensor, made = _ends(b, op)
    binary(b, "DIV", [scalar(b, 1.0, f"{made.name}_one"), tensor], made)


def power(b: Lowering, op: Op) -> None:
    """Writes one Pow; small constant exponents become products, roots and quotients."""
    if op.integer:
        value = b.value(op.inputs[0])
        b.add("RSQRT", [value.tensor], [b.output(op, value.axes)])
        return
    found = b.constant(op.inputs[1])
    exponent = None
    if found is not None and found.values.size == 1 and len(found.values.shape) <= len(b.shape(op.inputs[0])):
        exponent = float(found.values.reshape(-1)[0])
    if exponent == 1.0:
        b.rename(op, b.value(op.inputs[0]))
        return
    if exponent in {-1.0, -0.5, 0.5, 2.0, 3.0}:
        tensor, made = _ends(b, op)
        _small_power(b, tensor, made, exponent)
        return
    (tensor, other), axes = b.operands(op, op.inputs)
    check_types(op, [tensor, other], {"float32"})
    binary(b, "POW", [tensor, other], b.output(op, axes))


def _small_power(b: Lowering, tensor: Tensor, made: Tensor, exponent: float) -> None:
    if exponent == 0.5:
        unary(b, "SQRT", tensor, made)
    elif exponent == -0.5:
        unary(b, "RSQRT", tensor, made)
    elif exponent == -1.0:
        binary(b, "DIV", [scalar(b, 1.0, f"{made.name}_one"), tensor], made)
    elif exponent == 2.0:
        binary(b, "MUL", [tensor, tensor], made)
    else:
        square = binary(b, "MUL", [tensor, tensor], f"{made.name}_square")
        binary(b, "MUL", [square, tensor], made)


def erf(b: Lowering, op: Op) -> None:
    """Writes one Erf, which no Gelu has swallowed, as a rational function."""
    tensor, made = _ends(b, op)
    name = made.name
    low, high = (scalar(b, bound, f"{name}_bound") for bound in (-_ERF_BOUND, _ERF_BOUND))
    above = binary(b, "MAXIMUM", [tensor, low], f"{name}_from_below")
    x = binary(b, "MINIMUM", [above, high], f"{name}_bounded")
    square = binary(b, "MUL", [x, x], f"{name}_square")
    top = binary(b, "MUL", [_horner(b, square, _ERF_ABOVE, f"{name}_above"), x], f"{name}_top")
    binary(b, "DIV", [top, _horner(b, square, _ERF_BELOW, f"{name}_below")], made)


def _horner(b: Lowering, x: Tensor, coefficients: tuple[float, ...], name: str) -> Tensor:
    """A polynomial, its highest coefficient first."""
    first, second, *others = coefficients
    total = binary(b, "MUL", [x, scalar(b, first, f"{name}_0")], f"{name}_times_0")
    total = binary(b, "ADD", [total, scalar(b, second, f"{name}_1")], f"{name}_plus_0")
    for number, coefficient in enumerate(others, start=1):
        total = binary(b, "MUL", [total, x], f"{name}_times_{number}")
        total = binary(
            b, "ADD", [total, scalar(b, coefficient, f"{name}_{number + 1}")], f"{name}_plus_{number}"
        )
    return total


def softplus(b: Lowering, op: Op) -> None:
    """Writes one Softplus as max(x, 0) + log(1 + exp(-|x|)), which no large number overflows."""
    tensor, made = _ends(b, op)
    name = made.name
    small = unary(
        b, "EXP", unary(b, "NEG", unary(b, "ABS", tensor, f"{name}_abs"), f"{name}_neg"), f"{name}_exp"
    )
    one = binary(b, "ADD", [small, scalar(b, 1.0, f"{name}_one")], f"{name}_plus")
    binary(b, "ADD", [unary(b, "RELU", tensor, f"{name}_relu"), unary(b, "LOG", one, f"{name}_log")], made)


def softsign(b: Lowering, op: Op) -> None:
    """Writes one Softsign as x / (1 + |x|)."""
    tensor, made = _ends(b, op)
    name = made.name
    below = binary(
        b, "ADD", [unary(b, "ABS", tensor, f"{name}_abs"), scalar(b, 1.0, f"{name}_one")], f"{name}_plus"
    )
    binary(b, "DIV", [tensor, below], made)


ENTRIES = {
    **dict.fromkeys(_KINDS, Entry(lower=plain)),
    "Erf": Entry(lower=erf),
    # RSQRT alone has an INT8 kernel: what an opened LayerNormalization needs.
    "Pow": Entry(lower=power, traits=Traits(integer=True, settings={1: -0.5})),
    "Reciprocal": Entry(lower=reciprocal),
    "Softplus": Entry(lower=softplus),
    "Softsign": Entry(lower=softsign),
}
