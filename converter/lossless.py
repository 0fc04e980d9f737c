"""What a file's bytes are worth, and what its weights leave unused.

For: `entropy_bytes()`, how small an ideal order-0 coder would make a model, stated beside its raw size; and
`sparsity()`, where weights are zero, in which pattern.
Not for: compressing what travels (`wire.chunks`), or removing weights (`converter.quantize.prune`).
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from msgspec import Struct
from numpy.typing import NDArray
from onnx import numpy_helper

_SMALL_ELEMENTS = 64
"""Biases, scales and shapes say nothing of sparsity, and their entropy is their size."""


class Sparsity(Struct, frozen=True, kw_only=True):
    """Zeros of one weight tensor.

    Attributes:
        tensor: its name.
        n: elements.
        zeros: fraction of elements that are zero.
        channels: slices along the first axis.
        channels_zero: slices that hold nothing but zeros; whole filters could go.
        two_of_four: every four neighbours along the last axis hold at least two zeros, the pattern that
            sparse tensor cores take (NVIDIA, Ampere whitepaper).
    """

    tensor: str
    n: int
    zeros: float
    channels: int
    channels_zero: int
    two_of_four: bool


def entropy_bytes(model: onnx.ModelProto) -> int:
    """Size under an ideal order-0 coder for each tensor and byte plane; all else at its raw size.

    Shannon's bound, sum over planes of n H / 8 with H the entropy of the plane's bytes, so no table of
    code lengths is counted. A coder that sees neighbours or repeats may do better on special weights.
    """
    raw = coded = 0
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == object or array.size < _SMALL_ELEMENTS:
            continue
        planes = np.frombuffer(np.ascontiguousarray(array).tobytes(), dtype=np.uint8)
        planes = planes.reshape(array.size, -1)
        raw += planes.size
        coded += sum(math.ceil(_entropy_bits(planes[:, i]) / 8) for i in range(planes.shape[1]))
    return int(model.ByteSize()) - raw + coded


def _entropy_bits(plane: NDArray[np.uint8]) -> float:
    """Bits for all bytes of one plane."""
    counts = np.bincount(plane, minlength=256)
    counts = counts[counts > 0]
    return float((counts * np.log2(plane.size / counts)).sum())


def sparsity(model: onnx.ModelProto) -> tuple[Sparsity, ...]:
    """Of every weight with two axes or more, in the file's order."""
    found = []
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind not in "fiu" or array.ndim < 2 or array.size < _SMALL_ELEMENTS:
            continue
        zero = array == 0
        found.append(
            Sparsity(
                tensor=tensor.name,
                n=int(array.size),
                zeros=float(zero.mean()),
                channels=int(array.shape[0]),
                channels_zero=int(zero.reshape(array.shape[0], -1).all(axis=1).sum()),
                two_of_four=_two_of_four(zero),
            )
        )
    return tuple(found)


def _two_of_four(zero: NDArray[np.bool_]) -> bool:
    """In convolutions the neighbours lie along the input channels, the second axis."""
    lined = np.moveaxis(zero, 1, -1) if zero.ndim > 2 else zero
    if lined.shape[-1] % 4:
        return False
    return bool((lined.reshape(-1, 4).sum(axis=1) >= 2).all())
