"""Element by element: ADD, SUB, MUL, DIV, MAXIMUM, MINIMUM.

For: ONNX's four operations, Max, Min, Sum and Mean, with broadcasting.
Not for: powers, or comparisons.

MAXIMUM and MINIMUM keep scale and zero point: operands stored otherwise are requantized in front.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from converter.tflite.errors import TFLiteError
from converter.tflite.lowering import Lowering
from converter.tflite.ops.entry import Entry
from converter.tflite.ops.pieces import binary, check_types, options_of, requantized, scalar
from converter.tflite.reading import Op, Traits
from converter.tflite.schema import ACTIVATIONS
from converter.tflite.tensors import Tensor

_KINDS = {"Add": "ADD", "Div": "DIV", "Max": "MAXIMUM", "Min": "MINIMUM", "Mul": "MUL", "Sub": "SUB"}
_TYPES = {
    **dict.fromkeys(("ADD", "MUL", "SUB"), frozenset({"float32", "int8", "int32", "int64"})),
    "DIV": frozenset({"float32", "int32"}),
    **dict.fromkeys(("MAXIMUM", "MINIMUM"), frozenset({"float32", "int8", "int32", "int64"})),
}
_RANK_MAX = 6
"""Of what broadcasting takes."""


def arithmetic(b: Lowering, op: Op) -> None:
    """Writes one of the four."""
    kind = _KINDS[op.op_type]
    (left, right), axes = b.operands(op, op.inputs)
    made = b.output(op, axes)
    _check(op, kind, [left, right], made)
    options = options_of(kind)
    options.fusedActivationFunction = ACTIVATIONS[op.activation]
    b.add(kind, [left, right], [made], options, version=_version(kind, left, right, made))


def _check(op: Op, kind: str, tensors: Sequence[Tensor], made: Tensor) -> None:
    check_types(op, tensors, _TYPES[kind])
    for tensor in tensors:
        if tensor.quant is not None and tensor.quant.axis is not None:
            raise TFLiteError(
                "tflite_quantization", f"an operand of {op.where} is stored per channel, TFLite per tensor"
            )
    if len(made.shape) > _RANK_MAX:
        raise TFLiteError("tflite_rank", f"{op.where} has {len(made.shape)} axes, {kind} at most {_RANK_MAX}")


def _version(kind: str, left: Tensor, right: Tensor, made: Tensor) -> int | None:
    """MUL that makes numbers larger needs version 3; what else is special the table does not know either."""
    if kind != "MUL" or left.quant is None or right.quant is None or made.quant is None:
        return None
    grows = float(left.quant.scale) * float(right.quant.scale) / float(made.quant.scale) >= 1.0
    return 3 if grows else None


def folded(b: Lowering, op: Op) -> None:
    """Writes Max, Min, Sum or Mean of any number of operands, two by two."""
    kind = _KINDS.get(op.op_type, "ADD")
    tensors, axes = b.operands(op, op.inputs)
    made = b.output(op, axes)
    _check(op, kind, tensors, made)
    tensors = [requantized(b, tensor, made) for tensor in tensors]
    if len(tensors) == 1:
        b.rename(op, b.value(op.inputs[0]))
    elif op.op_type == "Mean":
        total = _fold(b, kind, tensors, b.new(f"{made.name}_sum", made.shape, made.dtype))
        binary(b, "MUL", [total, scalar(b, 1.0 / len(tensors), f"{made.name}_share")], made)
    else:
        _fold(b, kind, tensors, made)


def _fold(b: Lowering, kind: str, tensors: Sequence[Tensor], made: Tensor) -> Tensor:
    total, *others = tensors
    for number, tensor in enumerate(others, start=1):
        shape = np.broadcast_shapes(total.shape, tensor.shape)
        inner = b.new(f"{made.name}_{number}", shape, made.dtype, made.quant)
        total = binary(b, kind, [total, tensor], made if number == len(others) else inner)
    return total


_INTEGER = Traits(integer=True, constants=(0, 1), fuses=True)

ENTRIES = {
    **dict.fromkeys(("Add", "Mul", "Sub"), Entry(lower=arithmetic, traits=_INTEGER)),
    # TFLite's DIV has no signed INT8 kernel.
    "Div": Entry(lower=arithmetic, traits=Traits(fuses=True)),
    **dict.fromkeys(
        ("Max", "Min"), Entry(lower=folded, traits=Traits(integer=True, constants=tuple(range(8))))
    ),
    **dict.fromkeys(("Mean", "Sum"), Entry(lower=folded)),
}
