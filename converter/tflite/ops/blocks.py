"""Between space and depth: SPACE_TO_DEPTH, DEPTH_TO_SPACE.

For: SpaceToDepth, and DepthToSpace in both of its orders.
Not for: pixel shuffles that are written as reshapes (`reshapes`).

Depth lies as [block row, block column, channel] in ONNX's SpaceToDepth, in DepthToSpace's mode DCR and in
both of TFLite's; in mode CRD, channel first, so the channels are picked in the other order before.
"""

from __future__ import annotations

import numpy as np

from converter.tflite.errors import TFLiteError
from converter.tflite.layout import channels_last
from converter.tflite.lowering import Lowering
from converter.tflite.ops.entry import Entry
from converter.tflite.ops.picking import pick
from converter.tflite.reading import Op, Traits
from converter.tflite.schema import schema


def space_to_depth(b: Lowering, op: Op) -> None:
    """Writes one SpaceToDepth."""
    tensor = b.take(op.inputs[0], channels_last(4))
    options = schema.SpaceToDepthOptionsT()
    options.blockSize = int(op.attributes["blocksize"])
    b.add("SPACE_TO_DEPTH", [tensor], [b.output(op, channels_last(4), like=tensor)], options)


def depth_to_space(b: Lowering, op: Op) -> None:
    """Writes one DepthToSpace."""
    tensor = b.take(op.inputs[0], channels_last(4))
    size = int(op.attributes["blocksize"])
    mode = op.attributes.get("mode", "DCR")
    if mode == "CRD":
        order = np.arange(tensor.shape[3]).reshape(-1, size * size).T.reshape(-1)
        tensor = pick(b, tensor, 3, order.tolist(), f"{op.inputs[0]}_depth_first")
    elif mode != "DCR":
        raise TFLiteError("tflite_attribute", f"{op.where} has mode {mode}, which is neither DCR nor CRD")
    options = schema.DepthToSpaceOptionsT()
    options.blockSize = size
    b.add("DEPTH_TO_SPACE", [tensor], [b.output(op, channels_last(4), like=tensor)], options)


_INTEGER = Traits(integer=True)

ENTRIES = {
    "DepthToSpace": Entry(lower=depth_to_space, traits=_INTEGER),
    "SpaceToDepth": Entry(lower=space_to_depth, traits=_INTEGER),
}
