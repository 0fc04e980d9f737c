"""Each task's metric against cases worked out by hand, and against plain loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from converter.candidates import evidence
from converter.dataset import Samples
from converter.errors import InputError, RecipeError
from converter.evaluate import Quality, Task, quality, task_of
from converter.evaluate.registry import inferred
from converter.evaluate.statistics import samples_needed_for
from converter.evaluate.tasks.detection import Detection
from converter.evaluate.words import needed_by, words_of
from wire.errors import ContentError
from wire.figures import Interval
from wire.sla import parse_limits
from wire.tasks import Answer, Boxes

Array = NDArray[Any]
RNG = np.random.default_rng(5)


def found(task: Task, mine: Array, theirs: Array, **truth: Array) -> Quality:
    return judged(task, {"y": mine}, {"y": theirs}, truth)


def judged(task: Task, mine: dict[str, Array], theirs: dict[str, Array], truth: dict[str, Array]) -> Quality:
    n = len(next(iter(mine.values())))
    samples = Samples(
        path="here", sha256="0" * 64, arrays={}, data={}, n=n, labels=truth.get("labels"), truth=truth
    )
    return quality(task, mine, theirs, samples)


def between(measure: Any) -> bool:  # noqa: ANN401
    return bool(measure.low <= measure.value <= measure.high)


# --- classification


def test_any_of_the_acceptable_classes_is_right_and_minus_one_is_none() -> None:
    scores = np.eye(4, dtype=np.float32)[[0, 1, 2, 3]]
    labels = np.array([[0, -1], [3, 1], [0, 1], [3, -1]])
    said = found(task_of("classification", Answer()), scores, scores, labels=labels)
    assert said.accuracy.value == 0.75
    assert said.against_baseline is not None
    assert said.against_baseline.both == 3
    assert said.others == {}


def test_top_five_stands_beside_top_one() -> None:
    scores = np.tile(np.arange(8.0), (3, 1))
    said = found(task_of("classification", Answer()), scores, scores, labels=np.array([7, 3, 2]))
    assert said.accuracy.value == pytest.approx(1 / 3)
    assert said.others["top5"].value == pytest.approx(2 / 3)


def test_one_score_a_sample_is_cut_at_the_threshold() -> None:
    scores = np.array([0.2, 0.3, 0.9, 0.6])
    labels = np.array([0, 1, 1, 0])
    half = found(task_of("classification", Answer()), scores, scores, labels=labels)
    low = found(task_of("classification", Answer(threshold=0.3)), scores, scores, labels=labels)
    assert (half.accuracy.value, low.accuracy.value) == (0.5, 0.75)


def test_frames_count_by_frame_and_vary_by_sample() -> None:
    scores = np.array([[0.9, 0.9, 0.1], [0.1, 0.2, 0.9]])
    labels = np.array([[1, 0, 0], [0, 1, -1]])
    task = task_of("classification", Answer(frames=True))
    said = found(task, scores, scores, labels=labels)
    assert said.accuracy.value == pytest.approx(3 / 5)
    assert said.accuracy.n == 2
    assert said.metric.name == "frame_accuracy"
    wide = np.stack([1 - scores, scores], axis=2)
    assert found(task, wide, wide, labels=labels).accuracy.value == pytest.approx(3 / 5)


def test_scores_of_another_shape_are_refused() -> None:
    scores = np.zeros((2, 3, 4))
    with pytest.raises(ContentError, match=r"\[n\] or \[n,C\]"):
        found(task_of("classification", Answer()), scores, scores, labels=np.zeros(2, np.int64))


def test_a_sample_without_a_number_is_wrong_even_beside_an_empty_label() -> None:
    scores = np.array([[np.nan, np.nan], [0.0, 1.0]])
    labels = np.array([[0, -1], [1, -1]])
    assert found(task_of("classification", Answer()), scores, scores, labels=labels).accuracy.value == 0.5
    frames = task_of("classification", Answer(frames=True))
    unjudged = np.array([[-1, 1], [1, 1]])
    assert found(frames, scores, scores, labels=unjudged).accuracy.value == pytest.approx(1 / 3)


# --- regression


def test_errors_are_in_the_labels_unit_and_lower_is_better() -> None:
    mine, theirs, labels = np.array([[1.0], [5.0]]), np.array([[2.0], [3.0]]), np.array([2.0, 2.0])
    said = found(task_of("regression", Answer()), mine, theirs, labels=labels)
    assert (said.metric.name, said.metric.direction) == ("mae", "lower")
    assert said.accuracy.value == 2.0
    assert said.others["rmse"].value == pytest.approx(5**0.5)
    assert said.ratio is not None
    assert said.ratio.value == 4.0
    root = found(task_of("regression", Answer(), "rmse"), mine, theirs, labels=labels)
    assert root.accuracy.value == pytest.approx(5**0.5)
    assert not root.metric.per_sample


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 60), st.integers(0, 2**31))
def test_intervals_hold_their_point(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, theirs = rng.normal(size=(2, n))
    mine = theirs + rng.normal(0, 0.1, n)
    said = found(task_of("regression", Answer()), mine, theirs, labels=labels)
    assert said.ratio is not None
    assert said.delta is not None
    assert all(between(m) for m in (said.accuracy, said.ratio, said.delta, said.agreement))
    assert said == found(task_of("regression", Answer()), mine, theirs, labels=labels)


def test_the_bootstrap_agrees_with_the_normal_interval_of_a_mean() -> None:
    errors = np.random.default_rng(1).normal(3.0, 1.0, 400)
    said = found(task_of("regression", Answer()), errors, errors, labels=np.zeros(400))
    half = 1.96 * np.abs(errors).std() / 20
    assert said.accuracy.low == pytest.approx(said.accuracy.value - half, abs=0.01)
    assert said.accuracy.high == pytest.approx(said.accuracy.value + half, abs=0.01)


def test_labels_of_another_size_are_refused() -> None:
    mine = np.zeros((3, 2))
    with pytest.raises(ContentError, match="holds 2 numbers, its label 1"):
        found(task_of("regression", Answer()), mine, mine, labels=np.zeros(3))


# --- embedding


def test_nearest_neighbours_by_label_and_by_fp32() -> None:
    theirs = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float64)
    mine = theirs.copy()
    mine[1] = [0.2, 1]
    labels = np.array([0, 0, 1, 1])
    said = found(task_of("embedding", Answer()), mine, theirs, labels=labels)
    base = found(task_of("embedding", Answer()), theirs, theirs, labels=labels)
    assert base.accuracy.value == 1.0
    assert said.accuracy.value == 0.5
    assert base.agreement.value == pytest.approx(1.0)
    assert said.agreement.value < 1.0
    free = judged(task_of("embedding", Answer(), labelled=False), {"y": theirs}, {"y": theirs}, {})
    assert (free.accuracy.value, free.metric.name) == (1.0, "recall_at_1")


def test_a_sample_is_not_its_own_neighbour() -> None:
    far = np.array([[1, 0], [-1, 0.5], [-1, -0.5]], np.float64)
    said = found(task_of("embedding", Answer()), far, far, labels=np.array([0, 1, 1]))
    assert said.accuracy.value == pytest.approx(2 / 3)


# --- detection

PLACES = np.array([[[0, 0, 10, 10], [20, 20, 40, 40]], [[5, 5, 25, 25], [0, 0, 0, 0]]], np.float64)
KINDS = np.array([[0, 1], [1, -1]])
SPEC = Answer(boxes=Boxes(boxes="b", scores="s", classes="c"))


def outputs(places: Array, scores: Array, kinds: Array) -> dict[str, Array]:
    return {"b": places, "s": scores, "c": kinds}


def map_of(mine: dict[str, Array], places: Array = PLACES, kinds: Array = KINDS) -> Quality:
    return judged(Detection(answer=SPEC), mine, mine, {"boxes": places, "classes": kinds})


def test_the_ground_truth_itself_is_perfect() -> None:
    said = map_of(outputs(PLACES, np.array([[0.9, 0.8], [0.7, 0.0]]), np.maximum(KINDS, 0)))
    assert said.accuracy.value == 1.0
    assert said.others["map_50"].value == 1.0
    assert said.agreement.value == 1.0


def test_precision_by_hand() -> None:
    """One class, two boxes: hit at .9, miss at .8, hit at .7.

    Precision 1 up to recall .5, then 2/3: 51 of the 101 recalls read 1, 50 read 2/3.
    """
    places = np.array([[[0, 0, 10, 10], [20, 20, 40, 40]]], np.float64)
    mine = outputs(
        np.array([[[0, 0, 10, 10], [60, 60, 80, 80], [20, 20, 40, 40]]], np.float64),
        np.array([[0.9, 0.8, 0.7]]), np.zeros((1, 3)),
    )  # fmt: skip
    said = map_of(mine, places, np.zeros((1, 2), np.int64))
    by_hand = (51 + 50 * 2 / 3) / 101
    assert said.others["map_50"].value == pytest.approx(by_hand)
    assert said.accuracy.value == pytest.approx(by_hand)


def test_a_box_is_found_once_and_only_to_its_overlap() -> None:
    """A box of IoU .72 counts at .5 to .7, five of ten thresholds; its double never counts."""
    places = np.array([[[0, 0, 100, 100]]], np.float64)
    near = [[0, 0, 72, 100], [0, 0, 72, 100]]
    mine = outputs(np.array([near], np.float64), np.array([[0.9, 0.8]]), np.zeros((1, 2)))
    said = map_of(mine, places, np.zeros((1, 1), np.int64))
    assert said.others["map_50"].value == pytest.approx(1.0)
    assert said.accuracy.value == pytest.approx(0.5)


def test_a_class_that_nothing_finds_counts_as_zero() -> None:
    mine = outputs(PLACES, np.array([[0.9, 0.0], [0.0, 0.0]]), np.maximum(KINDS, 0))
    assert map_of(mine).others["map_50"].value == 0.5


def test_precision_never_rises_behind_a_lower_one() -> None:
    """Miss, hit, hit of two boxes: precision 0, 1/2, 2/3; every recall reads the best behind it, 2/3."""
    places = np.array([[[0, 0, 10, 10], [20, 20, 40, 40]]], np.float64)
    mine = outputs(
        np.array([[[60, 60, 80, 80], [0, 0, 10, 10], [20, 20, 40, 40]]], np.float64),
        np.array([[0.9, 0.8, 0.7]]), np.zeros((1, 3)),
    )  # fmt: skip
    said = map_of(mine, places, np.zeros((1, 2), np.int64))
    assert said.others["map_50"].value == pytest.approx(2 / 3)


def test_a_resample_is_the_set_with_samples_repeated_or_left_out() -> None:
    """A class of which no box is left is no class of that resample."""
    rng = np.random.default_rng(11)
    places = rng.uniform(0, 50, (6, 3, 4)).cumsum(axis=2)
    kinds = rng.integers(-1, 3, (6, 3))
    mine = outputs(
        places + rng.normal(0, 3, places.shape), rng.uniform(0.1, 1, (6, 3)), rng.integers(0, 3, (6, 3))
    )
    task = Detection(answer=SPEC)
    main = task.scores(mine, mine, {"boxes": places, "classes": kinds}).main
    for count in rng.integers(0, 3, (20, 6)):
        index = np.repeat(np.arange(6), count)
        taken = {name: array[index] for name, array in mine.items()}
        truth = {"boxes": places[index], "classes": kinds[index]}
        alone = task.scores(taken, taken, truth).main
        ones = np.ones((1, len(index)), np.int64)
        np.testing.assert_allclose(main.value(count[None]), alone.value(ones))


# --- custom

MODULE = """
import numpy as np

def spread(outputs, labels):
    return np.abs(outputs["y"] - labels["truth"]).mean()
spread.direction = "lower"
spread.low = 0.0

def each(outputs, labels):
    return (outputs["y"] > 0).astype(float)

def broken(outputs, labels):
    raise ZeroDivisionError("by hand")

def text(outputs, labels):
    return np.zeros(1)

def sideways(outputs, labels):
    return 0.0
sideways.direction = "sideways"

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_metric.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_metric"


def test_a_metric_of_ones_own(module: str) -> None:
    mine, theirs = np.array([1.0, 2.0, -3.0]), np.array([1.0, 1.0, -3.0])
    task = task_of("custom", Answer(), f"{module}:spread")
    said = found(task, mine, theirs, truth=np.array([1.0, 1.0, 1.0]))
    assert (said.metric.name, said.metric.direction, said.metric.low) == ("spread", "lower", 0.0)
    assert said.accuracy.value == pytest.approx(5 / 3)
    assert between(said.accuracy)
    assert said.ratio is not None
    assert said.ratio.value == pytest.approx(5 / 4)
    each = found(task_of("custom", Answer(), f"{module}:each"), mine, theirs)
    assert each.accuracy.value == pytest.approx(2 / 3)
    assert each.metric.direction == "higher"


@pytest.mark.parametrize(
    ("name", "words"), [("broken", "ZeroDivisionError: by hand"), ("text", "array of 3")]
)
def test_a_metric_that_fails_is_named(module: str, name: str, words: str) -> None:
    y = np.zeros(3)
    with pytest.raises(RecipeError, match=words) as caught:
        found(task_of("custom", Answer(), f"{module}:{name}"), y, y)
    assert caught.value.code == "metric_failed"


@pytest.mark.parametrize(
    ("kind", "metric", "code"),
    [
        ("custom", None, "metric_unknown"),
        ("custom", "nothing", "entry_point"),
        ("custom", "no_such_module:f", "entry_point"),
        ("custom", "own_metric:absent", "entry_point"),
        ("custom", "own_metric:number", "entry_point"),
        ("custom", "own_metric:sideways", "metric_unknown"),
        ("regression", "mape", "metric_unknown"),
        ("classification", "top7", "metric_unknown"),
    ],
)
@pytest.mark.usefixtures("module")
def test_metrics_that_there_are_not(kind: Any, metric: str | None, code: str) -> None:  # noqa: ANN401
    with pytest.raises(InputError) as caught:
        task_of(kind, Answer(), metric)
    assert caught.value.code == code


# --- the choice and the words


@pytest.mark.parametrize(
    ("dtypes", "metric", "kind"),
    [
        ({"labels": "i8"}, None, "classification"),
        ({"labels": "f4"}, None, "regression"),
        ({"labels": "i8"}, "rmse", "regression"),
        ({"boxes": "f4", "classes": "i8"}, None, "detection"),
        ({}, "a:b", "custom"),
        ({}, None, "classification"),
    ],
)
def test_the_task_is_inferred(dtypes: dict[str, str], metric: str | None, kind: str) -> None:
    assert inferred({name: np.dtype(code) for name, code in dtypes.items()}, metric)[0] == kind


def _flipped(n: int, wrong: int, also_wrong: int) -> Quality:
    """A baseline that is always right, a candidate that errs, and one sample that only it gets right."""
    labels = np.zeros(n, np.int64)
    mine, theirs = np.zeros((n, 2)), np.zeros((n, 2))
    mine[:, 0] = theirs[:, 0] = 1.0
    mine[:wrong, 1] = 2.0
    theirs[n - also_wrong :, 1] = 2.0
    return found(task_of("classification", Answer()), mine, theirs, labels=labels)


def test_words_say_what_is_shown_and_what_is_not() -> None:
    assert "no worse than FP32 by more than 1 point, at 95%" in words_of(_flipped(4000, 4, 4))
    assert "worse than FP32 by" in words_of(_flipped(400, 60, 0))
    unsure = words_of(_flipped(200, 2, 2))
    assert "cannot tell with 200 samples" in unsure
    assert "you need about 1237" in unsure
    assert "no worse than FP32, at 95%" in words_of(_flipped(400, 0, 60))


def _errors(n: int, loss: float, noise: float) -> Quality:
    """FP32 errs by 1 on every sample, the candidate by a share more, more or less."""
    theirs = np.ones(n)
    mine = theirs + loss + noise * np.random.default_rng(4).normal(size=n)
    return found(task_of("regression", Answer()), mine, theirs, labels=np.zeros(n))


def test_words_of_an_error_turn_the_other_way() -> None:
    assert "mae: worse than FP32 by" in words_of(_errors(200, 0.1, 0.1))
    assert "no worse than FP32, at 95%" in words_of(_errors(200, -0.1, 0.1))
    assert "no worse than FP32 by more than 0.01" in words_of(_errors(2000, 0.0, 0.1))
    unsure = words_of(_errors(200, 0.0, 0.3))
    assert "cannot tell with 200 samples whether it loses 0.01" in unsure


def test_the_difference_is_the_candidates_minus_the_baselines() -> None:
    delta = _errors(400, 0.1, 0.1).delta
    assert delta is not None
    assert delta.low is not None
    assert delta.high is not None
    assert 0.08 < delta.low < delta.value < delta.high < 0.12
    assert delta.high - delta.value == pytest.approx(1.96 * 0.1 / 20, rel=0.15)


def test_samples_needed_do_not_depend_on_how_many_there_are() -> None:
    """(1.645 + 0.842)^2 sigma^2 / margin^2, with sigma .3 and a margin of .05: about 223."""
    assert samples_needed_for(0.05, 0.3 / 10, 100) == 223
    assert samples_needed_for(0.05, 0.3 / 20, 400) == 223
    assert samples_needed_for(0.0, 0.1, 100) is None
    assert samples_needed_for(0.1, 0.0, 100) is None
    limits = parse_limits({"accuracy": {"max_ratio_to_baseline": 1.05}})
    needed = needed_by(limits, _errors(400, 0.0, 0.3))
    assert needed is not None
    assert 100 < needed < 500
    absolute = parse_limits({"accuracy": {"max": 1.05}})
    assert needed_by(absolute, _errors(400, 0.0, 0.3)) == pytest.approx(needed, rel=0.01)
    assert needed_by(parse_limits({}), _errors(40, 0.0, 0.3)) is None


@pytest.mark.parametrize(
    ("low", "high", "shown"), [(0.9, 1.1, "proven"), (0.9, 1.3, "unproven"), (1.25, 1.3, "refuted")]
)
def test_evidence_for_an_error(low: float, high: float, shown: str) -> None:
    assert evidence(1.2, Interval(low, high), "lower") == shown
