"""All candidates of one conversion, made and measured.

For: which recipes are tried on a model, in which order, where, and what of them becomes a candidate.
Not for: one candidate (`converter.measured`), or the choice among them (`converter.candidates`).
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from msgspec import Struct, structs

from converter.executor import Executor
from converter.inputs import Inputs
from converter.measured import Bench, Measured, answer_candidate, reason_of, time_candidate, variant_id
from converter.quantize.given import given_recipe
from converter.quantize.weights.scheme import weight_facts
from converter.recipe import Recipe
from converter.rows import row, timing_of
from converter.targets.choose import recipes_for


def recipes_of(inputs: Inputs, graph: onnx.ModelProto, *, asked: bool) -> tuple[Recipe, ...]:
    """What is tried: what was asked for, else what suits target and model; a given quantization first."""
    if asked:
        return inputs.target.recipes
    recipes = recipes_for(inputs.target, weight_facts(graph))
    given = None if inputs.source.quantized is None else given_recipe(inputs.source.quantized)
    return recipes if given is None else (given, *recipes)


class Sweep(Struct, frozen=True, kw_only=True):
    """Where candidates are made.

    Attributes:
        bench: what all are measured with.
        workers: that build them and take their answers.
        name: of the executor; None for this process alone.
    """

    bench: Bench
    workers: Executor
    name: str | None


def try_all(sweep: Sweep, recipes: Sequence[Recipe], *, asked: bool) -> tuple[list[Measured], list[Measured]]:
    """All that was tried, and what of it became candidates, measured, in the recipes' order.

    Islands are searched only where no static candidate passes, or where they were asked for by name: the
    search is the longest work of a conversion, and what it gives is slower than what passes without.
    """
    inputs = sweep.bench.inputs
    plain = [one for one in recipes if one.kind != "mixed" or asked]
    mixed = [one for one in recipes if one not in plain]
    answered = _answered(sweep, plain)
    found = _timed(sweep.bench, answered)
    static = [one for one in found if one.recipe.kind == "static"]
    if any(row(inputs, one, timing_of(inputs, one)).status == "pass" for one in static):
        why = "a candidate without islands passes the SLA"
        answered += [Measured(id=variant_id(one), recipe=one, unneeded=why) for one in mixed]
    else:
        more = _answered(sweep, mixed)
        answered, found = answered + more, found + _timed(sweep.bench, more)
    found.sort(key=lambda one: _place(one.recipe, recipes))
    return answered, found


def _place(made: Recipe, recipes: Sequence[Recipe]) -> int:
    """Where a recipe stands in the order of preference; a mixed one is made under a name with its islands."""
    if made in recipes:
        return recipes.index(made)
    return next(i for i, recipe in enumerate(recipes) if recipe.kind == made.kind)


def _timed(bench: Bench, answered: Sequence[Measured]) -> list[Measured]:
    return [time_candidate(bench, one) for one in answered if one.unneeded is None]


def _answered(sweep: Sweep, recipes: Sequence[Recipe]) -> list[Measured]:
    """Every candidate, built and answered; one whose worker died is a row that says so."""
    bench, name = sweep.bench, sweep.name
    # A bar on this terminal cannot be reached from another process: there, whole candidates are told.
    shared = bench if name is None else structs.replace(bench, progress=None)
    found: list[Measured] = []
    try:
        for one in sweep.workers.run(answer_candidate, shared, recipes):
            found.append(one)
            if name is not None and bench.progress is not None:
                bench.progress("candidates", len(found), len(recipes))
    except Exception as error:  # noqa: BLE001 - whatever ends a worker ends no conversion
        why = f"the executor {name or 'serial'} gave no answer: {reason_of(error)}"
        left = recipes[len(found) :]
        found += [Measured(id=variant_id(recipe), recipe=recipe, error=why) for recipe in left]
    return found
