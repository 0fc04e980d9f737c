"""The switchboard computes what the emitted graph computes, and FP32 where nothing is quantized."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from converter.dataset import Samples
from converter.model import signature
from converter.passes import clean
from converter.quantize import quantize
from converter.recipe import parse
from converter.repair.effects import agreement, decibels, effect, noise_by_sample
from converter.repair.switchboard import (
    OPEN,
    Assignment,
    FakeQuant,
    Switchboard,
    activation_bytes,
    batch_size,
)
from converter.runtime import open_session
from tests.converter.builders import (
    CLASSES,
    Floats,
    answers,
    batch_norm_net,
    conv_net,
    images,
    material_of,
    weights,
)
from tests.converter.repairing import outlier_net, read_assignment, samples_of

_NOTHING = Assignment(activations={}, weights={})


def _board(made: onnx.ModelProto, full: Assignment, array: Floats) -> Switchboard:
    return Switchboard(
        made,
        samples_of(array),
        signature(made),
        tensors=frozenset(full.activations),
        weights=frozenset(full.weights),
    )


@pytest.mark.parametrize(
    "recipe", ["static_wi8_au8_pc_minmax", "static_wi8_ai8_pt_minmax", "static_wi8_au8_pc_minmax_rr"]
)
@pytest.mark.parametrize("net", [conv_net, batch_norm_net, lambda: outlier_net(5, 40.0)])
def test_it_agrees_with_the_emitted_graph(net: object, recipe: str) -> None:
    made, _ = clean(net())  # type: ignore[operator]
    array = images(48)
    emitted = quantize(material_of(made, samples_of(array)), parse(recipe)).model
    full = read_assignment(emitted, made)
    assert len(full.activations) >= 4
    assert len(full.weights) >= 2
    board = _board(made, full, array)
    found = board.outputs(full)
    exact = {"logits": answers(emitted, array)}
    assert agreement(exact["logits"], found["logits"]) == 1.0
    between = decibels(float(noise_by_sample(exact, found).mean()))
    to_float = decibels(float(noise_by_sample(exact, board.reference).mean()))
    assert between > to_float + 10
    assert between > 35


def test_open_everywhere_is_the_float_model_bit_for_bit() -> None:
    made = conv_net()
    array = images(5)
    full = Assignment(activations=dict.fromkeys(["image", "r1", "c2", "logits"], OPEN), weights={})
    board = _board(made, full, array)
    assert board.tensors == ("image", "r1", "c2", "logits")
    plain = answers(made, array)
    np.testing.assert_allclose(board.reference["logits"], plain, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(board.outputs(full)["logits"], board.reference["logits"])
    assert board.evaluations == 1


def test_one_switch_changes_one_tensor_and_it_is_put_back() -> None:
    made = conv_net()
    coarse = FakeQuant(step=0.5, low=-2.0, high=2.0)
    full = Assignment(
        activations={"r1": FakeQuant(step=9.0, low=0.0, high=1.0), "logits": coarse}, weights={}
    )
    board = _board(made, full, images(6))
    only = board.outputs(Assignment(activations={"logits": coarse}, weights={}))["logits"]
    expected = np.clip(np.round(board.reference["logits"] / 0.5), -2, 2) * 0.5
    np.testing.assert_allclose(only, expected, atol=1e-6)
    assert not np.array_equal(board.outputs(full)["logits"], only)
    np.testing.assert_array_equal(board.outputs(_NOTHING)["logits"], board.reference["logits"])


def test_weights_are_what_is_fed() -> None:
    made = conv_net()
    zeros = np.zeros((CLASSES, 8), dtype=np.float32)
    full = Assignment(activations={}, weights={"w3": zeros})
    board = _board(made, full, images(3))
    bias = numpy_helper.to_array(next(t for t in made.graph.initializer if t.name == "b3"))
    np.testing.assert_allclose(board.outputs(full)["logits"], np.tile(bias, (3, 1)), atol=1e-6)


def test_what_has_no_switch_is_refused() -> None:
    board = _board(conv_net(), Assignment(activations={"r1": OPEN}, weights={}), images(2))
    with pytest.raises(KeyError, match="nowhere"):
        board.outputs(Assignment(activations={"nowhere": OPEN}, weights={}))
    with pytest.raises(KeyError, match="w1"):
        board.outputs(Assignment(activations={}, weights={"w1": np.zeros(1, dtype=np.float32)}))


@settings(max_examples=40, deadline=None)
@given(
    exponent=st.integers(-12, 8), mantissa=st.floats(1, 1.999), zero=st.integers(0, 255),
    signed=st.booleans(), values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40),
)  # fmt: skip
def test_the_fake_quantizer_is_onnx_own_pair(
    exponent: int, mantissa: float, zero: int, signed: bool, values: list[float]
) -> None:
    """Against ONNX's reference evaluator, one tensor of any values, any scale and zero point."""
    scale = np.float32(mantissa * 2.0**exponent)
    dtype = np.int8 if signed else np.uint8
    point = np.array(zero - 128 * signed, dtype=dtype)
    kind = np.iinfo(dtype)
    low, high = float(kind.min - int(point)), float(kind.max - int(point))
    x = np.array(values, dtype=np.float32).reshape(1, -1)
    fake = _identity(x.shape[1])
    board = Switchboard(fake, samples_of_x(x), signature(fake), tensors=frozenset({"x"}), weights=frozenset())
    found = board.outputs(
        Assignment(activations={"x": FakeQuant(step=float(scale), low=low, high=high)}, weights={})
    )
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(np.array(scale), "s"), numpy_helper.from_array(point, "z")]
    pair = _model(nodes, tensors, x.shape[1])
    expected = ReferenceEvaluator(pair).run(None, {"x": x})[0]
    np.testing.assert_array_equal(found["y"], expected)


def samples_of_x(x: Floats) -> Samples:
    return Samples(path="here", sha256="0" * 64, arrays={"x": x}, data={}, n=len(x))


def _identity(size: int) -> onnx.ModelProto:
    return _model([helper.make_node("Identity", ["x"], ["y"])], [], size)


def _model(nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto], size: int) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", size])
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def test_a_model_of_fixed_batch_and_a_reused_input_run_too() -> None:
    made = conv_net(batch=1)
    made.graph.node.append(helper.make_node("ReduceMean", ["image"], ["m"], axes=[1, 2, 3], keepdims=0))
    full = Assignment(activations={"image": FakeQuant(step=0.01, low=-128, high=127)}, weights={})
    board = _board(made, full, images(3))
    assert board.reference["logits"].shape == (3, CLASSES)
    assert 0 < noise_by_sample(board.reference, board.outputs(full)).max() < 1e-2


def test_samples_are_an_even_spread_and_labels_go_with_them() -> None:
    made = conv_net()
    array = images(10)
    samples = samples_of(array)
    board = Switchboard(
        made, samples, signature(made), tensors=frozenset(), weights=frozenset(), samples_max=4
    )
    assert board.n == 4
    np.testing.assert_allclose(
        board.reference["logits"], answers(made, array)[[0, 2, 5, 7]], rtol=1e-4, atol=1e-5
    )
    assert board.labels is None


def test_batches_are_bounded_in_bytes() -> None:
    assert batch_size(None, 100) == 16
    assert batch_size(32 * 1024**2, 100) == 1
    assert batch_size(1024**2, 100) == 10
    assert batch_size(1, 7) == 7
    assert activation_bytes(conv_net()) == 4 * (64 + 4 * 8 * 64 + 8 + 8 + 4)
    open_shape = conv_net()
    open_shape.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    assert activation_bytes(open_shape) is None


def test_effects_are_measured_against_float() -> None:
    reference = {"y": np.array([[3.0, 4.0], [0.0, 5.0]], dtype=np.float32)}
    same = effect(reference, reference, "y")
    assert (same.sqnr_db, same.agreement) == (200.0, 1.0)
    off = {"y": np.array([[4.0, 3.0], [0.0, 5.0]], dtype=np.float32)}
    np.testing.assert_allclose(noise_by_sample(reference, off), [1.0 / 12.5, 0.0])
    found = effect(reference, off, "y")
    assert found.agreement == 0.5
    assert found.sqnr_db == pytest.approx(10 * np.log10(25.0))
    broken = {"y": np.full((2, 2), np.nan, dtype=np.float32)}
    assert np.isfinite(noise_by_sample(reference, broken)).all()
    assert effect(reference, broken, "y").sqnr_db < -1000


def test_an_answer_of_one_column_has_no_agreement() -> None:
    column = np.ones((3, 1), dtype=np.float32)
    assert agreement(column, column) is None


def test_a_session_of_the_float_model_gives_the_same_reference() -> None:
    rng = np.random.default_rng(1)
    made = _model([helper.make_node("MatMul", ["x", "w"], ["y"])], [weights(rng, "w", 3, 3)], 3)
    x = rng.normal(0, 1, (4, 3)).astype(np.float32)
    board = Switchboard(
        made, samples_of_x(x), signature(made), tensors=frozenset({"x", "w"}), weights=frozenset({"w"})
    )
    assert board.tensors == ("x",), "a constant gets no fake quantizer"
    np.testing.assert_allclose(
        board.reference["y"], open_session(made.SerializeToString()).run(None, {"x": x})[0], rtol=1e-5
    )
