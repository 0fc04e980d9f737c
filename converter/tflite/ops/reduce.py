"""Reductions: MEAN, SUM, REDUCE_PROD, REDUCE_MAX, REDUCE_MIN.

For: ReduceMean, ReduceSum, ReduceProd, ReduceMax, ReduceMin over constant axes; ReduceL1, ReduceL2,
ReduceSumSquare and ReduceLogSum in float.
Not for: ArgMax.

The maximum and minimum keep scale and zero point; mean and sum may change them.
"""

from __future__ import annotations

import numpy as np

from converter.tflite.errors import TFLiteError
from converter.tflite.layout import Axes, without
from converter.tflite.lowering import Lowering, Value
from converter.tflite.ops.entry import Entry
from converter.tflite.ops.pieces import binary, check_types, unary
from converter.tflite.reading import Op, Traits
from converter.tflite.schema import schema
from converter.tflite.tensors import Tensor

_KINDS = {
    "ReduceMax": "REDUCE_MAX", "ReduceMean": "MEAN", "ReduceMin": "REDUCE_MIN", "ReduceProd": "REDUCE_PROD",
    "ReduceSum": "SUM",
}  # fmt: skip
_IN_INT8 = frozenset({"ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"})
_PICKS = frozenset({"ReduceMax", "ReduceMin"})
_BEFORE = {"ReduceL1": "ABS", "ReduceL2": "MUL", "ReduceLogSum": None, "ReduceSumSquare": "MUL"}
_BEHIND = {"ReduceL2": "SQRT", "ReduceLogSum": "LOG"}
"""What is done to each number before the sum, and to the sum."""


def reduce(b: Lowering, op: Op) -> None:
    """Writes one reduction, in whatever layout its input has."""
    value = b.value(op.inputs[0])
    axes = axes_of(b, op, len(value.shape))
    if not axes and op.attributes.get("noop_with_empty_axes", 0):
        b.rename(op, value)
        return
    check_types(op, [value.tensor], {"float32", "int8", "int32"})
    axes = axes or list(range(len(value.shape)))
    made = b.output(op, _layout(op, value, axes), like=value.tensor if op.op_type in _PICKS else None)
    reduced(b, _KINDS[op.op_type], value.tensor, places(value.axes, axes), made)


def composed(b: Lowering, op: Op) -> None:
    """Writes a reduction that TFLite has not, around a SUM."""
    value = b.value(op.inputs[0])
    axes = axes_of(b, op, len(value.shape))
    if not axes and op.attributes.get("noop_with_empty_axes", 0):
        raise TFLiteError("tflite_attribute", f"{op.where} reduces over no axis")
    axes = axes or list(range(len(value.shape)))
    made = b.output(op, _layout(op, value, axes))
    check_types(op, [value.tensor], {"float32"})
    tensor, before, behind = value.tensor, _BEFORE[op.op_type], _BEHIND.get(op.op_type)
    if before == "ABS":
        tensor = unary(b, "ABS", tensor, f"{made.name}_abs")
    elif before == "MUL":
        tensor = binary(b, "MUL", [tensor, tensor], f"{made.name}_square")
    total = made if behind is None else b.new(f"{made.name}_sum", made.shape, made.dtype)
    reduced(b, "SUM", tensor, places(value.axes, axes), total)
    if behind is not None:
        unary(b, behind, total, made)


def _layout(op: Op, value: Value, axes: list[int]) -> Axes:
    return value.axes if op.attributes.get("keepdims", 1) else without(value.axes, axes)


def places(layout: Axes, axes: list[int]) -> list[int]:
    """Where logical axes lie in the file, in order."""
    return sorted(layout.index(i) for i in axes)


def reduced(b: Lowering, kind: str, tensor: Tensor, axes: list[int], made: Tensor | str) -> Tensor:
    """One reduction over places in the file.

    Args:
        b: the builder.
        kind: the schema's name.
        tensor: what is reduced.
        axes: places.
        made: the output, with or without the reduced axes; or a name for a fresh one that keeps them.
    """
    if isinstance(made, str):
        shape = tuple(1 if i in axes else n for i, n in enumerate(tensor.shape))
        made = b.new(made, shape, tensor.dtype)
    options = schema.ReducerOptionsT()
    options.keepDims = len(made.shape) == len(tensor.shape)
    b.add(kind, [tensor, b.integers(axes, f"{made.name}_axes")], [made], options)
    return made


def axes_of(b: Lowering, op: Op, rank: int) -> list[int]:
    """The axes, as attribute or as input, counted from the front; empty for all of them."""
    given = op.attributes.get("axes")
    if given is None:
        given = b.numbers(op, 1, np.zeros(0, dtype=np.int64)).reshape(-1)
    return [int(i) % rank for i in given]


ENTRIES = {
    **{kind: Entry(lower=reduce, traits=Traits(integer=kind in _IN_INT8)) for kind in _KINDS},
    **dict.fromkeys(_BEFORE, Entry(lower=composed)),
}
