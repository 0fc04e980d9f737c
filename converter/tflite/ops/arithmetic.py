"""Element by element: ADD, SUB, MUL, DIV.

For: ONNX's four operations with broadcasting.
Not for: Max and Min, or comparisons.
"""

from __future__ import annotations

from typing import Any

from converter.tflite.lowering import Lowering
from converter.tflite.ops.entry import Entry
from converter.tflite.reading import Op, Traits
from converter.tflite.schema import ACTIVATIONS, schema
from converter.tflite.tensors import Tensor

_OPTIONS = {"Add": "AddOptionsT", "Sub": "SubOptionsT", "Mul": "MulOptionsT", "Div": "DivOptionsT"}


def arithmetic(b: Lowering, op: Op) -> None:
    """Writes one of the four."""
    (left, right), axes = b.operands(op, op.inputs)
    options: Any = getattr(schema, _OPTIONS[op.op_type])()
    options.fusedActivationFunction = ACTIVATIONS[op.activation]
    made = b.output(op, axes)
    b.add(op.op_type.upper(), [left, right], [made], options, version=_version(op, left, right, made))


def _version(op: Op, left: Tensor, right: Tensor, made: Tensor) -> int | None:
    """MUL that makes numbers larger needs version 3; what else is special the table does not know either."""
    if op.op_type != "Mul" or left.quant is None or right.quant is None or made.quant is None:
        return None
    grows = float(left.quant.scale) * float(right.quant.scale) / float(made.quant.scale) >= 1.0
    return 3 if grows else None


_INTEGER = Traits(integer=True, constants=(0, 1), fuses=True)

ENTRIES = {
    **dict.fromkeys(("Add", "Sub", "Mul"), Entry(lower=arithmetic, traits=_INTEGER)),
    # TFLite's DIV has no signed INT8 kernel.
    "Div": Entry(lower=arithmetic, traits=Traits(fuses=True)),
}
