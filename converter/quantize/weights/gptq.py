"""GPTQ: columns rounded one after another, each error made good by those that follow.

Frantar et al. 2022, arXiv:2210.17323: with H = X^T X over the calibration inputs X of a layer, the error
of column j is spread over the later columns by the Cholesky factor of H's inverse. Columns go in their own
order, so that a block's grid is taken when its first column comes, from weights that already carry the
errors of all before.

For: `gptq()`.
Not for: collecting H (`gram`). With few texts H is poor: 16 of them ruined MiniLM (FACTS.md section 1), so
the damping grows where H has less rank than columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from converter.quantize.weights.blocks import LEVELS_MAX, Blocks, Floats, grid, in_blocks, round_to_nearest
from converter.quantize.weights.gram import Gram

Doubles = NDArray[np.float64]

_DAMPING = 0.01
"""Of H's mean diagonal; the paper's."""
_DAMPING_POOR = 0.1
"""Where fewer rows than columns were seen."""
_LAZY = 128
"""Columns whose updates are applied to the rest in one product; the paper's lazy batches."""


def gptq(weight: Floats, block: int, gram: Gram) -> Blocks:
    """Blocks that keep the layer's outputs, which need not be the nearest to the weights.

    Args:
        weight: `[rows, columns]`, columns being the layer's inputs.
        block: elements that share a scale.
        gram: of the layer's inputs, `[columns, columns]`.
    """
    columns = weight.shape[1]
    spread = _factor(gram)
    work: Doubles = weight.astype(np.float64)
    blocks = -(-columns // block)
    scale = np.ones((len(weight), blocks), dtype=np.float32)
    zero = np.zeros((len(weight), blocks), dtype=np.uint8)
    values = np.zeros((len(weight), blocks * block), dtype=np.uint8)
    for start in range(0, columns, _LAZY):
        stop = min(start + _LAZY, columns)
        errors = np.zeros((len(weight), stop - start))
        for j in range(start, stop):
            if j % block == 0:
                piece = work[:, j : min(j + block, columns)].astype(np.float32)
                scale[:, [j // block]], zero[:, [j // block]] = grid(in_blocks(piece, block))
            here, offset = scale[:, j // block].astype(np.float64), zero[:, j // block].astype(np.float64)
            values[:, j] = np.clip(np.rint(work[:, j] / here) + offset, 0, LEVELS_MAX)
            error = (work[:, j] - (values[:, j] - offset) * here) / spread[j, j]
            work[:, j + 1 : stop] -= np.outer(error, spread[j, j + 1 : stop])
            errors[:, j - start] = error
        work[:, stop:] -= errors @ spread[start:stop, stop:]
    made = _filled(values.reshape(len(weight), blocks, block), scale, zero, columns)
    return _never_worse(weight, made, gram)


def _factor(gram: Gram) -> Doubles:
    """Upper Cholesky factor of the damped inverse."""
    h = gram.matrix.astype(np.float64) / max(gram.n, 1)
    columns = len(h)
    dead = np.diag(h) <= 0.0
    h[dead, dead] = 1.0
    damping = _DAMPING_POOR if gram.n < 2 * columns else _DAMPING
    h[np.diag_indices(columns)] += damping * float(np.mean(np.diag(h)))
    inverse = np.linalg.inv(h)
    upper: Doubles = np.asarray(np.linalg.cholesky((inverse + inverse.T) / 2).T, dtype=np.float64)
    return upper


def _filled(values: NDArray[np.uint8], scale: Floats, zero: NDArray[np.uint8], columns: int) -> Blocks:
    """What fills up the last block stands for zero."""
    flat = values.reshape(len(values), -1)
    flat[:, columns:] = zero[:, [-1]]
    return Blocks(values=values, scale=scale, zero=zero, columns=columns)


def _never_worse(weight: Floats, made: Blocks, gram: Gram) -> Blocks:
    """Rounding to nearest where the outputs' error did not fall: numerical trouble, or a poor H."""
    plain = round_to_nearest(weight, made.block)
    return (
        made if gram.error(weight - made.dequantized()) <= gram.error(weight - plain.dequantized()) else plain
    )
