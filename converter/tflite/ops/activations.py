"""Activations that stand alone: what no operator before them has fused.

For: Relu, Clip, Sigmoid, Tanh, HardSwish, LeakyRelu.
Not for: fused ones (`converter.tflite.reading`), Softmax, PRelu, Gelu, HardSigmoid.
"""

from __future__ import annotations

from typing import Any

from converter.tflite.errors import TFLiteError
from converter.tflite.lowering import Lowering
from converter.tflite.ops.entry import Entry
from converter.tflite.reading import Op, Traits
from converter.tflite.schema import schema

_KINDS = {"Relu": "RELU", "Sigmoid": "LOGISTIC", "Tanh": "TANH", "HardSwish": "HARD_SWISH"}


def unary(b: Lowering, op: Op) -> None:
    """Writes an activation that has no settings."""
    _write(b, op, _KINDS[op.op_type], schema.HardSwishOptionsT() if op.op_type == "HardSwish" else None)


def leaky_relu(b: Lowering, op: Op) -> None:
    """Writes one LeakyRelu."""
    options = schema.LeakyReluOptionsT()
    options.alpha = float(op.attributes.get("alpha", 0.01))
    _write(b, op, "LEAKY_RELU", options)


def clip(b: Lowering, op: Op) -> None:
    """Writes one Clip with constant bounds."""
    low, high = (_bound(b, op, place) for place in (1, 2))
    kinds: dict[tuple[float | None, float | None], str] = {
        (0.0, None): "RELU",
        (0.0, 6.0): "RELU6",
        (-1.0, 1.0): "RELU_N1_TO_1",
    }
    kind = kinds.get((low, high))
    if kind is None:
        raise TFLiteError("tflite_attribute", f"{op.where} bounds by {low} and {high}")
    _write(b, op, kind, None)


def _bound(b: Lowering, op: Op, place: int) -> float | None:
    if place < len(op.inputs) and op.inputs[place]:
        return float(b.numbers(op, place).reshape(-1)[0])
    found = op.attributes.get(("min", "max")[place - 1])
    return None if found is None else float(found)


def _write(b: Lowering, op: Op, kind: str, options: Any) -> None:  # noqa: ANN401 - the schema has no types
    value = b.value(op.inputs[0])
    b.add(kind, [value.tensor], [b.output(op, value.axes)], options)


_INTEGER = Traits(integer=True)

ENTRIES = {
    **dict.fromkeys(_KINDS, Entry(lower=unary, traits=_INTEGER)),
    "Clip": Entry(lower=clip, traits=_INTEGER),
    "LeakyRelu": Entry(lower=leaky_relu, traits=_INTEGER),
}
