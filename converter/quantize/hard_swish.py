"""HardSwish as a convolution and a product, for a twin.

For: `opened()`: x * min(1, max(0, x / 6 + 1/2)), where the second factor is a depthwise convolution of 1 x 1
whose Clip the range of its output replaces. Both runtimes have integer kernels for these two, which agree
bit for bit. As one operator it runs in float between pairs in ONNX Runtime; LiteRT has an INT8 HARD_SWISH,
but not in XNNPACK: on x86 each one ends the delegate's part of the graph, and fashion_mnv3 in INT8 took 1.84
times FP32's time in ONNX Runtime with it and 0.64 without (docs/tflite.md).
Not for: targets that list HardSwish among their own operators, or vectors without channels of their own.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from msgspec import structs
from onnx import helper, numpy_helper

from converter.calibrate import Ranges
from converter.passes.opset import opset_of
from converter.passes.walk import shapes_of
from converter.quantize.material import Material
from wire.figures import Interval

_OPSET_CLIP_INPUTS = 11
_SLOPE, _OFFSET = 1.0 / 6.0, 0.5


def opened(material: Material, ranges: Ranges) -> tuple[Material, Ranges, tuple[str, ...]]:
    """The material with every HardSwish of images opened, ranges for what is new, and it in words.

    Args:
        material: not changed; its calibration stays that of the graph as it was.
        ranges: of its activations.
    """
    model = material.model
    shapes = shapes_of(model) if opset_of(model) >= _OPSET_CLIP_INPUTS else {}
    found = [node for node in model.graph.node if node.op_type == "HardSwish" and _channels(node, shapes)]
    listed = "HardSwish" in material.rules.operators.value
    if not found or listed or any(node.input[0] not in ranges for node in found):
        return material, ranges, ()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    new = dict(ranges)
    nodes: list[onnx.NodeProto] = []
    for node in copy.graph.node:
        channels = _channels(node, shapes) if node.op_type == "HardSwish" else 0
        if not channels:
            nodes.append(node)
            continue
        span = ranges[node.input[0]]
        nodes += _written(copy.graph, node, channels, len(shapes[node.input[0]]))
        new |= _spans(node.output[0], span)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    said = f"{len(found)} HardSwish written as a 1 x 1 convolution, its Clip and a product: all in integers"
    return structs.replace(material, model=copy), new, (said,)


def _channels(node: onnx.NodeProto, shapes: Mapping[str, tuple[int | str | None, ...]]) -> int:
    """Length of axis 1 of an image, or of a signal; 0 where it is not known or there is no such thing."""
    shape = shapes.get(node.input[0], ())
    size = shape[1] if len(shape) in {3, 4} else 0
    return size if isinstance(size, int) else 0


def _written(graph: onnx.GraphProto, node: onnx.NodeProto, channels: int, rank: int) -> list[onnx.NodeProto]:
    """The three operators; the product keeps the node's name and output."""
    source, made = node.input[0], node.output[0]
    weight = np.full((channels, 1, *[1] * (rank - 2)), _SLOPE, dtype=np.float32)
    constants = {
        f"{made}_slope": weight,
        f"{made}_offset": np.full(channels, _OFFSET, dtype=np.float32),
        f"{made}_low": np.array(0.0, dtype=np.float32),
        f"{made}_high": np.array(1.0, dtype=np.float32),
    }
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    slope, offset, low, high = constants
    line, gate = f"{made}_line", f"{made}_gate"
    return [
        helper.make_node(
            "Conv", [source, slope, offset], [line], name=f"{node.name}_line", group=channels,
            kernel_shape=[1] * (rank - 2),
        ),
        helper.make_node("Clip", [line, low, high], [gate], name=f"{node.name}_gate"),
        helper.make_node("Mul", [source, gate], [made], name=node.name),
    ]  # fmt: skip


def _spans(made: str, span: Interval) -> dict[str, Interval]:
    """What the line and the gate reach where x reaches `span`."""
    low, high = (end * _SLOPE + _OFFSET for end in (span.low, span.high))
    return {
        f"{made}_line": Interval(low, high),
        f"{made}_gate": Interval(min(max(low, 0.0), 1.0), min(max(high, 0.0), 1.0)),
    }
