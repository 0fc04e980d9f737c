"""Repetition: TILE.

For: Tile, and Expand, which repeats axes of length 1.
Not for: broadcasting within an operator, which its kernel does.
"""

from __future__ import annotations

from collections.abc import Sequence

from converter.tflite.layout import laid
from converter.tflite.lowering import Lowering, Value
from converter.tflite.ops.entry import Entry
from converter.tflite.reading import Op, Traits
from converter.tflite.schema import schema


def tile(b: Lowering, op: Op) -> None:
    """Writes one Tile."""
    _tile(b, op, b.value(op.inputs[0]), [int(x) for x in b.numbers(op, 1).reshape(-1)])


def expand(b: Lowering, op: Op) -> None:
    """Writes one Expand; the output's shape says how often."""
    value, after = b.value(op.inputs[0]), b.shape(op.outputs[0])
    missing = len(after) - len(value.shape)
    if missing:
        shape = (1,) * missing + value.shape
        axes = (*range(missing), *(i + missing for i in value.axes))
        tensor = b.reshape(value.tensor, laid(shape, axes), f"{op.inputs[0]}_spread")
        value = Value(tensor=tensor, shape=shape, axes=axes)
    _tile(b, op, value, [new // old for new, old in zip(after, value.shape, strict=True)])


def _tile(b: Lowering, op: Op, value: Value, times: Sequence[int]) -> None:
    if all(n == 1 for n in times):
        b.rename(op, value)
        return
    made = b.output(op, value.axes, like=value.tensor)
    counts = b.integers([times[i] for i in value.axes], f"{op.name}_times")
    b.add("TILE", [value.tensor, counts], [made], schema.TileOptionsT())


_INTEGER = Traits(integer=True)

ENTRIES = {"Expand": Entry(lower=expand, traits=_INTEGER), "Tile": Entry(lower=tile, traits=_INTEGER)}
