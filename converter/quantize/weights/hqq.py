"""Half-quadratic quantization: a grid that forgives outliers, without any data.

Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models": minimise the l_p norm
(p < 1) of the error by alternating a shrinkage of the error with a closed form of the zero point. The paper
keeps the scale and lets the zero point be a fraction; onnxruntime's fast kernels take whole zero points
only, and rounding them undoes the gain, so here the alternation is run on several scales, each zero point
is rounded, and every block keeps the best of them.

For: `half_quadratic()`.
Not for: activations; it looks at weights alone.
"""

from __future__ import annotations

import numpy as np

from converter.quantize.weights.blocks import LEVELS_MAX, Blocks, Bytes, Floats, grid, in_blocks, rounded

_P = 0.7
_BETA = 10.0
_KAPPA = 1.01
_ROUNDS = 20
"""The paper's settings."""
_SCALES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6)
"""Of the block's range."""


def half_quadratic(weight: Floats, block: int) -> Blocks:
    """Blocks whose sum of |error|^0.7 is no larger than that of rounding to nearest.

    Args:
        weight: `[rows, columns]`.
        block: elements that share a scale.
    """
    blocked = in_blocks(weight, block)
    scale, zero = grid(blocked)
    values = rounded(blocked, scale, zero)
    error = _norm(blocked, values, scale, zero)
    widest = scale
    for narrower in _SCALES:
        tried = (widest * np.float32(narrower)).astype(np.float32)
        tried_zero = _zero(blocked, tried)
        tried_values = rounded(blocked, tried, tried_zero)
        tried_error = _norm(blocked, tried_values, tried, tried_zero)
        better = tried_error < error
        scale, zero = np.where(better, tried, scale), np.where(better, tried_zero, zero)
        values = np.where(better[..., None], tried_values, values)
        error = np.where(better, tried_error, error)
    return Blocks(values=values, scale=scale, zero=zero, columns=weight.shape[1])


def _zero(blocked: Floats, scale: Floats) -> Bytes:
    """The paper's alternation on a given scale, its result rounded: `[rows, blocks]`."""
    low = np.minimum(blocked.min(axis=-1), 0.0)
    zero = np.clip(-low / scale, 0, LEVELS_MAX).astype(np.float32)
    beta = _BETA
    for _ in range(_ROUNDS):
        values = np.clip(np.rint(blocked / scale[..., None] + zero[..., None]), 0, LEVELS_MAX)
        error = blocked - (values - zero[..., None]) * scale[..., None]
        kept = _shrink(error, beta)
        zero = (values - (blocked - kept) / scale[..., None]).mean(axis=-1, dtype=np.float32)
        beta *= _KAPPA
    whole: Bytes = np.clip(np.rint(zero), 0, LEVELS_MAX).astype(np.uint8)
    return whole


def _shrink(error: Floats, beta: float) -> Floats:
    """Generalised soft threshold of the l_p norm; the paper's equation 5."""
    size = np.abs(error)
    power = np.power(np.maximum(size, np.float32(1e-8)), np.float32(_P - 1))
    shrunk: Floats = (np.sign(error) * np.maximum(size - power / np.float32(beta), 0.0)).astype(np.float32)
    return shrunk


def _norm(blocked: Floats, values: Bytes, scale: Floats, zero: Bytes) -> Floats:
    error = blocked - (values.astype(np.float32) - zero[..., None]) * scale[..., None]
    total: Floats = np.power(np.abs(error), np.float32(_P)).sum(axis=-1)
    return total
