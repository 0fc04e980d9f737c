"""What quantization does to a model's outputs, without labels.

For: one number for the searches (noise power by sample) and the figures that people read (dB, agreement).
Not for: accuracy on the samples of the verdict (`converter.evaluate`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from converter.repair.switchboard import Array

Outputs = Mapping[str, Array]

SQNR_DB_MAX = 200.0
"""What no effect at all reads as: float32 itself ends near 140 dB, and JSON has no infinity."""


class Effect(Struct, frozen=True, kw_only=True):
    """Of one assignment against FP32.

    Attributes:
        sqnr_db: 10 log10 of signal power over noise power, all float outputs weighing the same.
        agreement: fraction of samples whose top class is FP32's; None where the answer has one column.
    """

    sqnr_db: float
    agreement: float | None


def noise_by_sample(reference: Outputs, found: Outputs) -> NDArray[np.float64]:
    """Noise power of each sample over the mean signal power, the mean over outputs, `[n]`; finite.

    An output that is zero everywhere counts with its noise as it is.
    """
    total = 0.0
    for name, exact in reference.items():
        noise = np.square(found[name].astype(np.float64) - exact).mean(axis=1)
        power = float(np.square(exact.astype(np.float64)).mean())
        total = total + noise / (power or 1.0)
    values = np.asarray(total, dtype=np.float64) / len(reference)
    return np.where(np.isfinite(values), values, np.finfo(np.float64).max / values.size / 4)


def decibels(noise: float) -> float:
    """Signal over noise in dB, capped at SQNR_DB_MAX, of a relative noise power."""
    return SQNR_DB_MAX if noise <= 0.0 else min(SQNR_DB_MAX, -10.0 * math.log10(noise))


def effect(reference: Outputs, found: Outputs, answer: str) -> Effect:
    """The figures of one assignment; `answer` is the output that the agreement looks at."""
    noise = float(noise_by_sample(reference, found).mean())
    return Effect(sqnr_db=decibels(noise), agreement=agreement(reference[answer], found[answer]))


def agreement(exact: Array, found: Array) -> float | None:
    """Fraction of rows with the same largest column; None where there is but one."""
    if exact.shape[1] < 2:
        return None
    return float((exact.argmax(axis=1) == found.argmax(axis=1)).mean())
