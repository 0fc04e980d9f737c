"""Random networks as TFLite: in float against ONNX's reference evaluator, in INT8 against ONNX Runtime."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from converter.quantize import quantize
from converter.recipe import parse
from converter.tflite import Options, write
from converter.tflite.parity import prove
from tests.converter.quantizing import floats, inputs, material
from tests.converter.tflite.growing import grown
from tests.converter.tflite.harness import Session

_SHAPES = [(1, 4, 6, 6), (1, 3, 5, 8), (1, 6, 7), (1, 12)]
_CHOICES = st.lists(st.integers(0, 999), min_size=1, max_size=9)
_SEEDS = st.integers(0, 2**31)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=_SEEDS, choices=_CHOICES, shape=st.sampled_from(_SHAPES), batch=st.integers(1, 3))
def test_float_is_onnx(seed: int, choices: list[int], shape: tuple[int, ...], batch: int) -> None:
    made = grown(seed, choices, shape)
    feeds = {"x": floats(seed, batch, *shape[1:], scale=1.0)}
    (wanted,) = ReferenceEvaluator(made).run(None, feeds)
    written = write(made, Options(batch=batch))
    got = Session(written).run(feeds)[made.graph.output[0].name]
    assert got.shape == wanted.shape
    scale = float(np.abs(wanted).max(initial=1e-6))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * scale)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=_SEEDS, choices=_CHOICES, shape=st.sampled_from(_SHAPES),
    recipe=st.sampled_from(["static_wi8_ai8_pc_minmax_twin", "static_wi8_au8_pc_minmax_twin"]),
)  # fmt: skip
def test_a_twin_is_within_a_step(seed: int, choices: list[int], shape: tuple[int, ...], recipe: str) -> None:
    made = grown(seed, choices, shape)
    twin = quantize(material(made), parse(recipe)).model
    proof = prove(twin, [{"x": one[None]} for one in inputs(made, 2)])
    assert proof.scales.exceptions == ()
    assert {node.verdict for node in proof.nodes} <= {"equal", "one_step"}
    if proof.count("equal") == len(proof.nodes):
        assert proof.end.first_divergence is None
        assert proof.end.tensors_equal == proof.end.tensors
