"""What a file's bytes are worth, and what its weights leave unused.

For: `entropy_bytes()`, how small an ideal order-0 coder would make a model, stated beside its raw size; and
`sparsity()`, where weights are zero, in which pattern.
Not for: compressing what travels (`wire.chunks`), or removing weights (`converter.quantize.prune`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from msgspec import Struct
from numpy.typing import NDArray
from onnx import numpy_helper

from wire.tflite_walk import payloads

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
    arrays = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    planes = [
        np.frombuffer(np.ascontiguousarray(array).tobytes(), dtype=np.uint8).reshape(array.size, -1)
        for array in arrays
        if array.dtype != object and array.size >= _SMALL_ELEMENTS
    ]
    return int(model.ByteSize()) - _saved(planes)


def tflite_entropy_bytes(content: bytes) -> int:
    """The same of a `.tflite` file.

    Raises:
        WalkError: it is none.
    """
    found = (
        np.frombuffer(content, np.uint8, span.size_bytes, span.offset).reshape(-1, width)
        for span, width in payloads(content)
    )
    return len(content) - _saved([one for one in found if len(one) >= _SMALL_ELEMENTS])


def _saved(tensors: Sequence[NDArray[np.uint8]]) -> int:
    """Bytes that an ideal coder saves on these, each `[elements, bytes of one]`."""
    planes = [planes[:, i] for planes in tensors for i in range(planes.shape[1])]
    return sum(plane.size - math.ceil(_entropy_bits(plane) / 8) for plane in planes)


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
