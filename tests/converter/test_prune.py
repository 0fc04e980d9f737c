"""Magnitude pruning: exactly the smallest go, the rest of the recipe is done, and nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from converter.dataset import Samples
from converter.errors import RecipeError
from converter.lossless import entropy_bytes
from converter.passes import clean
from converter.quantize import quantize
from converter.quantize.prune import pruned
from converter.recipe import format_recipe, parse
from tests.converter.builders import CLASSES, answers, conv_net, images, material_of, model, weights


def _dense() -> onnx.ModelProto:
    rng = np.random.default_rng(6)
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w1"], ["m1"]),
        helper.make_node("Relu", ["m1"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["logits"]),
    ]
    constants = [weights(rng, "w1", 64, 40), weights(rng, "w2", 40, CLASSES), weights(rng, "b2", CLASSES)]
    made, _ = clean(model(nodes, constants, 17))
    return made


def _array(made: onnx.ModelProto, name: str) -> NDArray[np.float32]:
    array: NDArray[np.float32] = numpy_helper.to_array(
        next(t for t in made.graph.initializer if t.name == name)
    )
    return array


@given(st.integers(1, 99))
def test_the_smallest_go_and_the_rest_stay(percent: int) -> None:
    before = _dense()
    after, changed = pruned(before, percent)
    old, new = _array(before, "w1"), _array(after, "w1")
    gone = new == 0.0
    assert changed == 1  # w2 has 160 elements, fewer than are pruned
    assert gone.sum() == old.size * percent // 100
    assert np.array_equal(new[~gone], old[~gone])
    assert np.abs(old[gone]).max() <= np.abs(old[~gone]).min()
    assert np.array_equal(_array(after, "w2"), _array(before, "w2"))
    assert before.SerializeToString() == _dense().SerializeToString()


def _samples() -> Samples:
    array = images(40, seed=8)
    return Samples(path="here", sha256="0" * 64, arrays={"image": array}, data={}, n=len(array))


@pytest.mark.parametrize("name", ["float_wf32_af32_prune30", "static_wi8_au8_pc_minmax_prune30"])
def test_a_pruned_candidate_keeps_its_whole_name_and_shrinks_when_coded(name: str) -> None:
    material = material_of(_dense(), _samples())
    made = quantize(material, parse(name))
    assert made.recipe is not None
    assert format_recipe(made.recipe) == name
    assert "smallest 30% of 1 weights" in made.decisions[0]
    plain = quantize(material, parse(name.removesuffix("_prune30"))).model
    assert entropy_bytes(made.model) < entropy_bytes(plain)
    exact, near = answers(material.model, images(20)), answers(made.model, images(20))
    assert 0 < np.abs(near - exact).max() < 0.5 * np.abs(exact).max()


def test_without_a_large_weight_there_is_no_candidate() -> None:
    cleaned, _ = clean(conv_net())
    with pytest.raises(RecipeError) as caught:
        quantize(material_of(cleaned, _samples()), parse("float_wf32_af32_prune30"))
    assert caught.value.code == "prune_nothing"
