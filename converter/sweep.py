"""All candidates of one conversion, made and measured.

For: what is tried on a model, in which order, where, and what of them becomes a candidate.
Not for: one candidate (`converter.measured`), or the choice among them (`converter.candidates`).
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from msgspec import Struct, structs

from converter.attempts import Attempt, attempts_of, counterpart, tflite_of, variant_id, with_neighbour
from converter.executor import Executor
from converter.inputs import Inputs
from converter.measured import Bench, Measured, answer_candidate, reason_of, time_candidate
from converter.quantize.given import given_recipe
from converter.quantize.weights.scheme import weight_facts
from converter.rows import row, timing_of
from converter.targets.choose import recipes_for, tflite_attempts_for


def attempts_on(inputs: Inputs, graph: onnx.ModelProto) -> tuple[Attempt, ...]:
    """What is tried: what was asked for, else what suits target and model; a given quantization first."""
    if inputs.asked:
        return inputs.asked if inputs.neighbour is None else with_neighbour(inputs.asked)
    recipes = recipes_for(inputs.target, weight_facts(graph))
    found = attempts_of(recipes, tflite_of(tflite_attempts_for(inputs.target)), inputs.form)
    given = None if inputs.source.quantized is None else given_recipe(inputs.source.quantized)
    found = found if inputs.neighbour is None else with_neighbour(found)
    return found if given is None or inputs.form == "tflite" else (Attempt(given), *found)


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


def try_all(sweep: Sweep, attempts: Sequence[Attempt]) -> tuple[list[Measured], list[Measured]]:
    """All that was tried, and what of it became candidates, measured, in the attempts' order.

    Islands are searched only where no static candidate passes, or where they were asked for by name: the
    search is the longest work of a conversion, and what it gives is slower than what passes without.
    """
    inputs = sweep.bench.inputs
    plain = [one for one in attempts if one.recipe.kind != "mixed" or inputs.asked]
    mixed = [one for one in attempts if one not in plain]
    answered = _answered(sweep, plain)
    found = _timed(sweep.bench, answered)
    static = [one for one in found if one.recipe.kind == "static"]
    if any(row(inputs, one, timing_of(inputs, one)).status == "pass" for one in static):
        why = "a candidate without islands passes the SLA"
        answered += [
            Measured(id=variant_id(one.recipe), recipe=one.recipe, runtime=one.runtimes[0], unneeded=why)
            for one in mixed
        ]
    else:
        more = _answered(sweep, mixed)
        answered, found = answered + more, found + _timed(sweep.bench, more)
    found.sort(key=lambda one: _place(one, attempts))
    return answered, _paired(found, sweep.bench.baseline)


def _place(made: Measured, attempts: Sequence[Attempt]) -> tuple[int, int]:
    """Where a row stands in the order of preference; a mixed one is made under a name with its islands."""
    for i, one in enumerate(attempts):
        if made.id in one.ids:
            return i, one.ids.index(made.id)
    return next(i for i, one in enumerate(attempts) if one.recipe.kind == made.recipe.kind), 0


def _paired(found: Sequence[Measured], baseline: Measured | None) -> list[Measured]:
    """Each with the id of the row that is the same model for the other runtime, where both could be made."""
    made = {one.id for one in (*found, *(() if baseline is None else (baseline,))) if one.error is None}
    named = [(one, counterpart(one.recipe, one.runtime)) for one in found]
    return [
        structs.replace(one, twin_of=other) if other in made and one.id in made else one
        for one, other in named
    ]


def _timed(bench: Bench, answered: Sequence[Measured]) -> list[Measured]:
    return [time_candidate(bench, one) for one in answered if one.unneeded is None]


def _answered(sweep: Sweep, attempts: Sequence[Attempt]) -> list[Measured]:
    """Every candidate, made and answered; one whose worker died is a row that says so."""
    bench, name = sweep.bench, sweep.name
    # A bar on this terminal cannot be reached from another process: there, whole attempts are told.
    shared = bench if name is None else structs.replace(bench, progress=None)
    found: list[Measured] = []
    done = 0
    try:
        for rows in sweep.workers.run(answer_candidate, shared, attempts):
            found += rows
            done += 1
            if name is not None and bench.progress is not None:
                bench.progress("candidates", done, len(attempts))
    except Exception as error:  # noqa: BLE001 - whatever ends a worker ends no conversion
        why = f"the executor {name or 'serial'} gave no answer: {reason_of(error)}"
        found += [
            Measured(id=variant_id(one.recipe, runtime), recipe=one.recipe, runtime=runtime, error=why)
            for one in attempts[done:]
            for runtime in one.runtimes
        ]
    return found
