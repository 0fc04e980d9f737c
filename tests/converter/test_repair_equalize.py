"""Equalization keeps the function, cures the disease it is for, and leaves alone what it must."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from converter.calibrate import calibrate
from converter.model import signature
from converter.quantize import Material, quantize
from converter.recipe import Recipe, parse
from converter.repair.channels import channel_statistics
from converter.repair.equalize import equalize, scale_link
from converter.repair.graph import GraphIndex
from converter.repair.links import Link, find_links
from converter.runtime import open_session
from converter.targets.loader import find_target
from tests.converter.builders import CLASSES, Floats, answers, conv_net, images, model, weights
from tests.converter.repairing import outlier_net, samples_of

_PC = parse("static_wi8_au8_pc_minmax")
_PT = parse("static_wi8_au8_pt_minmax")


def _array(made: onnx.ModelProto, name: str) -> Floats:
    found: Floats = numpy_helper.to_array(next(t for t in made.graph.initializer if t.name == name))
    return found


def _links(made: onnx.ModelProto) -> dict[str, Link]:
    return {link.tensor: link for link in find_links(GraphIndex(made))[0]}


def _refusals(made: onnx.ModelProto) -> dict[str, str]:
    return {one.tensor: one.reason for one in find_links(GraphIndex(made))[1]}


@pytest.mark.parametrize("recipe", [_PC, _PT])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), factor=st.floats(0.01, 200))
def test_the_function_stays_the_same(recipe: Recipe, seed: int, factor: float) -> None:
    made = outlier_net(seed, factor)
    changed, _ = equalize(made, samples_of(images(12, seed)), signature(made), recipe)
    exact, after = answers(made, images(6, seed + 1)), answers(changed, images(6, seed + 1))
    assert np.abs(after - exact).max() <= 2e-5 * max(1.0, float(np.abs(exact).max()))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_any_positive_factors_keep_the_function(seed: int) -> None:
    """Whatever is chosen: each link by itself, factors over six decades."""
    made = outlier_net(seed, 1.0)
    rng = np.random.default_rng(seed)
    index = GraphIndex(made)
    exact = answers(made, images(4, seed))
    for link in find_links(index)[0]:
        scale_link(index, link, 10 ** rng.uniform(-3, 3, link.channels))
    assert np.abs(answers(made, images(4, seed)) - exact).max() <= 1e-4 * max(1.0, float(np.abs(exact).max()))


@pytest.mark.parametrize("recipe", [_PC, _PT])
def test_an_outlier_channel_is_cured(recipe: Recipe) -> None:
    made = outlier_net(3, 150.0)
    samples = samples_of(images(40, seed=8))
    exact = answers(made, images(30))
    noise = []
    changed, said = equalize(made, samples, signature(made), recipe)
    for graph in (made, changed):
        material = Material(
            model=graph, calibration=calibrate(graph, samples, signature(graph)), samples=samples,
            signature=signature(graph), rules=find_target("x86_vnni").rules,
        )  # fmt: skip
        near = answers(quantize(material, recipe).model, images(30))
        noise.append(float(np.square(near - exact).mean()))
    assert noise[1] < noise[0] / 20
    assert "equalized" in said[0]
    assert "calibrated again" in said[0]
    assert any(line.startswith("c1:") for line in said[1:])


def test_a_channel_that_only_its_bias_makes_wild_is_cured_too() -> None:
    """Its weights are like the others', so the paper's factors, from weights alone, would not see it."""
    made = outlier_net(3, 1.0)
    bias = next(t for t in made.graph.initializer if t.name == "b3")
    values = numpy_helper.to_array(bias).copy()
    values[5] = 80.0
    bias.CopyFrom(numpy_helper.from_array(values, "b3"))
    samples = samples_of(images(40, seed=8))
    changed, _ = equalize(made, samples, signature(made), _PC)
    spread = []
    for graph in (made, changed):
        reach = channel_statistics(graph, samples, signature(graph), {"r3": 1})["r3"].reach
        spread.append(float(reach.max() / np.median(reach)))
    assert spread[0] > 15
    assert spread[1] < spread[0] / 4


def test_a_mean_that_keeps_its_axes_is_passed() -> None:
    rng = np.random.default_rng(5)
    constants = [weights(rng, "w1", 8, 1, 3, 3), weights(rng, "w2", CLASSES, 8, 1, 1)]
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c1"]),
        helper.make_node("ReduceMean", ["c1"], ["g"], axes=[2, 3], keepdims=1),
        helper.make_node("Conv", ["g", "w2"], ["c2"]),
        helper.make_node("Flatten", ["c2"], ["logits"]),
    ]
    made = model(nodes, constants, 17)
    assert _links(made)["c1"].axes == (1, 1)
    over_channels = model(
        [nodes[0], helper.make_node("ReduceMean", ["c1"], ["g"], axes=[1], keepdims=1), *nodes[2:]],
        [constants[0], weights(rng, "w2", CLASSES, 1, 6, 6)], 17,
    )  # fmt: skip
    assert "c1" in _refusals(over_channels)


def test_channels_of_the_equalized_tensor_are_near_one_another() -> None:
    made = outlier_net(3, 150.0)
    samples = samples_of(images(40, seed=8))
    changed, _ = equalize(made, samples, signature(made), _PC)
    spread = []
    for graph in (made, changed):
        reach = channel_statistics(graph, samples, signature(graph), {"r1": 1})["r1"].reach
        spread.append(float(reach.max() / np.median(reach)))
    assert spread[0] > 50
    assert spread[1] < 2


def test_the_model_that_was_given_is_untouched_and_equal_input_gives_equal_bytes() -> None:
    made = outlier_net(3, 150.0)
    before = made.SerializeToString()
    samples = samples_of(images(20))
    first, _ = equalize(made, samples, signature(made), _PC)
    second, _ = equalize(made, samples, signature(made), _PC)
    assert made.SerializeToString() == before
    assert first.SerializeToString() == second.SerializeToString() != before


def test_links_run_from_writer_through_homogeneous_operators_to_readers() -> None:
    links = _links(conv_net())
    assert set(links) == {"c1", "c2"}
    assert links["c1"].tensors == ("c1", "r1")
    assert links["c1"].divided == (("w1", 0), ("b1", 0))
    assert links["c2"].tensors == ("c2", "r2", "g", "f")
    assert [reader.op_type for reader in links["c2"].readers] == ["Gemm"]
    assert _refusals(conv_net()) == {"logits": "logits is an output of the model"}


def _between(
    kind: str, extra: list[onnx.TensorProto], names: list[str], **attributes: object
) -> onnx.ModelProto:
    """Two convolutions with one operator between them."""
    rng = np.random.default_rng(5)
    constants = [
        weights(rng, "w1", 8, 1, 3, 3),
        weights(rng, "w2", 8, 8, 1, 1),
        weights(rng, "w3", CLASSES, 8),
    ]
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node(kind, ["c1", *names], ["a1"], name="between", **attributes),
        helper.make_node("Conv", ["a1", "w2"], ["c2"]),
        helper.make_node("GlobalAveragePool", ["c2"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w3"], ["logits"], transB=1),
    ]
    return model(nodes, [*constants, *extra], 17)


def _scalar(name: str, value: float) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, dtype=np.float32), name)


def test_relu6_and_curves_are_left_alone_with_the_reason() -> None:
    relu6 = _between("Clip", [_scalar("lo", 0), _scalar("hi", 6)], ["lo", "hi"])
    assert _refusals(relu6)["c1"] == "between (Clip) is not positively homogeneous channel by channel"
    shifted = _between("Clip", [_scalar("lo", -1)], ["lo"])
    assert "c1" in _refusals(shifted)
    for kind in ("Sigmoid", "HardSwish", "Tanh", "Softmax"):
        assert f"between ({kind})" in _refusals(_between(kind, [], []))["c1"]


def test_clip_from_zero_without_an_upper_bound_is_a_relu() -> None:
    assert "c1" in _links(_between("Clip", [_scalar("lo", 0)], ["lo"]))


@pytest.mark.parametrize(("slope", "linked"), [(0.2, True), (-0.2, False)])
def test_prelu_is_homogeneous_with_slopes_that_are_not_negative(slope: float, linked: bool) -> None:
    tensor = numpy_helper.from_array(np.full((8, 1, 1), slope, dtype=np.float32), "slope")
    assert ("c1" in _links(_between("PRelu", [tensor], ["slope"]))) is linked


def test_shared_weights_and_a_second_reader_are_left_alone() -> None:
    made = conv_net()
    made.graph.node.append(helper.make_node("Sigmoid", ["r1"], ["other"]))
    assert "Sigmoid" in _refusals(made)["c1"]
    made = conv_net()
    made.graph.node[2].input[1] = "w1"
    assert "shares its weight" in _refusals(made)["c1"]
    made = conv_net()
    made.graph.output.append(helper.make_tensor_value_info("r1", onnx.TensorProto.FLOAT, None))
    assert _refusals(made)["c1"] == "r1 is an output of the model"


def _token_net(
    seed: int = 4,
) -> tuple[onnx.ModelProto, dict[str, Floats]]:
    """LayerNormalization with a wild channel, read by three MatMuls, one with a bias."""
    rng = np.random.default_rng(seed)
    gain = np.ones(6, dtype=np.float32)
    gain[2] = 90.0
    constants = [numpy_helper.from_array(gain, "gain"), weights(rng, "offset", 6)]
    constants += [weights(rng, f"m{i}", 6, 4) for i in range(3)] + [
        weights(rng, "b0", 4),
        weights(rng, "m4", 4, 3),
    ]
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain", "offset"], ["n"], axis=-1),
        *(helper.make_node("MatMul", ["n", f"m{i}"], [f"p{i}"]) for i in range(3)),
        helper.make_node("Add", ["b0", "p0"], ["q0"]),
        helper.make_node("Relu", ["q0"], ["s0"]),
        helper.make_node("MatMul", ["s0", "m4"], ["t0"]),
        helper.make_node("Concat", ["t0", "p1", "p2"], ["y"], axis=-1),
    ]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 5, 6])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 5, 11])
    graph = helper.make_graph(nodes, "tokens", [x], [y], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return made, {"x": rng.normal(0, 1, (20, 5, 6)).astype(np.float32)}


def test_normalization_gives_its_channels_to_all_matrix_products_that_read_it() -> None:
    made, feeds = _token_net()
    links = _links(made)
    assert [reader.input[1] for reader in links["n"].readers] == ["m0", "m1", "m2"]
    assert links["p0"].divided == (("m0", 1), ("b0", 0))
    index = GraphIndex(made)
    exact = open_session(made.SerializeToString()).run(None, feeds)[0]
    for link in links.values():
        scale_link(index, link, np.random.default_rng(1).uniform(0.01, 100, link.channels))
    after = open_session(made.SerializeToString()).run(None, feeds)[0]
    assert not np.array_equal(_array(made, "m1"), _array(_token_net()[0], "m1"))
    np.testing.assert_allclose(after, exact, atol=2e-4 * float(np.abs(exact).max()))


def test_a_graph_without_links_is_given_back_with_the_reason() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Flatten", ["image"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["logits"], transB=1),
    ]
    made = model(nodes, [weights(rng, "w", CLASSES, 64)], 17)
    same, said = equalize(made, samples_of(images(4)), signature(made), _PC)
    assert same.SerializeToString() == made.SerializeToString()
    assert said == ("equalized nothing: logits is an output of the model",)
