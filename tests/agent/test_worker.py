"""The worker's measuring, with the real runtime, in this process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from onnx import TensorProto, helper

from agent.errors import FinalError
from agent.worker.answers import Classes, answers_of, classes
from agent.worker.job import (
    OUTCOME_BYTES_MAX,
    TrialFailure,
    TrialJob,
    TrialSuccess,
    WorkerOrder,
    read_order,
    read_outcome,
    write_file,
)
from agent.worker.measuring import run_trial
from agent.worker.shards import Samples
from tests.agent.models import (
    CLASSES,
    FAST,
    FEATURES,
    OTHER_DIGEST,
    VARIANT,
    Array,
    good_job,
    job_of,
    linear,
    model_of,
    refused,
    run_of,
    samples,
    save,
    save_shard,
    scores,
    shard_arrays,
    value,
    weight,
    with_arrays,
)
from wire.agreement import NO_CLASS
from wire.bundle import InputData, Normalize, Scale, TensorSpec, host_key
from wire.figures import wilson_interval
from wire.tasks import Answer

HOST = host_key(VARIANT, "y")


def unknown(*figures: object) -> bool:
    return all(figure is None for figure in figures)


# --- a good trial


def test_a_perfect_model_on_the_hosts_own_machine(tmp_path: Path) -> None:
    result = run_trial(good_job(tmp_path))
    n = result.n_samples
    assert n == 40
    interval = wilson_interval(n, n)
    for measure in (result.accuracy, result.agreement):
        assert measure is not None
        assert (measure.value, measure.low, measure.high, measure.n) == (1.0, interval.low, 1.0, n)
    assert result.accuracy_ratio is not None
    assert result.accuracy_ratio.value == 1.0
    assert result.conformance is not None
    assert result.conformance.conforms
    assert (result.conformance.equal, result.conformance.same_answer, result.conformance.worst) == (1, 1, 0)
    assert result.against_baseline is not None
    assert result.against_baseline.both == n
    assert (result.runtime, result.variant) == ("onnxruntime", VARIANT)


def test_every_figure_without_a_source_is_unknown(tmp_path: Path) -> None:
    job = replace(good_job(tmp_path), system_root=str(tmp_path / "bare"))
    result = run_trial(job)
    assert unknown(result.incumbent, result.incumbent_latency, result.latency_ratio_to_incumbent)
    assert result.against_incumbent is None
    assert unknown(result.energy_mj, result.energy_mj_gross, result.power_sensor)
    assert unknown(result.power_watts_idle, result.power_watts_load)
    assert unknown(result.throttled, result.temperature_c_before, result.temperature_c_after)
    assert result.notes == ()


def test_latency_and_memory_are_there(tmp_path: Path) -> None:
    result = run_trial(good_job(tmp_path))
    assert result.latency is not None
    assert 0 < result.latency.ms_p50 <= result.latency.ms_p95 <= result.latency.ms_p99
    assert result.latency.n == FAST.latency_runs
    assert result.latency.cold_load_ms is not None
    assert result.latency.cold_load_ms > 0
    # The interpreter with numpy and the runtime in it takes tens of megabytes.
    assert result.memory_bytes_peak is not None
    assert result.memory_bytes_peak > 20 * 1024**2


def test_the_result_crosses_as_json(tmp_path: Path) -> None:
    result = run_trial(good_job(tmp_path))
    path = tmp_path / "result.json"
    write_file(path, TrialSuccess(result=result))
    outcome = read_outcome(path)
    assert isinstance(outcome, TrialSuccess)
    assert outcome.result == result


def test_several_shards_are_one_set(tmp_path: Path) -> None:
    model = linear(tmp_path / "model.onnx")
    files = []
    for seed, n in ((1, 10), (2, 5), (3, 20)):
        x = samples(n, seed)
        files.append(save_shard(tmp_path / f"{seed}.npz", shard_arrays(x, scores(model, x))))
    job = replace(job_of(model, *files), shard_indices=(4, 0, 9))
    result = run_trial(job)
    assert result.n_samples == 35
    assert result.shards == (4, 0, 9)
    assert result.conformance is not None
    assert result.conformance.equal == 1.0


def test_raw_samples_are_preprocessed(tmp_path: Path) -> None:
    raw = np.random.default_rng(3).integers(0, 256, (30, FEATURES), np.uint8)
    x = ((raw.astype(np.float32) * np.float32(1 / 255)) - np.float32(0.5)) / np.float32(0.25)
    job = with_arrays(good_job(tmp_path), tmp_path, {})
    arrays = shard_arrays(raw, scores(model_of(job), x))
    steps = (Scale(factor=1 / 255), Normalize(mean=(0.5,), std=(0.25,)))
    data = {"x": InputData(stored="raw", preprocessing=steps)}
    job = replace(job, shards=(str(save_shard(tmp_path / "raw.npz", arrays)),), data=data)
    result = run_trial(job)
    assert result.accuracy is not None
    assert result.accuracy.value == 1.0


def test_an_inputs_free_axes_may_have_any_length(tmp_path: Path) -> None:
    job = good_job(tmp_path)
    free = (TensorSpec(name="x", dtype="float32", shape=(None, None)),)
    assert run_trial(replace(job, inputs=free)).n_samples == 40


# --- beside the incumbent


def test_the_incumbent_runs_on_the_same_samples(tmp_path: Path) -> None:
    other = linear(tmp_path / "other" / "model.onnx", weight(2))
    job = good_job(tmp_path, incumbent=run_of(other, OTHER_DIGEST))
    x = samples()
    labels = scores(model_of(job), x).argmax(axis=1)
    theirs = int((scores(other, x).argmax(axis=1) == labels).sum())
    result = run_trial(job)
    assert result.incumbent == OTHER_DIGEST
    assert result.against_incumbent is not None
    assert (result.against_incumbent.both, result.against_incumbent.candidate_only) == (theirs, 40 - theirs)
    assert (result.against_incumbent.reference_only, result.against_incumbent.neither) == (0, 0)
    assert 0 < theirs < 40
    assert result.incumbent_latency is not None
    assert result.latency_ratio_to_incumbent is not None
    ratio = result.latency_ratio_to_incumbent
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low <= ratio.value <= ratio.high
    assert ratio.n == FAST.latency_runs


def broken_incumbent(kind: str, folder: Path) -> Path:
    path = folder / "incumbent.onnx"
    if kind == "garbage":
        path.write_bytes(b"nothing")
    elif kind == "other_input":
        nodes = [helper.make_node("MatMul", ["z", "w"], ["y"])]
        save(path, nodes, {"w": weight()}, inputs=[value("z", ["N", FEATURES])])
    elif kind == "other_shape":
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        wide = np.ones((FEATURES + 1, CLASSES), np.float32)
        save(path, nodes, {"w": wide}, inputs=[value("x", ["N", FEATURES + 1])])
    elif kind == "no_classifier":
        nodes = [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)]
        save(path, nodes, {}, outputs=[value("y", [])])
    return path


@pytest.mark.parametrize("kind", ["missing", "garbage", "other_input", "other_shape", "no_classifier"])
def test_an_incumbent_that_cannot_be_compared_is_a_note(tmp_path: Path, kind: str) -> None:
    incumbent = run_of(broken_incumbent(kind, tmp_path), OTHER_DIGEST)
    result = run_trial(good_job(tmp_path, incumbent=incumbent))
    assert result.accuracy is not None
    assert result.latency is not None
    assert unknown(result.incumbent, result.incumbent_latency, result.latency_ratio_to_incumbent)
    assert result.against_incumbent is None
    assert len(result.notes) == 1
    assert "incumbent was not compared" in result.notes[0]


def test_an_incumbent_of_an_unknown_runtime_is_a_note(tmp_path: Path) -> None:
    job = good_job(tmp_path)
    result = run_trial(replace(job, incumbent=replace(job.candidate, runtime="abacus")))
    assert "abacus" in result.notes[0]


def test_the_incumbent_keeps_its_own_preprocessing(tmp_path: Path) -> None:
    """It answers `2 * x`, as it was made for; with the candidate's data it would see `x` shifted."""
    raw = np.random.default_rng(5).integers(0, 4, (40, FEATURES), np.uint8)
    model = linear(tmp_path / "model.onnx")
    shifted = InputData(stored="raw", preprocessing=(Normalize(mean=(2.0,), std=(1.0,)),))
    doubled = InputData(stored="raw", preprocessing=(Scale(factor=2.0),))
    right = scores(model, raw.astype(np.float32) * 2)
    arrays = shard_arrays(raw, right)
    job = replace(
        job_of(model, save_shard(tmp_path / "shard.npz", arrays)),
        data={"x": shifted},
        incumbent=replace(run_of(model, OTHER_DIGEST), data={"x": doubled}),
    )
    counts = run_trial(job).against_incumbent
    assert counts is not None
    assert counts.both + counts.reference_only == 40
    assert counts.reference_only > 0


# --- against the host


def test_other_answers_than_the_hosts_do_not_conform(tmp_path: Path) -> None:
    job = good_job(tmp_path)
    x = samples()
    host = scores(model_of(job), x)
    host[:4] = np.roll(host[:4], 1, axis=1)
    result = run_trial(with_arrays(job, tmp_path, {HOST: host}))
    assert result.conformance is not None
    assert not result.conformance.conforms
    assert result.conformance.n == 40
    assert result.conformance.same_answer == pytest.approx(36 / 40)
    assert result.conformance.equal == pytest.approx(36 / 40)
    assert result.conformance.worst == pytest.approx(float(np.abs(host - scores(model_of(job), x)).max()))


def test_other_bits_with_the_same_answers_conform(tmp_path: Path) -> None:
    job = good_job(tmp_path)
    host = scores(model_of(job), samples()) * np.float32(1.0001)
    result = run_trial(with_arrays(job, tmp_path, {HOST: host}))
    assert result.conformance is not None
    assert result.conformance.conforms
    assert result.conformance.equal == 0.0
    assert 0 < result.conformance.worst < 0.01


def test_without_the_hosts_outputs_conformance_is_unknown(tmp_path: Path) -> None:
    result = run_trial(with_arrays(good_job(tmp_path), tmp_path, {HOST: None}))
    assert result.conformance is None
    assert result.accuracy is not None


def test_without_labels_accuracy_is_unknown_and_agreement_is_not(tmp_path: Path) -> None:
    result = run_trial(with_arrays(good_job(tmp_path), tmp_path, {"labels": None}))
    assert unknown(result.accuracy, result.accuracy_ratio, result.against_baseline)
    assert result.agreement is not None


def test_without_fp32_outputs_agreement_is_unknown(tmp_path: Path) -> None:
    result = run_trial(with_arrays(good_job(tmp_path), tmp_path, {"fp32/y": None}))
    assert unknown(result.agreement, result.accuracy_ratio, result.against_baseline)
    assert result.accuracy is not None


def test_the_ratio_is_to_the_baseline_on_these_samples(tmp_path: Path) -> None:
    job = good_job(tmp_path)
    x = samples()
    fp32 = scores(model_of(job), x)
    fp32[:10] = np.roll(fp32[:10], 1, axis=1)
    result = run_trial(with_arrays(job, tmp_path, {"fp32/y": fp32}))
    assert result.accuracy_ratio is not None
    assert result.accuracy_ratio.value == pytest.approx(40 / 30)
    assert result.agreement is not None
    assert result.agreement.value == pytest.approx(30 / 40)
    assert result.against_baseline is not None
    assert result.against_baseline.candidate_only == 10


# --- candidates that cannot be measured


@pytest.mark.parametrize("damage", [b"", b"no model", None])
def test_a_damaged_model_does_not_load(tmp_path: Path, damage: bytes | None) -> None:
    job = good_job(tmp_path)
    data = model_of(job).read_bytes()
    model_of(job).write_bytes(data[: len(data) // 2] if damage is None else damage)
    refused(job, "model_malformed")


def test_a_model_that_is_not_there_does_not_load(tmp_path: Path) -> None:
    job = good_job(tmp_path)
    model_of(job).unlink()
    refused(job, "model_load_failed")


def test_an_unknown_runtime_is_missing(tmp_path: Path) -> None:
    job = good_job(tmp_path)
    assert "abacus" in refused(
        replace(job, candidate=replace(job.candidate, runtime="abacus")), "runtime_missing"
    )


def test_a_model_that_fails_while_it_runs(tmp_path: Path) -> None:
    job = good_job(tmp_path)
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    save(model_of(job), nodes, {"shape": np.array([5, 7], np.int64)})
    refused(job, "model_run_failed")


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ([helper.make_node("MatMul", ["x", "w"], ["other"])], [value("other", ["N", CLASSES])]),
        ([helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)], [value("y", [])]),
        ([helper.make_node("Unsqueeze", ["x", "axes"], ["y"])], [value("y", ["N", 1, FEATURES])]),
        ([helper.make_node("Identity", ["x"], ["y"])], [value("y", ["N", FEATURES])]),
        ([helper.make_node("SequenceConstruct", ["x", "x"], ["y"])], None),
        ([helper.make_node("NonZero", ["positive"], ["y"])], [value("y", [2, "M"], TensorProto.INT64)]),
    ],
)
def test_outputs_that_the_release_does_not_describe(
    tmp_path: Path, nodes: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto] | None
) -> None:
    job = good_job(tmp_path)
    before = [helper.make_node("Greater", ["x", "zero"], ["positive"])]
    constants = {"w": weight(), "axes": np.array([1], np.int64), "zero": np.array(0, np.float32)}
    sequence = [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, ["N", FEATURES])]
    save(model_of(job), [*before, *nodes], constants, outputs=outputs or sequence)
    shard = {"fp32/y": None, HOST: None} if outputs is None else {}
    refused(with_like(job, tmp_path, shard), "output_mismatch")


def with_like(job: TrialJob, folder: Path, change: Mapping[str, Array | None]) -> TrialJob:
    """The job's own shard, some arrays left out; the model in the job cannot make another."""
    with np.load(job.shards[0], allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files if name not in change}
    return replace(job, shards=(str(save_shard(folder / "like.npz", arrays)),))


def test_a_model_with_other_inputs_is_refused(tmp_path: Path) -> None:
    job = good_job(tmp_path)
    save(
        model_of(job),
        [helper.make_node("MatMul", ["z", "w"], ["y"])],
        {"w": weight()},
        inputs=[value("z", ["N", FEATURES])],
    )
    assert "takes ['z']" in refused(job, "output_mismatch")


# --- answers, by themselves


def rows(n: int) -> st.SearchStrategy[list[list[float]]]:
    row = st.lists(st.floats(width=32), min_size=CLASSES, max_size=CLASSES)
    return st.lists(row, min_size=n, max_size=n)


@settings(max_examples=150, deadline=None)
@given(own=rows(4), host=rows(4), labels=st.lists(st.integers(0, CLASSES - 1), min_size=4, max_size=4))
def test_any_outputs_give_figures_that_json_can_hold(
    own: list[list[float]], host: list[list[float]], labels: list[int]
) -> None:
    outputs = {"y": np.array(own, np.float32)}
    references = {"y": np.array(host, np.float32)}
    of = Samples(n=4, stored={}, inputs={}, labels=np.array(labels), fp32=references, host=references)
    said = answers_of(job_of(Path("m.onnx")), outputs, of, classes(references["y"], 4, Answer()))
    assert said.conformance is not None
    assert said.agreement is not None
    assert said.accuracy is not None
    counts = said.against_baseline
    assert counts is not None
    assert counts == said.against_incumbent
    assert counts.n == 4
    assert said.accuracy.value == pytest.approx((counts.both + counts.candidate_only) / 4)
    assert said.conformance.same_answer == said.agreement.value
    assert said.conformance.conforms == (said.agreement.value == 1.0)
    assert np.isfinite(said.conformance.worst)
    assert msgspec.json.decode(msgspec.json.encode(said)) is not None


def test_a_model_that_gives_no_numbers_is_right_about_nothing() -> None:
    outputs = np.array([[np.nan, np.nan], [np.nan, -np.inf], [1.0, np.nan], [np.nan, np.inf]], np.float32)
    assert classes(outputs, 4, Answer()).tolist() == [NO_CLASS, 1, 0, 1]


def test_of_equal_scores_the_first_class_is_the_answer() -> None:
    answers: Classes = classes(np.array([[1, 1, 0], [0, 2, 2]], np.uint8), 2, Answer())
    assert answers.tolist() == [0, 1]


# --- the files


def test_an_order_crosses_as_json(tmp_path: Path) -> None:
    order = WorkerOrder(job=good_job(tmp_path), result_path="/r", parent_pid=3)
    write_file(tmp_path / "order", order)
    assert read_order(tmp_path / "order") == order


def test_a_failure_crosses_as_json(tmp_path: Path) -> None:
    failure = TrialFailure(code="model_load_failed", detail="why")
    write_file(tmp_path / "result", failure)
    assert read_outcome(tmp_path / "result") == failure


def test_a_result_too_large_is_not_parsed(tmp_path: Path) -> None:
    (tmp_path / "result").write_bytes(b" " * (OUTCOME_BYTES_MAX + 1))
    with pytest.raises(FinalError) as raised:
        read_outcome(tmp_path / "result")
    assert raised.value.code == "trial_file_oversized"
