"""Goals, ranking and the choice of ranges on the switchboard, with effects that are known."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from msgspec import structs

from converter.dataset import Samples
from converter.model import signature
from converter.repair.choose import choose_ranges
from converter.repair.goal import Goal, goal_of, score
from converter.repair.islands import find_islands, rank
from converter.repair.switchboard import OPEN, Array, Assignment, FakeQuant, Switchboard
from tests.converter.builders import images
from tests.converter.repairing import island_planner, outlier_net, samples_of
from wire.figures import Interval
from wire.sla import AccuracyLimit, AgreementLimit, Limits

_TENSORS = ("image", "r1", "r2", "r3", "c4", "g")


def _scores(*rows: tuple[float, ...]) -> dict[str, Array]:
    return {"y": np.array(rows, dtype=np.float32)}


def _samples(labels: list[int] | None = None) -> Samples:
    found = samples_of(images(4))
    return found if labels is None else structs.replace(found, labels=np.array(labels))


_EXACT = _scores((1, 0), (1, 0), (0, 1), (0, 1))
_FOUND = _scores((1, 0), (0, 1), (0, 1), (0, 1))
_LABELS = np.array([0, 0, 1, 0])


@pytest.mark.parametrize(
    ("goal", "labels", "expected"),
    [
        ({"agreement_min": 0.75}, None, 1.0),
        ({"agreement_min": 1.0}, None, 0.75),
        ({"accuracy_fraction_min": 1.0}, None, 0.75),
        ({"accuracy_min": 0.5}, None, 1.5),
        ({"accuracy_min": 0.5, "agreement_min": 1.0}, None, 0.75),
        ({"accuracy_fraction_min": 1.5}, None, 0.75),
        ({"accuracy_fraction_min": 1.0}, _LABELS, 2 / 3),
        ({"accuracy_min": 0.5}, _LABELS, 1.0),
        ({"accuracy_min": 0.5, "agreement_min": 1.0}, _LABELS, 0.75),
        ({"accuracy_min": 1.0, "agreement_min": 0.75}, _LABELS, 0.5),
        ({"agreement_min": 0.0}, None, 1.75),
        ({}, None, 1.0),
        ({}, _LABELS, 1.0),
    ],
)
def test_the_limit_that_is_missed_most_decides(
    goal: dict[str, float], labels: np.ndarray[tuple[int], np.dtype[np.int64]] | None, expected: float
) -> None:
    found = score(structs.replace(Goal(samples=_samples()), **goal), _EXACT, _FOUND, "y", labels)
    assert found == pytest.approx(expected)


def test_an_answer_without_classes_has_to_be_near() -> None:
    exact = {"y": np.ones((4, 1), dtype=np.float32)}
    near = {"y": np.ones((4, 1), dtype=np.float32) + np.float32(10**-1.5)}
    found = score(Goal(samples=_samples(), accuracy_min=0.9), exact, near, "y", None)
    assert found == pytest.approx(1.0, abs=1e-3)


def test_the_sla_sets_the_goal() -> None:
    limits = Limits(accuracy=AccuracyLimit(min_fraction_of_baseline=0.99), agreement=AgreementLimit(min=0.97))
    goal = goal_of(limits, _samples(), None)
    assert goal is not None
    assert (goal.accuracy_fraction_min, goal.accuracy_min, goal.agreement_min) == (0.99, None, 0.97)
    assert goal.words == (
        "accuracy of at least 0.99 of FP32's and agreement of at least 0.97 "
        "(on calibration samples, where agreement stands for accuracy)"
    )
    search = _samples([0, 1, 2, 3])
    labelled = goal_of(Limits(accuracy=AccuracyLimit(min=0.9)), _samples(), search)
    assert labelled is not None
    assert labelled.samples is search
    assert labelled.words == "accuracy of at least 0.9 (on labelled search samples)"
    assert goal_of(Limits(latency_ms_p95_max=3.0), _samples(), None) is None


def _board(made: onnx.ModelProto, n: int = 32) -> Switchboard:
    names = frozenset(t.name for t in made.graph.initializer)
    return Switchboard(
        made, samples_of(images(n)), signature(made), tensors=frozenset(_TENSORS), weights=names
    )


def _full(board: Switchboard, coarse: dict[str, float]) -> Assignment:
    """Everything on a fine grid, but these tensors on a coarse one; weights are as they were."""
    fine = FakeQuant(step=2.0**-12, low=-(2.0**24), high=2.0**24)
    activations = {name: structs.replace(fine, step=coarse.get(name, fine.step)) for name in board.tensors}
    return Assignment(activations=activations, weights=board.plain)


def test_the_ranking_puts_what_is_spared_per_cost_first() -> None:
    made = outlier_net(1, 1.0)
    board = _board(made)
    full = _full(board, {"r1": 3.0, "r3": 0.8})
    planner = island_planner(full, made)
    free = rank(board, planner, {})
    assert len(free) == board.evaluations == len(board.tensors)
    by_name = {one.tensor: one for one in free}
    assert free[0].noise == max(one.noise for one in free) > by_name["g"].noise
    assert "w2" in by_name["r1"].float_weights
    assert by_name["r1"].cost == 0.0
    priced = {one.tensor: one for one in rank(board, planner, {"w1": 1.0, "w2": 2.0, "b2": 0.5, "w5": 4.0})}
    assert priced["r1"].cost == 2.5
    assert priced["g"].cost == 4.0
    without, with_price = ([one.tensor for one in rank(board, planner, price)] for price in ({}, {"w2": 1e9}))
    assert without.index("r1") < without.index("r3")
    assert with_price.index("r3") < with_price.index("r1"), "less noise, but the other is dear"


def test_islands_are_the_tensors_that_hurt_and_no_others() -> None:
    made = outlier_net(1, 1.0)
    board, judge = _board(made), _board(made, 96)
    full = _full(board, {"r1": 40.0, "g": 40.0})
    goal = Goal(samples=samples_of(images(96)), agreement_min=1.0)
    found = find_islands(board, judge, island_planner(full, made), goal, "logits", {})
    assert len(found.islands) == 2
    assert found.met
    assert found.score == 1.0 > found.score_without
    assert found.evaluations == board.evaluations + judge.evaluations
    assert found.decisions[0].startswith("2 float islands; 6 evaluations to rank and ")
    assert len(found.decisions) == 3
    planner = island_planner(full, made)
    left = {name for name, fake in planner(frozenset(found.islands)).activations.items() if fake.step == 40.0}
    assert left == set()


def test_no_islands_where_nothing_hurts() -> None:
    made = outlier_net(1, 1.0)
    board = _board(made)
    full = _full(board, {})
    goal = Goal(samples=samples_of(images(32)), agreement_min=0.9)
    found = find_islands(board, board, island_planner(full, made), goal, "logits", {})
    assert (found.islands, found.met) == ((), True)
    assert found.decisions[0].startswith("no islands: the goal")


def test_what_does_no_harm_is_never_an_island() -> None:
    made = outlier_net(1, 1.0)
    board = _board(made)
    full = structs.replace(
        _full(board, {}), activations={"c4": FakeQuant(step=9.0, low=-1, high=1), "g": OPEN}
    )
    goal = Goal(samples=samples_of(images(32)), accuracy_min=1.0, accuracy_fraction_min=1.0)
    found = find_islands(board, board, island_planner(full, made), goal, "logits", {})
    assert found.islands == ("c4",)
    nothing = structs.replace(full, activations={"r2": OPEN, "g": OPEN})
    judge = _board(made)
    judge.labels = np.full(judge.n, 9)
    impossible = find_islands(board, judge, island_planner(nothing, made), goal, "logits", {})
    assert (impossible.islands, impossible.met) == ((), False)
    assert judge.evaluations == 1, "there is nothing to try"


class _Ranges:
    """A planner of 8-bit grids over given ranges; counts its calls."""

    def __init__(self, tensors: tuple[str, ...]) -> None:
        self.tensors = tensors
        self.calls = 0

    def __call__(self, ranges: dict[str, Interval]) -> Assignment:
        self.calls += 1
        activations = {}
        for name in self.tensors:
            span = ranges[name]
            step = (span.high - span.low) / 255
            activations[name] = FakeQuant(step=step, low=round(span.low / step), high=round(span.high / step))
        return Assignment(activations=activations, weights={})


def _spans(board: Switchboard, made: onnx.ModelProto) -> dict[str, Interval]:
    watched = Switchboard(
        made, samples_of(images(32)), signature(made), tensors=frozenset(), weights=frozenset(),
        watched=tuple(name for name in board.tensors if name != "image"),
    )  # fmt: skip
    found = {
        name: Interval(min(float(a.min()), 0.0), float(a.max())) for name, a in watched.reference.items()
    }
    array = images(32)
    return found | {"image": Interval(float(array.min()), float(array.max()))}


def test_each_tensor_gets_the_method_that_suits_it() -> None:
    """`a` is right for all but r1, where it cuts off; `b` is right there and far too wide elsewhere."""
    made = outlier_net(1, 1.0)
    board = _board(made)
    right = _spans(board, made)
    wide = {name: Interval(span.low * 20, span.high * 20) for name, span in right.items()}
    candidates = {name: {"a": right[name], "b": wide[name]} for name in board.tensors}
    cut = Interval(right["r1"].low / 8, right["r1"].high / 8)
    candidates["r1"] = {"a": cut, "b": right["r1"]}
    before = board.evaluations
    found = choose_ranges(board, _Ranges(board.tensors), candidates)
    assert found.methods == {name: "b" if name == "r1" else "a" for name in board.tensors}
    assert found.ranges["r1"] == right["r1"]
    assert found.evaluations == board.evaluations - before
    changed = [name for name in board.tensors if found.methods[name] != found.decisions[0].split(": ")[1][0]]
    assert f"{len(changed)} tensors changed method" in found.decisions[1]
    assert set(found.decisions[2:]) == {f"{name}: {found.methods[name]}" for name in changed}


def test_a_choice_that_is_worse_as_a_whole_is_given_up() -> None:
    """A planner that ruins every mixture: tensors that share a scale are not free to choose."""
    made = outlier_net(1, 1.0)
    board = _board(made)
    right = _spans(board, made)
    wide = {name: Interval(span.low * 20, span.high * 20) for name, span in right.items()}
    candidates = {name: {"a": right[name], "b": wide[name]} for name in board.tensors}
    candidates["r1"] = {"a": Interval(0.0, right["r1"].high / 8), "b": right["r1"]}
    honest = _Ranges(board.tensors)

    def planner(ranges: dict[str, Interval]) -> Assignment:
        mixed = len({"ab"[ranges[name] == candidates[name]["b"]] for name in ranges}) > 1
        return honest(
            {name: Interval(span.low * 99, span.high * 99) for name, span in ranges.items()}
            if mixed
            else ranges
        )

    found = choose_ranges(board, planner, candidates)
    assert set(found.methods.values()) == {"b"}
    assert "no tensor gained" in found.decisions[1]


def test_where_methods_agree_nothing_is_tried() -> None:
    made = outlier_net(1, 1.0)
    board = _board(made)
    right = _spans(board, made)
    candidates = {name: {"a": span, "b": span} for name, span in right.items()}
    before = board.evaluations
    found = choose_ranges(board, _Ranges(board.tensors), candidates)
    assert set(found.methods.values()) == {"a"}
    assert board.evaluations - before == 3, "two methods, and the start of the descent"
    assert "no tensor gained" in found.decisions[1]


def test_no_candidates_are_refused() -> None:
    made = outlier_net(1, 1.0)
    board = _board(made)
    with pytest.raises(ValueError, match="no range"):
        choose_ranges(board, _Ranges(board.tensors), {})


def test_open_switches_are_finite_on_the_wire() -> None:
    assert np.isfinite(np.float32(OPEN.step))
    assert np.float32(OPEN.step) > 0
