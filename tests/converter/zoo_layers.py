"""The zoo's ordinary networks: one kind of layer each.

For: `tests.converter.zoo`, which says what the zoo is.
Not for: exporters' habits and broken models (`zoo_odd`).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.converter.zoo import CLASSES, IDS, Exhibit, Net

STEPS, FEATURES = 5, 8


def residual() -> onnx.ModelProto:
    net = Net()
    first = net.op("Relu", net.norm(net.conv(net.image(), 3, 8, bias=False), 8))
    second = net.norm(net.conv(first, 8, 8), 8)
    net.head(net.op("Relu", net.op("Add", first, second)), 8)
    return net.model()


def depthwise_separable() -> onnx.ModelProto:
    net = Net()
    zero, six = net.constant(0.0), net.constant(6.0)
    x = net.op("Clip", net.conv(net.image(), 3, 8, strides=[2, 2]), zero, six)
    x = net.op("Clip", net.norm(net.conv(x, 8, 8, group=8), 8), zero, six)
    net.head(net.conv(x, 8, 16, side=1), 16)
    return net.model()


def grouped_conv() -> onnx.ModelProto:
    net = Net()
    x = net.op("LeakyRelu", net.conv(net.image(4), 4, 8, group=2), alpha=0.1)
    net.head(net.conv(x, 8, 8, group=4), 8)
    return net.model()


def transposed_conv() -> onnx.ModelProto:
    net = Net()
    x = net.op("ConvTranspose", net.image(), net.weight(3, 6, 2, 2), net.weight(6), strides=[2, 2])
    net.head(net.op("Relu", net.norm(x, 6)), 6)
    return net.model()


def squeeze_excite() -> onnx.ModelProto:
    net = Net()
    x = net.op("HardSwish", net.conv(net.image(), 3, 8))
    gate = net.op("Relu", net.conv(net.op("GlobalAveragePool", x), 8, 2, side=1))
    gate = net.op("HardSigmoid", net.conv(gate, 2, 8, side=1), alpha=1 / 6)
    net.head(net.op("Mul", x, gate), 8)
    return net.model()


def _recurrent(kind: str, gates: int, directions: int = 1) -> onnx.ModelProto:
    net = Net()
    x = net.op("Transpose", net.input("steps", "N", STEPS, FEATURES), perm=[1, 0, 2])
    weights = [net.weight(directions, gates * 6, size) for size in (FEATURES, 6)]
    parts = [x, *weights, net.weight(directions, gates * 12)]
    direction = "bidirectional" if directions == 2 else "forward"
    states = 3 if kind == "LSTM" else 2
    last = net.ops(kind, states, *parts, hidden_size=6, direction=direction)[1]
    flat = net.op("Reshape", net.op("Transpose", last, perm=[1, 0, 2]), net.ints(-1, directions * 6))
    net.classify(flat, directions * 6)
    return net.model()


def lstm() -> onnx.ModelProto:
    return _recurrent("LSTM", 4)


def gru() -> onnx.ModelProto:
    return _recurrent("GRU", 3)


def bidirectional_lstm() -> onnx.ModelProto:
    return _recurrent("LSTM", 4, directions=2)


def attention_with_mask() -> onnx.ModelProto:
    net = Net()
    x = net.input("tokens", "N", STEPS, FEATURES)
    mask = net.op("Cast", net.input("mask", "N", STEPS, kind=TensorProto.INT64), to=TensorProto.FLOAT)
    off = net.op("Mul", net.op("Sub", net.constant(1.0), mask), net.constant(-10000.0))
    q, k, v = (net.op("MatMul", x, net.weight(FEATURES, FEATURES)) for _ in range(3))
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1]))
    scores = net.op("Add", net.op("Mul", scores, net.constant(0.35)), net.op("Unsqueeze", off, net.ints(1)))
    mixed = net.op("MatMul", net.op("Softmax", scores, axis=-1), v)
    net.classify(net.op("ReduceMean", mixed, axes=[1], keepdims=0), FEATURES)
    return net.model()


def layer_norm() -> onnx.ModelProto:
    net = Net()
    x = net.op("MatMul", net.input("tokens", "N", STEPS, FEATURES), net.weight(FEATURES, FEATURES))
    x = net.op("LayerNormalization", x, net.weight(FEATURES), net.weight(FEATURES), axis=-1)
    net.classify(net.op("ReduceMean", x, axes=[1], keepdims=0), FEATURES)
    return net.model()


def layer_norm_decomposed() -> onnx.ModelProto:
    net = Net()
    x = net.op("MatMul", net.input("tokens", "N", STEPS, FEATURES), net.weight(FEATURES, FEATURES))
    centred = net.op("Sub", x, net.op("ReduceMean", x, axes=[-1]))
    square = net.op("ReduceMean", net.op("Pow", centred, net.constant(2.0)), axes=[-1])
    root = net.op("Sqrt", net.op("Add", square, net.constant(1e-5)))
    scaled = net.op("Mul", net.op("Div", centred, root), net.weight(FEATURES))
    x = net.op("Add", scaled, net.weight(FEATURES))
    net.classify(net.op("ReduceMean", x, axes=[1], keepdims=0), FEATURES)
    return net.model()


def rms_norm() -> onnx.ModelProto:
    net = Net()
    x = net.op("MatMul", net.input("tokens", "N", STEPS, FEATURES), net.weight(FEATURES, FEATURES))
    square = net.op("ReduceMean", net.op("Mul", x, x), axes=[-1])
    root = net.op("Sqrt", net.op("Add", square, net.constant(1e-6)))
    x = net.op("Mul", net.op("Mul", x, net.op("Reciprocal", root)), net.weight(FEATURES))
    net.classify(net.op("ReduceMean", x, axes=[1], keepdims=0), FEATURES)
    return net.model()


def gelu_decomposed() -> onnx.ModelProto:
    net = Net()
    x = net.op("MatMul", net.input("features", "N", FEATURES), net.weight(FEATURES, FEATURES))
    bell = net.op("Add", net.op("Erf", net.op("Div", x, net.constant(2**0.5))), net.constant(1.0))
    net.classify(net.op("Mul", net.op("Mul", x, bell), net.constant(0.5)), FEATURES)
    return net.model()


def hard_swish_decomposed() -> onnx.ModelProto:
    net = Net()
    x = net.norm(net.conv(net.image(), 3, 8), 8)
    six = net.constant(6.0)
    gate = net.op("Clip", net.op("Add", x, net.constant(3.0)), net.constant(0.0), six)
    net.head(net.op("Div", net.op("Mul", x, gate), six), 8)
    return net.model()


def swish() -> onnx.ModelProto:
    net = Net()
    x = net.conv(net.image(), 3, 8)
    net.head(net.op("Mul", x, net.op("Sigmoid", x)), 8)
    return net.model()


def multi_input() -> onnx.ModelProto:
    net = Net()
    image = net.op("Flatten", net.op("GlobalAveragePool", net.conv(net.image(), 3, 8)))
    vector = net.op("Tanh", net.op("MatMul", net.input("vector", "N", 4), net.weight(4, 8)))
    net.classify(net.op("Concat", image, vector, axis=1), 16)
    return net.model()


def multi_output() -> onnx.ModelProto:
    net = Net()
    features = net.op("Relu", net.conv(net.image(), 3, 8))
    pooled = net.op("Flatten", net.op("GlobalAveragePool", features))
    net.classify(pooled, 8)
    net.answer(features, "features", ("N", 8, 8, 8))
    return net.model()


def fixed_batch() -> onnx.ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.image(batch=1), 3, 8))
    x = net.op("Reshape", net.op("GlobalAveragePool", x), net.ints(1, 8))
    gemm = net.op("Gemm", x, net.weight(CLASSES, 8), net.weight(CLASSES), transB=1)
    net.answer(gemm, shape=(1, CLASSES))
    return net.model()


def conv_1d() -> onnx.ModelProto:
    net = Net()
    x = net.op("Conv", net.input("signal", "N", 2, 16), net.weight(8, 2, 3), net.weight(8), pads=[1, 1])
    net.head(net.op("MaxPool", net.op("Relu", x), kernel_shape=[2], strides=[2]), 8)
    return net.model()


def conv_3d() -> onnx.ModelProto:
    net = Net()
    x = net.op("Conv", net.input("volume", "N", 1, 4, 4, 4), net.weight(6, 1, 3, 3, 3), pads=[1] * 6)
    net.head(net.op("Relu", x), 6)
    return net.model()


def dilated_conv() -> onnx.ModelProto:
    net = Net()
    net.head(net.op("Relu", net.conv(net.image(), 3, 8, dilations=[2, 2], pads=[2] * 4)), 8)
    return net.model()


def shared_weights() -> onnx.ModelProto:
    """Two Convs without a bias read one weight; one of them is normalised."""
    net = Net()
    image, weight = net.image(), net.weight(8, 3, 3, 3)
    first = net.norm(net.op("Conv", image, weight, pads=[1] * 4), 8)
    second = net.op("Conv", image, weight, pads=[2] * 4, dilations=[2, 2])
    net.head(net.op("Relu", net.op("Add", first, second)), 8)
    return net.model()


def gemm_wide_bias() -> onnx.ModelProto:
    """A bias of shape [1, N] makes onnxruntime's per-channel quantizer raise."""
    net = Net()
    x = net.input("features", "N", FEATURES)
    net.answer(net.op("Gemm", x, net.weight(FEATURES, CLASSES), net.weight(1, CLASSES)))
    return net.model()


def gemm_trans_a() -> onnx.ModelProto:
    net = Net()
    x = net.op("Transpose", net.input("features", "N", FEATURES), perm=[1, 0])
    weight, bias = net.weight(FEATURES, CLASSES), net.weight(CLASSES)
    net.answer(net.op("Gemm", x, weight, bias, transA=1, alpha=0.5, beta=2.0))
    return net.model()


def matmul_of_activations() -> onnx.ModelProto:
    net = Net()
    x = net.input("tokens", "N", STEPS, FEATURES)
    gram = net.op("MatMul", net.op("Transpose", x, perm=[0, 2, 1]), x)
    flat = net.op("Reshape", gram, net.ints(-1, FEATURES * FEATURES))
    net.answer(net.op("Add", net.op("MatMul", flat, net.weight(64, CLASSES)), net.weight(CLASSES)))
    return net.model()


def concat_of_ranges() -> onnx.ModelProto:
    """Pixels and probabilities in one tensor."""
    net = Net()
    x = net.conv(net.image(), 3, 4)
    boxes = net.op("Mul", net.op("Relu", x), net.constant(300.0))
    net.head(net.op("Concat", boxes, net.op("Sigmoid", x), axis=1), 8)
    return net.model()


def prelu() -> onnx.ModelProto:
    net = Net()
    net.head(net.op("PRelu", net.conv(net.image(), 3, 8), net.weight(8, 1, 1)), 8)
    return net.model()


def pad_reflect() -> onnx.ModelProto:
    net = Net()
    padded = net.op("Pad", net.image(), net.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect")
    net.head(net.op("Relu", net.conv(padded, 3, 8, pads=[0] * 4)), 8)
    return net.model()


def instance_norm() -> onnx.ModelProto:
    net = Net()
    x = net.op("InstanceNormalization", net.conv(net.image(), 3, 8), net.weight(8), net.weight(8))
    net.head(net.op("Elu", net.op("Mul", x, x)), 8)
    return net.model()


def einsum() -> onnx.ModelProto:
    net = Net()
    x = net.input("tokens", "N", STEPS, FEATURES)
    mixed = net.op("Einsum", x, net.weight(FEATURES, 6), equation="ntf,fg->ng")
    net.classify(mixed, 6)
    return net.model()


def embedding() -> onnx.ModelProto:
    """Only integers go in."""
    net = Net()
    ids = net.input("ids", "N", STEPS, kind=TensorProto.INT64)
    x = net.op("Gather", net.weight(IDS, FEATURES), ids)
    net.classify(net.op("ReduceMean", net.op("Relu", x), axes=[1], keepdims=0), FEATURES)
    return net.model()


def top_k() -> onnx.ModelProto:
    net = Net()
    x = net.op("MatMul", net.input("features", "N", FEATURES), net.weight(FEATURES, 16))
    values, places = net.ops("TopK", 2, x, net.ints(6), axis=1)
    net.classify(values, 6)
    net.answer(places, "places", ("N", 6))
    net.outputs[-1].type.tensor_type.elem_type = TensorProto.INT64
    return net.model()


def upsampled() -> onnx.ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.image(), 3, 8))
    scales = net.constant([1, 1, 2, 2])
    net.head(net.conv(net.op("Resize", x, "", scales, mode="linear"), 8, 8, group=8), 8)
    return net.model()


def average_pool_with_pads() -> onnx.ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.image(), 3, 8))
    x = net.op("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2], count_include_pad=1)
    net.head(x, 8)
    return net.model()


def split_and_shuffle() -> onnx.ModelProto:
    net = Net()
    left, right = net.ops("Split", 2, net.conv(net.image(), 3, 8), net.ints(4, 4), axis=1)
    x = net.op("Concat", net.op("Relu", left), net.conv(right, 4, 4, group=4), axis=1)
    x = net.op("Reshape", x, net.ints(0, 2, 4, 8, 8))
    net.head(net.op("Reshape", net.op("Transpose", x, perm=[0, 2, 1, 3, 4]), net.ints(0, 8, 8, 8)), 8)
    return net.model()


def spectrogram() -> onnx.ModelProto:
    """Audio front end: framing by a Conv with a constant basis, a logarithm, and a Gemm."""
    net = Net()
    basis = net.constant(np.hanning(16)[None, None] * np.ones((8, 1, 1)))
    x = net.op("Conv", net.input("audio", "N", 1, 64), basis, strides=[8])
    power = net.op("Add", net.op("Mul", x, x), net.constant(1e-6))
    net.head(net.op("Log", power), 8)
    return net.model()


def scan_subgraph() -> onnx.ModelProto:
    """A Scan over time whose body reads a weight of the outer graph."""
    net = Net()
    x = net.op("Transpose", net.input("steps", "N", STEPS, FEATURES), perm=[1, 0, 2])
    net.weight(FEATURES, FEATURES, name="mix")
    state = net.op("ReduceMean", x, axes=[0], keepdims=0)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "mix"], ["mixed"]),
            helper.make_node("Add", ["mixed", "step"], ["sum"]),
            helper.make_node("Tanh", ["sum"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, FEATURES])
            for name in ("state", "step")
        ],
        [helper.make_tensor_value_info("next", TensorProto.FLOAT, [None, FEATURES])],
    )
    net.classify(net.op("Scan", state, x, body=body, num_scan_inputs=1), FEATURES)
    return net.model()


LAYERS = {
    build.__name__: Exhibit(build=build)
    for build in (
        residual, depthwise_separable, grouped_conv, transposed_conv, squeeze_excite, lstm, gru,
        bidirectional_lstm, attention_with_mask, layer_norm, layer_norm_decomposed, rms_norm,
        gelu_decomposed, hard_swish_decomposed, swish, multi_input, multi_output, fixed_batch, conv_1d,
        conv_3d, dilated_conv, shared_weights, gemm_wide_bias, gemm_trans_a, matmul_of_activations,
        concat_of_ranges, prelu, pad_reflect, instance_norm, einsum, embedding, top_k, upsampled,
        average_pool_with_pads, split_and_shuffle, spectrogram, scan_subgraph,
    )
}  # fmt: skip
