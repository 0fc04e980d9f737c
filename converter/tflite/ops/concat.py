"""Joining: CONCATENATION.

For: Concat.
Not for: Split.

Inputs and output have one scale and zero point (the quantization specification); an input with others is
requantized in front.
"""

from __future__ import annotations

from converter.tflite.layout import identity
from converter.tflite.lowering import Lowering
from converter.tflite.ops.entry import Entry
from converter.tflite.ops.pieces import requantized
from converter.tflite.reading import Op, Traits
from converter.tflite.schema import schema


def concat(b: Lowering, op: Op) -> None:
    """Writes one Concat."""
    rank = len(b.shape(op.outputs[0]))
    # What is empty adds nothing, and compilers stumble over it (vela 5.2.0 ends on an empty constant).
    names = [name for name in op.inputs if 0 not in b.shape(name)]
    if len(names) == 1:
        b.rename(op, b.value(names[0]))
        return
    computed = [b.value(name) for name in names if b.constant(name) is None]
    axes = next((v.axes for v in computed if v.axes != identity(rank)), identity(rank))
    made = b.output(op, axes)
    tensors = [requantized(b, b.take(name, axes), made) for name in names]
    options = schema.ConcatenationOptionsT()
    options.axis = axes.index(int(op.attributes["axis"]) % rank)
    b.add("CONCATENATION", tensors, [made], options)


_OPERANDS_MAX = 1024

ENTRIES = {"Concat": Entry(lower=concat, traits=Traits(integer=True, constants=tuple(range(_OPERANDS_MAX))))}
