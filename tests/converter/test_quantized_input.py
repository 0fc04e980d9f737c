"""Q/DQ models: recognised, summarised, and their float twin computes what they stand for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from converter.passes.walk import QDQ, View
from converter.quantized_input import dequantized, describe, is_quantized
from converter.runtime import open_session
from tests.converter.zoo import Array, Net, samples_of
from tests.converter.zoo_layers import residual
from tests.converter.zoo_odd import quantized_aware, quantized_stored


def _answers(model: onnx.ModelProto, feeds: dict[str, Array] | None = None) -> Array:
    feeds = samples_of(model, 4) if feeds is None else feeds
    # As it is written: onnxruntime's own fusions of DQ and MatMul compute in 8 bits.
    found: Array = open_session(model.SerializeToString(), optimization="DISABLE_ALL").run(None, feeds)[0]
    return found


def _value(view: View, name: str) -> Array:
    found = view.array(name)
    assert found is not None
    return found


def _pair(net: Net, x: str, scale: float, zero: int, dtype: type = np.uint8) -> str:
    parts = (net.constant(scale), net.constant(zero, dtype))
    return net.op("DequantizeLinear", net.op("QuantizeLinear", x, *parts), *parts)


def test_a_float_model_is_not_quantized() -> None:
    assert not is_quantized(residual())
    assert describe(residual()) is None


def test_a_qat_export_is_summarised() -> None:
    found = describe(quantized_aware())
    assert found is not None
    assert (found.opset, found.quantize, found.dequantize) == (17, 5, 5)
    assert (found.activation_types, found.weight_types, found.bias_types) == (("int8",), ("int8",), ())
    assert (found.activations_symmetric, found.weights_symmetric) == (True, True)
    assert (found.weight_axes, found.weights_blocked) == ((0,), 0)
    assert found.float_multiplies == {"Gemm": 1}


def test_a_stored_qdq_model_is_summarised() -> None:
    found = describe(quantized_stored())
    assert found is not None
    assert (found.quantize, found.dequantize) == (2, 4)
    assert (found.activation_types, found.weight_types) == (("uint8",), ("int8",))
    assert found.bias_types == ("int32",)
    assert (found.activations_symmetric, found.weights_symmetric) == (False, True)
    assert found.weight_axes == ()


def test_pairs_in_a_subgraph_are_seen() -> None:
    net = Net()
    x = net.input("features", "N", 4)
    net.constant(0.1, name="scale")
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 4])
    nodes = [
        helper.make_node("QuantizeLinear", [x, "scale"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["out"]),
    ]
    same = helper.make_tensor_value_info("same", TensorProto.FLOAT, ["N", 4])
    other = helper.make_graph([helper.make_node("Identity", [x], ["same"])], "other", [], [same])
    branch = helper.make_graph(nodes, "then", [], [out])
    true = net.constant(True, np.bool_)
    net.answer(net.op("If", true, then_branch=branch, else_branch=other))
    assert is_quantized(net.model())


@pytest.mark.parametrize("build", [quantized_aware, quantized_stored])
def test_the_twin_is_float_and_close(build: object) -> None:
    made = build() if callable(build) else onnx.ModelProto()
    before = made.SerializeToString()
    twin, said = dequantized(made)
    assert made.SerializeToString() == before
    assert "float twin" in said
    assert not is_quantized(twin)
    onnx.checker.check_model(twin, full_check=True)
    # Inputs of a quarter of the Q's range: what remains is rounding, here at most 3% of the answers.
    feeds = {name: array / 4 for name, array in samples_of(made, 4).items()}
    old, new = _answers(made, feeds), _answers(twin, feeds)
    assert np.abs(old - new).max() <= 0.05 * np.abs(new).max()
    assert not np.array_equal(old, new)


def test_stored_weights_become_what_the_runtime_makes_of_them() -> None:
    made = quantized_stored()
    view = View(made)
    conv = next(node for node in made.graph.node if node.op_type == "Conv")
    del made.graph.output[:]
    for name, kind in ((conv.input[1], TensorProto.FLOAT), (conv.input[2], TensorProto.FLOAT)):
        made.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    weight, bias = open_session(made.SerializeToString()).run(None, samples_of(made, 1))
    twin, _ = dequantized(quantized_stored())
    conv = next(node for node in twin.graph.node if node.op_type == "Conv")
    found = View(twin)
    np.testing.assert_allclose(_value(found, conv.input[1]), weight, rtol=1e-6)
    np.testing.assert_allclose(_value(found, conv.input[2]), bias, rtol=1e-6)
    assert view.reads[conv.input[1]] == 0


@pytest.mark.parametrize("opset", [10, 17])
def test_a_relu_that_its_q_took_in_is_put_back(opset: int) -> None:
    net = Net(opset=opset, ir_version=5)
    x = net.op("MatMul", net.input("features", "N", 6), net.weight(6, 4))
    net.answer(_pair(net, x, 0.01, 0))
    made = net.model()
    twin, said = dequantized(made)
    assert "Clip" in said
    onnx.checker.check_model(twin, full_check=True)
    found = _answers(twin, samples_of(made, 8))
    assert found.min() == 0.0
    np.testing.assert_allclose(found, _answers(made, samples_of(made, 8)), atol=0.006)


def test_a_relu_that_is_there_needs_no_clip() -> None:
    net = Net()
    x = net.op("Relu", net.op("MatMul", net.input("features", "N", 6), net.weight(6, 4)))
    net.answer(_pair(net, x, 0.01, 0))
    twin, said = dequantized(net.model())
    assert "Clip" not in said
    assert [node.op_type for node in twin.graph.node] == ["MatMul", "Relu"]


def test_a_q_around_zero_is_no_relu() -> None:
    net = Net()
    x = net.op("MatMul", net.input("features", "N", 6), net.weight(6, 4))
    net.answer(_pair(net, x, 0.05, 0, np.int8))
    twin, said = dequantized(net.model())
    assert "Clip" not in said
    assert [node.op_type for node in twin.graph.node] == ["MatMul"]


@pytest.mark.parametrize("axis", [0, 1])
def test_stored_weights_take_their_own_channels_scale(axis: int) -> None:
    net = Net()
    weight = net.constant(net.rng.integers(-127, 128, (4, 4)), np.int8)
    scale = net.constant(net.rng.uniform(0.01, 0.1, 4))
    dq = net.op("DequantizeLinear", weight, scale, net.constant([1, 2, 3, 4], np.int8), axis=axis)
    net.answer(net.op("MatMul", net.input("features", "N", 4), dq))
    made = net.model()
    found = describe(made)
    assert found is not None
    assert (found.weight_axes, found.weights_symmetric, found.activations_symmetric) == ((axis,), False, None)
    np.testing.assert_allclose(_answers(dequantized(made)[0]), _answers(made), rtol=1e-5)


def test_operators_between_q_and_dq_run_in_float() -> None:
    net = Net()
    parts = (net.constant(0.05), net.constant(0, np.int8))
    x = net.op("QuantizeLinear", net.input("features", "N", 4, 3), *parts)
    x = net.op("Reshape", net.op("Transpose", x, perm=[0, 2, 1]), net.ints(-1, 12))
    net.answer(net.op("MatMul", net.op("DequantizeLinear", x, *parts), net.weight(12, 4)))
    twin, _ = dequantized(net.model())
    assert [node.op_type for node in twin.graph.node] == ["Transpose", "Reshape", "MatMul"]
    np.testing.assert_allclose(_answers(twin), _answers(net.model()), atol=0.2)


def test_integer_inputs_and_outputs_keep_theirs() -> None:
    net = Net()
    parts = (net.constant(0.05), net.constant(0, np.int8))
    x = net.op("DequantizeLinear", net.input("features", "N", 4, kind=TensorProto.INT8), *parts)
    q = net.op("QuantizeLinear", net.op("MatMul", x, net.weight(4, 4)), *parts)
    net.answer(q)
    net.outputs[-1].type.tensor_type.elem_type = TensorProto.INT8
    twin, said = dequantized(net.model())
    assert [node.op_type for node in twin.graph.node if node.op_type in QDQ] == [
        "DequantizeLinear", "QuantizeLinear",
    ]  # fmt: skip
    assert " 0 Q/DQ" in said
    onnx.checker.check_model(twin, full_check=True)


def test_blocks_and_axes_are_spread_over_the_weight() -> None:
    net = Net(opset=21, ir_version=10)
    weight = net.constant(net.rng.integers(-7, 8, (8, 4)), np.int8)
    scale, zero = net.constant(net.rng.uniform(0.01, 0.1, (2, 4))), net.constant(np.ones((2, 4)), np.int8)
    dq = net.op("DequantizeLinear", weight, scale, zero, axis=0, block_size=4)
    net.answer(net.op("MatMul", net.input("features", "N", 8), dq))
    made = net.model()
    found = describe(made)
    assert found is not None
    assert (found.weights_blocked, found.weight_axes, found.weights_symmetric) == (1, (), False)
    twin, _ = dequantized(made)
    assert [node.op_type for node in twin.graph.node] == ["MatMul"]
    np.testing.assert_allclose(_answers(twin), _answers(made), rtol=1e-5)
