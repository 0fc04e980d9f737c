"""Numbers picked along an axis by constant places: GATHER.

For: `pick`, the exact way to say a nearest resize, an edge padding or an order of channels that TFLite's own
operators do not say.
Not for: ONNX's Gather (`gather`).
"""

from __future__ import annotations

from collections.abc import Sequence

from converter.tflite.lowering import Lowering
from converter.tflite.schema import schema
from converter.tflite.tensors import Tensor


def pick(
    b: Lowering, tensor: Tensor, axis: int, places: Sequence[int], name: str, made: Tensor | None = None
) -> Tensor:
    """The tensor with the given places of one axis, in the file's order of axes.

    Args:
        b: the builder.
        tensor: to pick from.
        axis: of the file.
        places: from 0, none beyond the axis.
        name: of the result.
        made: the result's tensor where there is one already.
    """
    if made is None:
        if list(places) == list(range(tensor.shape[axis])):
            return tensor
        shape = (*tensor.shape[:axis], len(places), *tensor.shape[axis + 1 :])
        made = b.new(name, shape, tensor.dtype, tensor.quant)
    options = schema.GatherOptionsT()
    options.axis = axis
    b.add("GATHER", [tensor, b.integers(places, f"{name}_places")], [made], options)
    return made
