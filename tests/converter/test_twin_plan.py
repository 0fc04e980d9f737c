"""Plans under TFLite's INT8 rules: fixed and equal scales, requantized edges, what stays in float."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from msgspec import structs

from converter.errors import RecipeError
from converter.quantize.emit import emit
from converter.quantize.operators import Placement
from converter.quantize.placement import placement_of
from converter.quantize.plan import Plan, make_plan
from converter.quantize.qparams import fixed_params, redundant
from converter.quantize.simulate import assignment_of
from converter.quantize.twin import check_twin
from converter.quantize.twin_rules import TWIN_OPERATORS
from converter.recipe import Recipe, parse
from converter.targets.loader import find_target
from tests.converter.quantizing import Line, floats, graph, material, operators
from tests.converter.twins import (
    IMAGE,
    checked,
    node_named,
    pair_of_branches,
    ranges_of,
    stored,
)
from tests.converter.zoo_layers import LAYERS
from tests.converter.zoo_odd import ODD

U8, I8 = "static_wi8_au8_pc_minmax_twin", "static_wi8_ai8_pc_minmax_twin"
TWIN = parse(U8)


def planned(
    made: onnx.ModelProto, recipe: Recipe = TWIN, placement: Placement | None = None,
    **spans: tuple[float, float],
) -> Plan:  # fmt: skip
    """The plan for made-up ranges."""
    found = structs.replace(material(made), rules=find_target("x86_vnni").rules)
    return make_plan(found, recipe, ranges_of(made, **spans), placement=placement)


def same(found: Plan, *names: str) -> bool:
    first, *others = (found.activations[name] for name in names)
    return all(first.same_as(other) for other in others)


@pytest.mark.parametrize(
    ("operator", "scale", "zero"),
    [
        ("Sigmoid", 1 / 256, -128),
        ("Softmax", 1 / 256, -128),
        ("LogSoftmax", 1 / 16, 127),
        ("Tanh", 1 / 128, 0),
    ],
)
@pytest.mark.parametrize("recipe", [U8, I8])
def test_outputs_that_kernels_prescribe(operator: str, scale: float, zero: int, recipe: str) -> None:
    made = graph(
        [("Conv", "x wa", "a"), (operator, "a", "s"), ("Reshape", "s as_it_is", "r"), ("Conv", "r wb", "y")],
        {"wa": floats(1, 4, 3, 1, 1), "wb": floats(2, 4, 4, 1, 1), "as_it_is": np.array([0, 0, 0, -1])},
        outputs=IMAGE,
    )
    found = planned(made, parse(recipe))
    assert same(found, "s", "r"), "what is moved keeps it"
    result = checked(emit(made, found))
    assert stored(result, "s") == (np.float32(scale), zero)
    assert check_twin(result) == ()


@pytest.mark.parametrize(
    "line",
    [
        ("MaxPool", "a", "j", {"kernel_shape": [2, 2]}),
        ("AveragePool", "a", "j", {"kernel_shape": [2, 2]}),
        ("GlobalAveragePool", "a", "j"),
        ("GlobalMaxPool", "a", "j"),
        ("Transpose", "a", "j", {"perm": [0, 1, 3, 2]}),
        ("Resize", "a  scales", "j", {"mode": "linear"}),
        ("Resize", "a  scales", "j", {"mode": "nearest"}),
        ("Tile", "a four", "j"),
        ("Pad", "a eight", "j"),
        ("Pad", "a eight", "j", {"mode": "reflect"}),
        ("SpaceToDepth", "a", "j", {"blocksize": 2}),
        ("DepthToSpace", "a", "j", {"blocksize": 2}),
    ],
)
def test_what_only_moves_keeps_scale_and_zero_point(line: Line) -> None:
    constants = {
        "wa": floats(1, 4, 3, 1, 1), "scales": np.array([1, 1, 2, 2], np.float32),
        "four": np.array([1, 1, 1, 2]), "eight": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    }  # fmt: skip
    channels = {"SpaceToDepth": 16, "DepthToSpace": 1}.get(line[0], 4)
    made = graph(
        [("Conv", "x wa", "a"), line, ("Conv", "j wy", "y")],
        constants | {"wy": floats(3, 2, channels, 1, 1)}, outputs=IMAGE,
    )  # fmt: skip
    found = planned(made, a=(-3.0, 5.0), j=(-1.0, 2.0))
    assert same(found, "a", "j")
    assert found.activations["a"].interval == pytest.approx((-3.0, 5.0), abs=0.02)
    assert check_twin(checked(emit(made, found))) == ()


@pytest.mark.parametrize("operator", ["Concat", "Max", "Min"])
def test_what_joins_gets_the_union_of_the_ranges(operator: str) -> None:
    """Nothing else reads the branches: both take the joined range, and nothing is rounded twice."""
    if operator == "Concat":
        made = pair_of_branches([("Concat", "a b", "j", {"axis": 1})])
    else:
        made = pair_of_branches([(operator, "a b", "m"), ("Concat", "m m", "j", {"axis": 1})])
    found = planned(made, a=(-1.0, 0.5), b=(0.0, 6.0))
    assert same(found, "a", "b", "j")
    assert found.activations["j"].interval == pytest.approx((-1.0, 6.0), abs=0.03)
    assert not found.edges
    assert check_twin(checked(emit(made, found))) == ()


def test_where_joins_what_it_picks_from() -> None:
    lines: list[Line] = [
        ("Greater", "b zero", "g"),
        ("Where", "g a k", "m"),
        ("Concat", "m m", "j", {"axis": 1}),
    ]
    made = pair_of_branches(lines, k=np.array(-3, np.float32), zero=np.array(0, np.float32))
    found = planned(made, a=(0.0, 1.0), m=(-3.0, 1.0))
    assert same(found, "a", "m", "j")
    assert found.edges["n_m", "k"].same_as(found.activations["m"])
    assert found.activations["m"].interval == pytest.approx((-3.0, 1.0), abs=0.03)
    result = checked(emit(made, found))
    assert node_named(result, "n_m").input[0] == "g"
    assert check_twin(result) == ()


def test_a_sigmoid_among_wider_ranges_is_requantized() -> None:
    made = pair_of_branches([("Sigmoid", "a", "s"), ("Concat", "s b", "j", {"axis": 1})])
    found = planned(made, b=(-4.0, 4.0))
    assert list(found.edges) == [("n_j", "s")]
    assert found.edges["n_j", "s"].same_as(found.activations["j"])
    assert same(found, "b", "j")
    assert any("Concat n_j reads s requantized: its scale is 0.0039" in said for said in found.decisions)
    result = checked(emit(made, found))
    assert stored(result, "s") == (np.float32(1 / 256), -128)
    assert check_twin(result) == ()
    assert node_named(result, "n_j").input[0] == "s_requantized"


@pytest.mark.parametrize(("reach", "taken"), [(0.9, True), (0.6, True), (0.4, False), (3.0, False)])
def test_a_prescribed_scale_is_taken_where_all_fit_and_lose_at_most_a_bit(reach: float, taken: bool) -> None:
    """A branch of 0 to 0.4 would keep less than 7 bits of 1/256."""
    made = pair_of_branches([("Sigmoid", "a", "s"), ("Concat", "s b", "j", {"axis": 1})])
    found = planned(made, b=(0.0, reach), s=(0.0, min(reach, 0.99)))
    assert (found.activations["j"].same_as(fixed_params(1 / 256, -128, "u8"))) is taken
    assert bool(found.edges) is not taken


def test_prescribed_scales_that_differ_meet_by_requantization() -> None:
    made = pair_of_branches([("Sigmoid", "a", "s"), ("Tanh", "b", "t"), ("Concat", "s t", "j", {"axis": 1})])
    found = planned(made, s=(0.0, 1.0), t=(-1.0, 0.99))
    assert list(found.edges) == [("n_j", "s")]
    assert same(found, "t", "j"), "Tanh's holds both and loses no bit"
    assert check_twin(checked(emit(made, found))) == ()


@pytest.mark.parametrize(("reach", "apart"), [(1.9, False), (2.1, True)])
def test_a_tensor_that_others_read_too_keeps_its_bits(reach: float, apart: bool) -> None:
    """`a` goes to a convolution as well: a joined range up to twice its own is put up with."""
    lines: list[Line] = [("Concat", "a b", "j", {"axis": 1}), ("Conv", "a wb2", "z")]
    made = pair_of_branches(lines, wb2=floats(5, 2, 4, 1, 1))
    made.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, ["N", 2, None, None]))
    found = planned(made, a=(0.0, 1.0), b=(0.0, reach))
    assert bool(found.edges) is apart
    assert same(found, "b", "j")
    assert same(found, "a", "j") is not apart
    assert check_twin(checked(emit(made, found))) == ()


def test_an_absorbed_relu_is_not_given_up_for_a_join() -> None:
    """In the joined range, which reaches below zero, nothing would cut negative values any more."""
    made = pair_of_branches([("Relu", "a", "r"), ("Concat", "r b", "j", {"axis": 1})])
    found = planned(made, r=(0.0, 4.0), b=(-4.0, 4.0))
    assert found.integer["n_a"] == "n_r"
    assert list(found.edges) == [("n_j", "r")]
    assert redundant((0.0, float("inf")), found.activations["r"])
    result = checked(emit(made, found))
    assert operators(result)["Relu"] == 0
    assert check_twin(result) == ()
    positive = planned(made, r=(0.0, 4.0), b=(0.0, 6.0))
    assert not positive.edges


def chained(**extra: Line) -> onnx.ModelProto:
    """`a` and `b` are joined to `k`, `k` and `c` to `l`; `extra` lines read what they like."""
    lines: list[Line] = [
        ("Relu", "b", "r"), ("Concat", "a r", "k", {"axis": 1}), ("Conv", "x wc", "c"),
        ("Concat", "k c", "l", {"axis": 1}), ("Conv", "l wl", "j"), *extra.values(),
    ]  # fmt: skip
    made = pair_of_branches(lines, wc=floats(6, 4, 3, 1, 1), wl=floats(7, 8, 12, 1, 1),
                            w4=floats(8, 2, 4, 1, 1), w8=floats(9, 2, 8, 1, 1))  # fmt: skip
    more = [onnx.helper.make_tensor_value_info(name, 1, ["N", 2, None, None]) for name in extra]
    made.graph.output.extend(more)
    return made


def test_what_was_joined_once_is_held_to_its_first_conditions() -> None:
    """An absorbed Relu, and readers that put up with twice their step, count in the second join too."""
    positive = planned(chained(), a=(0.0, 1.0), r=(0.0, 1.5), c=(0.0, 9.0))
    assert not positive.edges
    assert list(planned(chained(), a=(0.0, 1.0), r=(0.0, 1.5), c=(-1.0, 1.0)).edges) == [("n_l", "k")]
    reader: Line = ("Conv", "a w4", "z")
    assert not planned(chained(z=reader), a=(0.0, 1.0), r=(0.0, 1.5), c=(0.0, 1.9)).edges
    apart = planned(chained(z=reader), a=(0.0, 1.0), r=(0.0, 1.5), c=(0.0, 2.5))
    assert list(apart.edges) == [("n_l", "k")]
    behind: Line = ("Conv", "k w8", "z")
    assert not planned(chained(z=behind), a=(0.0, 1.0), r=(0.0, 1.5), c=(0.0, 2.5)).edges
    late = planned(chained(z=behind), a=(0.0, 1.0), r=(0.0, 1.5), c=(0.0, 3.5))
    assert list(late.edges) == [("n_l", "k")]


def test_a_join_holds_what_its_moved_inputs_hold_and_what_is_put_around_it() -> None:
    lines: list[Line] = [
        ("MaxPool", "a", "m", {"kernel_shape": [1, 1]}), ("Concat", "m b", "k", {"axis": 1}),
        ("Pad", "k pads with", "j"),
    ]  # fmt: skip
    made = pair_of_branches(
        lines, pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]), **{"with": np.array(-7, np.float32)}
    )
    found = planned(made, a=(-1.0, 5.0), m=(-1.0, 2.0), b=(0.0, 1.0), k=(-1.0, 5.0))
    assert same(found, "a", "m", "b", "k", "j")
    assert found.activations["j"].interval == pytest.approx((-7.0, 5.0), abs=0.1)


def test_a_constant_widens_what_it_is_joined_with() -> None:
    made = pair_of_branches(
        [("Max", "a k", "m"), ("Concat", "m m", "j", {"axis": 1})], k=np.full((1,), 9, np.float32)
    )
    found = planned(made, a=(0.0, 1.0), m=(0.0, 1.0))
    assert found.activations["a"].interval == pytest.approx((0.0, 9.0), abs=0.05)
    held = structs.replace(material(made), rules=find_target("x86_vnni").rules)
    assert set(assignment_of(held.model, found).weights) == {"wa", "wb", "wy", "k"}


def test_joins_that_want_the_same_share_one_requantization() -> None:
    lines: list[Line] = [("Sigmoid", "a", "s"), ("Max", "s b", "m"), ("Min", "s b", "n"),
                         ("Concat", "m n", "j", {"axis": 1})]  # fmt: skip
    found = planned(pair_of_branches(lines), b=(-4.0, 4.0))
    assert set(found.edges) == {("n_m", "s"), ("n_n", "s")}
    result = checked(emit(pair_of_branches(lines), found))
    assert [n.input[0] for n in result.graph.node if n.op_type == "QuantizeLinear"].count("s") == 1
    assert check_twin(result) == ()


def test_a_prescribed_output_absorbs_nothing() -> None:
    """A Clip behind a Sigmoid cannot be its range, which is 0 to 255/256 always."""
    lines: list[Line] = [("Sigmoid", "a", "s"), ("Clip", "s lo hi", "r"), ("Concat", "r b", "j", {"axis": 1})]
    made = pair_of_branches(lines, lo=np.array(0, np.float32), hi=np.array(0.5, np.float32))
    found = planned(made, s=(0.0, 1.0), r=(0.0, 0.5))
    assert found.integer["n_s"] == found.integer["n_r"] == ""
    assert check_twin(checked(emit(made, found))) == ()


def test_a_chain_of_joins_widens_all_of_it() -> None:
    lines: list[Line] = [
        ("Concat", "a b", "k", {"axis": 1}), ("MaxPool", "k", "m", {"kernel_shape": [1, 1]}),
        ("Conv", "x wc", "c"), ("Concat", "m c", "l", {"axis": 1}), ("Conv", "l wl", "j"),
    ]  # fmt: skip
    made = pair_of_branches(lines, wc=floats(6, 4, 3, 1, 1), wl=floats(7, 8, 12, 1, 1))
    found = planned(made, a=(-1.0, 1.0), b=(-1.5, 1.0), c=(-9.0, 9.0))
    assert same(found, "a", "b", "k", "m", "c", "l")
    assert found.groups["a"] == found.groups["l"] == "l"
    assert check_twin(checked(emit(made, found))) == ()


def test_what_is_made_in_float_is_rounded_once() -> None:
    """The joined range is too coarse for the convolution that reads the input too: it gets two pairs."""
    lines: list[Line] = [("Conv", "x wa", "a"), ("Concat", "x a", "j", {"axis": 1}), ("Conv", "j wy", "y")]
    made = graph(lines, {"wa": floats(1, 4, 3, 1, 1), "wy": floats(3, 2, 7, 1, 1)}, outputs=IMAGE)
    found = planned(made, x=(0.0, 1.0), a=(-9.0, 9.0))
    assert list(found.edges) == [("n_j", "x")]
    result = checked(emit(made, found))
    assert [n.input[0] for n in result.graph.node if n.op_type == "QuantizeLinear"].count("x") == 2
    assert check_twin(result) == ()


def test_what_floats_read_exactly_need_not_be_kept_apart_for_them() -> None:
    lines: list[Line] = [("Conv", "x wa", "a"), ("Softplus", "x", "e"), ("Concat", "x a", "j", {"axis": 1}),
                         ("Conv", "j wy", "y")]  # fmt: skip
    made = graph(lines, {"wa": floats(1, 4, 3, 1, 1), "wy": floats(3, 2, 7, 1, 1)},
                 outputs=IMAGE | {"e": ["N", 3, 8, 8]})  # fmt: skip
    made.graph.node[0].input[0] = "e"
    made.graph.node.insert(0, made.graph.node.pop(1))
    found = planned(made, x=(0.0, 1.0), a=(-9.0, 9.0))
    assert not found.edges
    assert same(found, "x", "a", "j")


def test_a_float_branch_that_only_a_join_reads_takes_its_range() -> None:
    lines: list[Line] = [("Conv", "x wa", "a"), ("Softplus", "a", "e"), ("Sigmoid", "a", "s"),
                         ("Concat", "s e", "j", {"axis": 1}), ("Conv", "j wy", "y")]  # fmt: skip
    made = graph(lines, {"wa": floats(1, 4, 3, 1, 1), "wy": floats(3, 2, 8, 1, 1)}, outputs=IMAGE)
    found = planned(made, e=(-1.0, 7.0))
    assert set(found.edges) == {("n_j", "s")}
    assert same(found, "e", "j")
    assert check_twin(checked(emit(made, found))) == ()


def test_constants_of_a_join_are_stored_as_it_is_and_others_on_their_own() -> None:
    constant = floats(9, 1, 4, 8, 8, scale=2.0)
    lines: list[Line] = [("Add", "a k", "p"), ("Mul", "b k", "q"), ("Max", "p k", "m"),
                         ("Concat", "m q", "j", {"axis": 1})]  # fmt: skip
    made = pair_of_branches(lines, k=constant)
    found = planned(made, p=(-20.0, 20.0), m=(-20.0, 20.0))
    assert found.edges["n_m", "k"].same_as(found.activations["m"])
    assert not found.constants["k"].same_as(found.activations["m"])
    result = checked(emit(made, found))
    assert check_twin(result) == ()
    assert len({node.input[1] for node in result.graph.node if node.name in {"n_m", "n_p"}}) == 2


def test_slopes_are_stored_and_the_last_gemm_gives_integers() -> None:
    made = graph(
        [("Conv", "x wa", "a"), ("PRelu", "a slope", "p"), ("GlobalAveragePool", "p", "g"),
         ("Flatten", "g", "f"), ("Gemm", "f wg", "y")],
        {"wa": floats(1, 4, 3, 1, 1), "slope": floats(2, 4, 1, 1), "wg": floats(3, 4, 2)},
        outputs={"y": ["N", 2]},
    )  # fmt: skip
    result = checked(emit(made, planned(made)))
    assert node_named(result, "n_p").input[1] == "slope_dequantized"
    assert result.graph.node[-1].op_type == "DequantizeLinear"
    assert result.graph.node[-1].output[0] == "y"
    assert check_twin(result) == ()


@pytest.mark.parametrize(
    ("value", "low", "high"), [(0.0, -2.0, 3.0), (1.0, -2.0, 3.0), (20.0, -2.0, 20.0), (-1e9, -2.0, 3.0)]
)
def test_padding_is_held_unless_it_lies_far_out(value: float, low: float, high: float) -> None:
    made = graph(
        [("Conv", "x wa", "a"), ("Pad", "a pads with", "j"), ("Conv", "j wy", "y")],
        {"wa": floats(1, 4, 3, 1, 1), "wy": floats(2, 2, 4, 1, 1), "with": np.array(value, np.float32),
         "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])},
        outputs=IMAGE,
    )  # fmt: skip
    found = planned(made, a=(-2.0, 3.0))
    assert found.activations["j"].interval == pytest.approx((low, high), abs=0.1)
    assert same(found, "a", "j")


@pytest.mark.parametrize("bounds", [None, (0.0, 6.0), (-2.0, 5.0)])
def test_a_relu_or_clip_that_nothing_absorbs_runs_in_integers(bounds: tuple[float, float] | None) -> None:
    """What it bounds is read by others too."""
    line: Line = ("Relu", "a", "r") if bounds is None else ("Clip", "a lo hi", "r")
    low, high = bounds or (0.0, 4.0)
    extra = {} if bounds is None else {"lo": np.array(low, np.float32), "hi": np.array(high, np.float32)}
    made = pair_of_branches([line, ("Add", "a b", "p"), ("Concat", "r p", "j", {"axis": 1})], **extra)
    found = planned(made, r=(low, high))
    assert found.integer["n_r"] == ""
    assert found.integer["n_a"] == ""
    assert check_twin(checked(emit(made, found))) == ()


def test_a_clip_with_computed_bounds_stays_in_float() -> None:
    lines: list[Line] = [("ReduceMax", "x", "hi", {"keepdims": 0}), ("Clip", "a  hi", "r"),
                         ("Add", "a b", "p"), ("Concat", "r p", "j", {"axis": 1})]  # fmt: skip
    assert planned(pair_of_branches(lines)).left_float["n_r"] == "its bounds are computed"


def test_weights_shared_by_two_layers_are_stored_once_and_their_biases_twice() -> None:
    made = graph(
        [("Conv", "x w v", "a", {"pads": [1] * 4}), ("Conv", "a w v", "b", {"pads": [1] * 4}),
         ("Add", "a b", "y")],
        {"w": floats(1, 3, 3, 3, 3), "v": floats(2, 3)}, outputs=IMAGE,
    )  # fmt: skip
    result = checked(emit(made, planned(made)))
    types = [
        t.data_type for t in result.graph.initializer if t.name.startswith(("w_quantized", "v_quantized"))
    ]
    assert types.count(onnx.TensorProto.INT8) == 1
    biases = {node_named(result, name).input[2] for name in ("n_a", "n_b")}
    assert len(biases) == 2
    assert check_twin(result) == ()


def test_a_table_that_gather_and_matmul_share_stays_whole_for_gather() -> None:
    """Embedding and output layer with tied weights: what is looked up stays in float, in both files."""
    made = graph(
        [("ArgMax", "x", "i", {"axis": 1, "keepdims": 0}), ("Gather", "table i", "e"),
         ("MatMul", "e w", "h"), ("MatMul", "h table", "y")],
        {"table": floats(1, 6, 6), "w": floats(2, 6, 6)}, outputs={"y": ["N", 6]}, shape=(6,),
    )  # fmt: skip
    found = planned(made)
    assert set(found.integer) == {"n_h", "n_y"}
    result = checked(emit(made, found))
    assert node_named(result, "n_e").input[0] == "table"
    assert node_named(result, "n_y").input[1] == "table_dequantized"
    assert check_twin(result) == ()


@pytest.mark.parametrize(
    ("lines", "node", "why"),
    [
        ([("Conv", "x w3", "a"), ("Conv", "a w3", "y")], "n_a", "three dimensions"),
        ([("ConvTranspose", "x wt", "y", {"group": 3})], "n_y", "in groups"),
        ([("Conv", "x w", "a"), ("Resize", "a  scales", "y", {"mode": "cubic"})], "n_y", "by cubic"),
        ([("Conv", "x w", "a"), ("Pad", "a pads", "y", {"mode": "edge"})], "n_y", "by edge"),
        ([("Conv", "x w", "a"), ("Div", "a a", "y")], "n_y", "no quantized form"),
        ([("Conv", "x w", "a"), ("Softplus", "a", "y")], "n_y", "no quantized form"),
    ],
)
def test_what_litert_has_no_kernel_for_is_a_float_island(lines: list[Line], node: str, why: str) -> None:
    shape = (3, 4, 4, 4) if "w3" in lines[0][1] else (3, 8, 8)
    constants = {
        "w": floats(1, 4, 3, 1, 1), "w3": floats(1, 3, 3, 1, 1, 1), "wt": floats(1, 3, 1, 2, 2),
        "scales": np.array([1, 1, 2, 2], np.float32), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    }  # fmt: skip
    outputs = {"y": ["N", *[None] * len(shape)]}
    made = graph(lines, constants, outputs=outputs, shape=shape)
    assert why in planned(made).left_float[node]


def test_a_twin_runs_the_same_operators_on_every_target() -> None:
    for target in ("x86_vnni", "coral_edgetpu", "jetson_gpu_trt"):
        rules = find_target(target).rules
        found = placement_of(rules, twin=True)
        assert found == Placement(operators=frozenset(TWIN_OPERATORS), whole=rules.whole.value)
        assert placement_of(rules) != found


@pytest.mark.parametrize(
    "recipe", [U8, I8, "static_wi8_ai8_pt_minmax_sym_twin", "static_wi8_au8_pc_minmax_rr_twin"]
)
@pytest.mark.parametrize("name", sorted((LAYERS | ODD).keys() - {"quantized_aware", "quantized_stored"}))
def test_every_model_of_the_zoo_has_a_twin_or_a_reason(name: str, recipe: str) -> None:
    made = (LAYERS | ODD)[name].build()
    rules = find_target("x86_vnni").rules
    held = structs.replace(_MATERIAL, model=made, rules=rules)
    try:
        found = make_plan(held, parse(recipe), ranges_of(made))
    except RecipeError as error:
        assert error.code == "recipe_opset"  # noqa: PT017 - one of two ways to end well
        return
    assert check_twin(emit(made, found)) == ()


_MATERIAL = material(pair_of_branches([("Concat", "a b", "j", {"axis": 1})]))


def _product(*, relu: bool = False) -> onnx.ModelProto:
    """`k` is the second factor of a product of two computed matrices, behind a Reshape that moves nothing."""
    made: list[Line] = [
        ("MatMul", "x wq", "q"), ("MatMul", "x wk", "kk" if relu else "k"),
        *([("Relu", "kk", "k")] if relu else []), ("Reshape", "k shape", "r"), ("MatMul", "q r", "y"),
    ]  # fmt: skip
    constants = {"wq": floats(1, 6, 4), "wk": floats(2, 6, 5), "shape": np.array([-1, 4, 5])}
    return graph(made, constants, outputs={"y": [None, 4, 5]}, shape=(4, 6))


@pytest.mark.parametrize("recipe", [U8, I8])
def test_the_second_factor_of_a_product_has_its_zero_in_the_middle(recipe: str) -> None:
    plan = planned(_product(), parse(recipe), q=(-1.0, 1.3), k=(-2.0, 3.0), r=(-2.0, 3.0))
    middle = 128 if recipe == U8 else 0
    assert int(plan.activations["k"].zero_point) == int(plan.activations["r"].zero_point) == middle
    assert float(plan.activations["k"].scale) == pytest.approx(3.0 / 127)
    assert int(plan.activations["q"].zero_point) != middle


def test_not_where_it_would_cost_a_bit_or_undo_an_activation() -> None:
    plan = planned(_product(), parse(I8), k=(-0.5, 3.0), r=(-0.5, 3.0))
    assert int(plan.activations["k"].zero_point) != 0
    plan = planned(_product(relu=True), parse(I8), k=(0.0, 3.0), r=(0.0, 3.0))
    assert int(plan.activations["k"].zero_point) == -128
