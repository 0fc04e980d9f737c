"""The same numbers under other axes: RESHAPE, or nothing at all.

For: Reshape, Flatten, Squeeze, Unsqueeze, Transpose, Identity, Dropout.
Not for: what picks or repeats numbers (Slice, Gather, Expand).

A reshape that splits or joins axes which stand together in the file moves nothing. Where a flattened image is
read by matrix products with constant weights alone, the weights are put in the file's order instead.
"""

from __future__ import annotations

from math import prod

import numpy as np

from converter.tflite.layout import Shape, identity, laid, moved, reshaped
from converter.tflite.lowering import Lowering, Value
from converter.tflite.ops.entry import Entry
from converter.tflite.reading import Op, Traits


def reshape(b: Lowering, op: Op) -> None:
    """Writes Reshape, Flatten, Squeeze and Unsqueeze: what they mean stands in the output's shape."""
    value, after = b.value(op.inputs[0]), b.shape(op.outputs[0])
    axes = None if value.order is not None else reshaped(value.shape, after, value.axes)
    if axes is not None:
        _write(b, op, value, axes)
    elif value.order is None and _only_multiplied(b, op, after):
        _flattened(b, op, value, after)
    else:
        tensor = b.take(op.inputs[0])
        plain = Value(tensor=tensor, shape=value.shape, axes=identity(len(value.shape)))
        _write(b, op, plain, identity(len(after)))


def _write(b: Lowering, op: Op, value: Value, axes: tuple[int, ...]) -> None:
    after = b.shape(op.outputs[0])
    tensor = b.reshape(value.tensor, laid(after, axes), op.outputs[0])
    b.rename(op, Value(tensor=tensor, shape=after, axes=axes))


def _only_multiplied(b: Lowering, op: Op, after: Shape) -> bool:
    """Whether the output is [N, features] and only constant matrices are multiplied with it."""
    name = op.outputs[0]
    readers = b.readers(name)
    return (
        len(after) == 2
        and after[0] == b.shape(op.inputs[0])[0]
        and name not in b.source.outputs
        and bool(readers)
        and all(_multiplies(b, reader, name) for reader in readers)
    )


def _multiplies(b: Lowering, reader: Op, name: str) -> bool:
    if (
        reader.op_type not in {"Gemm", "MatMul"}
        or reader.inputs[0] != name
        or reader.attributes.get("transA")
    ):
        return False
    weight = b.constant(reader.inputs[1])
    return weight is not None and weight.values.ndim == 2


def _flattened(b: Lowering, op: Op, value: Value, after: Shape) -> None:
    """[N, features] in the file's order, with what each place is in ONNX's."""
    inner = value.axes[1:]
    places = np.arange(prod(value.shape[1:])).reshape(value.shape[1:])
    order = places.transpose([i - 1 for i in inner]).reshape(-1)
    tensor = b.reshape(value.tensor, after, op.outputs[0])
    b.rename(op, Value(tensor=tensor, shape=after, axes=(0, 1), order=order))


def transpose(b: Lowering, op: Op) -> None:
    """Renames axes; whoever needs another order writes the TRANSPOSE."""
    value = b.value(op.inputs[0])
    rank = len(value.shape)
    permutation = tuple(op.attributes.get("perm", range(rank)[::-1]))
    renamed = Value(tensor=value.tensor, shape=b.shape(op.outputs[0]), axes=moved(value.axes, permutation))
    b.rename(op, renamed)


def identical(b: Lowering, op: Op) -> None:
    """Identity and Dropout: in inference, the tensor itself."""
    b.rename(op, b.value(op.inputs[0]))


_INTEGER = Traits(integer=True)

ENTRIES = {
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), Entry(lower=reshape, traits=_INTEGER)),
    "Transpose": Entry(lower=transpose, traits=_INTEGER),
    **dict.fromkeys(("Dropout", "Identity"), Entry(lower=identical, traits=_INTEGER)),
}
