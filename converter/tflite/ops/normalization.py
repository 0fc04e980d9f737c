"""Normalizations, which TFLite has not: MEAN, SQUARED_DIFFERENCE, RSQRT and what goes with them.

For: LayerNormalization, InstanceNormalization, LpNormalization and a BatchNormalization that no pass folded;
all in float, in whatever layout the input has.
Not for: their outputs for training, or GroupNormalization, whose shape ONNX does not infer.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from converter.tflite.errors import TFLiteError
from converter.tflite.layout import Shape
from converter.tflite.lowering import Lowering, Value
from converter.tflite.ops.entry import Entry
from converter.tflite.ops.pieces import binary, scalar, unary
from converter.tflite.ops.reduce import places, reduced
from converter.tflite.reading import Array, Op
from converter.tflite.tensors import Tensor

_EPSILON = 1e-5
_LEAST = 1e-37
"""About the least normal float32."""


def layer(b: Lowering, op: Op) -> None:
    """Writes one LayerNormalization, with mean and inverse deviation where they are asked for."""
    value = b.value(op.inputs[0])
    rank = len(value.shape)
    first = int(op.attributes.get("axis", -1)) % rank
    made = b.output(op, value.axes)
    at = places(value.axes, list(range(first, rank)))
    parts = [
        _spread(b, op, place, value, (1,) * (rank - b.numbers(op, place).ndim))
        for place in _given(op, (1, 2))
    ]
    asked = [place for place, name in enumerate(op.outputs) if place and name]
    statistics = {place: b.output(op, value.axes, place=place) for place in asked}
    normal = made if not parts else f"{made.name}_normal"
    _scaled(b, _centred(b, op, value.tensor, at, normal, statistics), parts, made)


def instance(b: Lowering, op: Op) -> None:
    """Writes one InstanceNormalization."""
    value = b.value(op.inputs[0])
    rank = len(value.shape)
    made = b.output(op, value.axes)
    parts = [_spread(b, op, place, value, (1,), (1,) * (rank - 2)) for place in (1, 2)]
    normal = _centred(b, op, value.tensor, places(value.axes, list(range(2, rank))), f"{made.name}_normal")
    _scaled(b, normal, parts, made)


def batch(b: Lowering, op: Op) -> None:
    """Writes one BatchNormalization with its stored statistics, as MUL and ADD."""
    _only_one_output(op)
    if op.attributes.get("training_mode", 0):
        raise TFLiteError("tflite_attribute", f"{op.where} computes its own statistics")
    value = b.value(op.inputs[0])
    scale, bias, mean, variance = (b.numbers(op, i).astype(np.float64) for i in range(1, 5))
    factor = scale / np.sqrt(variance + float(op.attributes.get("epsilon", _EPSILON)))
    made = b.output(op, value.axes)
    rank = len(value.shape)
    parts = [
        _constant(b, numbers.reshape(1, -1, *(1,) * (rank - 2)), value, f"{made.name}_{word}")
        for numbers, word in ((factor, "scale"), (bias - mean * factor, "bias"))
    ]
    _scaled(b, value.tensor, parts, made)


def lp(b: Lowering, op: Op) -> None:
    """Writes one LpNormalization: a quotient by the sum of magnitudes, or the root of that of squares."""
    value = b.value(op.inputs[0])
    rank, made = len(value.shape), b.output(op, value.axes)
    at = places(value.axes, [int(op.attributes.get("axis", -1)) % rank])
    if int(op.attributes.get("p", 2)) == 1:
        size = unary(b, "ABS", value.tensor, f"{made.name}_abs")
        norm = reduced(b, "SUM", size, at, f"{made.name}_norm")
    else:
        square = binary(b, "MUL", [value.tensor, value.tensor], f"{made.name}_square")
        norm = unary(b, "SQRT", reduced(b, "SUM", square, at, f"{made.name}_sum"), f"{made.name}_norm")
    # ONNX divides zeros by their norm to zeros.
    above = binary(b, "MAXIMUM", [norm, scalar(b, _LEAST, f"{made.name}_least")], f"{made.name}_above")
    binary(b, "DIV", [value.tensor, above], made)


def _only_one_output(op: Op) -> None:
    if len([name for name in op.outputs if name]) > 1:
        raise TFLiteError("tflite_attribute", f"{op.where} gives its statistics as well")


def _given(op: Op, among: tuple[int, ...]) -> list[int]:
    return [i for i in among if i < len(op.inputs) and op.inputs[i]]


def _spread(b: Lowering, op: Op, place: int, value: Value, before: Shape, behind: Shape = ()) -> Tensor:
    """A constant scale or bias with all axes of the input, in its layout."""
    numbers = b.numbers(op, place)
    shape = (*before, *numbers.shape, *behind)
    return _constant(b, numbers.reshape(shape), value, f"{op.inputs[place]}_spread")


def _constant(b: Lowering, numbers: Array, value: Value, name: str) -> Tensor:
    return b.new_constant(np.ascontiguousarray(numbers.transpose(value.axes), dtype=np.float32), name)


def _centred(
    b: Lowering, op: Op, tensor: Tensor, axes: list[int], made: Tensor | str,
    statistics: Mapping[int, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """(x - mean) / sqrt(variance + epsilon) over places in the file; outputs 1 and 2 where they are given."""
    name, found = op.outputs[0], statistics or {}
    epsilon = scalar(b, float(op.attributes.get("epsilon", _EPSILON)), f"{name}_epsilon")
    mean = reduced(b, "MEAN", tensor, axes, found.get(1, f"{name}_mean"))
    square = binary(b, "SQUARED_DIFFERENCE", [tensor, mean], f"{name}_square")
    variance = reduced(b, "MEAN", square, axes, f"{name}_variance")
    steady = binary(b, "ADD", [variance, epsilon], f"{name}_steady")
    inverse = unary(b, "RSQRT", steady, found.get(2, f"{name}_inverse"))
    return binary(b, "MUL", [binary(b, "SUB", [tensor, mean], f"{name}_centred"), inverse], made)


def _scaled(b: Lowering, tensor: Tensor, parts: list[Tensor], made: Tensor) -> None:
    """The product with the first part and the sum with the second; fewer where there are fewer."""
    for number, (kind, part) in enumerate(zip(("MUL", "ADD"), parts, strict=False), start=1):
        tensor = binary(b, kind, [tensor, part], made if number == len(parts) else f"{made.name}_scaled")


ENTRIES = {
    "BatchNormalization": Entry(lower=batch),
    "InstanceNormalization": Entry(lower=instance),
    "LayerNormalization": Entry(lower=layer),
    "LpNormalization": Entry(lower=lp),
}
