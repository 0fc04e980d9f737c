"""Agreement by task, boxes, and accuracy limits in both directions."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire.samples import MANIFEST
from wire import bundle
from wire.agreement import NO_CLASS, agreement, classes_of, same_answers
from wire.detection import Detections, detections, iou, matched, suppressed
from wire.errors import ContentError, LimitsError
from wire.figures import mean_interval, mean_ratio_interval, t_quantile, wilson_interval
from wire.measures import Measure, pooled_mean
from wire.sla import Limits, Measures, Outcome, Scope, judge, parse_limits, require_direction
from wire.tasks import TOP1, Answer, Boxes, Kind, Metric

MAE = Metric(name="mae", direction="lower", low=0.0)


# --- limits


@pytest.mark.parametrize(
    ("limit", "metric", "code"),
    [
        ({"max": 0.5}, TOP1, "sla_direction"),
        ({"max_ratio_to_baseline": 1.1}, TOP1, "sla_direction"),
        ({"min": 0.5}, MAE, "sla_direction"),
        ({"min_fraction_of_baseline": 0.9}, MAE, "sla_direction"),
        ({"min": 90}, TOP1, "sla_out_of_range"),
    ],
)
def test_a_limit_that_does_not_fit_the_metric_is_refused(
    limit: dict[str, float], metric: Metric, code: str
) -> None:
    with pytest.raises(LimitsError) as caught:
        require_direction(parse_limits({"accuracy": limit}), metric)
    assert caught.value.code == code


def test_limits_that_fit() -> None:
    for limit, metric in (({"max": 3.5}, MAE), ({"max_ratio_to_baseline": 1.1}, MAE), ({"min": 0.9}, TOP1)):
        require_direction(parse_limits({"accuracy": limit}), metric)
    require_direction(Limits(), MAE)


@pytest.mark.parametrize(
    ("value", "low", "scope", "outcome"),
    [
        (1.0, 0.9, Scope.HOST, Outcome.PASS),
        (1.2, 1.1, Scope.HOST, Outcome.PASS),
        (1.21, 1.1, Scope.HOST, Outcome.FAIL),
        (1.21, 1.2, Scope.DEVICE, Outcome.INCONCLUSIVE),
        (1.21, 1.205, Scope.DEVICE, Outcome.FAIL),
        (1.21, None, Scope.WAVE, Outcome.FAIL),
    ],
)
def test_an_error_must_stay_below(value: float, low: float | None, scope: Scope, outcome: Outcome) -> None:
    for key, field in (("max", "accuracy"), ("max_ratio_to_baseline", "accuracy_ratio")):
        measures = Measures(**{field: Measure(value=value, low=low, high=2.0)})
        verdict = judge(parse_limits({"accuracy": {key: 1.2}}), measures, scope)
        assert [finding.outcome for finding in verdict.findings] == [outcome]


def test_an_unknown_error_is_unmeasured() -> None:
    verdict = judge(parse_limits({"accuracy": {"max": 1}}), Measures(), Scope.DEVICE)
    assert verdict.findings[0].outcome is Outcome.UNMEASURED


# --- the manifest


def test_a_manifest_of_before_still_reads() -> None:
    plain = msgspec.to_builtins(MANIFEST)
    for key in ("metric", "answer"):
        plain.pop(key)
    old = msgspec.convert(plain, bundle.Manifest)
    assert (old.task, old.metric, old.answer) == ("classification", TOP1, Answer())
    assert bundle.check(old) == old


def test_a_manifest_whose_limit_points_the_wrong_way_is_refused() -> None:
    with pytest.raises(LimitsError, match="lower is better"):
        bundle.check(msgspec.structs.replace(MANIFEST, task="regression", metric=MAE))


# --- answers


@settings(max_examples=50)
@given(
    st.sampled_from(["classification", "regression", "embedding", "custom"]),
    st.integers(1, 8),
    st.integers(0, 99),
)
def test_everything_agrees_with_itself(kind: Kind, n: int, seed: int) -> None:
    outputs = {"y": np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32)}
    np.testing.assert_allclose(agreement(kind, Answer(), outputs, outputs), np.ones(n))
    assert same_answers(kind, Answer(), outputs, outputs).all()


def test_agreement_by_hand() -> None:
    a, b = np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[4.0, 3.0], [1.0, 0.0]])
    assert agreement("classification", Answer(), {"y": a}, {"y": b}).tolist() == [0.0, 1.0]
    np.testing.assert_allclose(agreement("embedding", Answer(), {"y": a}, {"y": b}), [24 / 25, 1.0])
    # The size of (4, 3) is the root of 12.5; a difference of 1 is .283 of it.
    for tolerance, share in ((0.28, 0.0), (0.29, 1.0)):
        answer = Answer(tolerance=tolerance)
        assert agreement("regression", answer, {"y": a}, {"y": b}).tolist() == [share, 1.0]


def test_same_answers_are_within_a_hundredth() -> None:
    theirs = {"y": np.array([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0]])}
    mine = {"y": np.array([[3.0, 4.049], [3.0, 4.051], [0.0, 0.0]])}
    assert same_answers("regression", Answer(), mine, theirs).tolist() == [True, False, True]
    other = mine | {"z": np.zeros((3, 1))}
    both = same_answers("custom", Answer(), other, theirs | {"z": np.array([[0.0], [0.0], [1.0]])})
    assert both.tolist() == [True, False, False]


def test_not_a_number_is_no_class_and_no_agreement() -> None:
    scores = np.array([[np.nan, np.nan], [np.nan, -np.inf], [0.0, 1.0]])
    assert classes_of(Answer(), scores).tolist() == [NO_CLASS, 1, 1]
    assert classes_of(Answer(), np.array([np.nan, 0.5, 0.4])).tolist() == [NO_CLASS, 1, 0]
    bad = {"y": np.array([[np.nan, 1.0]])}
    assert agreement("embedding", Answer(), bad, {"y": np.ones((1, 2))}).tolist() == [0.0]
    assert agreement("regression", Answer(), bad, {"y": np.ones((1, 2))}).tolist() == [0.5]


def test_an_output_that_is_not_there_is_named() -> None:
    y = {"y": np.zeros((1, 2))}
    with pytest.raises(ContentError, match="output z is none of the model's: y"):
        agreement("regression", Answer(output="z"), y, y)


# --- boxes


def boxes_of(*rows: list[float], kinds: list[int] | None = None) -> Detections:
    places = np.array(rows, np.float64).reshape(-1, 4)
    n = len(places)
    return Detections(places, np.linspace(0.9, 0.5, n), np.array(kinds or [0] * n, np.int64))


def test_overlap_by_hand() -> None:
    a = np.array([[0, 0, 2, 2], [0, 0, 0, 0]], np.float64)
    b = np.array([[1, 1, 3, 3], [0, 0, 2, 2], [5, 5, 6, 6]], np.float64)
    np.testing.assert_allclose(iou(a, b), np.array([[1 / 7, 1.0, 0.0], [0.0, 0.0, 0.0]]))


def test_suppression_keeps_the_best_of_each_class() -> None:
    found = boxes_of([0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [50, 50, 60, 60], kinds=[0, 0, 1, 0])
    kept = suppressed(found, 0.6)
    assert kept.boxes[:, 3].tolist() == [10, 9, 60]
    assert kept.classes.tolist() == [0, 1, 0]


def test_boxes_pair_up_once() -> None:
    one, two = boxes_of([0, 0, 10, 10]), boxes_of([0, 0, 10, 9], [0, 0, 10, 10])
    assert matched(one, two) == pytest.approx(2 / 3)
    assert matched(one, one) == matched(boxes_of(), boxes_of()) == 1.0
    assert matched(one, boxes_of()) == 0.0
    assert matched(one, boxes_of([0, 0, 10, 10], kinds=[1])) == 0.0
    assert matched(one, boxes_of([0, 0, 10, 9]), 0.95) == 0.0


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("objectness", [False, True])
def test_one_tensor_is_read_as_described(layout: Any, objectness: bool) -> None:  # noqa: ANN401
    row = [10, 20, 4, 8, *([0.5] if objectness else []), 0.2, 0.8]
    low = [0, 0, 1, 1, *([0.001] if objectness else []), 0.001, 0.002]
    tensor = np.array([[low, row]], np.float32)
    tensor = tensor.transpose(0, 2, 1) if layout == "columns" else tensor
    spec = Boxes(layout=layout, corners="cxcywh", objectness=objectness, scale=2.0)
    (found,) = detections(spec, {"y": tensor})
    assert found.boxes.tolist() == [[16, 32, 24, 48]]
    assert found.scores.tolist() == pytest.approx([0.4 if objectness else 0.8])
    assert found.classes.tolist() == [1]


@pytest.mark.parametrize(
    ("corners", "place"),
    [("xyxy", [1, 2, 5, 8]), ("xywh", [1, 2, 4, 6]), ("cxcywh", [3, 5, 4, 6]), ("yxyx", [2, 1, 8, 5])],
)
def test_places_mean_the_same_box(corners: Any, place: list[float]) -> None:  # noqa: ANN401
    outputs = {"b": np.array([[place]], np.float32), "s": np.ones((1, 1)), "c": np.zeros((1, 1))}
    spec = Boxes(boxes="b", scores="s", classes="c", corners=corners)
    (found,) = detections(spec, outputs)
    assert found.boxes.tolist() == [[1, 2, 5, 8]]


@pytest.mark.parametrize(
    ("spec", "outputs", "code"),
    [
        (Boxes(boxes="b"), {"b": np.zeros((1, 2, 4))}, "answer_missing"),
        (Boxes(boxes="b", scores="x"), {"b": np.zeros((1, 2, 4))}, "answer_missing"),
        (Boxes(boxes="b", scores="s"), {"b": np.zeros((1, 2, 5)), "s": np.zeros((1, 2, 1))}, "answer_shape"),
        (Boxes(boxes="b", scores="s"), {"b": np.zeros((1, 2, 4)), "s": np.zeros((1, 2))}, "answer_shape"),
        (Boxes(layout="rows"), {"b": np.zeros((1, 2, 4))}, "answer_shape"),
        (Boxes(layout="rows"), {"b": np.zeros((1, 2))}, "answer_shape"),
    ],
)
def test_outputs_that_hold_no_boxes(spec: Boxes, outputs: dict[str, Any], code: str) -> None:
    with pytest.raises(ContentError) as caught:
        list(detections(spec, outputs))
    assert caught.value.code == code


# --- intervals


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (10, 2.228), (200, 1.972)]
)
def test_students_quantile(degrees: int, quantile: float) -> None:
    assert t_quantile(degrees) == pytest.approx(quantile, rel=0.02)


def test_a_mean_by_hand() -> None:
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval.high - 2.0 == pytest.approx(4.3027 * (1 / 3) ** 0.5, rel=1e-4)
    assert mean_interval([1.0, 0.0, 1.0]) == wilson_interval(2, 3)
    with pytest.raises(ValueError, match="no interval"):
        mean_interval([0.5])


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=30), st.floats(0.1, 10))
def test_the_ratio_to_a_multiple_is_exact(values: list[float], factor: float) -> None:
    interval = mean_ratio_interval([factor * value for value in values], values)
    assert interval is not None
    assert interval.low == pytest.approx(factor)
    assert interval.high == pytest.approx(factor)
    assert mean_ratio_interval(values, [0.0] * len(values)) is None


def test_pooled_means_weigh_by_samples() -> None:
    one, three = Measure(value=1.0, low=0.0, high=2.0, n=100), Measure(value=3.0, low=2.0, high=4.0, n=300)
    both = pooled_mean([one, three])
    assert (both.value, both.n) == (2.5, 400)
    assert both.high is not None
    assert both.high - both.value == pytest.approx((100**2 + 300**2) ** 0.5 / 400)
    assert pooled_mean([one, Measure(value=1.0, n=5)]).low is None
