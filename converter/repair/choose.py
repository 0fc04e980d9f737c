"""The range method of each tensor, chosen by measured effect: method `auto`.

For: starting from the best method for all, then changing the method of one tensor after another where that
brings the outputs nearer to FP32 (`converter.repair.descent`), on label-free calibration samples.
Not for: the methods themselves (`converter.calibrate`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice

from msgspec import Struct

from converter.limits import AUTO_EVALUATIONS_MAX
from converter.repair.descent import Errors, descend, is_better, mean_of
from converter.repair.effects import decibels, noise_by_sample
from converter.repair.switchboard import Assignment, Switchboard
from wire.figures import Interval

Ranges = dict[str, Interval]
Planner = Callable[[Ranges], Assignment]

_SAME = 0.01
"""Spans whose ends differ by less of their width are one option, not two."""
_NAMED_MAX = 8


class Chosen(Struct, frozen=True, kw_only=True):
    """What was chosen.

    Attributes:
        ranges: of every tensor.
        methods: by tensor.
        evaluations: assignments that were computed.
        decisions: in words.
    """

    ranges: Ranges
    methods: dict[str, str]
    evaluations: int
    decisions: tuple[str, ...]


def choose_ranges(
    board: Switchboard, planner: Planner, candidates: Mapping[str, Mapping[str, Interval]]
) -> Chosen:
    """Ranges by tensor.

    Costs at most AUTO_EVALUATIONS_MAX + 1 evaluations: one for each method, one for each tensor to find those
    that matter, the descent, and one to check the whole.

    Args:
        board: of the model; its samples are split in two halves, even and odd.
        planner: the assignment for given ranges; a tensor whose operator passes its input's scale on may
            differ from its own range there, so what is chosen is checked as a whole.
        candidates: span by method by tensor; every tensor has the same methods.

    Raises:
        ValueError: no candidates.
    """
    methods = list(dict.fromkeys(method for found in candidates.values() for method in found))
    if not methods:
        raise ValueError("there is no range to choose from")
    already = board.evaluations
    plans = {method: planner(_all(candidates, method)) for method in methods}
    errors = {method: _errors(board, plan) for method, plan in plans.items()}
    best = min(methods, key=lambda method: mean_of(errors[method]))
    options = _options(board, plans, candidates, best)
    limit = max(1, AUTO_EVALUATIONS_MAX - (board.evaluations - already))
    plain = plans[best]

    def evaluate(chosen: Mapping[str, str]) -> Errors:
        spans = {name: plans[chosen.get(name, best)].activations[name] for name in plain.activations}
        return _errors(board, Assignment(activations=spans, weights=plain.weights))

    start = dict.fromkeys(options, best)
    found = descend(options, start, evaluate, limit)
    picked = {name: found.chosen.get(name, best) for name in candidates}
    ranges = {name: candidates[name][method] for name, method in picked.items()}
    kept = bool(found.changed) and is_better(errors[best], _errors(board, planner(ranges)))
    if not kept:
        picked, ranges = dict.fromkeys(candidates, best), _all(candidates, best)
    evaluations = board.evaluations - already
    said = ", ".join(f"{method} {decibels(mean_of(errors[method])):.1f} dB" for method in methods)
    words = [
        f"range method by measured effect: {best} for all is the best of {said}",
        _sweep(found.changed if kept else (), decibels(found.before), decibels(found.after), evaluations),
    ]
    words += [f"{name}: {picked[name]}" for name in islice(found.changed if kept else (), _NAMED_MAX)]
    if found.unvisited:
        words.append(f"{found.unvisited} tensors of lesser effect were left at {best}: the limit was reached")
    return Chosen(ranges=ranges, methods=picked, evaluations=evaluations, decisions=tuple(words))


def _sweep(changed: tuple[str, ...], before: float, after: float, evaluations: int) -> str:
    if not changed:
        return f"no tensor gained beyond noise from another method; {evaluations} evaluations"
    return f"{len(changed)} tensors changed method, {before:.1f} -> {after:.1f} dB; {evaluations} evaluations"


def _all(candidates: Mapping[str, Mapping[str, Interval]], method: str) -> Ranges:
    return {name: found[method] for name, found in candidates.items()}


def _errors(board: Switchboard, assignment: Assignment) -> Errors:
    noise = noise_by_sample(board.reference, board.outputs(assignment)).tolist()
    return noise[0::2], noise[1::2] or noise


def _options(
    board: Switchboard,
    plans: Mapping[str, Assignment],
    candidates: Mapping[str, Mapping[str, Interval]],
    best: str,
) -> dict[str, list[str]]:
    """Methods that differ, by tensor; the tensor that alone does most harm comes first."""
    plain = plans[best]
    harm: dict[str, float] = {}
    options = {}
    for name in plain.activations:
        if name not in candidates:
            continue
        differing = _differing(candidates[name], best)
        if differing:
            only = Assignment(activations={name: plain.activations[name]}, weights={})
            harm[name] = float(noise_by_sample(board.reference, board.outputs(only)).mean())
            options[name] = [best, *differing]
    return {name: options[name] for name in sorted(options, key=lambda name: (-harm[name], name))}


def _differing(spans: Mapping[str, Interval], best: str) -> list[str]:
    """Methods whose span is not that of an earlier one."""
    seen = [spans[best]]
    found = []
    for method, span in spans.items():
        if all(_differs(span, other) for other in seen):
            seen.append(span)
            found.append(method)
    return found


def _differs(one: Interval, other: Interval) -> bool:
    width = max(one.high - one.low, other.high - other.low)
    return abs(one.low - other.low) > _SAME * width or abs(one.high - other.high) > _SAME * width
