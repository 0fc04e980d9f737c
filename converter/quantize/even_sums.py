"""Scales with which two runtimes round every sum and product alike.

For: `evened()`: the output scale of an Add, Sub or Mul between stored activations, widened by as little as
makes ONNX Runtime and LiteRT give the same stored integer for each of the 65,536 pairs of stored inputs.
Not for: operators with a constant, or that both compute in one way (convolutions, tables).

LiteRT's kernels for sums (XNNPACK, qs8-vadd-minmax) multiply by integers of 21 bits, shift, and round halves
up; its products (qs8-vmul-minmax) scale in float32 and round halves to even. ONNX Runtime's QLinearAdd and
QLinearMul (MlasQLinearAdd, MlasQLinearMul) compute in float32 and add the zero point before they round; it
has no integer Sub and computes DequantizeLinear, Sub and QuantizeLinear one by one. What falls next to the
middle between two steps can be rounded to either side: of random scales, two in five have such a pair for a
sum, and one in sixty for a product. All are emulated here bit for bit, ONNX Runtime's with and without fused
multiply-add, as compilers for other CPUs may choose, and with the scale at either factor, as it does when one
operand is broadcast.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from converter.quantize.qparams import DTYPES, QParams

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

Inputs = tuple[np.float32, int, np.float32, int]
"""Scale and zero point of the first stored input, then of the second."""
Output = tuple[np.float32, int]

KINDS = frozenset({"Add", "Mul", "Sub"})
_TRIES = 48
_NUDGE = 2.0**-12
"""Of the scale, from try to try: 48 of them widen the range by 1.2% at most."""
_RATIO_MIN, _RATIO_MAX = 2.0**-10, 2.0**8
"""Of input scale over output scale: beyond, XNNPACK leaves the operator to another kernel."""
_PRODUCT_MIN = 2.0**-16
"""Of the product of the input scales over the output scale."""
_MULTIPLIER_BITS = 20


def evened(kind: str, left: QParams, right: QParams, out: QParams) -> QParams | None:
    """`out` itself where all sums are equal already, else just wide enough; None if no try is.

    Args:
        kind: `Add`, `Sub` or `Mul`.
        left: of the first stored input, 8 bits, per tensor.
        right: of the second.
        out: of the stored output.

    Ensures: the zero point is `out`'s, and whatever `out` holds is held.
    """
    numbers = [
        (float(one.scale), int(one.zero_point) - (128 if one.dtype == "u8" else 0))
        for one in (left, right, out)
    ]
    scale = _evened(kind, *(x for pair in numbers for x in pair))
    if scale is None:
        return None
    return QParams(
        scale=np.array(scale, dtype=np.float32), zero_point=out.zero_point, dtype=out.dtype, axis=out.axis
    )


@lru_cache(maxsize=4096)
def _evened(
    kind: str, scale_a: float, zero_a: int, scale_b: float, zero_b: int, scale: float, zero: int
) -> float | None:
    inputs = (np.float32(scale_a), zero_a, np.float32(scale_b), zero_b)
    for number in range(_TRIES):
        tried = np.float32(scale * (1 + number * _NUDGE))
        if is_even(kind, inputs, (tried, zero)):
            return float(tried)
    return None


def is_even(kind: str, inputs: Inputs, output: Output) -> bool:
    """Whether both runtimes give the same for every pair, however ONNX stores it: signed or unsigned.

    Args:
        kind: `Add`, `Sub` or `Mul`.
        inputs: scale and zero point of the first, then of the second; zero points of signed bytes.
        output: scale and zero point.
    """
    if kind == "Mul":
        held = _PRODUCT_MIN <= float(inputs[0] * inputs[2] / output[0]) < _RATIO_MAX
    else:
        held = all(_RATIO_MIN <= scale / output[0] < _RATIO_MAX for scale in (inputs[0], inputs[2]))
    if not held:
        return False
    mine = litert(kind, "i8", inputs, output)
    if not all(np.array_equal(mine, theirs) for theirs in onnxruntime(kind, "i8", inputs, output)):
        return False
    unsigned = (inputs[0], inputs[1] + 128, inputs[2], inputs[3] + 128)
    found = onnxruntime(kind, "u8", unsigned, (output[0], output[1] + 128))
    return all(np.array_equal(mine, theirs - 128) for theirs in found)


def _stored(dtype: str) -> Integers:
    limits = np.iinfo(DTYPES[dtype])
    return np.arange(limits.min, limits.max + 1, dtype=np.int64)


def _clipped(values: NDArray[np.float32 | np.int64], dtype: str) -> Integers:
    limits = np.iinfo(DTYPES[dtype])
    return np.clip(values, limits.min, limits.max).astype(np.int64)


def litert(kind: str, dtype: str, inputs: Inputs, output: Output) -> Integers:
    """What LiteRT gives for every pair, first along axis 0, `[256, 256]`; in the integers of `dtype`."""
    scale_a, zero_a, scale_b, zero_b = inputs
    scale, zero = output
    numbers = _stored(dtype)
    if kind == "Mul":
        products = ((numbers - zero_a)[:, None] * (numbers - zero_b)[None, :]).astype(np.float32)
        return _clipped(np.rint(products * _product_ratio(inputs, scale)) + zero, dtype)
    ratios = (np.float32(scale_a / scale), np.float32(scale_b / scale))
    shift = _MULTIPLIER_BITS - (int(np.frexp(max(ratios))[1]) - 1)
    first, second = (int(np.rint(np.ldexp(np.float64(ratio), shift))) for ratio in ratios)
    left = first * (numbers - zero_a)
    right = (second if kind == "Add" else -second) * (numbers - zero_b)
    total = left[:, None] + right[None, :] + (1 << (shift - 1))
    return _clipped((total >> shift) + zero, dtype)


def onnxruntime(kind: str, dtype: str, inputs: Inputs, output: Output) -> list[Integers]:
    """What ONNX Runtime may give for every pair, as `litert`."""
    return {"Add": _qlinear_add, "Mul": _qlinear_mul, "Sub": _float_sub}[kind](dtype, inputs, output)


def _product_ratio(inputs: Inputs, scale: np.float32) -> np.float32:
    return np.float32(np.float32(inputs[0] * inputs[2]) / scale)


def _float_sub(dtype: str, inputs: Inputs, output: Output) -> list[Integers]:
    """Between the pairs, each operator by itself."""
    numbers = _stored(dtype)
    left = (numbers - inputs[1]).astype(np.float32) * inputs[0]
    right = (numbers - inputs[3]).astype(np.float32) * inputs[2]
    return [_clipped(np.rint((left[:, None] - right[None, :]) / output[0]) + np.float32(output[1]), dtype)]


def _qlinear_mul(dtype: str, inputs: Inputs, output: Output) -> list[Integers]:
    """The product scaled, or either factor first."""
    numbers, ratio = _stored(dtype), _product_ratio(inputs, output[0])
    left = (numbers - inputs[1]).astype(np.float32)[:, None]
    right = (numbers - inputs[3]).astype(np.float32)[None, :]
    zero = np.asarray(np.float32(output[1]))
    products = left * right
    found = [_plain(products, ratio, zero), _fused(products, ratio, zero)]
    found += [(left * ratio) * right + zero, left * (right * ratio) + zero]
    return [_clipped(np.rint(one), dtype) for one in found]


def _qlinear_add(dtype: str, inputs: Inputs, output: Output) -> list[Integers]:
    """With fused multiply-add, then without."""
    scale_a, zero_a, scale_b, zero_b = inputs
    scale, zero = output
    first, second = np.float32(scale_a / scale), np.float32(scale_b / scale)
    values = _stored(dtype).astype(np.float32)
    found = []
    for multiply_add in (_fused, _plain):
        shift = multiply_add(np.asarray(first), np.float32(zero_a), np.asarray(second * np.float32(zero_b)))
        fixed = np.asarray(np.float32(zero) - shift, dtype=np.float32)
        partial = multiply_add(values, second, fixed)
        found.append(_clipped(np.rint(multiply_add(values[:, None], first, partial[None, :])), dtype))
    return found


def _fused(a: Floats, b: np.float32, c: Floats) -> Floats:
    """A * b + c, rounded once: products of a byte and a float32 are exact in float64."""
    return (a.astype(np.float64) * np.float64(b) + c.astype(np.float64)).astype(np.float32)


def _plain(a: Floats, b: np.float32, c: Floats) -> Floats:
    """A * b + c, rounded twice."""
    return (a * b).astype(np.float32) + c
