"""The searches on made-up landscapes, where the right answer is known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.repair.descent import Descended, Errors, descend, is_better, mean_of
from converter.repair.search import Search, begin, next_step, run

_MANY = 1000


class Landscape:
    """Scores 1 minus the harm of every group that is no island; counts what it is asked."""

    def __init__(self, harm: Mapping[str, float]) -> None:
        self.harm = harm
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, islands: tuple[str, ...]) -> float:
        self.asked.append(islands)
        return 1.0 - math.fsum(harm for name, harm in self.harm.items() if name not in islands)


def _search(harm: Mapping[str, float], goal: float, limit: int = _MANY) -> tuple[Search, Landscape]:
    landscape = Landscape(harm)
    ranked = tuple(sorted(harm, key=lambda name: (-harm[name], name)))
    return run(begin(ranked, goal, limit), landscape), landscape


def test_nothing_is_kept_where_nothing_hurts() -> None:
    found, landscape = _search({"a": 0.001, "b": 0.002}, 0.99)
    assert (found.best, found.met, landscape.asked) == ((), True, [()])


def test_one_that_hurts_is_found_in_two_measurements() -> None:
    found, landscape = _search({f"t{i}": 0.0 for i in range(100)} | {"bad": 0.5}, 0.99)
    assert found.best == ("bad",)
    assert landscape.asked == [(), ("bad",)]


def test_the_steps_are_none_powers_of_two_bisection_and_dropping() -> None:
    harm = {f"t{i:02}": 1.0 / 16 for i in range(16)}
    found, landscape = _search(harm, 6 / 16)
    sizes = [len(one) for one in landscape.asked]
    assert sizes == [0, 1, 2, 4, 8, 6, 5, 5, 5, 5, 5, 5]
    assert len(found.best) == 6
    assert found.evaluations == 12


def test_what_a_wrong_ranking_put_in_is_dropped_again() -> None:
    landscape = Landscape({"x": 0.0, "y": 0.0, "z": 0.0, "bad": 0.4, "worse": 0.5})
    found = run(begin(("x", "worse", "y", "z", "bad"), 0.95, _MANY), landscape)
    assert set(found.best) == {"worse", "bad"}
    assert found.met


def test_of_two_that_do_the_same_the_one_more_worth_it_stays() -> None:
    def evaluate(islands: tuple[str, ...]) -> float:
        return float("d" in islands and bool({"a", "b"} & set(islands)))

    found = run(begin(("a", "b", "c", "d"), 1.0, _MANY), evaluate)
    assert found.best == ("a", "d")


def test_a_goal_that_nothing_meets_gives_the_best_found_and_says_so() -> None:
    landscape = Landscape({"a": 0.3, "b": 0.1})
    found = run(begin(("a", "b"), 2.0, _MANY), landscape)
    assert not found.met
    assert found.best == ("a", "b")
    assert found.best_score == 1.0
    assert landscape.asked == [(), ("a",), ("a", "b")]


def test_of_equal_failures_the_one_with_fewer_islands_is_answered() -> None:
    found, _ = _search({"a": 0.0, "b": 0.0, "c": 0.0}, 1.5)
    assert (found.best, found.best_score, found.met) == ((), 1.0, False)


def test_a_score_of_exactly_the_goal_meets_it() -> None:
    landscape = Landscape({"a": 0.25, "b": 0.25})
    found = run(begin(("a", "b"), 0.75, _MANY), landscape)
    assert (found.best, found.met) == (("a",), True)


def test_more_islands_that_do_harm_leave_an_answer_that_was_measured() -> None:
    scores = {0: 0.1, 1: 0.5, 2: 0.4, 4: 0.95, 3: 0.2, 7: 0.1}
    asked: dict[tuple[str, ...], float] = {}

    def evaluate(islands: tuple[str, ...]) -> float:
        asked[islands] = scores[len(islands)]
        return asked[islands]

    found = run(begin(tuple("abcdefg"), 0.9, _MANY), evaluate)
    assert asked[found.best] == found.best_score == 0.95


@settings(max_examples=200, deadline=None)
@given(
    harms=st.lists(st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.4]), min_size=1, max_size=20),
    allowed=st.floats(0, 1.5),
    shuffled=st.randoms(use_true_random=False),
    limit=st.integers(1, 60),
)
def test_the_answer_was_measured_is_minimal_and_took_few(
    harms: list[float], allowed: float, shuffled: object, limit: int
) -> None:
    landscape = Landscape({f"t{i}": harm for i, harm in enumerate(harms)})
    ranked = list(landscape.harm)
    shuffled.shuffle(ranked)  # type: ignore[attr-defined]
    goal = 1.0 - allowed
    found = run(begin(tuple(ranked), goal, limit), landscape)
    scores = {one: Landscape(landscape.harm)(one) for one in landscape.asked}
    assert found.ask is None
    assert found.evaluations == len(landscape.asked) <= limit
    assert len({frozenset(one) for one in landscape.asked}) == len(landscape.asked), (
        "nothing is measured twice"
    )
    assert found.best_score == scores[found.best]
    assert found.met is any(score >= goal for score in scores.values())
    if found.met and found.evaluations < limit:
        k = max(found.high, 1)
        assert len(landscape.asked) <= 2 * math.ceil(math.log2(k)) + k + 1
        for name in found.best:
            rest = tuple(one for one in found.best if one != name)
            assert Landscape(landscape.harm)(rest) < goal, f"{name} was not needed"


def test_every_limit_ends_the_search_with_the_best_so_far() -> None:
    harm = {f"t{i:02}": 1.0 / 16 for i in range(16)}
    mets = [_search(harm, 6 / 16, limit)[0] for limit in range(1, 13)]
    assert [one.evaluations for one in mets] == list(range(1, 13))
    assert [one.met for one in mets] == [False] * 4 + [True] * 8
    sizes = [len(one.best) for one in mets]
    assert sizes == [0, 1, 2, 4, 8, 6, 6, 6, 6, 6, 6, 6]


def test_a_search_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="twice"):
        begin(("a", "a"), 0.5, 3)
    with pytest.raises(ValueError, match="at least one"):
        begin(("a",), 0.5, 0)
    with pytest.raises(RuntimeError, match="ended"):
        next_step(run(begin((), 0.5, 3), lambda _: 1.0), 1.0)


def _table(best: Mapping[str, str], gain: float) -> Callable[[Mapping[str, str]], Errors]:
    """Every name on its best option takes `gain` off every sample's error."""

    def evaluate(chosen: Mapping[str, str]) -> Errors:
        right = sum(chosen[name] == option for name, option in best.items())
        error = [10.0 + i % 3 - gain * right for i in range(8)]
        return error, error

    return evaluate


def _descend(evaluate: Callable[[Mapping[str, str]], Errors], limit: int = _MANY) -> Descended:
    names = ("p", "q", "r")
    options = dict.fromkeys(names, ("one", "two", "three"))
    return descend(options, dict.fromkeys(names, "one"), evaluate, limit)


def test_the_best_option_of_each_name_is_found() -> None:
    for combination in itertools.product(("one", "two", "three"), repeat=3):
        best = dict(zip("pqr", combination, strict=True))
        found = _descend(_table(best, 1.0))
        assert found.chosen == best
        assert set(found.changed) == {name for name, option in best.items() if option != "one"}
        last = max((i for i, option in enumerate(combination) if option != "one"), default=0)
        assert found.evaluations == 7 + 2 * last, "one round more after the last change"
        assert found.after == pytest.approx(found.before - len(found.changed))


def test_what_helps_only_the_half_that_picks_is_refused() -> None:
    def evaluate(chosen: Mapping[str, str]) -> Errors:
        lucky = chosen["q"] == "two"
        return [1.0 - 0.5 * lucky + 0.01 * i for i in range(6)], [1.0 + 0.1 * lucky] * 6

    assert _descend(evaluate).changed == ()


def test_what_drowns_in_noise_is_refused() -> None:
    before = [1.0] * 8
    noisy = [1.0 + (0.5 if i % 2 else -0.52) for i in range(8)]
    steady = [0.99] * 8
    assert not is_better((before, before), (noisy, steady))
    assert is_better((before, before), (steady, steady))
    assert not is_better((before, before), (before, steady)), "no difference is not better"
    assert not is_better((steady, steady), (before, before)), "worse is not better"


def test_a_name_that_goes_back_did_not_change() -> None:
    """Once q is right, p was better as it began."""
    errors = {("one", "one"): 10.0, ("two", "one"): 9.0, ("two", "two"): 5.0, ("one", "two"): 4.0}

    def evaluate(chosen: Mapping[str, str]) -> Errors:
        error = [errors[chosen["p"], chosen["q"]]] * 4
        return error, error

    options = {"p": ("one", "two"), "q": ("one", "two")}
    found = descend(options, {"p": "one", "q": "one"}, evaluate, _MANY)
    assert found.chosen == {"p": "one", "q": "two"}
    assert found.changed == ("q",)
    assert (found.before, found.after) == (10.0, 4.0)


def test_one_sample_a_half_is_enough_to_compare() -> None:
    assert is_better(([2.0], [2.0]), ([1.0], [1.0]))
    assert mean_of(([1.0], [2.0, 3.0])) == 2.0


def test_a_descent_keeps_to_its_limit_and_says_what_it_left() -> None:
    best = dict.fromkeys("pqr", "three")
    found = _descend(_table(best, 1.0), 5)
    assert found.evaluations == 5
    assert found.unvisited == 1
    assert found.chosen == {"p": "three", "q": "three", "r": "one"}
    assert _descend(_table(best, 1.0), 1).changed == ()
    with pytest.raises(ValueError, match="at least one"):
        _descend(_table(best, 1.0), 0)
