"""SOFTMAX and LOG_SOFTMAX, which TFLite computes over the last axis in the file.

For: Softmax and LogSoftmax over any axis; before opset 13 over all axes from the given one on.
Not for: normalizing by other sums.
"""

from __future__ import annotations

from math import prod

from converter.tflite.layout import identity
from converter.tflite.lowering import Lowering
from converter.tflite.ops.entry import Entry
from converter.tflite.ops.pieces import fits, fixed_output, options_of
from converter.tflite.reading import Op, Traits
from converter.tflite.tensors import Tensor

_KINDS = {"LogSoftmax": "LOG_SOFTMAX", "Softmax": "SOFTMAX"}
_BY_AXIS = 13
"""The opset from which on the axis is one axis, by default the last."""


def softmax(b: Lowering, op: Op) -> None:
    """Writes one of the two."""
    value = b.value(op.inputs[0])
    rank = len(value.shape)
    whole = b.source.opset < _BY_AXIS
    axis = int(op.attributes.get("axis", 1 if whole else -1)) % rank
    if whole and prod(value.shape[axis + 1 :]) > 1:
        _over_all_behind(b, op, axis)
        return
    axes = (*(i for i in value.axes if i != axis), axis)
    _write(b, op, b.take(op.inputs[0], axes), fixed_output(b, op, _KINDS[op.op_type], axes))


def _over_all_behind(b: Lowering, op: Op, axis: int) -> None:
    kind = _KINDS[op.op_type]
    shape = b.shape(op.inputs[0])
    rows = (prod(shape[:axis]), prod(shape[axis:]))
    made = fixed_output(b, op, kind, identity(len(shape)))
    flat = b.reshape(b.take(op.inputs[0]), rows, f"{op.inputs[0]}_rows")
    written = b.new(f"{op.outputs[0]}_rows", rows, made.dtype, made.quant)
    _write(b, op, flat, written)
    b.reshape_into(written, made)


def _write(b: Lowering, op: Op, tensor: Tensor, made: Tensor) -> None:
    kind = _KINDS[op.op_type]
    options = options_of(kind)
    if kind == "SOFTMAX":
        options.beta = 1.0
    b.add(kind, [tensor], [made], options)


ENTRIES = {
    name: Entry(lower=softmax, traits=Traits(integer=True, fits=fits(kind))) for name, kind in _KINDS.items()
}
