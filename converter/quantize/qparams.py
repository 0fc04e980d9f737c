"""The arithmetic of affine quantization.

For: from a range of real values, or from a weight, to scale and zero point; numbers there and back exactly
as ONNX defines QuantizeLinear and DequantizeLinear (round half to even, saturate).
Not for: deciding what is quantized (`converter.quantize.plan`), or which range is kept
(`converter.calibrate`).

Real zero is always representable, and a scale is never 0, infinite or below the smallest normal float32:
padding, Relu and integer kernels depend on the first, devices that flush denormals on the second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "u8": np.dtype(np.uint8), "i8": np.dtype(np.int8),
    "u16": np.dtype(np.uint16), "i16": np.dtype(np.int16),
}  # fmt: skip
"""By the recipe grammar's names."""

_TINY = float(np.finfo(np.float32).tiny)
_HUGE = float(np.finfo(np.float32).max)
_SCALE_OF_NOTHING = 2.0**-10
"""Where a tensor was always zero. Any scale is true to it; a large one would make the steps of the bias
that follows coarse (a bias has the step scale_in * scale_weight)."""
_CHANNEL_SCALE_MIN = 2.0**-24
"""Of a tensor's largest channel scale: weights below it are lost in the float32 sum anyway."""
_FULL_RANGE, _REDUCED_RANGE = 127, 64


class QParams(Struct, frozen=True, kw_only=True, eq=False):
    """How one tensor is quantized: real = (stored - zero_point) * scale.

    Attributes:
        scale: float32, shape `[]` per tensor or `[C]` per channel.
        zero_point: shape of `scale`, of the stored type.
        dtype: `u8`, `i8`, `u16` or `i16`.
        axis: of the channels; None per tensor.
    """

    scale: Floats
    zero_point: Integers
    dtype: str
    axis: int | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """Smallest and largest real value that a per-tensor QParams can hold."""
        limits = np.iinfo(DTYPES[self.dtype])
        scale, zero = float(self.scale.max()), int(self.zero_point.flat[0])
        return (limits.min - zero) * scale, (limits.max - zero) * scale

    def same_as(self, other: QParams) -> bool:
        """Whether both store every tensor alike."""
        return (
            (self.dtype, self.axis) == (other.dtype, other.axis)
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )


def of_range(low: float, high: float, dtype: str, *, symmetric: bool = False) -> QParams:
    """For values from `low` to `high`; the range is widened to hold zero.

    Within the range a round trip is off by at most scale / 2.

    Args:
        low: smallest real value.
        high: largest.
        dtype: `u8`, `i8`, `u16` or `i16`.
        symmetric: zero point in the middle (0 of a signed type, 128 of u8, 32768 of u16).

    Raises:
        ValueError: a bound is not finite, or they stand the wrong way round.
    """
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise ValueError(f"no range: from {low} to {high}")
    stored = DTYPES[dtype]
    limits = np.iinfo(stored)
    low, high = max(min(low, 0.0), -_HUGE), min(max(high, 0.0), _HUGE)
    if symmetric:
        middle = (int(limits.min) + int(limits.max) + 1) // 2
        scale = _scale(max(-low, high) / (int(limits.max) - middle))
        return QParams(scale=scale, zero_point=np.array(middle, dtype=stored), dtype=dtype)
    scale = _scale((high - low) / (int(limits.max) - int(limits.min)))
    zero = round(int(limits.min) - low / float(scale))
    zero = min(max(zero, int(limits.min)), int(limits.max))
    return QParams(scale=scale, zero_point=np.array(zero, dtype=stored), dtype=dtype)


def fixed_params(scale: float, zero_point: int, dtype: str) -> QParams:
    """What a kernel prescribes: `scale`, and a zero point of int8, 128 more of an unsigned type.

    Args:
        scale: exact in float32.
        zero_point: of int8.
        dtype: `u8` or `i8`.
    """
    zero = zero_point + (128 if dtype == "u8" else 0)
    return QParams(
        scale=np.array(scale, dtype=np.float32), zero_point=np.array(zero, dtype=DTYPES[dtype]), dtype=dtype
    )


EDGE_TOLERANCE = 1e-3
"""Of the step: how far a range may reach beyond what a Relu or Clip lets through before it is kept."""


def redundant(bounds: tuple[float, float] | None, params: QParams) -> bool:
    """Whether the stored type itself bounds values as a Relu or Clip with these bounds does."""
    if bounds is None:
        return False
    low, high = params.interval
    slack = EDGE_TOLERANCE * float(params.scale)
    # The upper end may round by half a step: the largest level stands for the bound itself.
    return low >= bounds[0] - slack and high <= bounds[1] + 0.5 * float(params.scale) + slack


def _scale(exact: float) -> Floats:
    """The float32 at or just above `exact`, so that the ends of the range are not cut."""
    if exact == 0.0:
        return np.array(_SCALE_OF_NOTHING, dtype=np.float32)
    rounded = np.float32(max(exact, _TINY))
    if float(rounded) < exact:
        rounded = np.nextafter(rounded, np.float32(np.inf))
    return np.array(rounded, dtype=np.float32)


def of_weight(
    values: Floats, dtype: str, axis: int | None, *, reduced: bool | Sequence[int] = False
) -> QParams:
    """For a weight, symmetric: stored in [-127, 127] (i8) or [1, 255] around 128 (u8).

    Args:
        values: the float32 weight, any shape.
        dtype: `i8` or `u8`.
        axis: of the output channels, each with a scale of its own; None for one scale.
        reduced: keep to 64 steps on each side, so that 16-bit sums of two products with u8 activations
            cannot saturate (2 x 255 x 64 < 2^15: `converter.fusion.widest_weight`); or the channels that
            do, which without an axis means all.

    Raises:
        ValueError: a value is not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("a weight holds NaN or infinity")
    others = None if axis is None else tuple(i for i in range(values.ndim) if i != axis)
    largest = np.abs(values).max(axis=others, initial=0.0).astype(np.float64)
    steps = np.full(largest.shape, _REDUCED_RANGE if reduced else _FULL_RANGE)
    if axis is not None and not isinstance(reduced, bool):
        steps[:] = _FULL_RANGE
        steps[list(reduced)] = _REDUCED_RANGE
    scale = largest / steps
    floor = max(float(scale.max(initial=0.0)) * _CHANNEL_SCALE_MIN, _TINY)
    floor = floor if largest.max(initial=0.0) > 0.0 else _SCALE_OF_NOTHING
    scale = np.maximum(scale, floor).astype(np.float32)
    return weight_params(scale, dtype, axis)


def weight_params(scale: Floats, dtype: str, axis: int | None) -> QParams:
    """Symmetric, with these scales: `[]`, or `[C]` along `axis`."""
    zero = 128 if dtype == "u8" else 0
    return QParams(
        scale=np.asarray(scale, dtype=np.float32),
        zero_point=np.full(np.shape(scale), zero, dtype=DTYPES[dtype]),
        dtype=dtype,
        axis=axis,
    )


def _spread(array: NDArray[Any], params: QParams, ndim: int) -> NDArray[Any]:
    """Scale or zero point, shaped so that it lies along its axis."""
    if params.axis is None:
        return array
    return array.reshape([-1 if i == params.axis else 1 for i in range(ndim)])


def quantize(values: Floats, params: QParams) -> Integers:
    """As QuantizeLinear: saturate(round_half_to_even(x / scale) + zero_point)."""
    limits = np.iinfo(DTYPES[params.dtype])
    scale = _spread(params.scale, params, values.ndim)
    zero = _spread(params.zero_point, params, values.ndim).astype(np.float64)
    with np.errstate(over="ignore"):
        steps = np.rint(values.astype(np.float32) / scale)
    stored = np.clip(steps.astype(np.float64) + zero, limits.min, limits.max)
    return np.asarray(stored, dtype=DTYPES[params.dtype])


def dequantize(stored: Integers, params: QParams) -> Floats:
    """As DequantizeLinear: (q - zero_point) * scale."""
    scale = _spread(params.scale, params, stored.ndim)
    zero = _spread(params.zero_point, params, stored.ndim).astype(np.int32)
    return np.asarray((stored.astype(np.int32) - zero).astype(np.float32) * scale, dtype=np.float32)


BIAS_STEPS_MAX = 2**30
"""Of a stored bias: half of int32, the other half is the sum's."""


def bias_scale_needed(bias: Floats, scale_in: float) -> NDArray[np.float64]:
    """Smallest weight scale per channel with which `bias` fits into int32, shape of `bias`."""
    return np.abs(bias).astype(np.float64) / (BIAS_STEPS_MAX * float(scale_in))


def quantize_bias(bias: Floats, scale: Floats) -> NDArray[np.int32]:
    """Stored bias of shape `[C]`; `scale` is scale_in * scale_weight, `[]` or `[C]`."""
    steps = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    limits = np.iinfo(np.int32)
    return np.clip(steps, limits.min, limits.max).astype(np.int32)
