"""Plans and the graphs emitted from them: what is quantized, what is not and why, and odd graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from msgspec import structs
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from converter.errors import RecipeError
from converter.fusion import audit
from converter.quantize import quantize
from converter.quantize.emit import emit
from converter.quantize.operators import ACCELERATOR
from converter.quantize.plan import Plan, make_plan
from converter.quantize.qparams import QParams, of_range
from converter.recipe import Recipe, parse
from tests.converter.quantizing import (
    U8,
    Line,
    floats,
    graph,
    inputs,
    kernels,
    material,
    operators,
    run,
    sqnr_db,
)

RECIPE = parse(U8)
FLAT: dict[str, list[Any]] = {"y": ["N", 4]}
IMAGE: dict[str, list[Any]] = {"y": ["N", 4, None, None]}


def plan(
    made: onnx.ModelProto,
    recipe: Recipe = RECIPE,
    islands: frozenset[str] = frozenset(),
    wide: frozenset[str] = frozenset(),
) -> Plan:
    found = material(made)
    return make_plan(found, recipe, found.calibration.ranges, islands=islands, wide=wide)


def near(made: onnx.ModelProto, result: onnx.ModelProto, db: float = 25) -> None:
    onnx.checker.check_model(result, full_check=True)
    array = inputs(made, seed=6)
    for exact, found in zip(run(made, array), run(result, array), strict=True):
        assert sqnr_db(exact, found) > db


def chain(**more: NDArray[Any]) -> onnx.ModelProto:
    """Conv, Relu, Conv, Relu, Conv."""
    lines: list[Line] = [
        ("Conv", "x w1 v1", "c1", {"pads": [1] * 4}), ("Relu", "c1", "r1"),
        ("Conv", "r1 w2", "c2", {"pads": [1] * 4}), ("Relu", "c2", "r2"),
        ("Conv", "r2 w3", "y"),
    ]  # fmt: skip
    constants = {
        "w1": floats(1, 8, 3, 3, 3), "v1": floats(2, 8), "w2": floats(3, 8, 8, 3, 3),
        "w3": floats(4, 4, 8, 1, 1),
    }  # fmt: skip
    return graph(lines, constants | more, outputs=IMAGE)


def test_a_relu_goes_into_the_range_of_what_it_bounds() -> None:
    made = chain()
    found = plan(made)
    assert dict(found.integer) == {"n_c1": "n_r1", "n_c2": "n_r2", "n_y": ""}
    assert list(found.activations) == ["x", "r1", "r2", "y"]
    result = emit(made, found)
    assert operators(result)["Relu"] == 0
    assert operators(result)["QuantizeLinear"] == 4
    near(made, result)


def test_symmetric_activations_keep_the_relu() -> None:
    made = chain()
    result = emit(made, plan(made, parse("static_wi8_ai8_pc_minmax_sym")))
    assert operators(result)["Relu"] == 2
    near(made, result)


def test_a_clip_stays_where_the_range_reaches_beyond_it() -> None:
    """Its range is changed after the plan's making: the plan that follows keeps the Clip."""
    made = graph(
        [("Conv", "x w", "c"), ("Clip", "c lo hi", "r"), ("Conv", "r v", "y")],
        {
            "w": floats(1, 8, 3, 3, 3),
            "v": floats(2, 4, 8, 1, 1),
            "lo": np.array(0, np.float32),
            "hi": np.array(1, np.float32),
        },
        outputs=IMAGE,
    )
    found = material(made)
    ranges = dict(found.calibration.ranges)
    assert make_plan(found, RECIPE, ranges).integer["n_c"] == "n_r"
    ranges["r"] = structs.replace(ranges["r"], high=2.0)
    kept = make_plan(found, RECIPE, ranges)
    assert kept.integer["n_c"] == ""
    assert operators(emit(made, kept))["Clip"] == 1
    near(made, emit(made, kept))


def test_an_island_is_a_tensor_with_its_maker_and_its_readers() -> None:
    found = plan(chain(), islands=frozenset({"r1"}))
    assert set(found.integer) == {"n_y"}
    assert list(found.activations) == ["r2", "y"]
    assert "float island" in found.left_float["n_c1"]
    assert "float island" in found.left_float["n_c2"]
    # The tensor before the Relu is of the same group.
    assert dict(plan(chain(), islands=frozenset({"c1"})).integer) == dict(found.integer)
    result = emit(chain(), found)
    assert operators(result)["Relu"] == 2
    near(chain(), result, 30)


def test_an_island_of_everything_gives_the_graph_back() -> None:
    made = chain()
    result = emit(made, plan(made, islands=frozenset({"x", "r1", "r2", "y"})))
    assert operators(result) == operators(made)
    assert np.array_equal(run(result, inputs(made))[0], run(made, inputs(made))[0])


@pytest.mark.parametrize("opset", [17, 21])
def test_wide_tensors_have_16_bits(opset: int) -> None:
    made = chain()
    made.opset_import[0].version = opset
    made.ir_version = 10
    found = plan(made, wide=frozenset({"c1"}))
    assert [params.dtype for params in found.activations.values()] == ["u8", "u16", "u8", "u8"]
    result = emit(made, found)
    domains = {node.domain for node in result.graph.node}
    assert domains == ({"", "com.microsoft"} if opset < 21 else {""})
    near(made, result)
    every = emit(made, plan(made, parse("static_wi8_au16_pc_minmax")))
    near(made, every, 35)


def test_equal_plans_give_equal_bytes_and_the_model_is_untouched() -> None:
    made = chain()
    before = made.SerializeToString()
    assert emit(made, plan(made)).SerializeToString() == emit(made, plan(made)).SerializeToString()
    assert made.SerializeToString() == before


def test_nothing_is_left_that_nothing_reads() -> None:
    result = emit(chain(unused=floats(9, 1000)), plan(chain(unused=floats(9, 1000))))
    read = {name for node in result.graph.node for name in node.input}
    assert {tensor.name for tensor in result.graph.initializer} <= read
    types = {t.name: t.data_type for t in result.graph.initializer}
    assert types["w1_quantized"] == TensorProto.INT8
    assert types["v1_quantized"] == TensorProto.INT32
    names = [name for node in result.graph.node for name in node.output]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("shape", [(4,), (1, 4), (1,), (1, 1), ()])
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("recipe", [U8, "static_wi8_au8_pt_minmax"])
def test_a_gemm_takes_every_bias_that_is_one_per_channel(
    shape: tuple[int, ...], transposed: int, recipe: str, tmp_path: Path
) -> None:
    """FACTS.md, trap 3: `[1, N]` makes onnxruntime's own quantizer raise."""
    made = graph(
        [("Flatten", "x", "f"), ("Gemm", "f w v", "y", {"transB": transposed})],
        {"w": floats(1, *((4, 192) if transposed else (192, 4))), "v": floats(2, *shape)},
        outputs=FLAT,
    )
    result = quantize(material(made), parse(recipe)).model
    near(made, result)
    assert kernels(result, tmp_path)["QGemm"] == 1


@pytest.mark.parametrize(
    ("bias", "extra", "why"),
    [(floats(2, 16, 4), {}, "not one number per output channel"), (floats(2, 4), {"alpha": 2.0}, "alpha")],
)
def test_a_gemm_that_has_no_integer_form_stays_in_float(
    bias: NDArray[np.float32], extra: dict[str, float], why: str
) -> None:
    made = graph(
        [("Flatten", "x", "f"), ("Gemm", "f w v", "y", extra)],
        {"w": floats(1, 192, 4), "v": bias},
        outputs=FLAT,
    )
    found = plan(made)
    assert why in found.left_float["n_y"]
    assert any(why in words and "n_y" in words for words in found.decisions)
    assert operators(emit(made, found))["QuantizeLinear"] == 0


def test_logits_are_not_quantized_where_nobody_reads_them() -> None:
    made = graph([("Flatten", "x", "f"), ("Gemm", "f w", "y")], {"w": floats(1, 192, 4)}, outputs=FLAT)
    assert "y" not in plan(made).activations


def test_a_bias_that_would_overflow_widens_its_channel_only(tmp_path: Path) -> None:
    weight = floats(1, 4, 3, 3, 3)
    weight[2] *= np.float32(1e-9)
    made = graph([("Conv", "x w v", "y")], {"w": weight, "v": np.full(4, 30, np.float32)}, outputs=IMAGE)
    found = plan(made)
    scale = found.weights["n_y"].params.scale
    assert scale[2] == pytest.approx(30 / 2**30 / float(found.activations["x"].scale), rel=1e-3)
    assert np.abs(weight[2]).max() / 127 < scale[2] < scale[0] / 1000
    result = emit(made, found)
    near(made, result)
    assert kernels(result, tmp_path)["QLinearConv"] == 1


def test_a_dead_channel_keeps_its_bias() -> None:
    """Of zeros under a bias of 0.03: a scale of 1 for the zeros would round the bias away."""
    weight = floats(1, 4, 3, 3, 3)
    weight[1] = 0
    made = graph(
        [("Conv", "x w v", "c"), ("GlobalAveragePool", "c", "y")],
        {"w": weight, "v": np.array([0, 0.03, 0, 0], np.float32)},
        outputs=IMAGE,
    )
    answer = run(emit(made, plan(made)), inputs(made))[0]
    assert np.allclose(answer[:, 1], 0.03, atol=0.01)
    assert (answer[:, 1] > 0).all()


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_is_left_to_the_float_kernel(groups: int) -> None:
    made = graph(
        [("Conv", "x w", "c"), ("ConvTranspose", "c t u", "d", {"group": groups}), ("Conv", "d v", "y")],
        {
            "w": floats(1, 8, 3, 3, 3), "t": floats(2, 8, 8 // groups, 2, 2), "u": floats(3, 8),
            "v": floats(4, 4, 8, 1, 1),
        },
        outputs=IMAGE,
    )  # fmt: skip
    found = plan(made)
    assert "runs ConvTranspose in float" in found.left_float["n_d"]
    near(made, emit(made, found))


def test_a_shared_weight_is_stored_once_unless_its_scales_differ() -> None:
    lines: list[Line] = [("Conv", "x w", "a"), ("Conv", "x w", "b"), ("Add", "a b", "y")]
    made = graph(lines, {"w": floats(1, 4, 3, 3, 3)}, outputs=IMAGE)
    result = emit(made, plan(made))
    assert sum(t.name.startswith("w_quantized") for t in result.graph.initializer) == 1
    near(made, result)
    lines[1] = ("Conv", "x w v", "b")
    made = graph(lines, {"w": floats(1, 4, 3, 3, 3), "v": np.full(4, 1e9, np.float32)}, outputs=IMAGE)
    names = {t.name for t in emit(made, plan(made)).graph.initializer}
    assert {"w_quantized", "w_quantized_2", "w_scale", "w_scale_2"} <= names


def test_data_movement_between_float_operators_stays_in_float() -> None:
    made = graph(
        [
            ("Tanh", "x", "t"), ("Transpose", "t", "u", {"perm": [0, 1, 3, 2]}), ("Erf", "u", "e"),
            ("Conv", "e w", "y"),
        ],
        {"w": floats(1, 4, 3, 3, 3)},
        outputs=IMAGE,
    )  # fmt: skip
    assert list(plan(made).activations) == ["e", "y"]


@pytest.mark.parametrize("operator", ["Transpose", "Sigmoid"])
def test_what_reads_a_float_tensor_beside_a_convolution_stays_in_float(operator: str) -> None:
    made = graph(
        [("Conv", "x w", "y"), (operator, "x", "t"), ("Erf", "t", "z")],
        {"w": floats(1, 4, 3, 3, 3)},
        outputs={**IMAGE, "z": [None, None, None, None]},
    )
    assert list(plan(made).integer) == ["n_y"]


def test_a_permutation_before_a_convolution_moves_integers() -> None:
    made = graph(
        [("Tanh", "x", "t"), ("Transpose", "t", "u", {"perm": [0, 1, 3, 2]}), ("Conv", "u w", "y")],
        {"w": floats(1, 4, 3, 3, 3)},
        outputs=IMAGE,
    )
    found = plan(made)
    assert set(found.integer) == {"n_u", "n_y"}
    assert found.activations["u"] is found.activations["t"]


def test_a_float_reader_of_a_float_tensor_reads_it_exactly() -> None:
    """The residual path of a transformer: only the matrix product reads the rounded tensor."""
    made = graph(
        [("Tanh", "x", "t"), ("MatMul", "t w", "m"), ("Erf", "m", "e"), ("Add", "t e", "y")],
        {"w": floats(1, 8, 8)},
        outputs={"y": ["N", 3, 8, 8]},
    )
    found = plan(made)
    assert list(found.activations) == ["t"]
    result = emit(made, found)
    assert next(node for node in result.graph.node if node.op_type == "Add").input[0] == "t"
    near(made, result, 30)


def test_a_subgraph_reads_what_it_did() -> None:
    """An If whose branches capture a convolution's output and a constant."""
    values = [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)]
    then = helper.make_graph([helper.make_node("Mul", ["c", "two"], ["r"])], "then", [], values)
    other = helper.make_graph([helper.make_node("Identity", ["c"], ["r"])], "other", [], values)
    made = graph(
        [
            ("Conv", "x w", "c"), ("ReduceSum", "x", "s", {"keepdims": 0}), ("Greater", "s zero", "p"),
            ("If", "p", "i", {"then_branch": then, "else_branch": other}), ("Conv", "i v", "y"),
        ],
        {
            "w": floats(1, 8, 3, 3, 3), "v": floats(2, 4, 8, 1, 1), "zero": np.array(0, np.float32),
            "two": np.array(2, np.float32),
        },
        outputs=IMAGE,
    )  # fmt: skip
    found = plan(made)
    assert "c" in found.activations
    result = emit(made, found)
    assert {"two", "zero"} <= {tensor.name for tensor in result.graph.initializer}
    near(made, result, 20)


@pytest.mark.parametrize("read", ["c", "z"])
def test_a_tensor_that_is_answer_and_input_at_once_is_one_tensor(read: str) -> None:
    made = graph(
        [("Conv", "x w", "c"), ("Relu", "c", "z"), ("Conv", f"{read} v", "y")],
        {"w": floats(1, 8, 3, 3, 3), "v": floats(2, 4, 8, 1, 1)},
        outputs={"y": ["N", 4, None, None], "c": ["N", 8, None, None], "z": ["N", 8, None, None]},
    )
    near(made, emit(made, plan(made)))


def test_a_weight_that_is_computed_leaves_its_node_in_float() -> None:
    made = graph([("Tanh", "w", "t"), ("Conv", "x t", "y")], {"w": floats(1, 4, 3, 3, 3)}, outputs=IMAGE)
    assert "not a float32 constant" in plan(made).left_float["n_y"]


def test_an_attention_mask_stays_in_float_and_is_named() -> None:
    mask = np.zeros((1, 1, 8, 8), np.float32)
    mask[..., 5:] = -10000
    made = graph(
        [
            ("MatMul", "x k", "q"), ("MatMul", "q q", "s"), ("Add", "s mask", "m"),
            ("Softmax", "m", "p", {"axis": -1}), ("MatMul", "p q", "y"),
        ],
        {"k": floats(1, 8, 8), "mask": mask},
        outputs={"y": ["N", 3, 8, 8]},
    )  # fmt: skip
    found = plan(made)
    assert "attention mask mask (up to 10000)" in found.left_float["n_m"]
    assert any(words.startswith("n_m stays in float") for words in found.decisions)
    assert "m" not in found.activations
    near(made, emit(made, found))


@pytest.mark.parametrize(("factor", "mixed"), [(640.0, True), (2.0, False)])
def test_a_head_of_mixed_ranges_stays_in_float_and_is_named(factor: float, mixed: bool) -> None:
    made = graph(
        [
            ("Conv", "x w", "a"), ("Conv", "x v", "b"), ("Sigmoid", "b", "p"), ("Mul", "a k", "c"),
            ("Concat", "c p", "y", {"axis": 1}),
        ],
        {"w": floats(1, 2, 3, 3, 3), "v": floats(2, 2, 3, 3, 3), "k": np.array(factor / 3, np.float32)},
        outputs=IMAGE,
    )  # fmt: skip
    found = plan(made)
    assert ("n_y" in found.left_float) is mixed
    assert ("y" in found.activations) is not mixed
    result = emit(made, found)
    if mixed:
        assert "head of mixed ranges" in found.left_float["n_y"]
        array = inputs(made, seed=6)
        assert sqnr_db(run(made, array)[0][:, 2:], run(result, array)[0][:, 2:]) > 25
    near(made, result)


def test_maxpool_below_opset_12_is_left_in_float() -> None:
    made = graph(
        [("Conv", "x w", "c"), ("MaxPool", "c", "m", {"kernel_shape": [2, 2]}), ("Conv", "m v", "y")],
        {"w": floats(1, 8, 3, 3, 3), "v": floats(2, 4, 8, 1, 1)},
        outputs=IMAGE,
        opset=11,
    )
    found = plan(made, parse("static_wi8_au8_pt_minmax"))
    assert "needs opset 12" in found.left_float["n_m"]
    near(made, emit(made, found))


@pytest.mark.parametrize(
    ("recipe", "opset", "code"),
    [(U8, 12, "recipe_opset"), ("static_wi8_au8_pt_minmax", 9, "recipe_opset"),
     ("static_wi16_au8_pt_minmax", 17, "recipe_type")],
)  # fmt: skip
def test_what_cannot_be_emitted_is_refused_by_name(recipe: str, opset: int, code: str) -> None:
    made = graph([("Conv", "x w", "y")], {"w": floats(1, 4, 3, 3, 3)}, outputs=IMAGE, opset=opset)
    with pytest.raises(RecipeError) as caught:
        plan(made, parse(recipe))
    assert caught.value.code == code


def test_a_tensor_without_a_range_leaves_its_nodes_in_float() -> None:
    found = material(chain())
    ranges = {name: span for name, span in found.calibration.ranges.items() if name != "r2"}
    made = make_plan(found, RECIPE, ranges)
    assert "no range is known of r2" in made.left_float["n_y"]


def test_scales_may_be_changed_in_the_plan() -> None:
    """What `converter.repair` does: another range for one tensor, and the bias follows no further."""
    made = chain()
    found = plan(made)
    changed: dict[str, QParams] = {**found.activations, "y": of_range(-9.0, 9.0, "u8")}
    result = emit(made, structs.replace(found, activations=changed))
    tensors = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}
    assert float(tensors["y_scale"]) == pytest.approx(18 / 255)


def test_an_accelerator_gets_everything_quantized() -> None:
    made = graph(
        [("Conv", "x w", "c"), ("HardSwish", "c", "h"), ("GlobalAveragePool", "h", "g"),
         ("Flatten", "g", "f"), ("Gemm", "f v", "y")],
        {"w": floats(1, 8, 3, 3, 3), "v": floats(2, 8, 4)},
        outputs=FLAT,
    )  # fmt: skip
    found = material(made)
    whole = make_plan(found, RECIPE, found.calibration.ranges, placement=ACCELERATOR)
    assert set(whole.activations) == {"x", "c", "h", "g", "f", "y"}
    assert whole.left_float == {}
    near(made, emit(made, whole), 15)
    narrowed = structs.replace(ACCELERATOR, operators=ACCELERATOR.operators - {"HardSwish"})
    some = make_plan(found, RECIPE, found.calibration.ranges, placement=narrowed)
    assert set(some.left_float) == {"n_h"}


def test_a_target_that_fuses_relu_gets_no_pair_before_it_and_float_biases() -> None:
    made, recipe = chain(), parse("static_wi8_ai8_pc_minmax_sym")
    found = material(made)
    wanted = structs.replace(ACCELERATOR, biases=False, fused_activations=True)
    fused = make_plan(found, recipe, found.calibration.ranges, placement=wanted)
    assert list(fused.activations) == ["x", "r1", "r2", "y"]
    assert fused.biases == {}
    result = emit(made, fused)
    relu = next(node for node in result.graph.node if node.op_type == "Relu")
    assert next(node for node in result.graph.node if relu.input[0] in node.output).op_type == "Conv"
    assert "v1" in {tensor.name for tensor in result.graph.initializer}
    near(made, result)


def test_the_audit_names_what_runs_in_float_and_why() -> None:
    """A convolution whose input is 16 bits wide has no integer kernel; one behind an island has no pair."""
    made = chain()
    found = audit(emit(made, plan(made, wide=frozenset({"r1"}))).SerializeToString(), {}, None)
    assert len(found.left_float) == found.float_multiplies > 0
    assert any("u16" in words for words in found.left_float)
    islands = emit(made, plan(made, islands=frozenset({"r1"})))
    found = audit(islands.SerializeToString(), {}, None)
    assert any("its input is float" in words for words in found.left_float)
    assert audit(made.SerializeToString(), {}, None).left_float == ()
