"""PURE. The search for a small set of islands that meets a goal.

For: deciding which set to measure next, and when to stop: `next_step(search, score) -> search`. The groups
come ranked, the most worth first. Measured are: none; prefixes of 1, 2, 4, ... groups until one meets the
goal; prefixes between the last that fails and the first that does, by bisection; then that prefix without
each of its members, the least worth first, leaving out for good what is not needed. Where a prefix of k
groups is needed that takes at most 2 ceil(log2 k) + k + 1 measurements, and never more than the limit.
Not for: measuring, ranking, or what an island is (`converter.repair.islands`).

Where more islands never lower the score the answer has no member that could be left out. Where they
sometimes do (a float island moves quantization noise elsewhere), the answer was still measured to meet the
goal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from msgspec import Struct, structs

Phase = Literal["none", "grow", "narrow", "drop", "ended"]


class Search(Struct, frozen=True, kw_only=True):
    """Where a search stands.

    Attributes:
        ranked: groups, the most worth an island first; each once.
        score_min: what meets the goal.
        evaluations_max: measurements at most.
        phase: what is being done.
        ask: the set to measure next; None when the search has ended.
        low: length of the longest prefix known to fail; -1 before anything is known.
        high: length of the shortest prefix known to meet the goal; 0 while none is known.
        dropping: the member that `ask` leaves out.
        untried: members that may still be left out, the next one first.
        best: the set to answer with.
        best_score: its score; None before anything was measured.
        evaluations: measurements so far.
    """

    ranked: tuple[str, ...]
    score_min: float
    evaluations_max: int
    phase: Phase = "none"
    ask: tuple[str, ...] | None = ()
    low: int = -1
    high: int = 0
    dropping: str | None = None
    untried: tuple[str, ...] = ()
    best: tuple[str, ...] = ()
    best_score: float | None = None
    evaluations: int = 0

    @property
    def met(self) -> bool:
        """Whether `best` was measured to meet the goal."""
        return self.best_score is not None and self.best_score >= self.score_min


def begin(ranked: tuple[str, ...], score_min: float, evaluations_max: int) -> Search:
    """A search that has measured nothing; it asks for no islands at all first.

    Raises:
        ValueError: a group stands twice, or not one measurement is allowed.
    """
    if len(set(ranked)) != len(ranked):
        raise ValueError("a group stands twice in the ranking")
    if evaluations_max < 1:
        raise ValueError("a search needs at least one measurement")
    return Search(ranked=ranked, score_min=score_min, evaluations_max=evaluations_max)


def next_step(search: Search, score: float) -> Search:
    """The search after `search.ask` was measured with `score`.

    Raises:
        RuntimeError: nothing was asked for.
    """
    if search.ask is None:
        raise RuntimeError("the search has ended; nothing was asked for")
    search = _noted(search, score)
    meets = score >= search.score_min
    after = _STEPS[search.phase](search, meets)
    if after.ask is not None and after.evaluations >= after.evaluations_max:
        return _ended(after)
    return after


def run(search: Search, evaluate: Callable[[tuple[str, ...]], float]) -> Search:
    """The whole search; `evaluate` gives the score of a set."""
    while search.ask is not None:
        search = next_step(search, evaluate(search.ask))
    return search


def _noted(search: Search, score: float) -> Search:
    """One measurement more; what meets the goal beats what does not, then fewer islands, then the score."""
    asked = search.ask or ()
    if search.best_score is None:
        better = True
    elif search.met:
        better = score >= search.score_min and len(asked) < len(search.best)
    else:
        better = score >= search.score_min or score > search.best_score
    changed = {"best": asked, "best_score": score} if better else {}
    return structs.replace(search, evaluations=search.evaluations + 1, **changed)


def _after_none(search: Search, meets: bool) -> Search:
    if meets or not search.ranked:
        return _ended(search)
    return structs.replace(search, phase="grow", low=0, ask=search.ranked[:1])


def _after_grow(search: Search, meets: bool) -> Search:
    size = len(search.ask or ())
    if meets:
        return _narrowed(structs.replace(search, high=size))
    if size == len(search.ranked):
        return _ended(search)
    return structs.replace(search, low=size, ask=search.ranked[: min(2 * size, len(search.ranked))])


def _after_narrow(search: Search, meets: bool) -> Search:
    size = len(search.ask or ())
    return _narrowed(structs.replace(search, high=size) if meets else structs.replace(search, low=size))


def _narrowed(search: Search) -> Search:
    """Bisects on, or begins to drop members when the shortest prefix is known."""
    if search.high - search.low > 1:
        middle = (search.low + search.high) // 2
        return structs.replace(search, phase="narrow", ask=search.ranked[:middle])
    # Without its last member the prefix is one group shorter, and that is known to fail.
    untried = tuple(reversed(search.ranked[: search.high - 1]))
    return _dropped(structs.replace(search, phase="drop", untried=untried))


def _after_drop(search: Search, meets: bool) -> Search:  # noqa: ARG001 - `best` holds what met the goal
    return _dropped(search)


def _dropped(search: Search) -> Search:
    """Asks for the best set without the next member that was not tried yet."""
    if not search.untried:
        return _ended(search)
    leave, rest = search.untried[0], search.untried[1:]
    ask = tuple(name for name in search.best if name != leave)
    return structs.replace(search, dropping=leave, untried=rest, ask=ask)


def _ended(search: Search) -> Search:
    return structs.replace(search, phase="ended", ask=None, dropping=None)


_STEPS: dict[Phase, Callable[[Search, bool], Search]] = {
    "none": _after_none,
    "grow": _after_grow,
    "narrow": _after_narrow,
    "drop": _after_drop,
}
