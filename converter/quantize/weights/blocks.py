"""Arithmetic of 4-bit blocks.

For: splitting the rows of a weight into blocks that share a scale and a zero point, rounding to nearest,
and packing as onnxruntime's MatMulNBits and GatherBlockQuantized read it.
Not for: choosing better values than the nearest (`gptq`, `hqq`, `awq`).

A block holds q in 0..15 and stands for (q - zero) * scale. Blocks lie along the last axis; a row that is
not a multiple of the block is filled up with zeros, which cost nothing and are cut off again.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

LEVELS_MAX = 15
"""Largest value of 4 bits."""


class Blocks(Struct, frozen=True, kw_only=True):
    """A quantized matrix `[rows, columns]`.

    Attributes:
        values: uint8 `[rows, blocks, block]`, each 0 to 15.
        scale: float32 `[rows, blocks]`.
        zero: uint8 `[rows, blocks]`, each 0 to 15.
        columns: of the matrix, without what fills up the last block.
    """

    values: Bytes
    scale: Floats
    zero: Bytes
    columns: int

    @property
    def block(self) -> int:
        """Elements that share a scale."""
        return int(self.values.shape[2])

    def dequantized(self) -> Floats:
        """The matrix that the runtime computes with, `[rows, columns]`."""
        whole = (self.values.astype(np.float32) - self.zero[..., None]) * self.scale[..., None]
        return whole.reshape(len(whole), -1)[:, : self.columns]

    def packed_values(self) -> Bytes:
        """`[rows, blocks, block / 2]`, the even element in the low half of each byte."""
        return (self.values[..., 0::2] | (self.values[..., 1::2] << 4)).astype(np.uint8)

    def packed_zeros(self) -> Bytes:
        """`[rows, ceil(blocks / 2)]`, the even block's in the low half."""
        rows, blocks = self.zero.shape
        padded = np.zeros((rows, blocks + blocks % 2), dtype=np.uint8)
        padded[:, :blocks] = self.zero
        packed: Bytes = (padded[:, 0::2] | (padded[:, 1::2] << 4)).astype(np.uint8)
        return packed


def in_blocks(weight: Floats, block: int) -> Floats:
    """`[rows, columns]` as `[rows, blocks, block]`, filled up with zeros."""
    rows, columns = weight.shape
    blocks = -(-columns // block)
    whole = np.zeros((rows, blocks * block), dtype=np.float32)
    whole[:, :columns] = weight
    return whole.reshape(rows, blocks, block)


def grid(blocked: Floats) -> tuple[Floats, Bytes]:
    """Scale and zero point of each block, from its range with zero in it: `[rows, blocks]` each.

    A block of zeros gets scale 1, so that nothing is divided by zero.
    """
    low = np.minimum(blocked.min(axis=-1), 0.0)
    high = np.maximum(blocked.max(axis=-1), 0.0)
    scale = (high - low) / np.float32(LEVELS_MAX)
    tiny = scale < np.finfo(np.float32).tiny
    scale = np.where(tiny, np.float32(1.0), scale).astype(np.float32)
    zero = np.clip(np.rint(-low / scale), 0, LEVELS_MAX).astype(np.uint8)
    return scale, zero


def rounded(blocked: Floats, scale: Floats, zero: Bytes) -> Bytes:
    """Nearest values on a given grid, half to even as ONNX rounds."""
    steps = np.rint(blocked / scale[..., None]) + zero[..., None]
    values: Bytes = np.clip(steps, 0, LEVELS_MAX).astype(np.uint8)
    return values


def round_to_nearest(weight: Floats, block: int) -> Blocks:
    """The plain way: each block's own range, each element to its nearest value."""
    blocked = in_blocks(weight, block)
    scale, zero = grid(blocked)
    values = rounded(blocked, scale, zero)
    return Blocks(values=values, scale=scale, zero=zero, columns=weight.shape[1])
