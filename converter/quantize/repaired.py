"""All repairs of one recipe, in order.

For: `repair()`: equalize (`cle`), calibrate again, choose ranges (`auto`), correct biases (`bc`), find
islands (kind `mixed`), each only where the recipe says so, with every decision in words.
Not for: emitting the graph (`converter.quantize.emit`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import Struct, structs

from converter.calibrate import Ranges, calibrate, ranges_of
from converter.calibrate.ranges import RANGE_METHODS
from converter.dataset import Samples
from converter.errors import RecipeError
from converter.limits import ISLAND_SAMPLES_MAX
from converter.quantize.emit import emit
from converter.quantize.hard_swish import opened
from converter.quantize.material import Material
from converter.quantize.plan import Plan, make_plan, view_of
from converter.quantize.simulate import assignment_of
from converter.quantize.view import View
from converter.recipe import Method, Recipe, format_recipe
from converter.repair.bias import correct_biases
from converter.repair.choose import choose_ranges
from converter.repair.cost import costs
from converter.repair.equalize import equalize
from converter.repair.goal import Goal
from converter.repair.islands import find_islands
from converter.repair.switchboard import Assignment, Switchboard

_METHODS: tuple[Method, ...] = (*RANGE_METHODS, "auto")
"""`auto` among them is what the calibration itself chooses by expected error, without running the model."""

Spans = dict[str, Ranges]
"""Ranges by method."""


class Repaired(Struct, frozen=True, kw_only=True, eq=False):
    """What a scheme emits in the end.

    Attributes:
        material: with the repaired FP32 graph and its calibration.
        ranges: of every activation.
        plan: of that graph, with weights in full range.
        islands: tensors that stay in float with what they touch, by name.
        searched: what came of the search for islands, in words; empty without one.
        decisions: all of it in words.
    """

    material: Material
    ranges: Ranges
    plan: Plan
    islands: tuple[str, ...] = ()
    searched: str = ""
    decisions: tuple[str, ...] = ()


def repair(material: Material, recipe: Recipe) -> Repaired:
    """Does what the recipe's method, extras and kind ask for.

    Args:
        material: of the conversion; not changed. Its goal is what islands must reach.
        recipe: says which repairs; a mixed one without a method chooses by measured effect.

    Raises:
        RecipeError: `recipe_goal` (a mixed recipe, and no limit of accuracy or agreement), `recipe_method`,
            or what `make_plan` raises.
        Exception: what the runtime raises on this graph.
    """
    if recipe.kind == "mixed" and material.goal is None:
        raise RecipeError(
            "recipe_goal",
            "islands are searched to meet a limit; give the SLA one of accuracy or agreement",
        )
    said: list[str] = []
    if "cle" in recipe.extras:
        material, words = equalized(material, recipe)
        said += words
    ranges, words = _ranges(material, recipe)
    said += words
    if recipe.twin:
        material, ranges, words = opened(material, ranges)
        said += words
    plan = plan_of(material, recipe, ranges)
    if "bc" in recipe.extras:
        full = assignment_of(material.model, plan)
        model, words = correct_biases(material.model, trusted(material), material.signature, full)
        material = structs.replace(material, model=model)
        said += words
        plan = plan_of(material, recipe, ranges)
    islands: tuple[str, ...] = ()
    searched = ""
    if recipe.kind == "mixed" and material.goal is not None:
        islands, words = _islands(material, recipe, ranges, material.goal)
        searched = "; ".join(words)
        said += words
    # What the plan says of islands the search has said better.
    said += plan.decisions
    if islands:
        plan = final_plan(material, recipe, ranges, frozenset(islands), {})
    return Repaired(
        material=material, ranges=ranges, plan=plan, islands=islands, searched=searched, decisions=tuple(said)
    )


def plan_of(
    material: Material,
    recipe: Recipe,
    ranges: Ranges,
    islands: frozenset[str] = frozenset(),
    view: View | None = None,
) -> Plan:
    """The plan with weights in full range: which of them need less is decided of the last plan."""
    return make_plan(material, recipe, ranges, islands=islands, reduced={}, view=view)


def final_plan(
    material: Material,
    recipe: Recipe,
    ranges: Ranges,
    islands: frozenset[str],
    reduced: Mapping[str, Sequence[int]],
    view: View | None = None,
) -> Plan:
    """The plan with its islands: of 16 bits where the target lists kernels for them, else in float.

    16 bits keep the graph in integers, which an accelerator wants; on a CPU they cost 3.86 times FP32's time
    (FACTS.md section 1), and no CPU target lists them.
    """
    if wide_type(material, recipe) is None:
        return make_plan(material, recipe, ranges, islands=islands, reduced=reduced, view=view)
    return make_plan(material, recipe, ranges, wide=islands, reduced=reduced, view=view)


def wide_type(material: Material, recipe: Recipe) -> str | None:
    """The 16-bit type of islands on this target; None where it lists no kernels for it, and for a twin."""
    wanted = f"{recipe.activation[0]}16"
    if recipe.twin:
        return None
    return wanted if wanted in material.rules.wide_activation.value else None


def trusted(material: Material) -> Samples:
    """The calibration samples without those that the inspection named as wild.

    One of them would decide what a channel reaches, and its error would be the mean error of all.
    """
    wild = {one.sample for one in material.calibration.outliers}
    samples = material.samples
    kept = [i for i in range(samples.n) if i not in wild]
    return samples.taken(np.array(kept, dtype=np.int64)) if wild and kept else samples


def equalized(material: Material, recipe: Recipe) -> tuple[Material, tuple[str, ...]]:
    """The material with an equalized graph, calibrated again, for histograms cannot be scaled by channel."""
    model, said = equalize(material.model, trusted(material), material.signature, recipe)
    if model is material.model:
        return material, said
    calibration = calibrate(model, material.samples, material.signature)
    return structs.replace(material, model=model, calibration=calibration), said


def _ranges(material: Material, recipe: Recipe) -> tuple[Ranges, tuple[str, ...]]:
    """The ranges of the recipe's method; `auto`, or none in a mixed recipe, chooses by measured effect."""
    if recipe.method not in {"auto", None}:
        return ranges_of(material.calibration, recipe), ()
    plain = _without_twin(material, recipe)
    key = format_recipe(plain)
    known = material.chosen.get(key)
    if known is not None and known[0] is material.model:
        return known[1], (f"ranges as chosen for {key}",)
    ranges, words = _searched(material, plain)
    material.chosen[key] = (material.model, ranges, words)
    return ranges, words


def _without_twin(material: Material, recipe: Recipe) -> Recipe:
    """The recipe whose search serves a twin as well, for a search takes most of a candidate's time.

    A method is chosen for what it does to each tensor; the few scales that a twin ties or fixes take part in
    no choice. Where there is no other recipe, the search minds the twin's scales.
    """
    if not recipe.twin or material.rules.format.value == "TFLite":
        return recipe
    return structs.replace(recipe, extras=tuple(one for one in recipe.extras if one != "twin"))


def _searched(material: Material, recipe: Recipe) -> tuple[Ranges, tuple[str, ...]]:
    """The range method of each tensor by measured effect."""
    spans = _spans(material, recipe)
    first = next(iter(spans.values()))
    if len(spans) == 1:
        return first, (f"range method: {next(iter(spans))}, the only one of this calibration",)
    begun = time.monotonic()
    view = view_of(material.model, recipe)

    def planner(ranges: Ranges) -> Assignment:
        return assignment_of(material.model, plan_of(material, recipe, ranges, view=view))

    plan = plan_of(material, recipe, first, view=view)
    board = board_of(material, assignment_of(material.model, plan))
    by_tensor = {name: {method: ranges[name] for method, ranges in spans.items()} for name in first}
    chosen = choose_ranges(board, planner, by_tensor, plan.groups or None)
    return chosen.ranges, (*chosen.decisions, _took(board, begun))


def _spans(material: Material, recipe: Recipe) -> Spans:
    """The ranges of every method that this calibration knows."""
    found: Spans = {}
    for method in _METHODS:
        try:
            found[method] = ranges_of(material.calibration, structs.replace(recipe, method=method))
        except RecipeError:
            continue
    return found


def board_of(material: Material, full: Assignment) -> Switchboard:
    """The switchboard of everything that `full` quantizes, on calibration samples."""
    return Switchboard(
        material.model, trusted(material), material.signature,
        tensors=frozenset(full.activations), weights=frozenset(full.weights),
    )  # fmt: skip


def _islands(
    material: Material, recipe: Recipe, ranges: Ranges, goal: Goal
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The islands that the goal needs, and why."""
    begun = time.monotonic()
    view = view_of(material.model, recipe)
    quantized = plan_of(material, recipe, ranges)
    full = assignment_of(material.model, quantized)

    def planner(islands: frozenset[str]) -> Assignment:
        plan = plan_of(material, recipe, ranges, islands, view) if islands else quantized
        return assignment_of(material.model, plan)

    def wide(islands: frozenset[str]) -> Assignment:
        return assignment_of(material.model, final_plan(material, recipe, ranges, islands, {}, view))

    board = board_of(material, full)
    judging = trusted(material) if goal.samples is material.samples else goal.samples
    judge = Switchboard(
        material.model, judging, material.signature, tensors=frozenset(full.activations),
        weights=frozenset(full.weights), samples_max=ISLAND_SAMPLES_MAX,
    )  # fmt: skip
    price = costs(material.model, emit(material.model, quantized), material.samples.feeds(0, 1))
    broad = None if wide_type(material, recipe) is None else wide
    found = find_islands(board, judge, planner, goal, material.signature.answer, price.by_weight, broad)
    return found.islands, (*found.decisions, price.words, _took(judge, begun))


def _took(board: Switchboard, begun: float) -> str:
    return f"searched on {board.n} samples in {time.monotonic() - begun:.1f} s"
