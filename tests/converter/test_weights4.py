"""Four-bit weights: the arithmetic against the runtime's own kernels, and what each algorithm promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from converter.dataset import Samples
from converter.errors import RecipeError
from converter.model import signature
from converter.passes import clean
from converter.quantize import quantize
from converter.quantize.weights.awq import search
from converter.quantize.weights.blocks import LEVELS_MAX, grid, in_blocks, round_to_nearest
from converter.quantize.weights.gptq import gptq
from converter.quantize.weights.gram import Gram, collect_grams
from converter.quantize.weights.hqq import half_quadratic
from converter.recipe import parse
from converter.runtime import open_session
from tests.converter.builders import CLASSES, answers, conv_net, images, material_of, model, weights

METHODS = ("rtn", "hqq", "gptq", "awq")


def _samples(loud: float = 1.0) -> Samples:
    array = images(60, seed=8)
    array[:, :, 0, :2] *= np.float32(loud)
    return Samples(path="here", sha256="0" * 64, arrays={"image": array}, data={}, n=len(array))


def _matrix_net(*, gemm: bool = False) -> onnx.ModelProto:
    """Flatten, a product with 64 x 40, Relu, a product with 40 x 4: columns that do not fill a block."""
    rng = np.random.default_rng(6)
    constants = [weights(rng, "w1", 64, 40), weights(rng, "w2", 40, CLASSES), weights(rng, "b2", CLASSES)]
    last = (
        [helper.make_node("Gemm", ["r", "w2", "b2"], ["logits"])]
        if gemm
        else [
            helper.make_node("MatMul", ["r", "w2"], ["m2"]),
            helper.make_node("Add", ["m2", "b2"], ["logits"]),
        ]
    )
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w1"], ["m1"]),
        helper.make_node("Relu", ["m1"], ["r"]),
        *last,
    ]
    made, _ = clean(model(nodes, constants, 17))
    return made


def _weight(seed: int, rows: int, columns: int, spread: float = 1.0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, spread, (rows, columns)).astype(np.float32)


def _gram(seed: int, columns: int, n: int = 400) -> Gram:
    """Of correlated inputs, some of them loud."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(0, 1, (n, columns)) @ rng.normal(0, 1, (columns, columns)) / columns**0.5
    mixed[:, :3] *= 20.0
    rows = mixed.astype(np.float32)
    return Gram(matrix=rows.T @ rows, n=n)


@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 70), st.sampled_from([16, 32, 64]))
def test_nothing_is_further_off_than_half_a_step(seed: int, rows: int, columns: int, block: int) -> None:
    weight = _weight(seed, rows, columns)
    made = round_to_nearest(weight, block)
    scale = np.repeat(made.scale, block, axis=1)[:, :columns]
    # The zero point is rounded too, so that either end of a block may lie half a step further out.
    assert (np.abs(made.dequantized() - weight) <= scale * (1 + 1e-4)).all()
    assert made.dequantized().shape == weight.shape
    assert int(made.values.max()) <= LEVELS_MAX


@given(st.integers(0, 99))
def test_zero_stays_zero(seed: int) -> None:
    weight = _weight(seed, 4, 32)
    weight[:, ::5] = 0.0
    assert (round_to_nearest(weight, 16).dequantized()[:, ::5] == 0.0).all()
    assert (half_quadratic(weight, 16).dequantized()[:, ::5] == 0.0).all()


@pytest.mark.parametrize("weight", [np.zeros((2, 32)), np.full((2, 32), 1e-42), np.full((2, 32), 3e37)])
def test_odd_blocks_stay_finite(weight: NDArray[Any]) -> None:
    for made in (
        round_to_nearest(weight.astype(np.float32), 16),
        half_quadratic(weight.astype(np.float32), 16),
    ):
        assert np.isfinite(made.dequantized()).all()


@pytest.mark.parametrize("gemm", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("block", [16, 32])
def test_the_runtime_computes_what_the_blocks_stand_for(method: str, block: int, *, gemm: bool) -> None:
    made = _matrix_net(gemm=gemm)
    material = material_of(made, _samples())
    quantized = quantize(material, parse(f"weight_wi4_af32_g{block}_{method}")).model
    assert [n.op_type for n in quantized.graph.node].count("MatMulNBits") == 2
    assert {t.name for t in quantized.graph.initializer} & {"w1", "w2"} == set()
    exact, near = answers(made, images(20)), answers(quantized, images(20))
    assert np.abs(near - exact).max() < 0.25 * np.abs(exact).max()
    if method == "rtn":
        flat = images(20).reshape(20, -1)
        constants = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
        mine = [round_to_nearest(np.ascontiguousarray(constants[w].T), block) for w in ("w1", "w2")]
        expected = np.maximum(flat @ mine[0].dequantized().T, 0) @ mine[1].dequantized().T + constants["b2"]
        assert np.abs(near - expected).max() < 1e-4 * np.abs(expected).max()


@settings(max_examples=20)
@given(st.integers(0, 200), st.sampled_from([16, 32]))
def test_gptq_keeps_the_outputs_better_than_rounding(seed: int, block: int) -> None:
    weight, gram = _weight(seed, 12, 70), _gram(seed + 1, 70)
    plain = gram.error(weight - round_to_nearest(weight, block).dequantized())
    made = gptq(weight, block, gram)
    assert gram.error(weight - made.dequantized()) < 0.8 * plain
    assert made.dequantized().shape == weight.shape


def test_gptq_carries_errors_beyond_one_batch_of_columns() -> None:
    """200 columns are two batches; rounding each alone would leave the second blind to the first's errors."""
    weight, gram = _weight(4, 6, 200), _gram(5, 200, n=2000)
    whole = gptq(weight, 32, gram)
    parts = [
        gptq(weight[:, a:b], 32, Gram(matrix=gram.matrix[a:b, a:b], n=gram.n))
        for a, b in ((0, 128), (128, 200))
    ]
    apart = np.concatenate([part.dequantized() for part in parts], axis=1)
    assert gram.error(weight - whole.dequantized()) < 0.9 * gram.error(weight - apart)


def test_gptq_bears_inputs_that_were_never_seen() -> None:
    weight = _weight(3, 8, 32)
    silent = np.zeros((32, 32), dtype=np.float32)
    assert np.isfinite(gptq(weight, 16, Gram(matrix=silent, n=10)).dequantized()).all()
    one = np.outer(np.ones(32), np.ones(32)).astype(np.float32)
    assert np.isfinite(gptq(weight, 16, Gram(matrix=one, n=1)).dequantized()).all()


@settings(max_examples=20)
@given(st.integers(0, 200))
def test_half_quadratic_never_loses_in_its_own_norm(seed: int) -> None:
    weight = _weight(seed, 8, 64)
    weight[:, 5] *= 12.0

    def norm(near: NDArray[np.float32]) -> float:
        return float((np.abs(weight - near) ** 0.7).sum())

    assert norm(half_quadratic(weight, 32).dequantized()) <= norm(round_to_nearest(weight, 32).dequantized())


def test_half_quadratic_wins_where_outliers_are() -> None:
    weight = _weight(1, 64, 64)
    weight[:, 5] = 14.0
    near = half_quadratic(weight, 64).dequantized()
    plain = round_to_nearest(weight, 64).dequantized()
    assert (np.abs(weight - near) ** 0.7).sum() < (np.abs(weight - plain) ** 0.7).sum()


def test_aware_scales_help_where_inputs_are_uneven_and_only_there() -> None:
    weight = _weight(5, 24, 64)
    loud = _gram(7, 64)
    scales, exponent = search([weight], 32, loud)
    assert exponent > 0
    assert scales[:3].min() > scales[3:].max()
    even = Gram(matrix=np.eye(64, dtype=np.float32), n=1)
    scales, exponent = search([weight], 32, even)
    assert exponent == 0.0
    assert (scales == 1.0).all()


def test_aware_scales_are_shared_by_all_that_read_an_input() -> None:
    rng = np.random.default_rng(6)
    constants = [weights(rng, "w1", 64, CLASSES), weights(rng, "w2", 64, CLASSES)]
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w1"], ["m1"]),
        helper.make_node("MatMul", ["flat", "w2"], ["m2"]),
        helper.make_node("Sub", ["m1", "m2"], ["logits"]),
    ]
    made, _ = clean(model(nodes, constants, 17))
    found = quantize(material_of(made, _samples(loud=30.0)), parse("weight_wi4_af32_g32_awq"))
    assert [n.op_type for n in found.model.graph.node].count("Mul") == 1
    assert "scales on 1 of 1 inputs" in found.decisions[0]
    plain = quantize(material_of(made, _samples(loud=30.0)), parse("weight_wi4_af32_g32_rtn")).model
    seen = _samples(loud=30.0).arrays["image"]
    exact = answers(made, seen)
    aware, rounding = (np.abs(answers(m, seen) - exact).mean() for m in (found.model, plain))
    assert aware < rounding


def test_a_shared_matrix_is_stored_once() -> None:
    rng = np.random.default_rng(6)
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["m1"]),
        helper.make_node("Relu", ["m1"], ["r1"]),
        helper.make_node("MatMul", ["r1", "w"], ["m2"]),
        helper.make_node("MatMul", ["m2", "v"], ["logits"]),
    ]
    made, _ = clean(model(nodes, [weights(rng, "w", 64, 64), weights(rng, "v", 64, CLASSES)], 17))
    material = material_of(made, _samples())
    plain = quantize(material, parse("weight_wi4_af32_g32_rtn")).model
    assert sum(t.name.startswith("w_quantized") for t in plain.graph.initializer) == 1
    aware = quantize(material, parse("weight_wi4_af32_g32_gptq")).model
    assert sum(t.name.startswith("w_quantized") for t in aware.graph.initializer) == 2
    assert np.isfinite(answers(aware, images(4))).all()


def test_a_large_table_is_quantized_too() -> None:
    rng = np.random.default_rng(2)
    constants = [weights(rng, "table", 300, 24), weights(rng, "w", 24, CLASSES)]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes, "table", [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])], constants,
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    material = material_of(conv_net(), _samples())
    whole = type(material)(
        model=made, calibration=material.calibration, samples=material.samples,
        signature=material.signature, rules=material.rules,
    )  # fmt: skip
    quantized = quantize(whole, parse("weight_wi4_af32_g16"))
    assert "table table (300 rows)" in quantized.decisions[0]
    ids = np.arange(300, dtype=np.int64)
    exact, near = (
        open_session(one.SerializeToString()).run(None, {"ids": ids})[0] for one in (made, quantized.model)
    )
    assert np.abs(near - exact).max() < 0.25 * np.abs(exact).max()
    assert quantized.model.ByteSize() < 0.35 * made.ByteSize()


@pytest.mark.parametrize(
    ("recipe", "code"),
    [
        ("weight_wi4_af32_g48_rtn", "recipe_granularity"),
        ("weight_wi4_af32_pc", "recipe_granularity"),
        ("weight_wi8_af32_g32", "recipe_type"),
        ("weight_wi4_af32_g32_rtn_bc", "recipe_extra"),
    ],
)
def test_what_the_scheme_does_not_do_is_refused(recipe: str, code: str) -> None:
    with pytest.raises(RecipeError) as caught:
        quantize(material_of(_matrix_net(), _samples()), parse(recipe))
    assert caught.value.code == code


def test_a_model_without_matrices_is_refused() -> None:
    cleaned, _ = clean(conv_net())
    for node in list(cleaned.graph.node):
        if node.op_type == "Gemm":
            node.attribute.append(helper.make_attribute("alpha", 0.5))
    with pytest.raises(RecipeError) as caught:
        quantize(material_of(cleaned, _samples()), parse("weight_wi4_af32_g32"))
    assert caught.value.code == "weights_none"


def test_the_gram_is_that_of_all_rows() -> None:
    made = _matrix_net()
    samples = _samples()
    found = collect_grams(made, {"flat": 64, "r": 40}, samples, signature(made))
    rows = samples.arrays["image"].reshape(samples.n, -1)
    assert found["flat"].n == samples.n
    assert np.allclose(found["flat"].matrix, rows.T @ rows, rtol=1e-4, atol=1e-3)
    delta = _weight(9, 3, 64)
    assert found["flat"].error(delta) == pytest.approx(float(((rows @ delta.T) ** 2).sum()), rel=1e-3)


def test_a_gram_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _matrix_net()
    monkeypatch.setattr("converter.quantize.weights.gram.GRAM_BYTES_MAX", 64 * 64 * 4)
    several = collect_grams(made, {"flat": 64, "r": 40}, _samples(), signature(made))
    assert set(several) == {"flat", "r"}
    with pytest.raises(RecipeError) as caught:
        collect_grams(made, {"flat": 65}, _samples(), signature(made))
    assert caught.value.code == "gram_too_large"


def test_grids_hold_zero() -> None:
    scale, zero = grid(in_blocks(np.full((1, 16), 5.0, dtype=np.float32), 16))
    assert zero[0, 0] == 0
    assert scale[0, 0] == pytest.approx(5.0 / 15)
