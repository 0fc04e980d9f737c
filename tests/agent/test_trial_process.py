"""Real trials in real worker processes: good ones, and models that do harm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from agent.adapters.trial_process import TrialProcess
from agent.errors import AgentError, Cancelled, FinalError, RetryError
from agent.worker.job import FILE_BYTES_MAX, ModelRun, TrialJob, TrialSettings, read_outcome
from agent.worker.limits import WorkerLimits
from examples.demo.house import wait_for
from tests.integration.bundles import SAMPLES, VARIANT, Harm, make_bundle
from wire.bundle import host_key, input_key

MODEL = "variants/float_wf32_af32/model.onnx"
SETTINGS = TrialSettings(warmup=2, latency_runs=20)


def run_of(folder: Path, digest: str = "ab" * 32) -> ModelRun:
    return ModelRun(model_path=str(folder / MODEL), runtime="onnxruntime", variant=VARIANT, digest=digest)


def job_of(folder: Path, incumbent: Path | None = None, harm: Harm = "none") -> TrialJob:
    manifest = make_bundle(folder, harm=harm, seed=3)
    return TrialJob(
        candidate=run_of(folder),
        incumbent=None if incumbent is None else run_of(incumbent, "cd" * 32),
        shards=(str(folder / "validation/shard-0000.npz"),),
        shard_indices=(0,),
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        settings=SETTINGS,
    )


@pytest.fixture
def trial(tmp_path: Path) -> TrialProcess:
    return TrialProcess(tmp_path / "scratch", WorkerLimits(wall_s_max=60))


def refusal(trial: TrialProcess, job: TrialJob) -> AgentError:
    with pytest.raises(AgentError) as caught:
        trial.run(job, threading.Event())
    return caught.value


def test_a_good_candidate_is_measured(trial: TrialProcess, tmp_path: Path) -> None:
    result = trial.run(job_of(tmp_path / "a"), threading.Event())
    assert result.n_samples == SAMPLES
    assert result.accuracy is not None
    assert result.accuracy.value == 1.0
    assert result.agreement is not None
    assert result.conformance is not None
    assert result.conformance.conforms
    assert result.latency is not None
    assert result.latency.n == 20
    assert result.latency.ms_p50 <= result.latency.ms_p95 <= result.latency.ms_p99
    assert result.memory_bytes_peak is not None
    assert result.memory_bytes_peak > 20_000_000
    assert result.incumbent is None
    assert result.incumbent_latency is None


def test_without_a_sensor_power_is_unknown(trial: TrialProcess, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    job = msgspec.structs.replace(job_of(tmp_path / "a"), system_root=str(tmp_path / "empty"))
    result = trial.run(job, threading.Event())
    assert (result.energy_mj, result.power_sensor, result.power_watts_idle) == (None, None, None)
    assert result.throttled is None


def test_with_a_sensor_energy_is_measured(trial: TrialProcess, tmp_path: Path) -> None:
    hwmon = tmp_path / "tree/sys/class/hwmon/hwmon0"
    hwmon.mkdir(parents=True)
    (hwmon / "name").write_text("ina226\n")
    (hwmon / "power1_input").write_text("4321000\n")
    settings = msgspec.structs.replace(SETTINGS, energy_windows=5, energy_window_s=0.3)
    job = msgspec.structs.replace(
        job_of(tmp_path / "a"), system_root=str(tmp_path / "tree"), settings=settings
    )
    result = trial.run(job, threading.Event())
    assert result.power_sensor == "hwmon_ina226"
    assert result.power_watts_idle == pytest.approx(4.321)
    assert result.energy_mj is not None
    assert result.energy_mj.value == pytest.approx(0.0, abs=1e-6)  # the same power idle and loaded


def test_the_incumbent_runs_beside_it_on_the_same_samples(trial: TrialProcess, tmp_path: Path) -> None:
    job_of(tmp_path / "old")
    result = trial.run(job_of(tmp_path / "new", tmp_path / "old", harm="wrong"), threading.Event())
    assert result.incumbent == "cd" * 32
    assert result.against_incumbent is not None
    assert result.against_incumbent.n == SAMPLES
    assert result.against_incumbent.candidate_only == 0
    assert result.against_incumbent.reference_only > SAMPLES / 2
    assert result.conformance is not None
    assert not result.conformance.conforms
    assert result.conformance.worst > 0
    assert result.latency_ratio_to_incumbent is not None
    assert result.latency_ratio_to_incumbent.n == 20


def test_an_incumbent_that_does_not_load_is_a_note(trial: TrialProcess, tmp_path: Path) -> None:
    job_of(tmp_path / "old", harm="garbage")
    result = trial.run(job_of(tmp_path / "new", tmp_path / "old"), threading.Event())
    assert result.incumbent is None
    assert result.against_incumbent is None
    assert "model_load_failed" in result.notes[0]
    assert result.accuracy is not None


def test_garbage_is_named(trial: TrialProcess, tmp_path: Path) -> None:
    error = refusal(trial, job_of(tmp_path / "a", harm="garbage"))
    assert (error.code, error.lasting) == ("model_load_failed", "final")


def test_a_model_that_hangs_is_killed_at_its_limit(tmp_path: Path) -> None:
    trial = TrialProcess(tmp_path / "scratch", WorkerLimits(wall_s_max=4))
    assert refusal(trial, job_of(tmp_path / "a", harm="hang")).code == "trial_timeout"
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_model_that_burns_the_processor_is_killed_at_its_limit(tmp_path: Path) -> None:
    trial = TrialProcess(tmp_path / "scratch", WorkerLimits(wall_s_max=60, cpu_s_max=3))
    assert refusal(trial, job_of(tmp_path / "a", harm="hang")).code in {"trial_timeout", "trial_crashed"}


def test_cancelling_kills_at_once(tmp_path: Path) -> None:
    trial = TrialProcess(tmp_path / "scratch", WorkerLimits(wall_s_max=100))
    cancel = threading.Event()
    threading.Timer(1.0, cancel.set).start()
    with pytest.raises(Cancelled):
        trial.run(job_of(tmp_path / "a", harm="hang"), cancel)
    assert list((tmp_path / "scratch").iterdir()) == []


def hungry_model(path: Path) -> None:
    """Expands one value to 16 GB when it runs."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [1, 4_000_000_000])
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["x"], ["one"], keepdims=1),
            helper.make_node("Expand", ["one", "shape"], ["big"]),
            helper.make_node("ReduceMax", ["big"], ["top"], keepdims=1),
            helper.make_node("Mul", ["x", "top"], ["scaled"]),
            helper.make_node("Slice", ["scaled", "s0", "s4", "axis"], ["y"]),
        ],
        "hungry",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [shape, *(helper.make_tensor(n, TensorProto.INT64, [1], [v]) for n, v in
                  (("s0", 0), ("s4", 4), ("axis", 1)))],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def test_a_model_that_eats_memory_is_named(tmp_path: Path) -> None:
    job = job_of(tmp_path / "a")
    hungry_model(tmp_path / "a" / MODEL)
    trial = TrialProcess(tmp_path / "scratch", WorkerLimits(memory_bytes_max=2 * 1024**3))
    assert refusal(trial, job).code == "trial_out_of_memory"


def test_a_model_of_other_inputs_is_refused(trial: TrialProcess, tmp_path: Path) -> None:
    job = job_of(tmp_path / "a")
    model = onnx.load(tmp_path / "a" / MODEL)
    model.graph.input[0].name = "other"
    model.graph.node[0].input[0] = "other"
    onnx.save(model, tmp_path / "a" / MODEL)
    assert refusal(trial, job).code == "output_mismatch"


def test_an_unknown_runtime_is_refused(trial: TrialProcess, tmp_path: Path) -> None:
    job = job_of(tmp_path / "a")
    run = msgspec.structs.replace(job.candidate, runtime="abacus")
    assert refusal(trial, msgspec.structs.replace(job, candidate=run)).code == "runtime_missing"


def bend(path: Path, leave_out: str = "", **arrays: object) -> None:
    """Writes the shard again without one array, or with others in place."""
    with np.load(path) as archive:
        kept: dict[str, object] = {name: archive[name] for name in archive.files if name != leave_out}
    np.savez(path, allow_pickle=False, **{**kept, **arrays})  # type: ignore[arg-type]


X, LABELS, HOST = input_key("x"), "labels", host_key(VARIANT, "y")
BENT: dict[str, dict[str, object]] = {
    "missing input": {"leave_out": X},
    "wrong shape": {X: np.zeros((SAMPLES, 5), np.float32)},
    "wrong type": {X: np.zeros((SAMPLES, 16), np.int64)},
    "not numbers": {X: np.full((SAMPLES, 16), np.nan, np.float32)},
    "no samples": {X: np.zeros((0, 16), np.float32)},
    "labels do not fit": {LABELS: np.zeros(3, np.int64)},
    "host does not fit": {HOST: np.zeros((3, 4), np.float32)},
}


@pytest.mark.parametrize("name", BENT)
def test_a_bad_shard_is_named(trial: TrialProcess, tmp_path: Path, name: str) -> None:
    job = job_of(tmp_path / "a")
    bend(Path(job.shards[0]), **BENT[name])  # type: ignore[arg-type]
    assert refusal(trial, job).code == "shard_unreadable"


@pytest.mark.parametrize("length", [0, 9, 700])
def test_a_shard_that_is_no_archive_is_named(trial: TrialProcess, tmp_path: Path, length: int) -> None:
    job = job_of(tmp_path / "a")
    shard = Path(job.shards[0])
    shard.write_bytes(shard.read_bytes()[:length])
    assert refusal(trial, job).code == "shard_unreadable"


def test_no_shard_is_no_trial(trial: TrialProcess, tmp_path: Path) -> None:
    job = msgspec.structs.replace(job_of(tmp_path / "a"), shards=(), shard_indices=())
    assert refusal(trial, job).code == "shard_unreadable"


def test_a_shard_without_labels_still_gives_agreement(trial: TrialProcess, tmp_path: Path) -> None:
    job = job_of(tmp_path / "a")
    bend(Path(job.shards[0]), leave_out=LABELS)
    result = trial.run(job, threading.Event())
    assert result.accuracy is None
    assert result.accuracy_ratio is None
    assert result.agreement is not None


def test_an_interpreter_that_is_not_there_may_come(tmp_path: Path) -> None:
    trial = TrialProcess(tmp_path / "scratch", WorkerLimits(), python="/nowhere/python")
    with pytest.raises(RetryError) as caught:
        trial.run(job_of(tmp_path / "a"), threading.Event())
    assert caught.value.code == "trial_not_started"


def test_a_worker_that_dies_without_a_word_is_named(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho the end >&2\nkill -SEGV $$\n")
    script.chmod(0o755)
    trial = TrialProcess(tmp_path / "scratch", WorkerLimits(), python=str(script))
    error = refusal(trial, job_of(tmp_path / "a"))
    assert error.code == "trial_crashed"
    assert "SIGSEGV" in str(error)
    assert "the end" in str(error)


def test_a_worker_that_prints_a_gigabyte_harms_nobody(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nulimit -f 64\nhead -c 100000000 /dev/zero | tr '\\0' x\nexit 7\n")
    script.chmod(0o755)
    trial = TrialProcess(tmp_path / "scratch", WorkerLimits(), python=str(script))
    error = refusal(trial, job_of(tmp_path / "a"))
    assert error.code == "trial_crashed"
    assert len(str(error)) < 2000


@pytest.mark.parametrize("content", [b"", b"{", b'{"type":"success"}', b"x" * (FILE_BYTES_MAX + 1)])
def test_a_result_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(FinalError) as caught:
        read_outcome(tmp_path / "result.json")
    assert caught.value.code == "trial_result_invalid"


def test_no_telemetry_is_written(
    trial: TrialProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    trial.run(job_of(tmp_path / "a"), threading.Event())
    assert list(home.rglob("*")) == []


def test_the_worker_dies_with_its_parent(tmp_path: Path) -> None:
    job = job_of(tmp_path / "a", harm="hang")
    (tmp_path / "job.json").write_bytes(msgspec.json.encode(job))
    program = textwrap.dedent(f"""
        import threading
        from pathlib import Path
        from agent.adapters.trial_process import TrialProcess
        from agent.worker.job import read_job
        from agent.worker.limits import WorkerLimits
        TrialProcess(Path({str(tmp_path / "scratch")!r}), WorkerLimits()).run(
            read_job(Path({str(tmp_path / "job.json")!r})), threading.Event())
    """)
    parent = subprocess.Popen([sys.executable, "-c", program])

    def children() -> set[int]:
        listed = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text(encoding="ascii")
        return {int(pid) for pid in listed.split()}

    (worker,) = wait_for("the worker", children, 30)
    # It must be past its first lines, where it asks to die with its parent.
    wait_for("onnxruntime", lambda: "onnxruntime" in Path(f"/proc/{worker}/maps").read_text(), 30)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()

    def gone() -> bool:
        stat = Path(f"/proc/{worker}/stat")
        try:
            return stat.read_text(encoding="ascii").rsplit(")", 1)[1].split()[0] == "Z"
        except OSError:
            return True

    assert wait_for("the worker to die", gone, 30)
