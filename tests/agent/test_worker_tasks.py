"""Trials of tasks beyond plain classification, with the real runtime in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper

from agent.errors import FinalError
from agent.judging import measures_of
from agent.worker.answers import answers_of
from agent.worker.job import TrialJob
from agent.worker.measuring import run_trial
from agent.worker.shards import Samples
from tests.agent.models import (
    VARIANT,
    Array,
    good_job,
    job_of,
    linear,
    refused,
    samples,
    save,
    save_shard,
    scores,
    value,
)
from wire.bundle import (
    LABELS_KEY,
    File,
    HostFigures,
    InputData,
    TensorSpec,
    Variant,
    fp32_key,
    host_key,
    input_key,
)
from wire.measures import Measure, Source
from wire.tasks import Answer, Boxes, Metric

MAE = Metric(name="mae", direction="lower")


def task_job(folder: Path, labels: Array | None = None, moved: float = 0.0) -> TrialJob:
    """A linear model whose FP32 and host outputs are its own, moved by a share of their size."""
    model, x = linear(folder / "model.onnx"), samples()
    found = scores(model, x)
    arrays = {
        input_key("x"): x,
        fp32_key("y"): found * (1 + moved),
        host_key(VARIANT, "y"): found * (1 + moved),
    }
    if labels is not None:
        arrays[LABELS_KEY] = labels
    return job_of(model, save_shard(folder / "shard.npz", arrays))


def test_a_mean_absolute_error_is_measured_on_the_shard(tmp_path: Path) -> None:
    model = linear(tmp_path / "model.onnx")
    truth = scores(model, samples()) + np.float32(0.5)
    result = run_trial(replace(task_job(tmp_path, truth), task="regression", metric=MAE))
    assert result.accuracy is not None
    assert result.accuracy.value == pytest.approx(0.5, rel=1e-5)
    assert result.accuracy_ratio is not None
    assert result.accuracy_ratio.value == pytest.approx(1.0)
    assert result.against_baseline is None
    assert result.conformance is not None
    assert result.conformance.conforms


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        ("regression", Metric(name="rmse", direction="lower", per_sample=False)),
        ("embedding", Metric(name="neighbour_accuracy")),
        ("custom", Metric(name="own")),
    ],
)
def test_what_a_shard_cannot_tell_is_unknown(tmp_path: Path, task: str, metric: Metric) -> None:
    labels = np.zeros(len(samples()), np.int64)
    result = run_trial(replace(task_job(tmp_path, labels), task=task, metric=metric))
    assert result.accuracy is None
    assert result.agreement is not None
    assert result.agreement.value == pytest.approx(1.0)
    assert result.conformance is not None
    assert result.conformance.conforms


@pytest.mark.parametrize(("moved", "conforms"), [(0.005, True), (0.03, False)])
def test_a_hundredth_is_conformance_and_more_is_not(tmp_path: Path, moved: float, conforms: bool) -> None:
    result = run_trial(replace(task_job(tmp_path, moved=moved), task="embedding"))
    assert result.conformance is not None
    assert result.conformance.conforms is conforms
    assert result.conformance.equal < 1.0
    host = HostFigures(accuracy=Measure(value=0.9, n=1000))
    content = File(path="m.onnx", size_bytes=1, sha256="a" * 64)
    variant = Variant(
        id=VARIANT,
        runtime="onnxruntime",
        recipe="r",
        precision="p",
        model_path="m.onnx",
        files=(content,),
        host=host,
    )
    found = measures_of(result, variant).accuracy
    assert (found is not None and found.source is Source.INHERITED) is conforms


def test_sets_of_acceptable_labels(tmp_path: Path) -> None:
    model, x = linear(tmp_path / "model.onnx"), samples()
    best = scores(model, x).argmax(axis=1)
    labels = np.stack([best, np.full(len(x), -1)], axis=1)
    labels[:10] = [[(b + 1) % 3, (b + 2) % 3] for b in best[:10]]
    result = run_trial(task_job(tmp_path, labels))
    assert result.accuracy is not None
    assert result.accuracy.value == pytest.approx(30 / 40)


def whole_job(folder: Path, labels: Array) -> TrialJob:
    """A model from `[T,2]` with a state `[1,2]` to one score a frame, `[T]`."""
    nodes = [
        helper.make_node("Add", ["x", "h"], ["a"]),
        helper.make_node("ReduceMean", ["a"], ["y"], axes=[1], keepdims=0),
    ]
    inputs = [value("x", ["T", 2]), value("h", [1, 2])]
    model = save(folder / "m.onnx", nodes, {}, inputs=inputs, outputs=[value("y", ["T"])])
    x = np.random.default_rng(2).uniform(size=(6, 5, 2)).astype(np.float32)
    y = x.mean(axis=2)
    shard = save_shard(
        folder / "s.npz",
        {
            input_key("x"): x, input_key("h"): np.zeros((6, 1, 2), np.float32), LABELS_KEY: labels,
            fp32_key("y"): y, host_key(VARIANT, "y"): y,
        },
    )  # fmt: skip
    return replace(
        job_of(model, shard),
        inputs=(
            TensorSpec(name="x", dtype="float32", shape=(None, 2)),
            TensorSpec(name="h", dtype="float32", shape=(1, 2)),
        ),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(None,)),),
        data={"x": InputData(sample_axis=None), "h": InputData(role="state")},
        answer=Answer(frames=True),
    )


def test_frames_of_whole_samples(tmp_path: Path) -> None:
    x = np.random.default_rng(2).uniform(size=(6, 5, 2)).astype(np.float32)
    labels = (x.mean(axis=2) >= 0.5).astype(np.int64)
    labels[0] = 1 - labels[0]
    labels[1, 2:] = -1
    result = run_trial(whole_job(tmp_path, labels))
    assert result.accuracy is not None
    assert result.accuracy.value == pytest.approx(22 / 27)
    assert result.accuracy.n == 6
    assert result.conformance is not None
    assert result.conformance.same_answer == 1.0
    wrong = np.zeros((6, 4), np.int64)
    assert "the model judges [6, 5]" in refused(whole_job(tmp_path / "b", wrong), "shard_unreadable")


def test_a_detectors_boxes(tmp_path: Path) -> None:
    """Its boxes are its input; one of the host's boxes lies elsewhere."""
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    model = save(
        tmp_path / "m.onnx", nodes, {},
        inputs=[value("x", ["N", 2, 6], TensorProto.FLOAT)], outputs=[value("y", ["N", 2, 6])],
    )  # fmt: skip
    x = np.array([[[0, 0, 10, 10, 0.9, 0.0], [20, 20, 30, 30, 0.0, 0.8]]] * 4, np.float32)
    host = x.copy()
    host[0, 1, :4] += 100
    arrays = {input_key("x"): x, fp32_key("y"): x, host_key(VARIANT, "y"): host}
    job = replace(
        job_of(model, save_shard(tmp_path / "s.npz", arrays)),
        inputs=(TensorSpec(name="x", dtype="float32", shape=(None, 2, 6)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(None, 2, 6)),),
        task="detection",
        answer=Answer(boxes=Boxes(layout="rows")),
    )
    result = run_trial(job)
    assert result.agreement is not None
    assert (result.agreement.value, result.accuracy) == (1.0, None)
    assert result.conformance is not None
    assert result.conformance.same_answer == 0.75
    bad = replace(job, answer=Answer(boxes=Boxes(layout="tensors", boxes="y", scores="none")))
    assert "no output none" in refused(bad, "output_mismatch")


def test_an_incumbent_is_still_timed_where_answers_are_no_classes(tmp_path: Path) -> None:
    job = good_job(tmp_path)
    result = run_trial(replace(job, incumbent=job.candidate, task="embedding"))
    assert result.incumbent_latency is not None
    assert result.against_incumbent is None


@pytest.mark.parametrize("frames", [False, True])
def test_a_score_that_is_no_number_never_equals_an_empty_label(frames: bool) -> None:
    outputs = {"y": np.full((2, 2), np.nan)}
    of = Samples(n=2, stored={}, inputs={}, labels=np.array([[0, -1], [1, -1]]), fp32={}, host={})
    said = answers_of(replace(job_of(Path("m.onnx")), answer=Answer(frames=frames)), outputs, of, None)
    assert said.accuracy is not None
    assert said.accuracy.value == 0.0


@pytest.mark.parametrize("shape", [(), (3,), (8, 3)])
def test_a_regression_of_other_samples_than_those_with_labels_is_no_measure(shape: tuple[int, ...]) -> None:
    """A model may give a single number, or as many in all as there are labels but of other samples."""
    labels = np.zeros((6, 4))
    of = Samples(n=6, stored={}, inputs={}, labels=labels, fp32={}, host={})
    job = replace(job_of(Path("m.onnx")), task="regression", metric=MAE)
    with pytest.raises(FinalError) as refused:
        answers_of(job, {"y": np.zeros(shape)}, of, None)
    assert refused.value.code == "output_mismatch"
