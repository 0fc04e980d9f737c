"""Comparisons, logic and choice: EQUAL, GREATER, LOGICAL_AND, SELECT_V2 and their kin.

For: Equal, Greater, GreaterOrEqual, Less, LessOrEqual, And, Or, Xor, Not, Where, with broadcasting.
Not for: comparing stored integers: those are read as reals.

SELECT_V2 keeps scale and zero point: operands stored otherwise are requantized in front.
"""

from __future__ import annotations

from converter.tflite.errors import TFLiteError
from converter.tflite.lowering import Lowering
from converter.tflite.ops.entry import Entry
from converter.tflite.ops.pieces import check_types, requantized
from converter.tflite.reading import Op, Traits
from converter.tflite.schema import schema

_KINDS = {
    "And": "LOGICAL_AND", "Equal": "EQUAL", "Greater": "GREATER", "GreaterOrEqual": "GREATER_EQUAL",
    "Less": "LESS", "LessOrEqual": "LESS_EQUAL", "Or": "LOGICAL_OR", "Xor": "NOT_EQUAL",
}  # fmt: skip
_OPTIONS = {
    "EQUAL": "EqualOptionsT", "GREATER": "GreaterOptionsT", "GREATER_EQUAL": "GreaterEqualOptionsT",
    "LESS": "LessOptionsT", "LESS_EQUAL": "LessEqualOptionsT", "LOGICAL_AND": "LogicalAndOptionsT",
    "LOGICAL_OR": "LogicalOrOptionsT", "NOT_EQUAL": "NotEqualOptionsT",
}  # fmt: skip
_TYPES = frozenset({"bool", "float32", "int32", "int64"})
_RANK_MAX = 4
"""Of what comparisons broadcast."""


def compare(b: Lowering, op: Op) -> None:
    """Writes a comparison or a logical operator of two operands."""
    kind = _KINDS[op.op_type]
    (left, right), axes = b.operands(op, op.inputs)
    check_types(op, [left, right], _TYPES)
    if left.shape != right.shape and len(b.shape(op.outputs[0])) > _RANK_MAX:
        raise TFLiteError("tflite_rank", f"{op.where} spreads its operands over more than {_RANK_MAX} axes")
    b.add(kind, [left, right], [b.output(op, axes)], getattr(schema, _OPTIONS[kind])())


def negate(b: Lowering, op: Op) -> None:
    """Writes one Not."""
    value = b.value(op.inputs[0])
    b.add("LOGICAL_NOT", [value.tensor], [b.output(op, value.axes)], schema.LogicalNotOptionsT())


def where(b: Lowering, op: Op) -> None:
    """Writes one Where."""
    (condition, yes, no), axes = b.operands(op, op.inputs)
    made = b.output(op, axes)
    check_types(op, [yes, no], _TYPES | {"int8"})
    chosen = [requantized(b, tensor, made) for tensor in (yes, no)]
    b.add("SELECT_V2", [condition, *chosen], [made], schema.SelectV2OptionsT(), version=1)


ENTRIES = {
    **dict.fromkeys(_KINDS, Entry(lower=compare)),
    "Not": Entry(lower=negate),
    "Where": Entry(lower=where, traits=Traits(integer=True, constants=(1, 2))),
}
