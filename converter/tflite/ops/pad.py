"""Padding: PAD, PADV2, MIRROR_PAD, or GATHER.

For: Pad in every mode, and negative pads, which crop (SLICE).
Not for: what convolutions and pools pad (`windows`).

Edges and whatever else no operator says are picked by constant places along each axis (`picking`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.quantize.qparams import quantize
from converter.tflite.errors import TFLiteError
from converter.tflite.layout import Axes
from converter.tflite.lowering import Lowering
from converter.tflite.ops.entry import Entry
from converter.tflite.ops.picking import pick
from converter.tflite.reading import Op, Traits
from converter.tflite.schema import schema
from converter.tflite.tensors import Tensor

Array = NDArray[Any]
_MODES = {"constant": "constant", "edge": "edge", "reflect": "reflect", "wrap": "wrap"}
_RANK_MAX = 5
"""Of what PAD takes."""


def pad(b: Lowering, op: Op) -> None:
    """Writes one Pad."""
    value = b.value(op.inputs[0])
    mode = op.attributes.get("mode", "constant")
    if mode not in _MODES:
        raise TFLiteError("tflite_attribute", f"{op.where} has mode {mode}, which TFLite has not")
    pads = [_pads(b, op, len(value.shape))[i] for i in value.axes]
    if all(pair == (0, 0) for pair in pads):
        b.rename(op, value)
        return
    made = b.output(op, value.axes, like=value.tensor)
    if mode == "constant":
        _constant(b, op, value.tensor, made, pads)
    elif mode == "reflect" and all(0 <= x < n for n, pair in _sizes(value.tensor, pads) for x in pair):
        edges = b.new_constant(np.array(pads, dtype=np.int32), f"{op.name}_pads")
        options = schema.MirrorPadOptionsT()
        options.mode = schema.MirrorPadMode.REFLECT
        b.add("MIRROR_PAD", [value.tensor, edges], [made], options)
    else:
        _picked(b, value.tensor, made, pads, mode)


def _sizes(tensor: Tensor, pads: list[tuple[int, int]]) -> list[tuple[int, tuple[int, int]]]:
    return list(zip(tensor.shape, pads, strict=True))


def _pads(b: Lowering, op: Op, rank: int) -> list[tuple[int, int]]:
    """(before, after) by logical axis."""
    given = op.attributes.get("pads", op.attributes.get("paddings"))
    given = b.numbers(op, 1).reshape(-1) if given is None else given
    chosen = b.numbers(op, 3, np.arange(rank)).reshape(-1)
    n, pairs = len(chosen), [(0, 0)] * rank
    for place, axis in enumerate(chosen):
        pairs[int(axis) % rank] = (int(given[place]), int(given[place + n]))
    return pairs


def _constant(b: Lowering, op: Op, tensor: Tensor, made: Tensor, pads: list[tuple[int, int]]) -> None:
    if len(tensor.shape) > _RANK_MAX:
        raise TFLiteError("tflite_rank", f"{op.where} pads {len(tensor.shape)} axes, TFLite {_RANK_MAX}")
    if any(x < 0 for pair in pads for x in pair):
        tensor, pads = _cropped(b, op, tensor, made, pads)
        if tensor is made:
            return
    edges = b.new_constant(np.array(pads, dtype=np.int32), f"{op.name}_pads")
    filler = _filler(b, op, tensor)
    zero = 0 if tensor.quant is None else int(tensor.quant.zero_point)
    if filler[0] == zero:
        b.add("PAD", [tensor, edges], [made], schema.PadOptionsT())
    else:
        value = b.new_constant(filler, f"{op.name}_value", tensor.quant)
        b.add("PADV2", [tensor, edges, value], [made], schema.PadV2OptionsT())


def _filler(b: Lowering, op: Op, tensor: Tensor) -> Array:
    """The value as the tensor's numbers are stored; infinity as the furthest number."""
    given = op.attributes.get("value")
    number = np.asarray(b.numbers(op, 2, np.zeros(1)) if given is None else given).reshape(-1)[:1]
    if tensor.dtype not in {"float32", "int8"} or (tensor.dtype == "int8" and tensor.quant is None):
        return number.astype(tensor.dtype)
    number = number.astype(np.float32)
    if tensor.quant is None:
        return number
    return quantize(np.clip(number, np.finfo(np.float32).min, np.finfo(np.float32).max), tensor.quant)


def _cropped(
    b: Lowering, op: Op, tensor: Tensor, made: Tensor, pads: list[tuple[int, int]]
) -> tuple[Tensor, list[tuple[int, int]]]:
    """What negative pads leave, and the pads that are left; the output itself if none are."""
    begin = [max(-front, 0) for front, _ in pads]
    size = [n + min(front, 0) + min(end, 0) for n, (front, end) in _sizes(tensor, pads)]
    if min(size) < 1:
        raise TFLiteError("tflite_shape", f"{op.where} crops everything away")
    left = [(max(front, 0), max(end, 0)) for front, end in pads]
    done = all(pair == (0, 0) for pair in left)
    crop = made if done else b.new(f"{made.name}_cropped", tuple(size), tensor.dtype, tensor.quant)
    first, sizes = b.integers(begin, f"{op.name}_begin"), b.integers(size, f"{op.name}_size")
    b.add("SLICE", [tensor, first, sizes], [crop], schema.SliceOptionsT())
    return crop, left


def _picked(b: Lowering, tensor: Tensor, made: Tensor, pads: list[tuple[int, int]], mode: str) -> None:
    """Along each padded axis, the places that numpy's padding of 0, 1, 2, ... names."""
    changed: Axes = tuple(i for i, pair in enumerate(pads) if pair != (0, 0))
    for i in changed:
        n, (front, end) = tensor.shape[i], pads[i]
        places = np.pad(np.arange(n), (max(front, 0), max(end, 0)), mode=mode)  # type: ignore[call-overload]
        places = places[max(-front, 0) : len(places) - max(-end, 0)]
        last = made if i == changed[-1] else None
        tensor = pick(b, tensor, i, places.tolist(), f"{made.name}_axis{i}", last)


ENTRIES = {"Pad": Entry(lower=pad, traits=Traits(integer=True))}
