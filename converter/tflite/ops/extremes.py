"""The larger or smaller of several tensors, and where the extreme lies: MAXIMUM, MINIMUM, ARG_MAX, ARG_MIN.

For: Max and Min of any number of operands, ArgMax, ArgMin.
Not for: ReduceMax and ReduceMin (`reduce`), Clip (`bounds`).

The kernels compare stored integers, so operands with other parameters than the output are requantized in
front.
"""

from __future__ import annotations

import numpy as np

from converter.tflite.errors import TFLiteError
from converter.tflite.layout import laid, without
from converter.tflite.lowering import Lowering
from converter.tflite.ops.entry import Entry
from converter.tflite.ops.pieces import check_types, requantized
from converter.tflite.reading import Op, Traits
from converter.tflite.schema import TYPES, schema

_PAIRS = {"Max": "MAXIMUM", "Min": "MINIMUM"}
_PLACES = {"ArgMax": "ARG_MAX", "ArgMin": "ARG_MIN"}
_OPERANDS_MAX = 16
_ELEMENTS = frozenset({"float32", "int8", "int32", "int64"})


def extreme(b: Lowering, op: Op) -> None:
    """Writes one Max or Min, pair by pair."""
    if len(op.inputs) == 1:
        b.rename(op, b.value(op.inputs[0]))
        return
    tensors, axes = b.operands(op, op.inputs)
    check_types(op, tensors, _ELEMENTS)
    made = b.output(op, axes)
    tensors = [requantized(b, tensor, made) for tensor in tensors]
    left = tensors[0]
    for number, right in enumerate(tensors[1:], start=2):
        shape = np.broadcast_shapes(left.shape, right.shape)
        last = number == len(tensors)
        result = made if last else b.new(f"{made.name}_of_{number}", shape, made.dtype, made.quant)
        b.add(_PAIRS[op.op_type], [left, right], [result], schema.MaximumMinimumOptionsT())
        left = result


def place(b: Lowering, op: Op) -> None:
    """Writes one ArgMax or ArgMin: the first place of the extreme."""
    if op.attributes.get("select_last_index", 0):
        raise TFLiteError("tflite_attribute", f"{op.where} gives the last of equal places, TFLite the first")
    value = b.value(op.inputs[0])
    axis = int(op.attributes.get("axis", 0)) % len(value.shape)
    at = b.new_constant(np.array(value.axes.index(axis), np.int32), f"{op.name}_axis")
    keep = bool(op.attributes.get("keepdims", 1))
    made = b.output(op, value.axes if keep else without(value.axes, [axis]))
    shape = tuple(n for i, n in zip(value.axes, laid(value.shape, value.axes), strict=True) if i != axis)
    flat = made if made.shape == shape else b.new(f"{made.name}_flat", shape, made.dtype)
    kind = _PLACES[op.op_type]
    options = schema.ArgMaxOptionsT() if kind == "ARG_MAX" else schema.ArgMinOptionsT()
    options.outputType = TYPES[made.dtype]
    b.add(kind, [value.tensor, at], [flat], options)
    if flat is not made:
        b.reshape_into(flat, made)


_COMPARED = Traits(integer=True, constants=tuple(range(_OPERANDS_MAX)))

ENTRIES = {
    **dict.fromkeys(_PAIRS, Entry(lower=extreme, traits=_COMPARED)),
    **dict.fromkeys(_PLACES, Entry(lower=place, traits=Traits(integer=True))),
}
