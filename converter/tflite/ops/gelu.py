"""GELU, exact or by its tanh form.

For: Gelu of opset 20, and the one that `converter.tflite.fusing` makes of Erf.
Not for: other forms that exporters write out; those stay what they are.
"""

from __future__ import annotations

from converter.tflite.lowering import Lowering
from converter.tflite.ops.entry import Entry
from converter.tflite.ops.pieces import options_of
from converter.tflite.reading import Op, Traits


def gelu(b: Lowering, op: Op) -> None:
    """Writes one Gelu."""
    value = b.value(op.inputs[0])
    options = options_of("GELU")
    options.approximate = op.attributes.get("approximate", "none") == "tanh"
    b.add("GELU", [value.tensor], [b.output(op, value.axes)], options)


ENTRIES = {"Gelu": Entry(lower=gelu, traits=Traits(integer=True))}
