"""`check_twin` finds every broken rule, and names the node."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from converter.quantize.emit import emit
from converter.quantize.plan import make_plan
from converter.quantize.twin import check_twin
from converter.recipe import parse
from tests.converter.quantizing import floats, graph, material
from tests.converter.twins import IMAGE, node_named, ranges_of

MADE = graph(
    [("Conv", "x w v", "c"), ("Relu", "c", "r"), ("ConvTranspose", "r t u", "d"), ("Sigmoid", "d", "s"),
     ("Concat", "s s", "k", {"axis": 1}), ("MaxPool", "k", "m", {"kernel_shape": [1, 1]}),
     ("Conv", "m z", "y")],
    {"w": floats(1, 4, 3, 1, 1), "v": floats(2, 4), "t": floats(3, 4, 5, 1, 1), "u": floats(4, 5),
     "z": floats(5, 2, 10, 1, 1)}, outputs=IMAGE,
)  # fmt: skip


def twin(recipe: str = "static_wi8_au8_pc_minmax_twin") -> onnx.ModelProto:
    """A graph that meets every rule."""
    return emit(MADE, make_plan(material(MADE), parse(recipe), ranges_of(MADE, s=(0.0, 1.0))))


def put(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replaces the numbers of an initializer, type included."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    changed = np.ascontiguousarray(change(numpy_helper.to_array(tensor)))
    tensor.CopyFrom(numpy_helper.from_array(changed, name))


def next_float(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.nextafter(values, np.float32(np.inf)))


def own_parameters(model: onnx.ModelProto, name: str, **changes: Callable[[np.ndarray], np.ndarray]) -> None:
    """Gives one node of a pair a scale and zero point of its own, changed."""
    node = node_named(model, name)
    for place, part in ((1, "scale"), (2, "zero")):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[place])
        values = numpy_helper.to_array(tensor)
        change = changes.get(part, np.array)
        model.graph.initializer.append(numpy_helper.from_array(change(values), f"{name}_{part}"))
        node.input[place] = f"{name}_{part}"


def pair(model: onnx.ModelProto, tensor: str, **changes: Callable[[np.ndarray], np.ndarray]) -> None:
    """Changes both nodes of a tensor's pair."""
    stored = f"{tensor}_quantized"
    for node in [n for n in model.graph.node if stored in {*n.input[:1], *n.output}]:
        own_parameters(model, node.name, **changes)


@pytest.mark.parametrize("recipe", ["static_wi8_au8_pc_minmax_twin", "static_wi8_ai8_pt_minmax_twin"])
def test_a_twin_meets_all_rules(recipe: str) -> None:
    assert check_twin(twin(recipe)) == ()


def break_sigmoid(model: onnx.ModelProto) -> None:
    """With everything that has its scale, so that no other rule is broken."""
    for tensor in ("s", "k", "m"):
        pair(model, tensor, scale=next_float)


def break_sigmoids_zero(model: onnx.ModelProto) -> None:
    for tensor in ("s", "k", "m"):
        pair(model, tensor, zero=lambda zero: zero + np.uint8(1))


def break_bias_scale(model: onnx.ModelProto) -> None:
    put(model, "v_quantized_scale", lambda v: np.where(np.arange(v.size) == 2, next_float(v), v))


def break_bias_type(model: onnx.ModelProto) -> None:
    put(model, "v_quantized", lambda v: v.astype(np.int8))
    put(model, "v_quantized_zero_point", lambda v: v.astype(np.int8))


def break_bias_zero(model: onnx.ModelProto) -> None:
    put(model, "v_quantized_zero_point", lambda v: v + (np.arange(v.size) == 1).astype(np.int32))


def break_weight_zero(model: onnx.ModelProto) -> None:
    put(model, "w_zero_point", lambda v: v + (np.arange(v.size) == 1).astype(np.int8))


def break_weight_lowest(model: onnx.ModelProto) -> None:
    put(model, "w_quantized", lambda v: np.where(v == -127, np.int8(-128), v).astype(np.int8))


def break_weight_axis(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.input[0] == "t_quantized")
    node.attribute[0].i = 0
    for part in ("scale", "zero_point"):
        put(model, f"t_{part}", lambda v: np.resize(v, 4))


def break_activation_type(model: onnx.ModelProto) -> None:
    put(model, "r_zero_point", lambda v: v.astype(np.uint16))
    model.opset_import[0].version = 21


def break_activation_axis(model: onnx.ModelProto) -> None:
    pair(model, "r", scale=lambda v: np.resize(v, 4), zero=lambda v: np.resize(v, 4))


def break_pair(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.output[0] == "r")
    own_parameters(model, node.name, scale=next_float)


def break_constant(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "x")
    node.input[1] = "computed"
    model.graph.input.append(helper.make_tensor_value_info("computed", 1, []))


def break_weight_stored(model: onnx.ModelProto) -> None:
    """A float weight that the graph itself quantizes, as fake quantization is exported."""
    node = next(n for n in model.graph.node if n.input[0] == "z_quantized")
    model.graph.initializer.append(numpy_helper.from_array(floats(5, 2, 10, 1, 1), "z"))
    before = helper.make_node("QuantizeLinear", ["z", *node.input[1:]], ["z_made"], name="before", axis=0)
    node.input[0] = "z_made"
    model.graph.node.insert(0, before)


def break_output(model: onnx.ModelProto) -> None:
    """The last convolution gives floats."""
    del model.graph.node[-2:]
    model.graph.node[-1].output[0] = "y"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (break_sigmoid, "Sigmoid n_s: its output is stored as 0.00390625"),
        (break_sigmoids_zero, "0.00390625 / -127, by rule it is 0.00390625 / -128"),
        (lambda m: pair(m, "m", scale=next_float), "MaxPool n_m: its tensors are stored as"),
        (lambda m: pair(m, "m", zero=lambda z: z + np.uint8(1)), "MaxPool n_m: its tensors are stored as"),
        (break_bias_scale, "Conv n_c: the scale of its bias is not float32"),
        (break_bias_type, "Conv n_c: its bias is not int32 with zero point 0 (int8)"),
        (break_bias_zero, "Conv n_c: its bias is not int32 with zero point 0 (int32)"),
        (break_weight_zero, "Conv n_c: its weight is not symmetric 8-bit (int8, zero point 1)"),
        (break_weight_lowest, "Conv n_c: its weight holds -128"),
        (break_weight_axis, "ConvTranspose n_d: the scales of its weight lie along axis 0"),
        (break_activation_type, "an activation stored as uint16"),
        (break_activation_axis, "an activation with a scale per channel"),
        (break_pair, "r_DequantizeLinear: it reads r_quantized as"),
        (break_constant, "QuantizeLinear x_quantized_QuantizeLinear: its scale or zero point is no constant"),
        (break_weight_stored, "QuantizeLinear before: it quantizes a constant"),
        (break_output, "Conv n_y: its weight is stored as integers, but its input, output or bias is not"),
    ],
)  # fmt: skip
def test_each_broken_rule_is_found(change: Callable[[onnx.ModelProto], None], words: str) -> None:
    model = twin()
    change(model)
    found = check_twin(model)
    assert found, "nothing was found"
    assert any(words in one for one in found), found


@pytest.mark.parametrize("kind", ["Concat", "Max", "Min"])
def test_every_input_of_a_join_counts(kind: str) -> None:
    """The second input alone differs, by one step of its zero point."""
    axis = {"axis": 1} if kind == "Concat" else {}
    made = graph(
        [("Conv", "x w", "a"), ("Conv", "x z", "b"), (kind, "a b", "j", axis),
         ("Conv", "j p", "y")],
        {"w": floats(1, 4, 3, 1, 1), "z": floats(2, 4, 3, 1, 1),
         "p": floats(3, 2, 8 if kind == "Concat" else 4, 1, 1)}, outputs=IMAGE,
    )  # fmt: skip
    result = emit(made, make_plan(material(made), parse("static_wi8_ai8_pc_minmax_twin"), ranges_of(made)))
    assert check_twin(result) == ()
    pair(result, "b", zero=lambda zero: zero + np.int8(1))
    assert [one.split(":")[0] for one in check_twin(result)] == [f"{kind} n_j"]


def test_unsigned_weights_around_128_are_symmetric() -> None:
    model = twin()
    for name in ("w_quantized", "w_zero_point"):
        put(model, name, lambda v: (v.astype(np.int16) + 128).astype(np.uint8))
    assert check_twin(model) == ()
    put(model, "w_quantized", lambda v: np.where(v == 1, np.uint8(0), v).astype(np.uint8))
    assert any("holds -128" in one for one in check_twin(model))


def test_an_axis_may_be_counted_from_the_end() -> None:
    model = twin()
    node = next(n for n in model.graph.node if n.input[0] == "t_quantized")
    node.attribute[0].i -= 4
    assert check_twin(model) == ()


def test_what_gives_its_floats_away_is_no_integer_operator() -> None:
    """The Sigmoid's exact output is an answer too: it computes in float, and its scale is its own affair."""
    model = twin()
    break_sigmoid(model)
    assert check_twin(model) != ()
    model.graph.output.append(helper.make_tensor_value_info("s_exact", 1, None))
    assert check_twin(model) == ()


def test_a_constant_in_float_makes_a_join_a_float_island() -> None:
    made = graph(
        [("Conv", "x w", "a"), ("Concat", "a k", "j", {"axis": 2}), ("Conv", "j z", "y")],
        {"w": floats(1, 4, 3, 1, 1), "z": floats(2, 2, 4, 1, 1), "k": np.ones((16, 4, 1, 8), np.float32)},
        outputs=IMAGE,
    )  # fmt: skip
    result = emit(made, make_plan(material(made), parse("static_wi8_au8_pc_minmax_twin"), ranges_of(made)))
    pair(result, "j", scale=next_float)
    assert [one.split(":")[0] for one in check_twin(result)] == ["Concat n_j"]
    node_named(result, "n_j").input[1] = "k"
    result.graph.initializer.append(numpy_helper.from_array(np.ones((16, 4, 1, 8), np.float32), "k"))
    assert check_twin(result) == ()


@pytest.mark.parametrize(("kind", "against"), [("GlobalAveragePool", 0), ("GlobalMaxPool", 1)])
def test_a_global_average_that_was_given_may_rescale(kind: str, against: int) -> None:
    made = graph(
        [("Conv", "x w", "a"), (kind, "a", "g"), ("Conv", "g z", "y")],
        {"w": floats(1, 4, 3, 1, 1), "z": floats(2, 2, 4, 1, 1)}, outputs=IMAGE,
    )  # fmt: skip
    result = emit(made, make_plan(material(made), parse("static_wi8_au8_pc_minmax_twin"), ranges_of(made)))
    pair(result, "g", scale=lambda scale: scale / 2)
    assert len(check_twin(result)) == against


def test_a_bias_in_float_is_found() -> None:
    model = twin()
    node_named(model, "n_c").input[2] = "v"
    model.graph.initializer.append(numpy_helper.from_array(floats(2, 4), "v"))
    assert check_twin(model) == (
        "Conv n_c: its weight is stored as integers, but its input, output or bias is not",
    )


def test_a_float_graph_has_nothing_against_it() -> None:
    assert check_twin(MADE) == ()
