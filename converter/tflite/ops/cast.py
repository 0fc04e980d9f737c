"""Another element type: CAST.

For: Cast between the types that TFLite's kernels take.
Not for: quantization, or float16 and float64, which are refused while reading.
"""

from __future__ import annotations

from converter.tflite.lowering import Lowering
from converter.tflite.ops.entry import Entry
from converter.tflite.reading import Op
from converter.tflite.schema import TYPES, schema


def cast(b: Lowering, op: Op) -> None:
    """Writes one Cast; to the type that it has, nothing."""
    value = b.value(op.inputs[0])
    if b.source.dtypes[op.outputs[0]] == value.tensor.dtype:
        b.rename(op, value)
        return
    made = b.output(op, value.axes)
    options = schema.CastOptionsT()
    options.inDataType, options.outDataType = TYPES[value.tensor.dtype], TYPES[made.dtype]
    b.add("CAST", [value.tensor], [made], options)


ENTRIES = {"Cast": Entry(lower=cast)}
