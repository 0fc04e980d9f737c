"""Repairs through the schemes: real graphs with a disease, cured and measured; and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec import structs
from onnx import numpy_helper

from converter.attempts import Attempt
from converter.errors import RecipeError
from converter.fusion import audit, multiplications
from converter.inputs import read_inputs, utc_now
from converter.measured import Bench, answer_candidate, measure_baseline
from converter.model import signature
from converter.passes import clean
from converter.quantize import Material, quantize
from converter.quantize.emit import emit
from converter.quantize.mixed_int8 import with_islands
from converter.quantize.plan import make_plan
from converter.quantize.repaired import equalized, trusted
from converter.quantize.simulate import assignment_of
from converter.recipe import Recipe, format_recipe, parse
from converter.repair.bias import correct_biases
from converter.repair.effects import decibels, noise_by_sample
from converter.repair.goal import Goal, goal_of
from converter.repair.switchboard import Assignment, FakeQuant, Switchboard
from tests.converter.builders import Workshop, answers, batch_norm_net, conv_net, images, material_of
from tests.converter.repairing import outlier_net, read_assignment, samples_of

_PC = parse("static_wi8_au8_pc_minmax")


def _material(made: onnx.ModelProto, agreement_min: float | None = None) -> Material:
    material = material_of(made, samples_of(images(96, seed=8)))
    if agreement_min is None:
        return material
    return structs.replace(material, goal=Goal(samples=material.samples, agreement_min=agreement_min))


def _snr(made: onnx.ModelProto, changed: onnx.ModelProto) -> float:
    """Of the answers to images that nothing was calibrated on, in dB."""
    exact = {"logits": answers(made, images(60))}
    return decibels(float(noise_by_sample(exact, {"logits": answers(changed, images(60))}).mean()))


@pytest.mark.parametrize("made", [conv_net(), clean(batch_norm_net())[0], outlier_net(2, 9.0)])
@pytest.mark.parametrize("recipe", [_PC, parse("static_wi8_ai8_pt_minmax_sym")])
def test_the_assignment_of_a_plan_is_what_is_emitted(made: onnx.ModelProto, recipe: Recipe) -> None:
    material = _material(made)
    mine = assignment_of(made, make_plan(material, recipe, material.calibration.ranges))
    emitted = read_assignment(quantize(material, recipe).model, made)
    assert set(mine.activations) >= {"image", "r1", "logits"} & set(emitted.activations)
    assert mine.activations == emitted.activations
    biases = {name for name in emitted.weights if name.startswith("b") or name.endswith("_bias")}
    assert set(mine.weights) == set(emitted.weights) - biases
    for name, values in mine.weights.items():
        np.testing.assert_array_equal(values, emitted.weights[name])


@pytest.mark.parametrize("island", ["image", "r1", "c2", "r2", "r3", "c4"])
def test_the_assignment_of_islands_is_what_is_emitted(island: str) -> None:
    made = outlier_net(2, 9.0)
    material = _material(made)
    plan = make_plan(material, _PC, material.calibration.ranges, islands=frozenset({island}))
    mine, emitted = assignment_of(made, plan), read_assignment(emit(made, plan), made)
    assert island not in mine.activations
    assert mine.activations == emitted.activations
    board = Switchboard(
        made, samples_of(images(40)), signature(made), tensors=frozenset(mine.activations),
        weights=frozenset(mine.weights),
    )  # fmt: skip
    found = board.outputs(mine)
    exact = {"logits": answers(emit(made, plan), images(40))}
    between = decibels(float(noise_by_sample(exact, found).mean()))
    assert between > decibels(float(noise_by_sample(exact, board.reference).mean())) + 5


@pytest.mark.parametrize("recipe", ["static_wi8_au8_pc_minmax", "static_wi8_au8_pt_minmax"])
def test_equalization_is_an_extra_of_the_static_scheme(recipe: str) -> None:
    made = outlier_net(3, 150.0)
    plain, cured = (quantize(_material(made), parse(name)) for name in (recipe, f"{recipe}_cle"))
    assert _snr(made, cured.model) > _snr(made, plain.model) + 8
    assert any("equalized" in line for line in cured.decisions)
    assert plain.decisions == ()


def test_a_wild_calibration_image_decides_nothing() -> None:
    """Its range does, until a method cuts it off; the repairs do not look at it."""
    made = outlier_net(3, 150.0)
    array = images(96, seed=8)
    array[7] *= 40
    wild = material_of(made, samples_of(array))
    assert [one.sample for one in wild.calibration.outliers] == [7]
    kept = trusted(wild)
    assert kept.n == 95
    np.testing.assert_array_equal(kept.arrays["image"], np.delete(array, 7, axis=0))
    calm = material_of(made, kept)
    assert trusted(calm) is kept
    recipe = parse("static_wi8_au8_pc_minmax_cle")
    graphs = [equalized(material, recipe)[0].model.SerializeToString() for material in (wild, calm)]
    assert graphs[0] == graphs[1]


def _shifted() -> tuple[onnx.ModelProto, Assignment]:
    """A net, and weights that are all a little too large: every mean is off."""
    made = conv_net()
    constants = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    moved = {name: constants[name] + np.float32(0.05) for name in ("w1", "w2")}
    return made, Assignment(activations={"r1": FakeQuant(step=0.02, low=0, high=255)}, weights=moved)


def _mean_error(made: onnx.ModelProto, graph: onnx.ModelProto, assignment: Assignment) -> float:
    """Largest mean error of a logit, on images that gave no means, with `graph`'s biases."""
    board = Switchboard(
        graph, samples_of(images(40)), signature(made), tensors=frozenset(assignment.activations),
        weights=frozenset(assignment.weights),
    )  # fmt: skip
    found = board.outputs(assignment)["logits"]
    return float(np.abs((found - answers(made, images(40))).mean(axis=0)).max())


@pytest.mark.parametrize("opset", [17, 18])
def test_bias_correction_gives_the_mean_back(opset: int) -> None:
    made, assignment = _shifted()
    made.opset_import[0].version = opset
    samples = samples_of(images(96, seed=8))
    corrected, said = correct_biases(made, samples, signature(made), assignment)
    assert said[0].endswith("; kept")
    assert "3 layers, 5 evaluations" in said[0]
    assert _mean_error(made, corrected, assignment) < _mean_error(made, made, assignment) / 3


def test_bias_correction_adds_a_bias_where_there_is_none() -> None:
    made = outlier_net(4, 1.0)
    constants = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    assignment = Assignment(activations={}, weights={"w4": constants["w4"] * np.float32(0.8)})
    corrected, said = correct_biases(made, samples_of(images(64)), signature(made), assignment)
    onnx.checker.check_model(corrected)
    assert said[0].endswith("; kept")
    added = next(t for t in corrected.graph.initializer if t.name == "c4_bias")
    assert np.abs(numpy_helper.to_array(added)).max() > 0.01


def test_a_correction_that_does_not_help_is_not_kept() -> None:
    made = conv_net()
    nothing = Assignment(activations={}, weights={})
    corrected, said = correct_biases(made, samples_of(images(16)), signature(made), nothing)
    assert said[0].endswith("; not kept")
    assert corrected.SerializeToString() == made.SerializeToString()


def test_bias_correction_is_an_extra_of_the_static_scheme() -> None:
    made = outlier_net(3, 150.0)
    plain, corrected = (
        quantize(_material(made), parse(f"static_wi8_au8_pt_minmax{end}")) for end in ("", "_bc")
    )
    assert "bias correction of 5 layers" in corrected.decisions[0]
    assert _snr(made, corrected.model) >= _snr(made, plain.model)


def test_a_mixed_recipe_leaves_the_tensor_that_hurts_in_float_with_what_it_touches() -> None:
    made = outlier_net(3, 400.0, wild=("w3",))
    goal = 0.95
    plain = quantize(_material(made), _PC)
    found = quantize(_material(made, goal), parse("mixed_wi8_au8_pc_minmax"))
    assert found.recipe is not None
    assert format_recipe(found.recipe).startswith("mixed_wi8_au8_pc_minmax_islands")
    said = "\n".join(found.decisions)
    assert f"meets agreement of at least {goal}" in said
    assert "tensor r3 stays float with its producer and its readers" in said
    assert "evaluations to rank and" in said
    assert "searched on 96 samples" in said
    exact = answers(made, images(60)).argmax(axis=1)
    agreeing = [
        (answers(graph, images(60)).argmax(axis=1) == exact).mean() for graph in (plain.model, found.model)
    ]
    assert agreeing[0] < 0.9
    assert agreeing[1] > 0.95
    whole = audit(found.model.SerializeToString(), {}, multiplications(made)).int8_fraction
    assert whole is not None
    assert 0.0 < whole < 1.0


def test_a_mixed_row_bears_the_number_of_its_islands(tmp_path: Path) -> None:
    """Through the measuring of candidates, as a conversion runs it."""
    made = outlier_net(3, 400.0, wild=("w3",))
    inputs = read_inputs(Workshop(tmp_path, made).options(), utc_now())
    material = structs.replace(
        material_of(made, inputs.calibration), goal=goal_of(inputs.limits, inputs.calibration, None)
    )
    bench = Bench(inputs=inputs, material=material, work=multiplications(made))
    bench = structs.replace(bench, baseline=measure_baseline(bench))
    row = answer_candidate(bench, Attempt(parse("mixed_wi8_au8_pc_minmax")))[0]
    assert row.error is None
    assert row.id == f"onnxruntime/{format_recipe(row.recipe)}"
    assert row.recipe.extras == ("islands1",)
    assert any("tensor r3 stays float" in line for line in row.decisions)
    plain = answer_candidate(bench, Attempt(_PC))[0]
    assert row.quality is not None
    assert plain.quality is not None
    assert row.quality.agreement.value > plain.quality.agreement.value + 0.2


def test_a_goal_that_islands_cannot_meet_gives_the_best_and_what_is_missing() -> None:
    material = _material(outlier_net(3, 2000.0))
    right = answers(material.model, material.samples.arrays["image"]).argmax(axis=1)
    samples = structs.replace(material.samples, labels=right.astype(np.int64))
    goal = Goal(samples=samples, accuracy_fraction_min=1.25)
    found = quantize(structs.replace(material, goal=goal), parse("mixed_wi8_au8_pc_minmax"))
    assert any("nothing that was tried meets the goal; missing is 0.2" in line for line in found.decisions)


@pytest.mark.parametrize(
    ("recipe", "goal", "code"),
    [
        ("mixed_wi8_au8_pc_minmax", None, "recipe_goal"),
        ("mixed_wi8_au8_pc_minmax", 0.1, "recipe_islands"),
        ("mixed_wi8_au16_pc_minmax_twin", 0.9, "no_twin"),
        ("static_wi8_au8_pc_minmax_islands2", 0.9, "recipe_extra"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_name(recipe: str, goal: float | None, code: str) -> None:
    with pytest.raises(RecipeError) as caught:
        quantize(_material(conv_net(), goal), parse(recipe))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("mixed_wi8_au8_pc_auto", "mixed_wi8_au8_pc_auto_islands3"),
        ("mixed_wi8_au8_pc_auto_rr_bc_twin", "mixed_wi8_au8_pc_auto_rr_bc_islands3_twin"),
        ("mixed_wi8_au8_pc_auto_islands9", "mixed_wi8_au8_pc_auto_islands3"),
    ],
)
def test_the_recipe_that_comes_out_says_how_many_islands(before: str, after: str) -> None:
    assert format_recipe(with_islands(parse(before), 3)) == after


def test_method_auto_says_how_it_chose_and_is_no_worse() -> None:
    made = conv_net()
    chosen, plain = quantize(_material(made), parse("static_wi8_au8_pc_auto")), quantize(_material(made), _PC)
    assert chosen.decisions[0].startswith("range method")
    assert _snr(made, chosen.model) > _snr(made, plain.model) - 3


def test_a_search_serves_the_twin_of_the_same_graph_and_no_other_graph() -> None:
    material = material_of(clean(conv_net())[0], samples_of(images(32, seed=3)))
    other = onnx.ModelProto()
    other.CopyFrom(material.model)
    names = ("static_wi8_au8_pc_auto", "static_wi8_au8_pc_auto_twin")
    plain, twin = (quantize(material, parse(name)).decisions for name in names)
    elsewhere = quantize(structs.replace(material, model=other), parse(names[1])).decisions
    again = f"ranges as chosen for {names[0]}"
    assert again in twin
    assert again not in plain
    assert again not in elsewhere
    assert any("by measured effect" in text for text in plain)
    assert any("by measured effect" in text for text in elsewhere)
