"""Joining: CONCATENATION.

For: Concat, and `requantized` for others that want one scale.
Not for: Split.

Inputs and output have one scale and zero point (the quantization specification); an input with others is
requantized in front.
"""

from __future__ import annotations

from converter.tflite.layout import identity
from converter.tflite.lowering import Lowering
from converter.tflite.ops.entry import Entry
from converter.tflite.reading import Op, Traits
from converter.tflite.schema import schema
from converter.tflite.tensors import Tensor


def concat(b: Lowering, op: Op) -> None:
    """Writes one Concat."""
    rank = len(b.shape(op.outputs[0]))
    computed = [b.value(name) for name in op.inputs if b.constant(name) is None]
    axes = next((v.axes for v in computed if v.axes != identity(rank)), identity(rank))
    made = b.output(op, axes)
    tensors = [requantized(b, b.take(name, axes), made) for name in op.inputs]
    options = schema.ConcatenationOptionsT()
    options.axis = axes.index(int(op.attributes["axis"]) % rank)
    b.add("CONCATENATION", tensors, [made], options)


def requantized(b: Lowering, tensor: Tensor, made: Tensor) -> Tensor:
    """The stored tensor with the scale and zero point that `made` has; floats as they are."""
    if made.quant is None or tensor.quant is None or tensor.quant.same_as(made.quant):
        return tensor
    again = b.new(f"{tensor.name}_rescaled", tensor.shape, "int8", made.quant)
    b.add("QUANTIZE", [tensor], [again], schema.QuantizeOptionsT(), version=2)
    return again


ENTRIES = {"Concat": Entry(lower=concat, traits=Traits(integer=True))}
