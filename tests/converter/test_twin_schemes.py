"""Twins as recipes: whole networks, repairs, islands, refusals; and that nothing changes without `twin`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from numpy.typing import NDArray

from converter.errors import RecipeError
from converter.quantize import quantize
from converter.quantize.emit import emit
from converter.quantize.material import Material
from converter.quantize.operators import ACCELERATOR, CPU, Role
from converter.quantize.plan import make_plan
from converter.quantize.qparams import fixed_params
from converter.quantize.repaired import board_of, wide_type
from converter.quantize.simulate import assignment_of
from converter.quantize.twin import check_twin
from converter.quantize.twin_rules import TWIN_OPERATORS
from converter.recipe import parse
from converter.repair.choose import choose_ranges
from converter.repair.goal import Goal
from converter.repair.switchboard import Assignment
from tests.converter.quantizing import floats, graph, inputs, material, run, sqnr_db
from tests.converter.twins import (
    IMAGE,
    attention,
    checked,
    node_named,
    pair_of_branches,
    ranges_of,
    unet,
)
from tests.converter.zoo_layers import LAYERS
from wire.figures import Interval

U8, I8 = "static_wi8_au8_pc_minmax_twin", "static_wi8_ai8_pc_minmax_twin"
TWIN = parse(U8)
_MATERIAL = material(pair_of_branches([("Concat", "a b", "j", {"axis": 1})]))


@pytest.mark.parametrize("recipe", [U8, I8])
@pytest.mark.parametrize("build", [unet, attention])
def test_a_unet_and_an_attention_block_keep_their_answers(
    build: Callable[[], onnx.ModelProto], recipe: str
) -> None:
    made = build()
    result = checked(quantize(material(made), parse(recipe)).model)
    assert check_twin(result) == ()
    array = inputs(made, seed=6)
    assert sqnr_db(run(made, array)[0], run(result, array)[0]) > 20


def test_a_unets_skip_from_a_relu_is_requantized_and_its_other_skip_is_not() -> None:
    """The transposed convolution gives negative values too; the Resize of a Relu does not."""
    found = material(unet())
    plan = make_plan(found, TWIN, found.calibration.ranges)
    assert len(plan.edges) == 1
    ((node, _),) = plan.edges
    assert node == "Concat_9"
    assert {"ConvTranspose_8", "Resize_12", "Concat_9", "Concat_13"} <= set(plan.integer)


@pytest.mark.parametrize("extras", ["cle_bc", "rr"])
def test_repairs_and_the_choice_of_ranges_keep_to_the_rules(extras: str) -> None:
    found = material(unet())
    made = quantize(found, parse(f"static_wi8_au8_pc_auto_{extras}_twin"))
    assert check_twin(made.model) == ()
    assert any("range method by measured effect" in said for said in made.decisions)


@pytest.mark.parametrize("target", ["x86_vnni", "qnn_htp"])
def test_any_island_leaves_a_twin_and_quantizes_nothing_new(target: str) -> None:
    """A search tries them on one switchboard, which has switches for what the whole plan quantizes."""
    found = material(unet(), target)
    full = make_plan(found, TWIN, found.calibration.ranges)
    for island in full.activations:
        plan = make_plan(found, TWIN, found.calibration.ranges, islands=frozenset({island}))
        assert set(plan.activations) < set(full.activations), island
        assert check_twin(checked(emit(found.model, plan))) == (), island


@pytest.mark.parametrize("target", ["x86_vnni", "qnn_htp"])
def test_a_twins_islands_are_in_float_whatever_the_target_has(target: str) -> None:
    """A channel of the first layer is 2000 times larger than the others."""
    weight = floats(1, 4, 3, 1, 1)
    weight[0] *= 2000
    undone = floats(2, 4, 4, 1, 1)
    undone[:, 0] /= 2000
    made = graph([("Conv", "x w", "a"), ("Conv", "a u", "b"), ("Conv", "b v", "y")],
                 {"w": weight, "u": undone, "v": floats(3, 2, 4, 1, 1)}, outputs=IMAGE)  # fmt: skip
    found = material(made, target)
    recipe = parse("mixed_wi8_au8_pc_minmax_twin")
    assert wide_type(found, recipe) is None
    done = quantize(structs.replace(found, goal=Goal(samples=found.samples, classes=False)), recipe)
    assert done.recipe is not None
    assert done.recipe.extras == ("islands1", "twin")
    assert check_twin(done.model) == ()
    assert onnx.TensorProto.UINT16 not in {tensor.data_type for tensor in done.model.graph.initializer}


def test_what_the_plan_cannot_keep_apart_is_refused_by_name() -> None:
    """A Resize by cubic interpolation between pairs would count as integer, and it has two scales."""
    made = pair_of_branches(
        [("Resize", "a  scales", "r", {"mode": "cubic"}), ("MatMul", "r wm", "m"),
         ("Concat", "m m", "j", {"axis": 1})],
        scales=np.array([1, 1, 2, 2], np.float32), wm=floats(8, 16, 16),
    )  # fmt: skip
    with pytest.raises(RecipeError, match="Resize n_r: its tensors are stored as") as caught:
        quantize(material(made), TWIN)
    assert caught.value.code == "no_twin"


def test_tensors_of_one_scale_change_their_range_method_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each on its own, half a group would be judged by scales that no plan gives."""
    made = pair_of_branches([("Concat", "a b", "j", {"axis": 1})])
    found = material(made)
    ranges = dict(found.calibration.ranges)
    groups = make_plan(found, TWIN, ranges).groups
    board = board_of(found, _assigned(found, ranges))
    tried: list[Assignment] = []
    compute = board.outputs

    def outputs(one: Assignment) -> dict[str, NDArray[np.float32]]:
        tried.append(one)
        return compute(one)

    monkeypatch.setattr(board, "outputs", outputs)
    wide = {name: Interval(low=span.low * 40, high=span.high * 40) for name, span in ranges.items()}
    # Method `b` is right for one of the two branches and useless for the other.
    candidates = {name: {"a": span, "b": span} for name, span in ranges.items()}
    candidates["a"] = {"a": ranges["a"], "b": wide["a"]}
    candidates["b"] = {"a": wide["b"], "b": ranges["b"]}
    candidates["x"] = {"a": wide["x"], "b": ranges["x"]}
    chosen = choose_ranges(board, lambda spans: _assigned(found, spans), candidates, groups)
    assert chosen.methods["a"] == chosen.methods["b"] == chosen.methods["j"]
    assert chosen.methods["x"] == "b"
    found_alone = [set(one.activations) & {"a", "b", "j"} for one in tried]
    assert all(len(together) in {0, 3} for together in found_alone)


def _assigned(found: Material, spans: Mapping[str, Interval]) -> Assignment:
    return assignment_of(found.model, make_plan(found, TWIN, spans))


UNCONSTRAINED = {
    "residual/static_wi8_au8_pc_minmax/cpu": "1791f882196727cc",
    "squeeze_excite/static_wi8_au8_pc_minmax/cpu": "f0ccdca77b2ed4f9",
    "concat_of_ranges/static_wi8_ai8_pc_minmax_sym/cpu": "d25f8af973d5c7a7",
    "prelu/static_wi8_au8_pc_minmax/acc": "c4bdb2fc4d499e3b",
    "upsampled/static_wi8_ai8_pt_minmax_rr/acc": "3a619efec6c73c39",
    "attention_with_mask/static_wi8_au8_pc_minmax/acc": "8f6631582ee338c6",
}
"""SHA-256 (its beginning) of graph, decisions and reasons, taken at f91d6fc, before twins."""


@pytest.mark.parametrize("case", sorted(UNCONSTRAINED))
def test_without_twin_plans_are_what_they_were(case: str) -> None:
    name, recipe, place = case.split("/")
    made = LAYERS[name].build()
    held = structs.replace(_MATERIAL, model=made)
    found = make_plan(held, parse(recipe), ranges_of(made), placement=CPU if place == "cpu" else ACCELERATOR)
    graph_bytes = emit(made, found).SerializeToString()
    said = repr(found.decisions).encode() + repr(sorted(found.left_float.items())).encode()
    assert hashlib.sha256(graph_bytes + said).hexdigest().startswith(UNCONSTRAINED[case])


_SPAN = st.tuples(st.floats(-8, 0), st.floats(0.01, 8))


@given(
    spans=st.lists(_SPAN, min_size=6, max_size=6),
    first=st.sampled_from(("Relu", "Sigmoid", "Tanh", "Neg", "Elu")),
    second=st.sampled_from(("Relu", "Sigmoid", "Softmax", "MaxPool")),
    symmetric=st.booleans(),
)
def test_whatever_the_ranges_the_rules_hold(
    spans: list[tuple[float, float]], first: str, second: str, symmetric: bool
) -> None:
    """Branches of every kind meet in two joins, one of them read by a convolution too."""
    pool = {"kernel_shape": [1, 1]} if second == "MaxPool" else {}
    made = pair_of_branches(
        [(first, "a", "p"), (second, "b", "q", pool), ("Concat", "p q", "k", {"axis": 1}),
         ("Conv", "q wq", "z"), ("Max", "z q", "m"), ("Concat", "k m", "l", {"axis": 1}),
         ("Conv", "l wl", "j")],
        wq=floats(4, 4, 4, 1, 1), wl=floats(5, 8, 12, 1, 1),
    )  # fmt: skip
    given_spans = dict(zip(("a", "b", "p", "q", "z", "x"), spans, strict=True))
    if first == "Relu":
        given_spans["p"] = (0.0, given_spans["p"][1])
    recipe = parse("static_wi8_au8_pc_minmax_sym_twin") if symmetric else TWIN
    found = make_plan(structs.replace(_MATERIAL, model=made), recipe, ranges_of(made, **given_spans))
    result = emit(made, found)
    assert check_twin(result) == ()
    read = {name for node in result.graph.node for name in node.input} | {"y"}
    assert {name for node in result.graph.node for name in node.output} <= read, "no pair that none reads"
    for (node, name), params in found.edges.items():
        out = TWIN_OPERATORS[node_named(result, node).op_type]
        assert out.role is Role.JOINED
        assert not params.same_as(found.activations.get(name, fixed_params(1.0, 0, "u8")))
