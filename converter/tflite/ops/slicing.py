"""Parts of a tensor: SLICE, STRIDED_SLICE, SPLIT, SPLIT_V.

For: Slice with constant bounds, Split.
Not for: Gather.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from converter.tflite.errors import TFLiteError
from converter.tflite.layout import Shape
from converter.tflite.lowering import Lowering
from converter.tflite.ops.entry import Entry
from converter.tflite.reading import Op, Traits
from converter.tflite.schema import schema
from converter.tflite.tensors import Tensor

_RANK_MAX = 5
"""Of what both slices take."""
_SPLIT_INT32 = 3
"""Version (op_version.cc)."""


class Span(Struct, frozen=True, kw_only=True):
    """What is taken of one axis: `length` places from `start` on, `step` apart."""

    start: int
    step: int
    length: int


def spans_of(
    shape: Shape, starts: list[int], ends: list[int], axes: list[int], steps: list[int]
) -> list[Span]:
    """By logical axis, as ONNX means them: negative bounds count from the end, all are clamped.

    Forwards, both bounds are clamped to [0, n]; backwards, the start to [0, n - 1], the end to [-1, n - 1].
    """
    spans = [Span(start=0, step=1, length=n) for n in shape]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        n, back = shape[axis], step < 0
        first = min(max(start + n if start < 0 else start, 0), n - back)
        last = min(max(end + n if end < 0 else end, -1 if back else 0), n - back)
        spans[axis] = Span(start=first, step=step, length=len(range(first, last, step)))
    return spans


def slice_(b: Lowering, op: Op) -> None:
    """Writes one Slice, in whatever layout its input has."""
    value = b.value(op.inputs[0])
    spans = _spans(b, op, value.shape)
    if any(span.length == 0 for span in spans):
        raise TFLiteError("tflite_shape", f"{op.where} gives no element")
    if all(s.length == n and s.step == 1 for s, n in zip(spans, value.shape, strict=True)):
        b.rename(op, value)
        return
    made = b.output(op, value.axes, like=value.tensor)
    cut(b, op, value.tensor, [spans[i] for i in value.axes], made)


def cut(b: Lowering, op: Op, tensor: Tensor, spans: list[Span], made: Tensor) -> None:
    """SLICE or STRIDED_SLICE; `spans` by the file's axes."""
    if len(spans) > _RANK_MAX:
        raise TFLiteError("tflite_rank", f"{op.where} cuts {len(spans)} axes, TFLite {_RANK_MAX}")
    begin = b.integers([s.start for s in spans], f"{op.name}_begin")
    if all(s.step == 1 for s in spans):
        size = b.integers([s.length for s in spans], f"{op.name}_size")
        b.add("SLICE", [tensor, begin, size], [made], schema.SliceOptionsT())
        return
    ends = [s.start + s.step * (s.length - 1) + (1 if s.step > 0 else -1) for s in spans]
    options = schema.StridedSliceOptionsT()
    # An end before the first place cannot be said as a number: -1 is the last.
    options.endMask = sum(1 << i for i, end in enumerate(ends) if end < 0)
    end = b.integers([max(end, 0) for end in ends], f"{op.name}_end")
    steps = b.integers([s.step for s in spans], f"{op.name}_steps")
    b.add("STRIDED_SLICE", [tensor, begin, end, steps], [made], options)


def _spans(b: Lowering, op: Op, shape: Shape) -> list[Span]:
    rank = len(shape)
    if "starts" in op.attributes:
        starts, ends = list(op.attributes["starts"]), list(op.attributes["ends"])
        axes, steps = list(op.attributes.get("axes", range(len(starts)))), [1] * len(starts)
    else:
        starts, ends = (b.numbers(op, i).reshape(-1).tolist() for i in (1, 2))
        axes = b.numbers(op, 3, np.arange(len(starts))).reshape(-1).tolist()
        steps = b.numbers(op, 4, np.ones(len(starts), np.int64)).reshape(-1).tolist()
    return spans_of(shape, starts, ends, [axis % rank for axis in axes], steps)


def split(b: Lowering, op: Op) -> None:
    """Writes one Split; its outputs' shapes say where."""
    value = b.value(op.inputs[0])
    axis = int(op.attributes.get("axis", 0)) % len(value.shape)
    at = value.axes.index(axis)
    lengths = [b.shape(name)[axis] for name in op.outputs]
    if len(lengths) == 1:
        b.rename(op, value)
        return
    made = [b.output(op, value.axes, place=i, like=value.tensor) for i in range(len(lengths))]
    place = b.new_constant(np.array(at, np.int32), f"{op.name}_axis")
    if len(set(lengths)) == 1:
        options = schema.SplitOptionsT()
        options.numSplits = len(lengths)
        version = _SPLIT_INT32 if value.tensor.dtype == "int32" else None
        b.add("SPLIT", [place, value.tensor], made, options, version=version)
        return
    options = schema.SplitVOptionsT()
    options.numSplits = len(lengths)
    sizes = b.integers(lengths, f"{op.name}_sizes")
    b.add("SPLIT_V", [value.tensor, sizes, place], made, options)


_INTEGER = Traits(integer=True)

ENTRIES = {"Slice": Entry(lower=slice_, traits=_INTEGER), "Split": Entry(lower=split, traits=_INTEGER)}
