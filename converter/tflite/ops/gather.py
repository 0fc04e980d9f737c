"""Rows by number: GATHER.

For: Gather along any axis by constant or computed indices, embedding tables among them.
Not for: GatherND, GatherElements.

ONNX counts negative indices from the end, TFLite refuses them: constant ones are rewritten, computed ones go
through FLOOR_MOD unless an ArgMax or ArgMin made them.
"""

from __future__ import annotations

import numpy as np

from converter.quantize.qparams import of_weight, quantize
from converter.tflite.layout import Axes, identity
from converter.tflite.lowering import Lowering, Value
from converter.tflite.ops.entry import Entry
from converter.tflite.reading import Op, Traits
from converter.tflite.schema import schema
from converter.tflite.tensors import Tensor

_TABLE_RANK = 2


def gather(b: Lowering, op: Op) -> None:
    """Writes one Gather, in whatever layout its data has."""
    value = _table(b, op) or b.value(op.inputs[0])
    rank = len(value.shape)
    axis = int(op.attributes.get("axis", 0)) % rank
    count = len(b.shape(op.inputs[1]))
    options = schema.GatherOptionsT()
    options.axis = value.axes.index(axis)
    indices = _indices(b, op, value.shape[axis])
    layout = gathered(value.axes, axis, count)
    made = b.output(op, layout, like=value.tensor)
    if value.tensor.quant is not None and made.quant is None:
        stored = b.new(f"{made.name}_stored", made.shape, "int8", value.tensor.quant)
        b.add("GATHER", [value.tensor, indices], [stored], options)
        b.add("DEQUANTIZE", [stored], [made], schema.DequantizeOptionsT())
        return
    b.add("GATHER", [value.tensor, indices], [made], options)


def gathered(axes: Axes, axis: int, count: int) -> Axes:
    """The layout once an axis is replaced by the indices' `count` axes, which lie in ONNX's order.

    >>> gathered((0, 2, 3, 1), 1, 0)
    (0, 1, 2)
    >>> gathered((0, 2, 1), 2, 2)
    (0, 2, 3, 1)
    """
    found: list[int] = []
    for i in axes:
        if i == axis:
            found += range(axis, axis + count)
        else:
            found.append(i if i < axis else i - 1 + count)
    return tuple(found)


def _table(b: Lowering, op: Op) -> Value | None:
    """A constant table as it is stored: integers stay integers, and what is picked becomes real."""
    name = op.inputs[0]
    found = b.constant(name)
    if found is None or found.values.dtype != np.float32 or found.values.ndim < _TABLE_RANK:
        return None
    stored = b.constant(name.removesuffix("_real")) if name.endswith("_real") else None
    if stored is not None and stored.quant is not None and stored.quant.axis is None:
        tensor = b.new_constant(stored.values, name.removesuffix("_real"), stored.quant)
    elif b.options.weights == "dynamic_int8":
        params = of_weight(np.ascontiguousarray(found.values), "i8", None)
        tensor = b.new_constant(quantize(found.values, params), name, params)
    else:
        tensor = b.weight(found.values, name, None)
    return Value(tensor=tensor, shape=tensor.shape, axes=identity(len(tensor.shape)))


def _indices(b: Lowering, op: Op, length: int) -> Tensor:
    name = op.inputs[1]
    found = b.constant(name)
    if found is not None:
        places = np.where(found.values < 0, found.values + length, found.values)
        return b.new_constant(places.astype(np.int32), name)
    tensor = b.take(name)
    if _made_by(b, name) in {"ArgMax", "ArgMin"}:
        return tensor
    counted = b.new(f"{name}_counted", tensor.shape, tensor.dtype)
    modulus = b.new_constant(np.array([length], dtype=tensor.dtype), f"{op.name}_length")
    b.add("FLOOR_MOD", [tensor, modulus], [counted], schema.FloorModOptionsT())
    return counted


def _made_by(b: Lowering, name: str) -> str:
    return next((op.op_type for op in b.source.ops if name in op.outputs), "")


ENTRIES = {"Gather": Entry(lower=gather, traits=Traits(integer=True, constants=(0,)))}
