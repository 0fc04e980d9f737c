"""The range method of each tensor, chosen by measured effect: method `auto`.

For: starting from the best method for all, or from what suits each tensor alone where that is better, then
changing the method of one tensor after another where that brings the outputs nearer to FP32
(`converter.repair.descent`), on label-free calibration samples.
Not for: the methods themselves (`converter.calibrate`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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

_AS_GOOD = 10**0.05
"""Half a decibel: nearer to the best a method is as good, and the first, which clips least, is taken."""


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
    board: Switchboard,
    planner: Planner,
    candidates: Mapping[str, Mapping[str, Interval]],
    groups: Mapping[str, str] | None = None,
) -> Chosen:
    """Ranges by tensor.

    Costs little more than AUTO_EVALUATIONS_MAX evaluations: one for each method, some for tensors alone, the
    descent, and one to check the whole.

    Args:
        board: of the model; its samples are split in two halves, even and odd.
        planner: the assignment for given ranges; a tensor whose operator passes its input's scale on may
            differ from its own range there, so what is chosen is checked as a whole.
        candidates: span by method by tensor; every tensor has the same methods.
        groups: by tensor the one that speaks for all of its scale, which then change method together; a
            tensor that is not named is alone.

    Raises:
        ValueError: no candidates.
    """
    methods = list(dict.fromkeys(method for found in candidates.values() for method in found))
    if not methods:
        raise ValueError("there is no range to choose from")
    already = board.evaluations
    plans = {method: planner(_all(candidates, method)) for method in methods}
    errors = {method: _errors(board, plan) for method, plan in plans.items()}
    least = min(mean_of(found) for found in errors.values())
    best = next(method for method in methods if mean_of(errors[method]) <= _AS_GOOD * least)
    plain = plans[best]
    speaker = {name: (groups or {}).get(name, name) for name in (*candidates, *plain.activations)}

    def evaluate(chosen: Mapping[str, str]) -> Errors:
        spans = {
            name: plans[chosen.get(speaker[name], best)].activations.get(name, own)
            for name, own in plain.activations.items()
        }
        return _errors(board, Assignment(activations=spans, weights=plain.weights))

    options, suited = _suited(board, plans, _differing_by_speaker(plans, candidates, best, groups), best)
    start = dict.fromkeys(options, best)
    if suited != start and is_better(errors[best], evaluate(suited)):
        start = suited
    found = descend(options, start, evaluate, max(1, AUTO_EVALUATIONS_MAX - (board.evaluations - already)))
    picked = {name: found.chosen.get(speaker[name], best) for name in candidates}
    ranges = {name: candidates[name][method] for name, method in picked.items()}
    changed = tuple(name for name in options if picked[name] != best)
    final = _errors(board, planner(ranges)) if changed else errors[best]
    if not is_better(errors[best], final):
        changed, final = (), errors[best]
        picked, ranges = dict.fromkeys(candidates, best), _all(candidates, best)
    evaluations = board.evaluations - already
    words = [
        _methods_words(best, errors),
        _sweep(changed, mean_of(errors[best]), mean_of(final), evaluations),
        *(f"{name}: {picked[name]}" for name in changed[:_NAMED_MAX]),
        *_unvisited_words(found.unvisited),
    ]
    return Chosen(ranges=ranges, methods=picked, evaluations=evaluations, decisions=tuple(words))


def _unvisited_words(n: int) -> tuple[str, ...]:
    return (f"{n} tensors of lesser effect were not tried in turn: the limit was reached",) if n else ()


def _methods_words(best: str, errors: Mapping[str, Errors]) -> str:
    said = ", ".join(f"{method} {decibels(mean_of(found)):.1f} dB" for method, found in errors.items())
    return f"range method by measured effect: {best} for all is the best of {said}"


def _sweep(changed: tuple[str, ...], before: float, after: float, evaluations: int) -> str:
    if not changed:
        return f"no tensor gained beyond noise from another method; {evaluations} evaluations"
    gain = f"{decibels(before):.1f} -> {decibels(after):.1f} dB"
    return f"{len(changed)} tensors changed method, {gain}; {evaluations} evaluations"


def _all(candidates: Mapping[str, Mapping[str, Interval]], method: str) -> Ranges:
    return {name: found[method] for name, found in candidates.items()}


def _errors(board: Switchboard, assignment: Assignment) -> Errors:
    noise = noise_by_sample(board.reference, board.outputs(assignment)).tolist()
    return noise[0::2], noise[1::2] or noise


def _suited(
    board: Switchboard,
    plans: Mapping[str, Assignment],
    by_speaker: Mapping[str, _Together],
    best: str,
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Methods that differ by tensor, the most harmful tensor first; and the method that does each least harm.

    Alone means everything else in float: the noise of other tensors cannot hide or imitate an effect. At most
    half of AUTO_EVALUATIONS_MAX go into that, for the tensors that do most harm.
    """
    differing = {name: one.differing for name, one in by_speaker.items()}

    def alone(name: str, method: str) -> float:
        spans, plain = plans[method].activations, plans[best].activations
        members = by_speaker[name].members
        only = Assignment(activations={one: spans.get(one, plain[one]) for one in members}, weights={})
        return float(noise_by_sample(board.reference, board.outputs(only)).mean())

    limit = board.evaluations + AUTO_EVALUATIONS_MAX // 2
    harm = {name: alone(name, best) for name, found in differing.items() if found}
    ordered = sorted(harm, key=lambda name: (-harm[name], name))
    suited = dict.fromkeys(ordered, best)
    for name in ordered:
        if board.evaluations + len(differing[name]) > limit:
            break
        measured = {best: harm[name]} | {method: alone(name, method) for method in differing[name]}
        suited[name] = min(measured, key=lambda method: measured[method])
    return {name: [best, *differing[name]] for name in ordered}, suited


class _Together(Struct, frozen=True, kw_only=True):
    """Tensors that change method together, and the methods that differ from the best one for them."""

    members: tuple[str, ...]
    differing: list[str]


def _differing_by_speaker(
    plans: Mapping[str, Assignment],
    candidates: Mapping[str, Mapping[str, Interval]],
    best: str,
    groups: Mapping[str, str] | None,
) -> dict[str, _Together]:
    """What can be chosen, by the tensor that speaks for it.

    Where tensors share scales a span is what the plan makes of all of them: a union, or what is prescribed.
    """
    plain = plans[best].activations
    if groups is None:
        return {
            name: _Together(members=(name,), differing=_differing(candidates[name], best))
            for name in plain
            if name in candidates
        }
    members: dict[str, list[str]] = {}
    for name in plain:
        members.setdefault(groups.get(name, name), []).append(name)
    found = {}
    for speaker, names in members.items():
        fakes = {method: plan.activations.get(names[0], plain[names[0]]) for method, plan in plans.items()}
        spans = {m: Interval(low=one.step * one.low, high=one.step * one.high) for m, one in fakes.items()}
        found[speaker] = _Together(members=tuple(names), differing=_differing(spans, best))
    return found


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
