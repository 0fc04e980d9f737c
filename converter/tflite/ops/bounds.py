"""What is bounded from below and above: RELU and its kin, MAXIMUM and MINIMUM.

For: Relu and Clip that no operator before them has fused.
Not for: bounds that are computed while the model runs.

In INT8 the numbers are first stored as ONNX's output is, then bounded there: rounding keeps order, so that is
the same. A bound that the type itself sets is not written.
"""

from __future__ import annotations

import numpy as np

from converter.quantize.qparams import QParams
from converter.tflite.lowering import Lowering, Value
from converter.tflite.ops.entry import Entry
from converter.tflite.ops.pieces import binary, check_types, scalar, unary
from converter.tflite.reading import Op, Traits
from converter.tflite.schema import schema
from converter.tflite.tensors import Tensor

Bounds = tuple[float, float]
_INFINITE = float("inf")
_KINDS: dict[Bounds, str] = {
    (0.0, _INFINITE): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1",
}  # fmt: skip


def relu(b: Lowering, op: Op) -> None:
    """Writes one Relu."""
    _bounded(b, op, (0.0, _INFINITE))


def clip(b: Lowering, op: Op) -> None:
    """Writes one Clip with constant bounds."""
    low, high = (_bound(b, op, place) for place in (1, 2))
    _bounded(b, op, (low, high))


def _bound(b: Lowering, op: Op, place: int) -> float:
    missing = (-_INFINITE, _INFINITE)[place - 1]
    if place < len(op.inputs) and op.inputs[place]:
        return float(b.numbers(op, place).reshape(-1)[0])
    return float(op.attributes.get(("min", "max")[place - 1], missing))


def _bounded(b: Lowering, op: Op, bounds: Bounds) -> None:
    value = b.value(op.inputs[0])
    check_types(op, [value.tensor], {"float32", "int8"})
    wanted = b.quant(op.outputs[0])
    if wanted is not None:
        _bounded_integers(b, op, value, wanted, bounds)
    elif bounds in _KINDS:
        unary(b, _KINDS[bounds], value.tensor, b.output(op, value.axes))
    elif bounds == (-_INFINITE, _INFINITE):
        b.rename(op, value)
    else:
        low, high = bounds
        name = op.outputs[0]
        low_tensor = None if low == -_INFINITE else scalar(b, low, f"{name}_low")
        high_tensor = None if high == _INFINITE else scalar(b, high, f"{name}_high")
        between(b, value.tensor, low_tensor, high_tensor, b.output(op, value.axes))


def _bounded_integers(b: Lowering, op: Op, value: Value, wanted: QParams, bounds: Bounds) -> None:
    low, high = (stored_bound(bound, wanted) for bound in bounds)
    if (low, high) == (-128, 127):
        b.rename(op, value)
        return
    kind = _KINDS.get(bounds)
    if kind is not None:
        unary(b, kind, value.tensor, b.output(op, value.axes))
        return
    made = b.output(op, value.axes)
    tensor = value.tensor
    if tensor.quant is None or not tensor.quant.same_as(wanted):
        stored = b.new(f"{made.name}_unbounded", made.shape, "int8", wanted)
        b.add("QUANTIZE", [tensor], [stored], schema.QuantizeOptionsT())
        tensor = stored
    between_stored(b, tensor, low, high, made)


def stored_bound(bound: float, params: QParams) -> int:
    """A real bound among the stored integers, as QuantizeLinear would round it."""
    scaled = np.rint(np.float32(bound) / np.float32(params.scale)) + int(params.zero_point)
    return int(np.clip(scaled, -128, 127))


def between_stored(b: Lowering, tensor: Tensor, low: int, high: int, made: Tensor) -> None:
    """Bounds of stored integers; what the type sets is not written. One at least must be a bound."""
    low_tensor, high_tensor = (
        None
        if bound == limit
        else b.new_constant(np.array([bound], np.int8), f"{made.name}_{word}", made.quant)
        for bound, limit, word in ((low, -128, "low"), (high, 127, "high"))
    )
    between(b, tensor, low_tensor, high_tensor, made)


def between(b: Lowering, tensor: Tensor, low: Tensor | None, high: Tensor | None, made: Tensor) -> None:
    """MAXIMUM with `low`, then MINIMUM with `high`, which wins as in ONNX; None leaves one out."""
    if low is not None and high is not None:
        inner = b.new(f"{made.name}_from_below", made.shape, made.dtype, made.quant)
        tensor = binary(b, "MAXIMUM", [tensor, low], inner)
    elif low is not None:
        binary(b, "MAXIMUM", [tensor, low], made)
    if high is not None:
        binary(b, "MINIMUM", [tensor, high], made)


_INTEGER = Traits(integer=True)

ENTRIES = {"Clip": Entry(lower=clip, traits=_INTEGER), "Relu": Entry(lower=relu, traits=_INTEGER)}
