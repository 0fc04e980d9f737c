"""Trials in an environment of their own, where `tflite-runtime` has the numpy 1 that it needs."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from agent import cli
from agent.adapters.trial_process import TrialProcess, installed_runtimes
from agent.errors import FinalError
from agent.journal import JournalFile
from agent.worker.job import TrialJob, TrialSuccess, WorkerOrder, read_outcome, write_file
from agent.worker.limits import WorkerLimits
from converter.neighbour import Neighbour
from tests.agent.models import Array, samples, save_shard
from tests.agent.tflite import (
    TFLITE_VARIANTS,
    Edge,
    Twins,
    features,
    images,
    job_of,
    pictures,
    quantized_product,
    run_of,
)
from tests.conftest import ROOT
from wire.bundle import host_key
from wire.measures import TrialResult

RUNTIME = "tflite-runtime"
VARIANT = TFLITE_VARIANTS[RUNTIME]
LIMITS = WorkerLimits(wall_s_max=60.0)


def tried(folder: Path, python: str, job: TrialJob) -> TrialResult:
    return TrialProcess(folder / "scratch", LIMITS, python).run(job, threading.Event())


def with_host(job: TrialJob, python: str, twins: Twins, x: Array) -> TrialJob:
    """The job on a shard that holds what the same library gives over the converter's pipes."""
    with Neighbour(python, twins.tflite.read_bytes()) as neighbour:
        signature = neighbour.get_signature_runner("serving_default")
        inputs, outputs = signature.get_input_details(), signature.get_output_details()
        rows = []
        for i in range(len(x)):
            neighbour.set_tensor(inputs["x"]["index"], x[i : i + 1].transpose(twins.axes["x"]))
            neighbour.invoke()
            rows.append(neighbour.get_tensor(outputs["y"]["index"]))
    path = Path(job.shards[0])
    with np.load(path) as archive:
        arrays = {**archive, host_key(VARIANT, "y"): np.concatenate(rows)}
    save_shard(path, arrays)
    return job


@pytest.mark.parametrize(("candidate", "incumbent"), [(RUNTIME, "onnxruntime"), ("onnxruntime", RUNTIME)])
def test_twins_are_compared_in_the_environment_of_the_older_library(
    tmp_path: Path, tflite_runtime_python: str, candidate: str, incumbent: str
) -> None:
    twins, x = images(tmp_path), pictures()
    job = job_of(tmp_path, twins, x, candidate, run_of(twins, incumbent))
    if candidate == RUNTIME:
        job = with_host(job, tflite_runtime_python, twins, x)
    result = tried(tmp_path, tflite_runtime_python, job)
    assert result.notes == ()
    assert result.runtime == candidate
    assert result.conformance is not None
    assert result.conformance.equal == 1.0
    assert result.accuracy is not None
    assert result.accuracy.value == 1.0
    assert result.against_incumbent is not None
    assert result.against_incumbent.both == 30
    assert result.latency_ratio_to_incumbent is not None
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("edge", ["float32", "int8", "uint8"])
def test_a_file_of_integers_is_fed_and_read_by_its_own_scales(
    tmp_path: Path, tflite_runtime_python: str, edge: Edge
) -> None:
    """A product is exact: the same integers as ONNX Runtime's, of which the labels are."""
    twins = quantized_product(tmp_path, edge)
    result = tried(tmp_path, tflite_runtime_python, job_of(tmp_path, twins, features(), RUNTIME))
    assert result.agreement is not None
    assert result.agreement.value == 1.0
    assert result.accuracy is not None
    assert result.accuracy.value == 1.0


@pytest.mark.parametrize("damage", [b"", b"no model" * 20, None])
def test_a_damaged_file_does_not_load(
    tmp_path: Path, tflite_runtime_python: str, damage: bytes | None
) -> None:
    twins = quantized_product(tmp_path, "float32")
    job = job_of(tmp_path, twins, features(), RUNTIME)
    data = twins.tflite.read_bytes()
    twins.tflite.write_bytes(data[: len(data) // 2] if damage is None else damage)
    with pytest.raises(FinalError, match="not opened") as raised:
        tried(tmp_path, tflite_runtime_python, job)
    assert raised.value.code == "model_malformed"


def test_litert_is_not_run_by_the_older_library(tmp_path: Path, tflite_runtime_python: str) -> None:
    job = job_of(tmp_path, quantized_product(tmp_path, "float32"), features(), "ai-edge-litert")
    with pytest.raises(FinalError, match=r"shallop\[tflite\]") as raised:
        tried(tmp_path, tflite_runtime_python, job)
    assert raised.value.code == "runtime_missing"
    assert tflite_runtime_python in str(raised.value)


def test_beside_numpy_2_it_is_named_before_any_file_is_blamed(
    tmp_path: Path, tflite_runtime_python: str
) -> None:
    """It can be imported there, and fails when an interpreter is built."""
    packages = Path(tflite_runtime_python).parent.parent / "lib/python3.11/site-packages"
    for name in ("tflite_runtime", "tflite_runtime-2.14.0.dist-info"):
        (tmp_path / "beside" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "beside" / name).symlink_to(packages / name)
    result = tmp_path / "result.json"
    job = job_of(tmp_path, quantized_product(tmp_path, "float32"), features(), RUNTIME)
    write_file(tmp_path / "job.json", WorkerOrder(job=job, result_path=str(result)))
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path / 'beside'}", "HOME": str(tmp_path)}
    subprocess.run(
        [sys.executable, "-m", "agent.worker.trial", str(tmp_path / "job.json")], check=True,
        capture_output=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    outcome = read_outcome(result)
    assert not isinstance(outcome, TrialSuccess)
    assert outcome.code == "runtime_missing"
    for words in (f"here is {np.__version__}", "pip install 'numpy<2'", "`trial.python`"):
        assert words in outcome.detail


ALONE = """
import os, sys
import numpy as np
from agent.worker.runtimes import find
before = len(os.listdir("/proc/self/task"))
session = find(sys.argv[1]).load(sys.argv[2], int(sys.argv[3]), {})
session.run(session.prepare({"x": np.zeros((1, 8), np.float32)}))
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("runtime", [RUNTIME, "ai-edge-litert"])
def test_it_starts_no_thread_of_its_own_and_leaves_no_file(
    tmp_path: Path, request: pytest.FixtureRequest, runtime: str, threads: int
) -> None:
    python = request.getfixturevalue("tflite_runtime_python") if runtime == RUNTIME else sys.executable
    twins = quantized_product(tmp_path, "float32")
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [python, "-c", ALONE, runtime, str(twins.tflite), str(threads)], check=True, capture_output=True,
        cwd=ROOT, env={"HOME": str(home), "TMPDIR": str(home)}, text=True,
    )  # fmt: skip
    assert int(done.stdout) == threads - 1
    assert list(home.rglob("*")) == []


def test_the_daemon_asks_that_python_what_it_has(tflite_runtime_python: str) -> None:
    found = {runtime.name: runtime.version for runtime in installed_runtimes(tflite_runtime_python)}
    assert found[RUNTIME].startswith("2.")
    assert "ai-edge-litert" not in found
    assert RUNTIME not in {runtime.name for runtime in installed_runtimes()}


def test_an_adopted_file_is_of_the_runtime_that_is_there(tmp_path: Path, tflite_runtime_python: str) -> None:
    twins = quantized_product(tmp_path, "float32")
    for name, python in (("ai_edge_litert", sys.executable), ("tflite_runtime", tflite_runtime_python)):
        state = tmp_path / name
        config = {"device": "roof-17", "state_dir": str(state), "insecure_unsigned": True,
                  "trial": {"python": python}}  # fmt: skip
        (tmp_path / "agent.yaml").write_bytes(msgspec.json.encode(config))
        run = ["adopt", "digits", str(twins.tflite), "--config", str(tmp_path / "agent.yaml")]
        assert cli.main(run) == 0
        saved = JournalFile(state).load()
        assert saved is not None
        active = saved.models["digits"].active
        assert active is not None
        assert active.variant == f"{name}/adopted"


def test_an_adopted_file_is_compared_with_the_release_that_follows(
    tmp_path: Path, tflite_runtime_python: str
) -> None:
    twins, x = quantized_product(tmp_path, "float32"), samples()
    adopted = replace(run_of(twins, RUNTIME), data=None, axes={})
    result = tried(tmp_path, tflite_runtime_python, job_of(tmp_path, twins, x, "onnxruntime", adopted))
    assert result.notes == ()
    assert result.against_incumbent is not None
    assert result.against_incumbent.both == len(x)
