"""PURE. Choice of one option for each of many names by measured effect: coordinate descent.

For: visiting the names in the order given, trying each other option of a name while all the rest stays, and
keeping what lowers the error beyond noise on one half of the samples and lowers it on the other half too.
The second half is never used to pick, only to refuse: a choice made by chance on the first half is as likely
to be worse there as better.
Not for: measuring, or the order.

Beyond noise: the mean of the paired differences (sample by sample, after minus before) lies below zero by
more than its standard error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

Errors = tuple[Sequence[float], Sequence[float]]
"""Error of each sample: of the half that picks, and of the half that may refuse."""


class Descended(Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        chosen: option by name.
        changed: names whose option is not the one that it began with, in the order of the changes.
        before: mean error of all samples at the start.
        after: the same at the end.
        evaluations: measurements.
        unvisited: names that the limit left untried.
    """

    chosen: dict[str, str]
    changed: tuple[str, ...]
    before: float
    after: float
    evaluations: int
    unvisited: int


def descend(
    options: Mapping[str, Sequence[str]],
    start: Mapping[str, str],
    evaluate: Callable[[Mapping[str, str]], Errors],
    evaluations_max: int,
) -> Descended:
    """Sweeps over all names until one changes nothing, or the limit is reached.

    Args:
        options: of each name, in the order of the visits.
        start: the option of each name to begin with.
        evaluate: errors of an assignment; lower is better.
        evaluations_max: measurements at most, the first one of `start` included.

    Raises:
        ValueError: not one measurement is allowed.
    """
    if evaluations_max < 1:
        raise ValueError("a descent needs at least one measurement")
    chosen = dict(start)
    now = evaluate(chosen)
    before, evaluations = mean_of(now), 1
    moved: list[str] = []
    waiting = list(options)
    unvisited = set(options)
    last_change = len(options)
    # A name comes round again until all names in turn have changed nothing.
    while waiting and last_change > 0:
        name = waiting.pop(0)
        others = [one for one in options[name] if one != chosen[name]]
        if evaluations + len(others) > evaluations_max:
            break
        waiting.append(name)
        unvisited.discard(name)
        last_change -= 1
        for option in others:
            errors = evaluate({**chosen, name: option})
            evaluations += 1
            if is_better(now, errors):
                chosen[name], now = option, errors
                moved.append(name)
                last_change = len(options) - 1
    changed = tuple(name for name in dict.fromkeys(moved) if chosen[name] != start[name])
    return Descended(
        chosen=chosen, changed=changed, before=before, after=mean_of(now), evaluations=evaluations,
        unvisited=len(unvisited),
    )  # fmt: skip


def mean_of(errors: Errors) -> float:
    """Mean error over both halves."""
    both = [*errors[0], *errors[1]]
    return math.fsum(both) / len(both)


def is_better(before: Errors, after: Errors) -> bool:
    """Whether the first half falls beyond noise and the second half falls."""
    differences = [b - a for a, b in zip(before[0], after[0], strict=True)]
    n = len(differences)
    mean = math.fsum(differences) / n
    spread = math.fsum((one - mean) ** 2 for one in differences) / max(n - 1, 1)
    if mean >= 0.0 or -mean <= math.sqrt(spread / n):
        return False
    return math.fsum(after[1]) < math.fsum(before[1])
