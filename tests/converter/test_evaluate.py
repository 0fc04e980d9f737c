"""Answers, their figures and how latency is paired."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from converter.dataset import Samples
from converter.errors import RecipeError
from converter.evaluate import outputs_of, quality
from converter.evaluate.tasks.classification import Classification
from converter.latency import latency_of, measure_pairs, ratio_of
from converter.limits import LATENCY_RUNS_MIN, LATENCY_WARMUP_RUNS
from converter.runtime import open_session
from tests.converter.builders import CLASSES, answers, conv_net, images, model


def _samples(n: int) -> Samples:
    return Samples(path="here", sha256="0" * 64, arrays={"image": images(n)}, data={}, n=n)


@pytest.mark.parametrize("n", [1, 2, 5, 70])
def test_outputs_are_those_of_single_samples_in_order(n: int) -> None:
    made, told = conv_net(), list[int]()
    found = outputs_of(
        made.SerializeToString(), {}, _samples(n), ("logits",), lambda done, _: told.append(done)
    )
    np.testing.assert_array_equal(found["logits"], answers(made, images(n)))
    assert sorted(told) == list(range(1, n + 1))


def test_outputs_that_are_no_numbers_are_refused() -> None:
    nodes = [
        helper.make_node("Log", ["image"], ["nan"]),
        helper.make_node("GlobalAveragePool", ["nan"], ["g"]),
        helper.make_node("Flatten", ["g"], ["logits"]),
    ]
    with pytest.raises(RecipeError, match="logits holds NaN"):
        outputs_of(model(nodes, [], 17).SerializeToString(), {}, _samples(4), ("logits",))


@given(st.lists(st.tuples(*[st.integers(0, CLASSES - 1)] * 3), min_size=1, max_size=60))
def test_figures_count_what_they_say(triples: list[tuple[int, int, int]]) -> None:
    mine, theirs, labels = (np.array(column) for column in zip(*triples, strict=True))
    eye = np.eye(CLASSES, dtype=np.float32)
    truth = Samples(path="here", sha256="0" * 64, arrays={}, data={}, n=len(labels), labels=labels)
    found = quality(Classification(), {"y": eye[mine]}, {"y": eye[theirs]}, truth)
    n = len(triples)
    assert found.accuracy.value == sum(m == label for m, _, label in triples) / n
    assert found.agreement.value == sum(m == t for m, t, _ in triples) / n
    assert found.against_baseline is not None
    assert found.against_baseline.n == n
    right = sum(t == label for _, t, label in triples)
    assert (found.ratio is None) == (right == 0)
    for measure in filter(None, (found.accuracy, found.agreement, found.ratio, found.delta)):
        assert measure.low is not None
        assert measure.high is not None
        assert measure.low <= measure.value <= measure.high


class _Recorder:
    """A session that only writes down that it ran."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def run(self, _names: object, _feeds: object, /) -> None:
        self.log.append(self.name)


def test_pairs_are_interleaved_and_turn_with_each_block() -> None:
    log: list[str] = []
    ticks = itertools.count(step=1_000_000)
    feeds = [{"image": images(1)}]
    pairs = measure_pairs(_Recorder("c", log), _Recorder("b", log), feeds, 40, lambda: next(ticks))
    timed = "".join(log[2 * LATENCY_WARMUP_RUNS :])
    assert timed == ("cb" * 10 + "bc" * 10) * 2
    assert len(pairs.candidate_ms) == len(pairs.baseline_ms) == 40
    assert set(pairs.candidate_ms) == {1.0}


def test_a_slow_model_gets_fewer_pairs_but_enough() -> None:
    ticks = itertools.count(step=10_000_000_000)
    recorder = _Recorder("x", [])
    pairs = measure_pairs(recorder, recorder, [{"image": images(1)}], 500, lambda: next(ticks))
    assert len(pairs.candidate_ms) == LATENCY_RUNS_MIN


def test_a_real_pair_gives_positive_figures_with_an_interval() -> None:
    content = conv_net().SerializeToString()
    feeds = [{"image": images(1)}]
    pairs = measure_pairs(open_session(content), open_session(content), feeds, 40)
    ratio, latency = ratio_of(pairs), latency_of(pairs.candidate_ms)
    assert 0 < latency.ms_p50 <= latency.ms_p95 <= latency.ms_p99
    assert 0 < ratio.interval.low <= ratio.value <= ratio.interval.high
    assert latency.n == ratio.n == 40
