"""Activation-aware scales: inputs that matter get finer steps.

Lin et al. 2023, arXiv:2306.00978: multiplying column k of the weights by s_k and dividing input k by it
leaves the product as it is and moves rounding error from loud inputs to quiet ones, with s = rms^a
normalised, a found by search. The paper takes the error from samples; we have X^T X, from which it follows
exactly (`Gram.error`). Every product that reads the same input shares its scales, as query, key and value do.

For: `search()` of the scales of one input.
Not for: where the division goes (`emit` folds it into the layer before or adds one multiplication).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from converter.quantize.weights.blocks import Blocks, Floats, round_to_nearest
from converter.quantize.weights.gram import Gram

_GRID = 20
"""Steps of the exponent between 0 and 1; the paper's."""


def search(weights: Sequence[Floats], block: int, gram: Gram) -> tuple[Floats, float]:
    """Scales of the inputs and the exponent that gave them; ones and 0.0 where none helps.

    Args:
        weights: of all products that read this input, each `[rows, K]`.
        block: elements that share a scale of the grid.
        gram: of the input, `[K, K]`.

    Returns:
        Scales float32 `[K]`, all positive and finite, and the exponent.
    """
    loud = gram.root_mean_square()
    loud = np.maximum(loud, np.float32(1e-6) * max(float(loud.max(initial=0.0)), 1e-6))
    best = np.ones_like(loud)
    best_error, best_exponent = _error(weights, block, gram, best), 0.0
    for step in range(1, _GRID + 1):
        exponent = step / _GRID
        scales = np.power(loud, np.float32(exponent))
        scales = (scales / np.sqrt(scales.max() * scales.min())).astype(np.float32)
        error = _error(weights, block, gram, scales)
        if error < best_error:
            best, best_error, best_exponent = scales, error, exponent
    return best, best_exponent


def _error(weights: Sequence[Floats], block: int, gram: Gram, scales: Floats) -> float:
    return sum(
        gram.error(weight - scaled(weight, block, scales).dequantized() / scales) for weight in weights
    )


def scaled(weight: Floats, block: int, scales: Floats) -> Blocks:
    """Blocks of the weight whose columns were multiplied by `scales`."""
    return round_to_nearest((weight * scales).astype(np.float32), block)
