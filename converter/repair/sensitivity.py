"""Which tensors hurt when they are quantized, and how much.

For: the report's chart, and the ranking of the searches. Each tensor and each weight is quantized alone (how
much it hurts by itself) and the ones that hurt most are left out of full quantization (what an island there
gains).
Not for: choosing anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from msgspec import Struct, structs

from converter.repair.effects import decibels, effect, noise_by_sample
from converter.repair.switchboard import Assignment, Switchboard

Kind = Literal["activation", "weight"]
Without = Callable[[str], Assignment]


class Sensitivity(Struct, frozen=True, kw_only=True):
    """Of one tensor.

    Attributes:
        tensor: its name in the cleaned FP32 graph.
        kind: activation or weight.
        noise: relative noise power at the outputs with only this quantized; 0 is no effect.
        alone_db: the same as signal over noise.
        alone_agreement: with FP32's top class; None where outputs have no classes.
        island_db: signal over noise with everything quantized but this and what it touches; None where it was
            not measured.
        gain_db: how much better that is than full quantization; None where it was not measured.
    """

    tensor: str
    kind: Kind
    noise: float
    alone_db: float
    alone_agreement: float | None
    island_db: float | None = None
    gain_db: float | None = None


def sensitivities(
    board: Switchboard, full: Assignment, answer: str, islands: Without, islands_measured_max: int
) -> list[Sensitivity]:
    """All tensors and weights, the one that hurts most first.

    Costs one evaluation for each, and one for each of the worst activations, at most `islands_measured_max`.

    Args:
        board: the model.
        full: everything quantized that the plan quantizes.
        answer: name of the output that the agreement looks at.
        islands: the assignment in which a tensor, its producer and its readers stay in float.
        islands_measured_max: activations whose island is measured too.
    """
    found = [
        *(_alone(board, name, full, "activation", answer) for name in full.activations),
        *(_alone(board, name, full, "weight", answer) for name in full.weights),
    ]
    found.sort(key=lambda one: (-one.noise, one.tensor))
    worst = [one.tensor for one in found if one.kind == "activation" and one.noise > 0.0][
        :islands_measured_max
    ]
    if not worst:
        return found
    whole = effect(board.reference, board.outputs(full), answer).sqnr_db
    gains = {name: effect(board.reference, board.outputs(islands(name)), answer).sqnr_db for name in worst}
    return [
        structs.replace(one, island_db=gains[one.tensor], gain_db=gains[one.tensor] - whole)
        if one.kind == "activation" and one.tensor in gains
        else one
        for one in found
    ]


def _alone(board: Switchboard, name: str, full: Assignment, kind: Kind, answer: str) -> Sensitivity:
    only = Assignment(
        activations={name: full.activations[name]} if kind == "activation" else {},
        weights={name: full.weights[name]} if kind == "weight" else {},
    )
    outputs = board.outputs(only)
    noise = float(noise_by_sample(board.reference, outputs).mean())
    seen = effect(board.reference, outputs, answer)
    return Sensitivity(
        tensor=name, kind=kind, noise=noise, alone_db=decibels(noise), alone_agreement=seen.agreement
    )
