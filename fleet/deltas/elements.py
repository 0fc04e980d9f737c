"""What a delta says of one tensor: each prediction that is worth trying, and the tokens of the best.

For: the differences of a tensor's elements from a prediction, an estimate of what they cost, and the
tokens and low bits that the decoder (`agent.worker.delta_elements`) turns back.
Not for: which tensors belong together (`fleet.deltas.plan`).
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from wire import delta_format as df
from wire.delta_model import exponents, ordered, predicted_bytes, predicted_wide, ratios

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

_CHUNK = 256
"""Elements over which the estimate takes differences to be of one size."""
_PACKED_AT_ONCE = 1 << 20
_NOTHING = np.zeros(0, dtype="<f4")


class Differences(Struct, frozen=True):
    """Of a tensor's elements from their prediction; `known` is what the decoder's coder is told."""

    values: Ints
    known: Ints


def differences(
    kind: int, old: Bytes | None, new: Bytes, scaling: df.Scaling | None, files: tuple[Bytes, Bytes]
) -> Differences:
    """Of `new` from the prediction that `old` and `scaling` make; old None: from 0.

    Args:
        kind: of the elements.
        old: bytes of the base's tensor.
        new: as many.
        scaling: None: the base's elements as they are.
        files: base and new file, for the scaling's vectors.
    """
    zeros = np.zeros(len(new) // df.WIDTHS[kind], dtype=np.int64)
    if kind == df.BYTES:
        if old is None or scaling is None:
            values = new.astype(np.int64) - (0 if old is None else old)
            return Differences(_wrapped(values, 8), zeros)
        factors = _ratios(scaling, len(new), files)
        prediction, known, turned = predicted_bytes(np, old, factors, scaling.zero)
        values = new.astype(np.int64) - prediction
        return Differences(_wrapped(np.where(turned, -values, values), 8), known)
    if old is None:
        return Differences(ordered(np, kind, new), zeros)
    if scaling is None:
        prediction = ordered(np, kind, old)
    else:
        prediction = predicted_wide(np, kind, old, _ratios(scaling, len(zeros), files))
    values = _wrapped(ordered(np, kind, new) - prediction, 8 * df.WIDTHS[kind])
    return Differences(values, exponents(np, kind, prediction))


def _ratios(scaling: df.Scaling, count: int, files: tuple[Bytes, Bytes]) -> NDArray[np.float64]:
    base, new = _NOTHING, _NOTHING
    if scaling.count:
        base = files[0][scaling.base_at : scaling.base_at + 4 * scaling.count].copy().view("<f4")
        new = files[1][scaling.new_at : scaling.new_at + 4 * scaling.count].copy().view("<f4")
    found: NDArray[np.float64] = ratios(np, scaling, base, new, 0, count)
    return found


def _wrapped(values: Ints, bits: int) -> Ints:
    half = 1 << (bits - 1)
    return ((values + half) & ((1 << bits) - 1)) - half


def cost_bits(kind: int, values: Ints) -> float:
    """About what the coder makes of differences: each run of neighbours as a geometric distribution."""
    if not len(values):
        return 0.0
    size = np.abs(values).astype(np.float64)
    if kind != df.BYTES:
        return float(np.where(size > 0, np.log2(size + 1) + 1.5, 0.1).sum())
    means = np.add.reduceat(size, np.arange(0, len(size), _CHUNK)) / np.minimum(
        _CHUNK, len(size) - np.arange(0, len(size), _CHUNK)
    )
    # Entropy of a two-sided geometric distribution of that mean, in bits, at most 8.
    zero = np.log2(1 + means) + means * np.log2(1 + 1 / np.maximum(means, 1e-9))
    signs = np.minimum(1.0, means)
    counts = np.minimum(_CHUNK, len(size) - np.arange(0, len(size), _CHUNK))
    return float((np.minimum(8.0, zero + signs) * counts).sum())


def tokens_of(kind: int, values: Ints) -> tuple[Bytes, Ints, Ints]:
    """Tokens, and for the wide kinds the low bits as numbers and how many bits each has."""
    nothing = np.zeros(0, dtype=np.int64)
    if kind == df.BYTES:
        return (values & 255).astype(np.uint8), nothing, nothing
    size = np.abs(values)
    bits = np.frexp(size.astype(np.float64))[1].astype(np.int64)
    low = np.maximum(bits - 3, 0)
    following = np.where(bits >= 3, (size >> low) & 3, np.where(bits == 2, size & 1, 0))
    tokens = bits * 8 + following * 2 + (values < 0)
    least = values == -(1 << 31)
    tokens[least], low[least] = 1, 0
    return tokens.astype(np.uint8), size & ((1 << low) - 1), low


def packed(values: Ints, lengths: Ints) -> bytes:
    """Numbers of so many bits each, lowest bit first, without gaps."""
    parts, kept = [], np.zeros(0, dtype=np.uint8)
    for first in range(0, len(values), _PACKED_AT_ONCE):
        value, length = values[first : first + _PACKED_AT_ONCE], lengths[first : first + _PACKED_AT_ONCE]
        ends = np.cumsum(length) + len(kept)
        bits = np.zeros(int(ends[-1]), dtype=np.uint8)
        bits[: len(kept)] = kept
        starts = ends - length
        for i in range(int(length.max())):
            has = np.flatnonzero(length > i)
            bits[starts[has] + i] = (value[has] >> i) & 1
        whole = len(bits) // 8 * 8
        parts.append(np.packbits(bits[:whole], bitorder="little").tobytes())
        kept = bits[whole:]
    parts.append(np.packbits(kept, bitorder="little").tobytes())
    return b"".join(parts)
