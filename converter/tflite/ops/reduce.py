"""Reductions: MEAN, SUM, REDUCE_MAX, REDUCE_MIN.

For: ReduceMean, ReduceSum, ReduceMax, ReduceMin over constant axes.
Not for: ArgMax.

The maximum and minimum keep scale and zero point; mean and sum may change them.
"""

from __future__ import annotations

import numpy as np

from converter.tflite.layout import without
from converter.tflite.lowering import Lowering
from converter.tflite.ops.entry import Entry
from converter.tflite.reading import Op, Traits
from converter.tflite.schema import schema

_KINDS = {"ReduceMean": "MEAN", "ReduceSum": "SUM", "ReduceMax": "REDUCE_MAX", "ReduceMin": "REDUCE_MIN"}
_PICKS = frozenset({"ReduceMax", "ReduceMin"})


def reduce(b: Lowering, op: Op) -> None:
    """Writes one reduction, in whatever layout its input has."""
    value = b.value(op.inputs[0])
    rank = len(value.shape)
    axes = axes_of(b, op, rank)
    if not axes and op.attributes.get("noop_with_empty_axes", 0):
        b.rename(op, value)
        return
    axes = axes or list(range(rank))
    keep = bool(op.attributes.get("keepdims", 1))
    layout = value.axes if keep else without(value.axes, axes)
    options = schema.ReducerOptionsT()
    options.keepDims = keep
    like = value.tensor if op.op_type in _PICKS else None
    made = b.output(op, layout, like=like)
    places = b.integers(sorted(value.axes.index(i) for i in axes), f"{op.name}_axes")
    b.add(_KINDS[op.op_type], [value.tensor, places], [made], options)


def axes_of(b: Lowering, op: Op, rank: int) -> list[int]:
    """The axes, as attribute or as input, counted from the front; empty for all of them."""
    given = op.attributes.get("axes")
    if given is None:
        given = b.numbers(op, 1, np.zeros(0, dtype=np.int64)).reshape(-1)
    return [int(i) % rank for i in given]


ENTRIES = dict.fromkeys(_KINDS, Entry(lower=reduce, traits=Traits(integer=True)))
