"""The smallest set of float islands that meets a goal.

For: ranking the tensors by what an island there spares per cost, and running the search
(`converter.repair.search`) on the switchboard. An island is a tensor with its producer *and* all its readers
in float: with the producer alone nothing is won (FACTS.md, trap 5).
Not for: emitting the graph, or judging it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from converter.limits import ISLAND_EVALUATIONS_MAX, ISLANDS_MAX
from converter.repair.effects import decibels, noise_by_sample
from converter.repair.goal import Goal, score
from converter.repair.search import Search, begin, run
from converter.repair.switchboard import Assignment, Switchboard

Planner = Callable[[frozenset[str]], Assignment]
"""The assignment in which these tensors are islands."""


_NAMED_MAX = 8
"""Islands that get a sentence of their own."""


class Group(Struct, frozen=True, kw_only=True):
    """What one island would spare and cost.

    Attributes:
        tensor: the island.
        noise: relative noise power at the outputs with only that quantized which the island spares.
        cost: of the layers that it makes float, in the unit of the costs given.
        float_weights: weights that stay in float with it.
    """

    tensor: str
    noise: float
    cost: float
    float_weights: tuple[str, ...]


class Found(Struct, frozen=True, kw_only=True):
    """What the search came to.

    Attributes:
        islands: tensors, the most worth first; empty where none is needed.
        met: whether they were measured to meet the goal.
        score: 1 or more meets it.
        score_without: without any island.
        evaluations: measurements, the ranking included.
        decisions: in words.
    """

    islands: tuple[str, ...]
    met: bool
    score: float
    score_without: float
    evaluations: int
    decisions: tuple[str, ...]


def rank(board: Switchboard, planner: Planner, costs: Mapping[str, float]) -> list[Group]:
    """All possible islands, the one that spares most noise per cost first; one evaluation for each.

    The cost of a boundary (a tensor that is converted from and to float) is the mean cost of all groups: an
    island of a cheap layer is not free.

    Args:
        board: of the model.
        planner: what stays in float with an island.
        costs: by weight, of computing its layer in float instead of integers; any unit.
    """
    full = planner(frozenset())
    groups = [_group(board, planner, full, name, costs) for name in full.activations]
    boundary = sum(one.cost for one in groups) / max(len(groups), 1) or 1.0
    return sorted(groups, key=lambda one: (-one.noise / (one.cost + boundary), one.tensor))


def _group(
    board: Switchboard, planner: Planner, full: Assignment, name: str, costs: Mapping[str, float]
) -> Group:
    rest = planner(frozenset({name}))
    spared = Assignment(
        activations={k: v for k, v in full.activations.items() if k not in rest.activations},
        weights={k: v for k, v in full.weights.items() if k not in rest.weights},
    )
    noise = noise_by_sample(board.reference, board.outputs(spared))
    return Group(
        tensor=name, noise=float(noise.mean()), cost=sum(costs.get(k, 0.0) for k in spared.weights),
        float_weights=tuple(sorted(spared.weights)),
    )  # fmt: skip


def find_islands(
    board: Switchboard,
    judge: Switchboard,
    planner: Planner,
    goal: Goal,
    answer: str,
    costs: Mapping[str, float],
    wide: Planner | None = None,
) -> Found:
    """Ranks, then searches.

    Args:
        board: of the model, on the samples that rank.
        judge: the same on the goal's samples, which decide.
        planner: the assignment with given islands.
        goal: what to reach.
        answer: output with the scores by class.
        costs: see `rank()`.
        wide: the assignment where islands are of 16 bits instead; None for float ones. What hurts in 8 bits
            is ranked in the same way for both.
    """
    judged = planner if wide is None else wide
    already = board.evaluations
    groups = [one for one in rank(board, planner, costs) if one.noise > 0.0][:ISLANDS_MAX]
    by_name = {one.tensor: one for one in groups}
    scores: dict[tuple[str, ...], float] = {}

    def evaluate(islands: tuple[str, ...]) -> float:
        found = judge.outputs(judged(frozenset(islands)))
        scores[islands] = score(goal, judge.reference, found, answer, judge.labels)
        return scores[islands]

    search = run(begin(tuple(by_name), 1.0, ISLAND_EVALUATIONS_MAX), evaluate)
    ranked_with = board.evaluations - already
    chosen = [by_name[name] for name in search.best]
    return Found(
        islands=search.best, met=search.met, score=search.best_score or 0.0, score_without=scores[()],
        evaluations=search.evaluations + ranked_with,
        decisions=_words(search, goal, chosen, scores[()], ranked_with, wide=wide is not None),
    )  # fmt: skip


def _words(
    search: Search, goal: Goal, islands: Sequence[Group], without: float, ranked_with: int, *, wide: bool
) -> tuple[str, ...]:
    evaluations = f"{ranked_with} evaluations to rank and {search.evaluations} to search"
    if not islands and search.met:
        return (f"no islands: the goal, {goal.words}, is met without ({evaluations})",)
    end = "meets" if search.met else "does not meet"
    reached = f"{without:.4f} of the goal is reached, with them {search.best_score or 0.0:.4f}"
    kind = "16-bit" if wide else "float"
    said = [f"{len(islands)} {kind} islands; {evaluations}. Without them {reached}: {end} {goal.words}"]
    if not search.met:
        said.append(
            f"nothing that was tried meets the goal; missing is {1.0 - (search.best_score or 0.0):.4f} of it"
        )
    more = len(islands) - _NAMED_MAX
    said += [
        f"tensor {one.tensor} {_kept(one, wide=wide)}: quantizing just these leaves "
        f"{decibels(one.noise):.1f} dB at the outputs"
        for one in islands[:_NAMED_MAX]
    ]
    if more > 0:
        said.append(f"and {more} more: {', '.join(one.tensor for one in islands[_NAMED_MAX:])}")
    return tuple(said)


def _kept(one: Group, *, wide: bool) -> str:
    if wide:
        return "has 16 bits with all that share its scale"
    return f"stays float with its producer and its readers ({', '.join(one.float_weights) or 'no weights'})"
