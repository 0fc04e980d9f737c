"""Real quantized graphs: error bounds, types, and recipes that do not suit a model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from converter.dataset import Samples
from converter.errors import RecipeError
from converter.fusion import audit, multiplications, widest_weight
from converter.passes import clean
from converter.quantize import Material, quantize
from converter.recipe import parse
from converter.runtime import open_session
from tests.converter.builders import answers, conv_net, images, material_of

_X86 = ("static_wi8_au8_pc_minmax", "static_wi8_au8_pt_minmax", "static_wi8_au8_pc_minmax_rr")
_ARM = ("static_wi8_ai8_pc_minmax", "static_wi8_ai8_pt_minmax", "static_wi8_ai8_pc_minmax_sym")


def _material(made: onnx.ModelProto, target: str = "x86_vnni") -> Material:
    array = images(40, seed=8)
    samples = Samples(path="here", sha256="0" * 64, arrays={"image": array}, data={}, n=len(array))
    return material_of(made, samples, target)


MODEL, _ = clean(conv_net())
MATERIAL = _material(MODEL)


def _weights(quantized: onnx.ModelProto) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Dequantized weight and scale (broadcast to its shape) by the FP32 weight's name."""
    tensors = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    found = {}
    for node in quantized.graph.node:
        name = node.input[0].removesuffix("_quantized")
        if node.op_type != "DequantizeLinear" or name not in {"w1", "w2", "w3"}:
            continue
        values, scale, zero = (tensors[key].astype(np.float64) for key in node.input)
        shape = [-1] + [1] * (values.ndim - 1) if scale.ndim else []
        wide = np.broadcast_to(scale.reshape(shape), values.shape)
        found[name] = ((values - zero.reshape(shape)) * wide, wide)
    return found


@pytest.mark.parametrize("recipe", [*_X86, *_ARM])
def test_no_weight_is_further_off_than_half_a_step(recipe: str) -> None:
    originals = {t.name: numpy_helper.to_array(t) for t in MODEL.graph.initializer}
    found = _weights(quantize(MATERIAL, parse(recipe)).model)
    assert set(found) == {"w1", "w2", "w3"}
    for name, (dequantized, scale) in found.items():
        assert (np.abs(dequantized - originals[name]) <= scale / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize("recipe", [*_X86, *_ARM])
def test_no_activation_within_its_range_is_further_off_than_half_a_step(recipe: str) -> None:
    """The graph's own QuantizeLinear and DequantizeLinear of `image`, run by the runtime."""
    quantized = quantize(MATERIAL, parse(recipe)).model
    quantizes = next(
        n for n in quantized.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "image"
    )
    back = next(n for n in quantized.graph.node if n.input[0] == quantizes.output[0])
    kept = [t for t in quantized.graph.initializer if t.name in quantizes.input]
    out = helper.make_tensor_value_info(back.output[0], onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph([quantizes, back], "pair", [quantized.graph.input[0]], [out], kept)
    pair = helper.make_model(graph, opset_imports=quantized.opset_import, ir_version=8)
    span = MATERIAL.calibration.ranges["image"]
    values = np.linspace(span.low, span.high, 64 * 20, dtype=np.float32).reshape(20, 1, 8, 8)
    found = open_session(pair.SerializeToString(), optimization="DISABLE_ALL").run(None, {"image": values})[0]
    scale = float(numpy_helper.to_array(next(t for t in kept if t.name == quantizes.input[1])))
    assert np.abs(found - values).max() <= scale / 2 * (1 + 1e-4)


@pytest.mark.parametrize(("recipe", "dtype"), [(_X86[0], "uint8"), (_ARM[0], "int8")])
def test_activations_have_the_type_that_the_name_says(recipe: str, dtype: str) -> None:
    quantized = quantize(MATERIAL, parse(recipe)).model
    tensors = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    zeros = [tensors[n.input[2]] for n in quantized.graph.node if n.op_type == "QuantizeLinear"]
    assert zeros
    assert {str(zero.dtype) for zero in zeros} == {dtype}


def test_a_reduced_range_keeps_to_seven_bits_where_sums_would_saturate_and_nowhere_else() -> None:
    full, made = quantize(MATERIAL, parse(_X86[0])), quantize(MATERIAL, parse(_X86[2]))
    assert (widest_weight(full.model) or 0) > 64
    tensors = {t.name: numpy_helper.to_array(t) for t in made.model.graph.initializer}
    widest = {
        name: int(np.abs(tensors[f"{name}_quantized"].astype(int)).max()) for name in ("w1", "w2", "w3")
    }
    assert widest == {"w1": 127, "w2": 127, "w3": 127}
    assert made.saturating == ()
    steps = np.abs(tensors["w1_quantized"].astype(int)).max(axis=(1, 2, 3))
    assert set(steps) == {64, 127}
    assert any("output channels of 1 of 3 layers" in words for words in made.decisions)
    assert widest_weight(MODEL) is None


def test_a_target_that_saturates_is_told_which_layers_do() -> None:
    made = quantize(_material(MODEL, "x86_avx2"), parse(_X86[0]))
    assert made.saturating is not None
    assert len(made.saturating) == 1
    assert "Conv_0" in made.saturating[0]
    assert quantize(MATERIAL, parse(_X86[0])).saturating is None


def test_symmetric_activations_have_their_zero_in_the_middle() -> None:
    quantized = quantize(MATERIAL, parse(_ARM[2])).model
    tensors = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    assert all(tensors[n.input[2]] == 0 for n in quantized.graph.node if n.op_type == "QuantizeLinear")


@pytest.mark.parametrize("recipe", [*_X86, *_ARM, "dynamic_wi8_af32"])
def test_quantized_answers_stay_near(recipe: str) -> None:
    exact = answers(MODEL, images(30))
    near = answers(quantize(MATERIAL, parse(recipe)).model, images(30))
    assert np.abs(near - exact).max() < 0.1 * np.abs(exact).max()


def test_qoperator_form_gives_the_answers_of_qdq_form() -> None:
    fused = quantize(MATERIAL, parse("static_wi8_au8_pc_minmax_qop")).model
    onnx.checker.check_model(fused)
    found = [node.op_type for node in fused.graph.node]
    assert found.count("QLinearConv") == 2
    assert found.count("QuantizeLinear") == 1
    assert {entry.domain for entry in fused.opset_import} == {"", "com.microsoft"}
    plain = quantize(MATERIAL, parse(_X86[0])).model
    assert np.array_equal(answers(fused, images(30)), answers(plain, images(30)))


def test_equal_input_gives_equal_bytes_and_the_model_is_untouched() -> None:
    before = MODEL.SerializeToString()
    for recipe in (_X86[0], "static_wi8_au8_pc_minmax_qop", "dynamic_wi8_af32"):
        first = quantize(MATERIAL, parse(recipe)).model.SerializeToString()
        assert quantize(MATERIAL, parse(recipe)).model.SerializeToString() == first
    assert MODEL.SerializeToString() == before


@pytest.mark.parametrize(
    ("recipe", "code"),
    [
        ("static_wi8_au16_pc_minmax_twin", "no_twin"),
        ("static_wu8_au8_pc_minmax_twin", "no_twin"),
        ("static_wi8_au8_pc_minmax_qop_twin", "no_twin"),
        ("dynamic_wi8_af32_bc", "recipe_extra"),
        ("static_wi4_au8_pc_minmax", "recipe_type"),
        ("weight_wi8_af32_g32", "recipe_type"),
        ("mixed_wi8_au8", "recipe_goal"),
    ],
)
def test_what_no_scheme_does_is_refused_by_name(recipe: str, code: str) -> None:
    with pytest.raises(RecipeError) as caught:
        quantize(MATERIAL, parse(recipe))
    assert caught.value.code == code


def test_per_channel_below_opset_13_is_refused() -> None:
    with pytest.raises(RecipeError, match="opset 13"):
        quantize(_material(conv_net(opset=11)), parse(_X86[0]))


def test_the_audit_counts_what_runs() -> None:
    work = multiplications(MODEL)
    assert work == {"w1": 64 * 8 * 9, "w2": 64 * 8 * 9, "w3": 4 * 8}
    full = audit(quantize(MATERIAL, parse(_X86[0])).model.SerializeToString(), {}, work)
    assert full.int8_fraction == 1.0
    assert full.float_multiplies == 0
    assert full.fusion.integer >= 3
    plain = audit(MODEL.SerializeToString(), {}, work)
    assert plain.int8_fraction == 0.0
    assert plain.fusion.integer == 0
    assert plain.fusion.float >= 3
    assert plain.fusion.qdq_left == 0


def test_dynamic_quantization_leaves_float_work_between_integer_kernels() -> None:
    found = audit(quantize(MATERIAL, parse("dynamic_wi8_af32")).model.SerializeToString(), {}, None)
    assert found.fusion.integer == 3
    assert found.fusion.float > 0
    assert found.int8_fraction is None
