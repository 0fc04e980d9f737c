"""Every rule of a target, broken once by a real graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from msgspec import structs
from onnx import TensorProto, helper, numpy_helper

from converter.dataset import Samples
from converter.passes import clean
from converter.quantize import quantize
from converter.recipe import parse
from converter.targets.lint import fallback, lint
from converter.targets.loader import Rule, Target, find_target
from tests.converter.builders import conv_net, images, material_of


def _codes(target: Target, model: onnx.ModelProto) -> set[str]:
    return {finding.code for finding in lint(target, model)}


def _quantized(recipe: str, target: str = "x86_vnni") -> onnx.ModelProto:
    cleaned, _ = clean(conv_net())
    array = images(20, seed=8)
    samples = Samples(path="here", sha256="0" * 64, arrays={"image": array}, data={}, n=len(array))
    return quantize(material_of(cleaned, samples, target), parse(recipe)).model


@pytest.mark.parametrize(
    ("target", "recipe"),
    [("x86_vnni", "static_wi8_au8_pc_minmax"), ("arm64_dotprod", "static_wi8_ai8_pc_minmax")],
)
def test_a_target_has_nothing_against_its_own_recipe(target: str, recipe: str) -> None:
    assert lint(find_target(target), _quantized(recipe)) == ()


def test_types_and_zero_points() -> None:
    unsigned = _quantized("static_wi8_au8_pc_minmax")
    assert _codes(find_target("arm64_dotprod"), unsigned) == {"activation_type"}
    assert _codes(find_target("jetson_gpu_trt"), unsigned) >= {
        "activation_type",
        "zero_point",
        "quantized_bias",
    }
    found = next(f for f in lint(find_target("jetson_gpu_trt"), unsigned) if f.code == "zero_point")
    assert found.node
    assert found.severity == "error"
    assert "TensorRT" in found.source


def test_weights_of_another_type() -> None:
    wanted = find_target("x86_vnni")
    rules = structs.replace(wanted.rules, weight=Rule(value="u8", confidence="V", source="a test"))
    assert "weight_type" in _codes(
        structs.replace(wanted, rules=rules), _quantized("static_wi8_au8_pc_minmax")
    )


def test_scales_per_channel_where_none_may_be_and_on_the_wrong_axis() -> None:
    vip = find_target("vip_npu_imx8mp")
    assert "per_channel" in _codes(vip, _quantized("static_wi8_au8_pc_minmax"))
    assert "per_channel" not in _codes(vip, _quantized("static_wi8_au8_pt_minmax"))
    model = _quantized("static_wi8_au8_pc_minmax")
    weight = next(n.input[1] for n in model.graph.node if n.op_type == "Conv")
    pair = next(n for n in model.graph.node if n.output[0] == weight)
    del pair.attribute[:]
    pair.attribute.append(helper.make_attribute("axis", 1))
    assert _codes(find_target("x86_vnni"), model) == {"channel_axis"}


def test_opsets() -> None:
    vnni = find_target("x86_vnni")
    assert _codes(vnni, conv_net(opset=12)) == {"opset"}
    newer = conv_net(opset=17)
    newer.opset_import[0].version = 22
    (found,) = lint(vnni, newer)
    assert (found.code, found.severity) == ("opset", "warning")


def test_open_shapes() -> None:
    assert "static_shapes" in _codes(find_target("qnn_htp"), conv_net())
    assert "static_shapes" not in _codes(find_target("qnn_htp"), conv_net(batch=1))
    assert _codes(find_target("x86_vnni"), conv_net()) == set()


def _conv(stride: int = 1, size: int = 3, dilation: int = 1) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((2, 1, size, size), dtype=np.float32), "w")
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], name="conv", strides=[stride, stride], dilations=[dilation, dilation]
    )
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 200, 200])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [weight],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.parametrize(
    ("model", "code"),
    [(_conv(stride=4), "stride"), (_conv(size=3, dilation=32), "kernel"), (_conv(stride=3), None),
     (_conv(size=3, dilation=31), None)],
)  # fmt: skip
def test_limits_of_convolutions(model: onnx.ModelProto, code: str | None) -> None:
    assert _codes(find_target("ethos-u"), model) - {"opset"} == (set() if code is None else {code})


def test_ranks() -> None:
    five = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 2, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 2, 2, 2])],
    )  # fmt: skip
    model = helper.make_model(five, opset_imports=[helper.make_opsetid("", 17)])
    assert "rank" in _codes(find_target("coral"), model)


def test_an_excluded_operator_that_reads_quantized_values() -> None:
    scale = numpy_helper.from_array(np.float32(0.1), "s")
    zero = numpy_helper.from_array(np.int8(0), "z")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("Softmax", ["d"], ["y"], name="softmax"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])], [scale, zero],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    assert _codes(find_target("orin"), model) == {"excluded_operator"}
    assert _codes(find_target("x86_vnni"), model) == {"activation_type"}


def test_what_falls_to_the_cpu_is_predicted_from_the_list() -> None:
    model = conv_net(batch=1)
    assert fallback(find_target("x86_vnni"), model) is None
    whole = fallback(find_target("ethos-u"), model)
    assert whole is not None
    assert not whole.any
    assert whole.accelerated == len(model.graph.node)
    model.graph.node[1].op_type = "Erf"
    part = fallback(find_target("ethos-u"), model)
    assert part is not None
    assert part.on_cpu == {"Erf": 1}
    assert "fallback" in _codes(find_target("ethos-u"), model)
