"""All repairs of one recipe, in order.

For: `repair()`: equalize (`cle`), calibrate again, choose ranges (`auto`), correct biases (`bc`), find
islands (kind `mixed`), each only where the recipe says so, with every decision in words.
Not for: emitting: the scheme gives a function that does, and it is asked again with what was found.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import onnx
from msgspec import Struct, structs

from converter.calibrate import Ranges, calibrate, ranges_of
from converter.errors import RecipeError
from converter.limits import ISLAND_SAMPLES_MAX
from converter.quantize.material import Material
from converter.recipe import Method, Recipe
from converter.repair.bias import correct_biases
from converter.repair.choose import choose_ranges
from converter.repair.cost import costs
from converter.repair.equalize import equalize
from converter.repair.goal import Goal
from converter.repair.islands import find_islands
from converter.repair.reading import island_planner, read_assignment
from converter.repair.switchboard import Assignment, Switchboard

Emitter = Callable[[Material, Ranges, frozenset[str]], onnx.ModelProto]
"""The QDQ graph of a material with these ranges; these tensors, their producers and readers stay in float."""

_METHODS: tuple[Method, ...] = ("minmax", "percentile", "mse", "entropy")

Spans = dict[str, Ranges]
"""Ranges by method."""


class Repaired(Struct, frozen=True, kw_only=True):
    """What a scheme emits in the end.

    Attributes:
        material: with the repaired FP32 graph and its calibration.
        ranges: of every activation.
        islands: tensors that stay in float with what they touch, by name.
        decisions: in words.
    """

    material: Material
    ranges: Ranges
    islands: tuple[str, ...] = ()
    decisions: tuple[str, ...] = ()


def repair(material: Material, recipe: Recipe, emit: Emitter) -> Repaired:
    """Does what the recipe's method, extras and kind ask for.

    Args:
        material: of the conversion; not changed. Its goal is what islands must reach.
        recipe: says which repairs; a mixed one without a method chooses by measured effect.
        emit: of the scheme.

    Raises:
        RecipeError: `recipe_goal` (a mixed recipe, and no limit of accuracy or agreement), `recipe_method`.
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
    ranges, words = _ranges(material, recipe, emit)
    said += words
    if "bc" in recipe.extras:
        full = read_assignment(emit(material, ranges, frozenset()), material.model)
        model, words = correct_biases(material.model, material.samples, material.signature, full)
        material = structs.replace(material, model=model)
        said += words
    islands: tuple[str, ...] = ()
    if recipe.kind == "mixed" and material.goal is not None:
        islands, words = _islands(material, material.goal, emit(material, ranges, frozenset()))
        said += words
    return Repaired(material=material, ranges=ranges, islands=islands, decisions=tuple(said))


def equalized(material: Material, recipe: Recipe) -> tuple[Material, tuple[str, ...]]:
    """The material with an equalized graph, calibrated again, for histograms cannot be scaled by channel."""
    model, said = equalize(material.model, material.samples, material.signature, recipe)
    calibration = calibrate(model, material.samples, material.signature)
    return structs.replace(material, model=model, calibration=calibration), said


def _ranges(material: Material, recipe: Recipe, emit: Emitter) -> tuple[Ranges, tuple[str, ...]]:
    """The ranges of the recipe's method; `auto`, or none in a mixed recipe, chooses by measured effect."""
    if recipe.method not in {"auto", None}:
        return ranges_of(material.calibration, recipe), ()
    spans = _spans(material, recipe)
    first = next(iter(spans.values()))
    if len(spans) == 1:
        return first, (f"range method: {next(iter(spans))}, the only one of this calibration",)
    begun = time.monotonic()

    def planner(ranges: Ranges) -> Assignment:
        return read_assignment(emit(material, ranges, frozenset()), material.model)

    board = board_of(material, planner(first))
    by_tensor = {name: {method: ranges[name] for method, ranges in spans.items()} for name in first}
    chosen = choose_ranges(board, planner, by_tensor)
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
        material.model, material.samples, material.signature,
        tensors=frozenset(full.activations), weights=frozenset(full.weights),
    )  # fmt: skip


def _islands(
    material: Material, goal: Goal, quantized: onnx.ModelProto
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The islands that the goal needs, and why."""
    begun = time.monotonic()
    full = read_assignment(quantized, material.model)
    board = board_of(material, full)
    judge = Switchboard(
        material.model, goal.samples, material.signature, tensors=frozenset(full.activations),
        weights=frozenset(full.weights), samples_max=ISLAND_SAMPLES_MAX,
    )  # fmt: skip
    price = costs(material.model, quantized, material.samples.feeds(0, 1))
    planner = island_planner(material.model, full)
    found = find_islands(board, judge, planner, goal, material.signature.answer, price.by_weight)
    words = (*found.decisions, price.words, _took(judge, begun))
    return found.islands, words


def _took(board: Switchboard, begun: float) -> str:
    return f"searched on {board.n} samples in {time.monotonic() - begun:.1f} s"
