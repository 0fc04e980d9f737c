"""Every rule of a target, broken once by a real graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec import structs
from onnx import TensorProto, helper, numpy_helper

from converter.dataset import Samples
from converter.errors import InputError
from converter.passes import clean
from converter.quantize import quantize
from converter.recipe import parse
from converter.targets.fallback import Verdict, fallback, multiplications, verdict
from converter.targets.graph import GraphView, shapes_of
from converter.targets.lint import lint, require_shapes
from converter.targets.loader import Rule, Target, all_targets, find_target
from tests.converter.builders import conv_net, images, material_of
from tests.converter.zoo_layers import LAYERS
from tests.converter.zoo_odd import ODD

ZOO = LAYERS | ODD


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
    assert "NVIDIA" in found.source


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


def test_the_samples_of_a_tflite_file_are_its_writers() -> None:
    assert "static_shapes" not in _codes(find_target("coral"), conv_net())
    free = conv_net()
    free.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    found = [one for one in lint(find_target("coral"), free) if one.code == "static_shapes"]
    assert [one.words for one in found] == ["axes [2] of input image are open, every shape must be fixed"]


def _single(node: onnx.NodeProto, shape: list[int], *constants: onnx.TensorProto) -> onnx.ModelProto:
    """A model of one node from `x` to `y`."""
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], list(constants),
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def _conv(
    stride: int = 1, size: int = 3, dilation: int = 1, sides: tuple[int, int] | None = None
) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((2, 1, *(sides or (size, size))), dtype=np.float32), "w")
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], name="conv", strides=[stride, stride], dilations=[dilation, dilation]
    )
    return _single(node, [1, 1, 200, 200], weight)


@pytest.mark.parametrize(
    ("model", "code"),
    [(_conv(stride=4), {"stride"}), (_conv(stride=3), set()),
     (_conv(size=3, dilation=32), {"kernel", "kernel_area"}), (_conv(size=3, dilation=31), set()),
     (_conv(sides=(3, 65)), set()), (_conv(sides=(64, 64)), set()), (_conv(sides=(64, 65)), {"kernel_area"}),
     (_conv(sides=(65, 3)), {"kernel"})],
)  # fmt: skip
def test_limits_of_convolutions(model: onnx.ModelProto, code: set[str]) -> None:
    assert _codes(find_target("ethos-u"), model) == code


def _pool(op_type: str, sides: tuple[int, int], pads: int = 0) -> onnx.ModelProto:
    node = helper.make_node(op_type, ["x"], ["y"], name="pool", kernel_shape=sides, pads=[pads] * 4)
    return _single(node, [1, 1, 300, 300])


@pytest.mark.parametrize(
    ("model", "code"),
    [(_pool("AveragePool", (8, 8), pads=1), set()), (_pool("AveragePool", (3, 9), pads=1), {"pool_kernel"}),
     (_pool("AveragePool", (9, 9)), set()), (_pool("MaxPool", (256, 2)), set()),
     (_pool("MaxPool", (2, 257)), set()), (_pool("MaxPool", (257, 2)), {"pool_kernel"})],
)  # fmt: skip
def test_limits_of_pools(model: onnx.ModelProto, code: set[str]) -> None:
    assert _codes(find_target("ethos-u"), model) == code


def test_what_is_beyond_a_limit_falls_to_the_cpu() -> None:
    found = fallback(find_target("ethos-u"), _conv(stride=4))
    assert found is not None
    assert (found.on_cpu, found.share) == ({"Conv": 1}, 0.0)


@pytest.mark.parametrize(
    ("target", "shape", "code"),
    [("ethos-u", [2, 4, 8, 8], {"batch"}), ("ethos-u", [2, 4], set()), ("ethos-u", [1, 65535], set()),
     ("ethos-u", [1, 65536], {"size"}), ("coral", [1, 4, 8, 8], set()),
     ("coral", [2, 4, 8, 8], {"inner_axes"}), ("coral", [1, 1, 4, 8, 8], set()), ("coral", [2, 4, 8], set()),
     ("dla", [4096, 3, 8, 8], set()),
     ("dla", [4097, 3, 8, 8], {"batch"}), ("dla", [1, 8193, 8, 8], {"size"})],
)  # fmt: skip
def test_sizes_of_tensors(target: str, shape: list[int], code: set[str]) -> None:
    assert _codes(find_target(target), _single(helper.make_node("Relu", ["x"], ["y"]), shape)) == code


def test_ranks() -> None:
    rule: Rule[int | None] = Rule(value=4, confidence="V", source="a test")
    target = find_target("x86_vnni")
    target = structs.replace(target, rules=structs.replace(target.rules, rank_max=rule))
    relu = helper.make_node("Relu", ["x"], ["y"])
    assert _codes(target, _single(relu, [1, 1, 2, 2, 2])) == {"rank"}
    assert _codes(target, _single(relu, [1, 2, 2, 2])) == set()


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
    assert whole.share == 1.0
    model.graph.node[1].op_type = "Erf"
    part = fallback(find_target("ethos-u"), model)
    assert part is not None
    assert (part.on_cpu, part.share) == ({"Erf": 1}, 1.0)
    assert part.accelerated == len(model.graph.node) - 1
    model.graph.node.insert(0, helper.make_node("Constant", [], ["unread"], value_float=1.0))
    assert fallback(find_target("ethos-u"), model) == part
    assert "fallback" in _codes(find_target("ethos-u"), model)


def test_multiplications_are_those_of_the_fp32_graph_behind_any_pair() -> None:
    """Conv 8 x 8 x 8 x 9, depthwise the same, Gemm 4 x 8; the share without the Gemm is 9216 / 9248."""
    for model in (clean(conv_net(batch=1))[0], _quantized("static_wi8_au8_pc_minmax")):
        view, shapes = GraphView(model.graph), shapes_of(model)
        works = [n for n in model.graph.node if n.op_type in {"Conv", "Gemm"}]
        assert [multiplications(node, view, shapes) for node in works] == [4608, 4608, 32]
        rules = find_target("ethos-u").rules
        fewer: Rule[tuple[str, ...]] = Rule(value=("Conv",), confidence="V", source="a test")
        narrow = structs.replace(find_target("ethos-u"), rules=structs.replace(rules, operators=fewer))
        found = fallback(narrow, model)
        assert found is not None
        assert found.share == pytest.approx(9216 / 9248)


def test_multiplications_of_other_products() -> None:
    weight = numpy_helper.from_array(np.ones((3, 5, 2, 2), dtype=np.float32), "w")
    spread = _single(helper.make_node("ConvTranspose", ["x", "w"], ["y"]), [1, 3, 4, 4], weight)
    matrix = numpy_helper.from_array(np.ones((7, 5), dtype=np.float32), "w")
    product = _single(helper.make_node("MatMul", ["x", "w"], ["y"]), [2, 3, 7], matrix)
    plain = _single(helper.make_node("Gemm", ["x", "w"], ["y"]), [1, 7], matrix)
    counts = [
        multiplications(model.graph.node[0], GraphView(model.graph), shapes_of(model))
        for model in (spread, product, plain)
    ]
    assert counts == [3 * 16 * 5 * 4, 3 * 5 * 7, 7 * 5]
    free = _single(helper.make_node("MatMul", ["x", "x"], ["y"]), [4, 4])
    assert multiplications(free.graph.node[0], GraphView(free.graph), shapes_of(free)) is None
    found = fallback(find_target("ethos-u"), free)
    assert found is not None
    assert found.share is None


def _paired(transposed: bool, axis: int, *, whole: bool) -> onnx.ModelProto:
    """A Gemm whose weight has a scale per channel on `axis`, stored as integers or behind a `whole` pair."""
    constants = [
        numpy_helper.from_array(np.ones((4, 4), dtype=np.float32 if whole else np.int8), "w"),
        numpy_helper.from_array(np.full(4, 0.1, dtype=np.float32), "s"),
        numpy_helper.from_array(np.zeros(4, dtype=np.int8), "z"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["q" if whole else "w", "s", "z"], ["d"], axis=axis, name="dq"),
        helper.make_node("Gemm", ["x", "d"], ["y"], transB=int(transposed)),
    ]
    if whole:
        nodes.insert(0, helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], axis=axis))
    model = _single(nodes[-1], [1, 4], *constants)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("transposed", "axis", "right"),
    [(True, 0, True), (True, 1, False), (False, 1, True), (False, -1, True), (False, 0, False)],
)
def test_weights_are_told_from_activations_behind_a_whole_pair(
    transposed: bool, axis: int, right: bool, whole: bool
) -> None:
    """On x86 activations are u8: an i8 pair on a weight must not be taken for one of activations."""
    model = _paired(transposed, axis, whole=whole)
    assert _codes(find_target("x86_vnni"), model) == (set() if right else {"channel_axis"})
    wanted = {"weight_pair"} if not whole else set()
    assert _codes(find_target("orin"), model) - {"channel_axis"} == wanted


def test_products_behind_a_whole_pair_are_counted() -> None:
    model = _paired(transposed=True, axis=0, whole=True)
    assert multiplications(model.graph.node[-1], GraphView(model.graph), shapes_of(model)) == 16


@pytest.mark.parametrize(
    ("op_type", "shape", "axis", "right"),
    [("ConvTranspose", [1, 4, 2, 2], 1, True), ("ConvTranspose", [1, 4, 2, 2], 0, False),
     ("Conv", [1, 4, 2, 2], 0, True), ("Conv", [1, 4, 2, 2], 1, False),
     ("MatMul", [1, 4], 1, True), ("MatMul", [1, 4], 0, False)],
)  # fmt: skip
def test_scales_lie_on_the_output_channels(op_type: str, shape: list[int], axis: int, right: bool) -> None:
    size = [4, 4, 1, 1] if len(shape) == 4 else [4, 4]
    constants = [
        numpy_helper.from_array(np.ones(size, dtype=np.int8), "w"),
        numpy_helper.from_array(np.full(4, 0.1, dtype=np.float32), "s"),
        numpy_helper.from_array(np.zeros(4, dtype=np.int8), "z"),
    ]
    model = _single(helper.make_node(op_type, ["x", "d"], ["y"]), shape, *constants)
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=axis))
    assert _codes(find_target("x86_vnni"), model) == (set() if right else {"channel_axis"})


@pytest.mark.parametrize(
    ("zero", "wrong"), [(None, "arm64_dotprod"), (np.uint8(3), "arm64_dotprod"), (np.int8(0), "x86_vnni")]
)
def test_a_pair_without_a_zero_point_has_the_type_of_what_it_reads(
    zero: np.uint8 | np.int8 | None, wrong: str
) -> None:
    """ONNX: uint8 without a zero point; a DequantizeLinear takes the type of its input."""
    constants = [numpy_helper.from_array(np.float32(0.1), "s")]
    constants += [] if zero is None else [numpy_helper.from_array(np.asarray(zero), "z")]
    model = _single(helper.make_node("DequantizeLinear", ["q", "s"], ["y"]), [1, 4], *constants)
    given = ["x", "s"] if zero is None else ["x", "s", "z"]
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", given, ["q"]))
    right = "x86_vnni" if wrong == "arm64_dotprod" else "arm64_dotprod"
    assert _codes(find_target(right), model) == set()
    assert [one.code for one in lint(find_target(wrong), model)] == ["activation_type"] * 2


def test_four_bit_weights_only_where_they_are_read() -> None:
    stored = helper.make_tensor("w", TensorProto.INT4, [4, 4], [1] * 16)
    scale = numpy_helper.from_array(np.full((1, 4), 0.1, dtype=np.float32), "s")
    model = _single(helper.make_node("MatMul", ["x", "d"], ["y"]), [1, 4], stored, scale)
    pair = helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=0, block_size=4)
    model.graph.node.insert(0, pair)
    model.opset_import[0].version = 21
    assert _codes(find_target("x86_vnni"), model) == set()
    assert "int4" in _codes(find_target("qnn_htp"), model)


def test_rules_reach_into_the_bodies_of_if() -> None:
    body = _conv(stride=4).graph
    branch = helper.make_graph(list(body.node), "b", [], list(body.output), list(body.initializer))
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    model = _single(node, [1, 1, 200, 200], numpy_helper.from_array(np.array(True), "c"))
    assert _codes(find_target("ethos-u"), model) == {"fallback", "stride"}
    found = fallback(find_target("ethos-u"), model)
    assert found is not None
    assert found.on_cpu == {"Conv": 2, "If": 1}


def test_open_shapes_are_refused_with_the_way_out() -> None:
    with pytest.raises(InputError, match="make_dynamic_shape_fixed") as caught:
        require_shapes(find_target("qnn_htp"), conv_net())
    assert caught.value.code == "target_static_shapes"
    require_shapes(find_target("qnn_htp"), conv_net(batch=1))
    require_shapes(find_target("orin"), conv_net())


def test_a_verdict_in_words() -> None:
    model = _quantized("static_wi8_au8_pc_minmax")
    told, found = verdict(find_target("jetson_dla"), model), lint(find_target("jetson_dla"), model)
    text = "\n".join(told.words)
    assert told.words[0].startswith("not compiled, not run: TensorRT")
    assert "breaks a rule of jetson_dla: activations of type u8, i8 is wanted" in text
    alike = sum(one.code == "activation_type" for one in found)
    assert f" at image_quantized_QuantizeLinear and {alike - 1} more like it (" in text
    assert "breaks advice of jetson_dla" in text
    assert "predicted, not compiled: 5 of 5 operators on the accelerator, 100% of the mult" in text
    assert told.errors == sum(one.severity == "error" for one in found)
    assert told.errors != len(found) - told.errors
    assert told.falls_back is False
    plain = verdict(find_target("x86_vnni"), _quantized("static_wi8_au8_pc_minmax"))
    assert plain == Verdict(words=(), errors=0, falls_back=None)


def test_of_a_target_of_tflite_files_an_onnx_model_is_the_baseline_only() -> None:
    assert verdict(find_target("coral"), conv_net()) == Verdict(words=(), errors=0, falls_back=None)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_no_graph_of_the_zoo_stops_a_check(tmp_path: Path, name: str) -> None:
    model = ZOO[name].save(tmp_path / "model.onnx")
    for target in all_targets():
        told = verdict(target, model)
        said = target.rules.operators.value and target.rules.format.value != "TFLite"
        assert (told.falls_back is None) is (not said)
        assert all(word.strip() for word in told.words)


@pytest.mark.parametrize("target", [one.id for one in all_targets() if one.recipes])
def test_what_is_made_for_a_target_keeps_its_rules(target: str) -> None:
    """Advice may be broken; a rule that is known to be refused may not."""
    cleaned, _ = clean(conv_net(batch=1))
    array = images(20, seed=8)
    samples = Samples(path="here", sha256="0" * 64, arrays={"image": array}, data={}, n=len(array))
    material = material_of(cleaned, samples, target)
    tried = 0
    for recipe in find_target(target).recipes:
        if recipe.kind not in {"static", "dynamic", "float"} or recipe.quantized is False:
            continue
        found = lint(find_target(target), quantize(material, recipe).model)
        assert [one for one in found if one.severity == "error"] == []
        tried += 1
    assert tried or target == "coreml"
