"""Graphs that bring TFLite's rules together, and made-up ranges for them.

For: the tests of twins: a U-Net, an attention block, small graphs with one conflict each.
Not for: real calibration (`tests.converter.quantizing.material`).
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from converter.passes.names import name_nodes
from tests.converter.quantizing import Line, floats, graph
from tests.converter.zoo import Net
from wire.figures import Interval

IMAGE: dict[str, list[Any]] = {"y": ["N", None, None, None]}


def unet() -> onnx.ModelProto:
    """Two levels, a transposed convolution and a bilinear Resize on the way up, skips by Concat."""
    net = Net()
    scales = net.constant([1, 1, 2, 2])
    first = net.op("Relu", net.conv(net.input("x", "N", 3, 16, 16), 3, 8))
    second = net.op("Relu", net.conv(net.op("MaxPool", first, kernel_shape=[2, 2], strides=[2, 2]), 8, 12))
    deep = net.op("Relu", net.conv(net.op("MaxPool", second, kernel_shape=[2, 2], strides=[2, 2]), 12, 16))
    up = net.op("ConvTranspose", deep, net.weight(16, 12, 2, 2), net.weight(12), strides=[2, 2])
    x = net.op("Relu", net.conv(net.op("Concat", up, second, axis=1), 24, 8))
    wide = net.op("Resize", x, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
    x = net.op("Relu", net.conv(net.op("Concat", wide, first, axis=1), 16, 8))
    net.answer(net.op("Sigmoid", net.conv(x, 8, 2, side=1)), shape=("N", 2, 16, 16))
    for tensor in net.constants:
        if len(tensor.dims) == 4:
            # As large as training would make them, so that no layer's range dwarfs the one before.
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(0.35), tensor.name)
            )
    return net.model()


def attention() -> onnx.ModelProto:
    """A transformer block: heads, Softmax, LayerNormalization (a float island), Gelu, residual sums."""
    net = Net(opset=20, ir_version=9)
    tokens, width, heads = 6, 16, 2

    def dense(x: str, before: int, after: int) -> str:
        return net.op("Add", net.op("MatMul", x, net.weight(before, after)), net.weight(after))

    def parts(x: str, *order: int) -> str:
        split = net.op("Reshape", x, net.ints(0, tokens, heads, width // heads))
        return net.op("Transpose", split, perm=list(order))

    x = net.input("x", "N", tokens, width)
    normed = net.op("LayerNormalization", x, net.weight(width), net.weight(width), axis=-1)
    query, key, value = (dense(normed, width, width) for _ in range(3))
    scores = net.op("MatMul", parts(query, 0, 2, 1, 3), parts(key, 0, 2, 3, 1))
    scores = net.op("Softmax", net.op("Mul", scores, net.constant(0.35)), axis=-1)
    mixed = net.op("Transpose", net.op("MatMul", scores, parts(value, 0, 2, 1, 3)), perm=[0, 2, 1, 3])
    x = net.op("Add", x, dense(net.op("Reshape", mixed, net.ints(0, tokens, width)), width, width))
    x = net.op("Add", x, dense(net.op("Gelu", dense(x, width, 2 * width)), 2 * width, width))
    net.classify(net.op("ReduceMean", x, net.ints(1), keepdims=0), width)
    return net.model()


def pair_of_branches(joined: list[Line], **more: Any) -> onnx.ModelProto:  # noqa: ANN401 - constants
    """Convolutions `a` and `b` of the input, what `joined` makes of them, and a convolution of `j` to `y`."""
    constants = {
        "wa": floats(1, 4, 3, 1, 1), "wb": floats(2, 4, 3, 1, 1), "wy": floats(3, 2, 8, 1, 1), **more,
    }  # fmt: skip
    lines: list[Line] = [("Conv", "x wa", "a"), ("Conv", "x wb", "b"), *joined, ("Conv", "j wy", "y")]
    return graph(lines, constants, outputs=IMAGE)


def ranges_of(model: onnx.ModelProto, **given: tuple[float, float]) -> dict[str, Interval]:
    """A made-up range for every tensor, the same on every machine; `given` ones as they are."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    name_nodes(copy)
    found = {}
    names = [v.name for v in copy.graph.input] + [o for node in copy.graph.node for o in node.output if o]
    for place, name in enumerate(names):
        reach = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 997 / 100 + 0.5
        found[name] = Interval(low=-reach / (1 + place % 3), high=reach)
    for node in copy.graph.node:
        if node.op_type == "Relu":
            found[node.output[0]] = Interval(low=0.0, high=found[node.output[0]].high)
    return found | {name: Interval(low=low, high=high) for name, (low, high) in given.items()}


def stored(model: onnx.ModelProto, name: str) -> tuple[np.float32, int]:
    """Scale and zero point (of int8) of the QuantizeLinear that stands behind a tensor or its exact form."""
    node = next(
        node
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] in {name, f"{name}_exact"}
    )
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    zero = tensors[node.input[2]]
    return np.float32(tensors[node.input[1]]), int(zero) - (128 if zero.dtype == np.uint8 else 0)


def node_named(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """The node of that name."""
    return next(node for node in model.graph.node if node.name == name)


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, found valid."""
    onnx.checker.check_model(model, full_check=True)
    return model
