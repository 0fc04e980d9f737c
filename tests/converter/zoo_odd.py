"""The zoo's odd models: exporters' habits, old versions, subgraphs, strange numbers, what must be refused.

For: `tests.converter.zoo`, which says what the zoo is.
Not for: ordinary networks (`zoo_layers`).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.converter.zoo import CLASSES, Exhibit, Net

FEATURES = 8


def if_subgraph() -> onnx.ModelProto:
    """Both branches read tensors and weights of the outer graph, one of them after a BatchNormalization."""
    net = Net()
    x = net.op("Relu", net.norm(net.conv(net.image(), 3, 8, bias=False), 8))
    net.weight(8, 8, 3, 3, name="captured")
    mean = net.op("ReduceMean", x, keepdims=0)
    branches = {}
    for branch, kind in (("then_branch", "Conv"), ("else_branch", "Identity")):
        given = [x, "captured"] if kind == "Conv" else [x]
        pads = {"pads": [1] * 4} if kind == "Conv" else {}
        out = helper.make_tensor_value_info(f"{branch}_out", TensorProto.FLOAT, ["N", 8, 8, 8])
        node = helper.make_node(kind, given, [out.name], **pads)
        branches[branch] = helper.make_graph([node], branch, [], [out])
    net.head(net.op("If", net.op("Greater", mean, net.constant(0.1)), **branches), 8)
    return net.model()


def loop_subgraph() -> onnx.ModelProto:
    net = Net()
    x = net.input("features", "N", FEATURES)
    net.weight(FEATURES, FEATURES, name="turn")
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "turn"], ["turned"]),
            helper.make_node("Tanh", ["turned"], ["next"]),
            helper.make_node("Identity", ["go"], ["still"]),
        ],
        "body",
        [
            info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []),
            info("state", TensorProto.FLOAT, ["N", FEATURES]),
        ],
        [info("still", TensorProto.BOOL, []), info("next", TensorProto.FLOAT, ["N", FEATURES])],
    )  # fmt: skip
    net.classify(net.op("Loop", net.constant(3, np.int64), net.constant(True, np.bool_), x, body=body), 8)
    return net.model()


def opset_9() -> onnx.ModelProto:
    net = Net(opset=9, ir_version=4)
    x = net.op("Clip", net.norm(net.conv(net.image(), 3, 8, bias=False), 8), min=0.0, max=6.0)
    x = net.op("Upsample", x, net.constant([1, 1, 2, 2]), mode="nearest")
    x = net.op("Pad", x, pads=[0, 0, 1, 1, 0, 0, 1, 1], mode="constant", value=0.0)
    net.head(net.conv(x, 8, 8, pads=[0] * 4), 8)
    return net.model()


def opset_10() -> onnx.ModelProto:
    net = Net(opset=10, ir_version=5)
    x = net.op("Resize", net.conv(net.image(), 3, 8), net.constant([1, 1, 2, 2]), mode="nearest")
    x = net.op("Slice", x, net.ints(1, 1), net.ints(15, 15), net.ints(2, 3))
    x = net.op("Dropout", net.op("MaxPool", x, kernel_shape=[2, 2]), ratio=0.2)
    net.head(x, 8)
    return net.model()


def opset_11() -> onnx.ModelProto:
    net = Net(opset=11, ir_version=6)
    x = net.op("Pad", net.image(), net.ints(0, 0, 0, 0, 0, 0, 1, 1), net.constant(0.0))
    x = net.op("Clip", net.conv(x, 3, 8, pads=[0] * 4, strides=[2, 2]), net.constant(0.0), net.constant(6.0))
    x = net.op("Resize", x, net.constant([], np.float32), net.constant([1, 1, 2, 2]), mode="linear")
    x = net.op("ReduceMean", x, axes=[2, 3])
    net.classify(net.op("Squeeze", x, axes=[2, 3]), 8)
    return net.model()


def opset_12() -> onnx.ModelProto:
    net = Net(opset=12, ir_version=7)
    x = net.norm(net.conv(net.image(), 3, 8), 8)
    x = net.op("Dropout", net.op("Celu", x), net.constant(0.5), net.constant(False, np.bool_))
    x = net.op("Squeeze", net.op("ReduceSum", x, axes=[2, 3], keepdims=1), axes=[2, 3])
    net.classify(net.op("Softmax", x), 8)
    return net.model()


def weights_as_inputs() -> onnx.ModelProto:
    """IR 3: every initializer is an input too."""
    net = Net(opset=9, ir_version=3)
    net.head(net.op("Relu", net.norm(net.conv(net.image(), 3, 8), 8)), 8)
    for tensor in net.constants:
        net.inputs.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims))
    return net.model()


def external_data() -> onnx.ModelProto:
    net = Net()
    net.head(net.op("Relu", net.conv(net.image(), 3, 8)), 8)
    return net.model()


def nhwc() -> onnx.ModelProto:
    """As exported from TensorFlow: channels last outside, a Transpose pair around every operator."""
    net = Net()
    x = net.input("image", "N", 8, 8, 3)
    for before, after in ((3, 8), (8, 8)):
        x = net.op("Transpose", x, perm=[0, 3, 1, 2])
        x = net.op("Relu", net.conv(x, before, after))
        x = net.op("Transpose", x, perm=[0, 2, 3, 1])
    net.classify(net.op("ReduceMean", x, axes=[1, 2], keepdims=0), 8)
    return net.model()


def torch_script() -> onnx.ModelProto:
    """As a raw TorchScript export: shapes computed in the graph, Pad chains, parts of an activation."""
    net = Net(opset=13)
    x = net.image()
    for before, after, group in ((3, 8, 1), (8, 8, 8), (8, 8, 1)):
        half = net.op("Constant", value=numpy_helper.from_array(np.zeros((2, 2), np.int64)))
        ones = net.op("Constant", value=numpy_helper.from_array(np.array([[1, 1], [1, 1]], np.int64)))
        pads = net.op("Reshape", net.op("Concat", half, ones, axis=1), net.ints(-1))
        pads = net.op("Cast", net.op("Identity", pads), to=TensorProto.INT64)
        padded = net.op("Pad", x, pads, net.constant(0.0))
        made = net.norm(net.conv(padded, before, after, bias=False, pads=[0] * 4, group=group), after)
        x = net.op("Min", net.op("Max", made, net.constant(0.0)), net.constant(6.0))
    first = net.op("Gather", net.op("Shape", x), net.constant(0, np.int64), axis=0)
    shape = net.op("Concat", net.op("Unsqueeze", first, net.ints(0)), net.ints(-1), axis=0)
    net.classify(net.op("Reshape", net.op("GlobalAveragePool", x), shape), 8)
    return net.model()


def batch_norm_first() -> onnx.ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.norm(net.image(), 3), 3, 8, pads=[0] * 4))
    x = net.norm(net.op("Flatten", net.op("GlobalAveragePool", x)), 8)
    gemm = net.op("Gemm", x, net.weight(CLASSES, 8), net.weight(CLASSES), transB=1)
    net.answer(net.norm(gemm, CLASSES))
    return net.model()


def constants_of_size_zero() -> onnx.ModelProto:
    net = Net()
    x = net.op("Mul", net.conv(net.image(), 3, 8), net.constant(0.5))
    x = net.op("Concat", x, net.constant(np.zeros((1, 0, 8, 8))), axis=1)
    x = net.op("Reshape", net.op("GlobalAveragePool", x), net.ints(-1, 8))
    net.classify(x, 8)
    made = net.model(check=False)
    # The empty part has batch 1 and is only good for that, as exporters leave it.
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    made.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    return made


def weights_all_zero() -> onnx.ModelProto:
    net = Net()
    zero = net.constant(np.zeros((8, 3, 3, 3)))
    net.head(net.op("Relu", net.op("Conv", net.image(), zero, pads=[1] * 4)), 8)
    return net.model()


def dead_channels() -> onnx.ModelProto:
    """Some channels hold only zeros: a scale per channel would be zero."""
    net = Net()
    weight = net.rng.normal(0, 0.4, (8, 3, 3, 3))
    weight[::2] = 0
    net.head(net.op("Relu", net.op("Conv", net.image(), net.constant(weight), pads=[1] * 4)), 8)
    return net.model()


def constant_output() -> onnx.ModelProto:
    net = Net()
    net.head(net.op("Relu", net.conv(net.image(), 3, 8)), 8)
    net.constant(np.ones((1, 3)), name="anchors")
    net.outputs.append(helper.make_tensor_value_info("anchors", TensorProto.FLOAT, [1, 3]))
    return net.model()


def huge_weights() -> onnx.ModelProto:
    net = Net()
    x = net.op("Conv", net.image(), net.weight(8, 3, 3, 3, scale=1e30), pads=[1] * 4)
    net.head(net.op("Tanh", net.op("Mul", x, net.constant(1e-30))), 8)
    return net.model()


def denormal_weights() -> onnx.ModelProto:
    net = Net()
    x = net.op("Conv", net.image(), net.constant(np.full((8, 3, 3, 3), 1e-41)), pads=[1] * 4)
    net.head(net.op("Add", x, net.op("Conv", "image", net.weight(8, 3, 1, 1))), 8)
    return net.model()


def infinite_constant() -> onnx.ModelProto:
    """A mask of minus infinity before Softmax; the answers are finite all the same."""
    net = Net()
    x = net.op("MatMul", net.input("features", "N", FEATURES), net.weight(FEATURES, FEATURES))
    mask = np.zeros(FEATURES)
    mask[-2:] = -np.inf
    net.classify(net.op("Softmax", net.op("Add", x, net.constant(mask)), axis=-1), 8)
    return net.model()


def strange_names() -> onnx.ModelProto:
    net = Net()
    net.head(net.op("Relu", net.conv(net.conv(net.image(), 3, 8), 8, 8)), 8)
    made = net.model()
    words = (
        "model/layer:0",
        "a b",
        "ü→ñ",
        "t_quantized",
        "x_DequantizeLinear_Output",
        "'\"\\",
        "%d{}",
        "../..",
    )
    inner = [t.name for t in made.graph.initializer] + [o for n in made.graph.node for o in n.output]
    names = {name: f"{words[i % len(words)]}{i}" for i, name in enumerate(inner) if name != "logits"}
    for tensor in made.graph.initializer:
        tensor.name = names[tensor.name]
    for node in made.graph.node:
        node.name = "same/name"
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    onnx.checker.check_model(made)
    return made


def unused_input() -> onnx.ModelProto:
    net = Net()
    net.input("nobody", "N", 3)
    net.head(net.op("Relu", net.conv(net.image(), 3, 8)), 8)
    net.weight(5, 5)
    return net.model()


def input_as_output() -> onnx.ModelProto:
    net = Net()
    image = net.image()
    net.head(net.op("Relu", net.conv(image, 3, 8)), 8)
    net.answer(net.op("Identity", image), "copy", ("N", 3, 8, 8))
    return net.model()


def input_given_back() -> onnx.ModelProto:
    """An input is itself an output, without any node between."""
    net = Net()
    image = net.image()
    net.head(net.op("Relu", net.conv(image, 3, 8)), 8)
    net.outputs.append(helper.make_tensor_value_info(image, TensorProto.FLOAT, ["N", 3, 8, 8]))
    return net.model()


def doubled_constants() -> onnx.ModelProto:
    net = Net()
    image, value = net.image(), net.rng.normal(0, 0.4, (16, 3, 3, 3))
    branches = [net.op("Conv", image, net.constant(value), pads=[1] * 4) for _ in range(3)]
    net.head(net.op("Concat", *branches, axis=1), 48)
    return net.model()


def free_image_size() -> onnx.ModelProto:
    net = Net()
    net.head(net.op("Relu", net.conv(net.image(side="S"), 3, 8)), 8)
    return net.model()


def model_function() -> onnx.ModelProto:
    """A function of the model's own, as torch's newer exporter writes them."""
    net = Net()
    net.domains.append("own")
    x = net.conv(net.image(), 3, 8)
    net.head(net.op("Gate", x, domain="own"), 8)
    nodes = [helper.make_node("Sigmoid", ["a"], ["s"]), helper.make_node("Mul", ["a", "s"], ["b"])]
    gate = helper.make_function("own", "Gate", ["a"], ["b"], nodes, [helper.make_opsetid("", 17)])
    made = net.model(check=False)
    made.functions.append(gate)
    onnx.checker.check_model(made)
    return made


def double() -> onnx.ModelProto:
    return _of_kind(TensorProto.DOUBLE, np.float64)


def half() -> onnx.ModelProto:
    return _of_kind(TensorProto.FLOAT16, np.float16)


def _of_kind(kind: int, dtype: type[np.floating]) -> onnx.ModelProto:
    net = Net()
    x = net.input("features", "N", FEATURES, kind=kind)
    x = net.op("Relu", net.op("MatMul", x, net.constant(net.rng.normal(0, 0.4, (8, 8)), dtype)))
    weight = net.constant(net.rng.normal(0, 0.4, (8, CLASSES)), dtype)
    net.answer(net.op("Add", net.op("MatMul", x, weight), net.constant(np.ones(CLASSES), dtype)))
    net.outputs[-1].type.tensor_type.elem_type = kind
    return net.model()


def half_inside() -> onnx.ModelProto:
    """float32 at both ends, float16 within."""
    net = Net()
    x = net.op("Cast", net.input("features", "N", FEATURES), to=TensorProto.FLOAT16)
    x = net.op("MatMul", x, net.constant(net.rng.normal(0, 0.4, (8, 8)), np.float16))
    net.classify(net.op("Cast", net.op("Relu", x), to=TensorProto.FLOAT), 8)
    return net.model()


def quantized_aware() -> onnx.ModelProto:
    """As a QAT export: activations per tensor, weights per channel, float32 weights before their Q."""
    net = Net()

    def fake(x: str, scale: float) -> str:
        parts = (net.constant(scale), net.constant(0, np.int8))
        return net.op("DequantizeLinear", net.op("QuantizeLinear", x, *parts), *parts)

    x = fake(net.image(), 0.03)
    for before, after in ((3, 8), (8, 8)):
        weight = net.rng.normal(0, 0.4, (after, before, 3, 3)).astype(np.float32)
        scales = (np.abs(weight).max(axis=(1, 2, 3)) / 127).astype(np.float32)
        parts = (net.constant(scales), net.constant(np.zeros(after), np.int8))
        q = net.op("QuantizeLinear", net.constant(weight), *parts, axis=0)
        dq = net.op("DequantizeLinear", q, *parts, axis=0)
        x = fake(net.op("Relu", net.op("Conv", x, dq, net.weight(after), pads=[1] * 4)), 0.05)
    net.head(x, 8)
    return net.model()


def quantized_stored() -> onnx.ModelProto:
    """As a finished QDQ model: weights are stored as int8 and biases as int32."""
    net = Net()
    image = net.image()
    parts = (net.constant(0.03), net.constant(128, np.uint8))
    x = net.op("DequantizeLinear", net.op("QuantizeLinear", image, *parts), *parts)
    weight = net.constant(net.rng.integers(-127, 128, (8, 3, 3, 3)), np.int8)
    dq = net.op("DequantizeLinear", weight, net.constant(0.003), net.constant(0, np.int8))
    bias = net.constant(net.rng.integers(-900, 900, 8), np.int32)
    bias = net.op("DequantizeLinear", bias, net.constant(0.00009), net.constant(0, np.int32))
    x = net.op("Relu", net.op("Conv", x, dq, bias, pads=[1] * 4))
    parts = (net.constant(0.02), net.constant(0, np.uint8))
    net.head(net.op("DequantizeLinear", net.op("QuantizeLinear", x, *parts), *parts), 8)
    return net.model()


def sequence_output() -> onnx.ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.image(), 3, 8))
    parts = net.op("SplitToSequence", x, axis=0)
    net.head(x, 8)
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    net.outputs.append(helper.make_value_info(parts, kind))
    return net.model()


def string_input() -> onnx.ModelProto:
    net = Net()
    same = net.op("Identity", net.input("words", "N", 1, kind=TensorProto.STRING))
    net.head(net.op("Relu", net.conv(net.image(), 3, 8)), 8)
    net.answer(same, "same", ("N", 1))
    net.outputs[-1].type.tensor_type.elem_type = TensorProto.STRING
    return net.model()


def optional_input() -> onnx.ModelProto:
    net = Net()
    net.head(net.op("Relu", net.conv(net.image(), 3, 8)), 8)
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 3]))
    net.inputs.append(helper.make_value_info("maybe", kind))
    return net.model()


def unknown_domain() -> onnx.ModelProto:
    net = Net()
    net.domains.append("com.nobody")
    net.head(net.op("Magic", net.conv(net.image(), 3, 8), domain="com.nobody"), 8)
    return net.model(check=False)


def no_classes() -> onnx.ModelProto:
    net = Net()
    net.answer(net.op("Relu", net.conv(net.image(), 3, 8)), "features", ("N", 8, 8, 8))
    return net.model()


def no_inputs() -> onnx.ModelProto:
    net = Net()
    net.answer(net.op("Gemm", net.weight(1, 8), net.weight(8, CLASSES)), shape=(1, CLASSES))
    return net.model()


def batch_of_eight() -> onnx.ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.image(batch=8), 3, 8))
    gemm = net.op("Gemm", net.op("Flatten", net.op("GlobalAveragePool", x)), net.weight(8, CLASSES))
    net.answer(gemm, shape=(8, CLASSES))
    return net.model()


def opset_23() -> onnx.ModelProto:
    """Newer than what targets take, with an operator that older versions lack."""
    net = Net(opset=23, ir_version=11)
    x = net.op("RMSNormalization", net.input("features", "N", FEATURES), net.weight(FEATURES), axis=-1)
    net.classify(x, FEATURES)
    return net.model()


ODD = {
    build.__name__: Exhibit(build=build)
    for build in (
        if_subgraph, loop_subgraph, opset_9, opset_10, opset_11, opset_12, weights_as_inputs, nhwc,
        torch_script, batch_norm_first, constants_of_size_zero, weights_all_zero, dead_channels,
        huge_weights, denormal_weights, strange_names, unused_input, input_as_output, doubled_constants,
        free_image_size, model_function, half_inside, constant_output, input_given_back,
        quantized_aware, quantized_stored, double, half,
    )
}  # fmt: skip
REFUSED = {
    build.__name__: Exhibit(build=build, refused=code)
    for build, code in (
        (sequence_output, "model_outputs"), (string_input, "model_inputs"), (optional_input, "model_inputs"),
        (unknown_domain, "baseline_unusable"), (no_classes, "model_outputs"), (no_inputs, "model_inputs"),
        (batch_of_eight, "model_inputs"), (opset_23, "model_opset"),
        (infinite_constant, "calibration_not_finite"),
    )
}  # fmt: skip
ODD |= REFUSED | {"external_data": Exhibit(build=external_data, external=True)}
