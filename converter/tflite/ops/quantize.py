"""Between reals and integers: QUANTIZE and DEQUANTIZE.

For: what is left of ONNX's pairs once operators compute on stored integers: the edges of the graph, the
borders of float islands, and changes of scale.
Not for: pairs around an integer operator (`converter.tflite.reading`).
"""

from __future__ import annotations

from converter.tflite.lowering import Lowering
from converter.tflite.ops.entry import Entry
from converter.tflite.reading import Op
from converter.tflite.schema import schema


def quantize(b: Lowering, op: Op) -> None:
    """Writes one QuantizeLinear: of a float, of other integers, or of an input that is stored already."""
    value = b.value(op.inputs[0])
    wanted = b.quant(op.outputs[0])
    if value.tensor.quant is not None and wanted is not None and value.tensor.quant.same_as(wanted):
        b.rename(op, value)
        return
    made = b.output(op, value.axes)
    b.add("QUANTIZE", [value.tensor], [made], schema.QuantizeOptionsT())


def dequantize(b: Lowering, op: Op) -> None:
    """Writes one DequantizeLinear of a computed tensor."""
    value = b.value(op.inputs[0])
    made = b.output(op, value.axes)
    b.add("DEQUANTIZE", [value.tensor], [made], schema.DequantizeOptionsT())


ENTRIES = {"DequantizeLinear": Entry(lower=dequantize), "QuantizeLinear": Entry(lower=quantize)}
