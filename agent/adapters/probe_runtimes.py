"""Runs a tiny model with each runtime, in a worker as a trial would, for `shallop-agent doctor`.

For: facts about the interpreter that runs trials; that a package is installed does not mean that it works
(tflite-runtime can be imported under numpy 2 and fails when a model is loaded).
Not for: judging them (`agent.doctor.software`).
"""

from __future__ import annotations

import base64
import functools
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent.adapters import worker_process
from agent.doctor.software import RuntimeFacts, RuntimeTry
from agent.errors import AgentError
from agent.hardware import RUNTIME_OF, runtimes_of
from agent.ports import TrialRunner
from agent.worker.job import ModelRun, TrialJob, TrialSettings
from wire.bundle import TensorSpec, input_key
from wire.messages import RuntimeInfo

ASK_S_MAX = 15.0
NEEDED = ("numpy", "msgspec")

# `y = max(x, 0)` for four float32 numbers; tests/agent/test_doctor_runtimes.py makes them anew and runs them.
_ONNX = "CAcSADo9CgwKAXgSAXkiBFJlbHUSAXRaFAoBeBIPCg0IARIJCgMSAU4KAggEYhQKAXkSDwoNCAESCQoDEgFOCgIIBEIECgAQDQ=="
_TFLITE = (
    "eNptULsOgkAQHJQQghckgcKCwtLCztbaWFBY2BsSUUmUwlfwP/wACz/Pf8C9vcVciJdMdm92Z/b2UgDrRTZLMEaKERJEUMT5cCkH"
    "ccBT8CK8CQcH6FOkQN36BKzSmoBuSnRzwpBwKc73stpvtsUuvx2vrDMzjMYXL1fiQ6Jib497PKtewxyHPTTvcg0Wn3AW/jbSHqHw"
    "+m1LQkZYie8pLyt0dmr/IZA5Suot8OfeI0zE89M0jdZNrb0UvwXcoTq+tejtv4hEM7A0sRkVfwFSoRbb"
)


def runtimes(python: str | None, runner: TrialRunner, folder: Path) -> RuntimeFacts:
    """Asks the interpreter, then tries each of its runtimes.

    Args:
        python: that runs trials; None is this one.
        runner: as the daemon uses it.
        folder: for the model files; the worker must be able to read it.
    """
    chosen = python or sys.executable
    try:
        versions = worker_process.versions(chosen, (*RUNTIME_OF, *NEEDED), ASK_S_MAX)
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
        return RuntimeFacts(python=chosen, error=str(error)[:300])
    packages = {name: versions.get(name) for name in NEEDED}
    found = runtimes_of(versions)
    tries = _in_parallel([functools.partial(try_runtime, one, runner, folder) for one in found])
    return RuntimeFacts(
        python=chosen, python_version=versions.get("python", ""), packages=packages, tries=tuple(tries)
    )


def _in_parallel(tasks: list[Callable[[], RuntimeTry]]) -> list[RuntimeTry]:
    """All at once: most of the time goes into loading libraries, each into a process of its own."""
    done: dict[int, RuntimeTry] = {}

    def run(i: int, task: Callable[[], RuntimeTry]) -> None:
        done[i] = task()

    threads = [threading.Thread(target=run, args=(i, task), daemon=True) for i, task in enumerate(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [done[i] for i in sorted(done)]


def try_runtime(info: RuntimeInfo, runner: TrialRunner, folder: Path) -> RuntimeTry:
    """Runs the tiny model in a worker under the worker's limits."""
    try:
        result = runner.run(_job(info.name, folder), threading.Event())
    except AgentError as error:
        detail = str(error.args[0])[:300]
        return RuntimeTry(name=info.name, version=info.version, code=error.code, detail=detail)
    except OSError as error:
        return RuntimeTry(name=info.name, version=info.version, code="disk_failed", detail=str(error))
    load_ms = result.latency.cold_load_ms if result.latency else None
    return RuntimeTry(name=info.name, version=info.version, load_ms=load_ms or 0.0)


def _job(runtime: str, folder: Path) -> TrialJob:
    onnx = runtime == "onnxruntime"
    model = folder / f"tiny-{runtime}{'.onnx' if onnx else '.tflite'}"
    model.write_bytes(base64.b64decode(_ONNX) if onnx else zlib.decompress(base64.b64decode(_TFLITE)))
    shard = folder / f"tiny-{runtime}.npz"
    _write_shard(shard)
    return TrialJob(
        candidate=ModelRun(
            model_path=str(model),
            runtime=runtime,
            variant=f"{runtime.replace('-', '_')}/tiny",
            digest="0" * 64,
        ),
        shards=(str(shard),),
        shard_indices=(0,),
        inputs=(TensorSpec(name="x", dtype="float32", shape=(None, 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(None, 4)),),
        task="embedding",
        settings=TrialSettings(warmup=1, latency_runs=5, energy_window_s=0.05),
    )


def _write_shard(path: Path) -> None:
    """One sample as `numpy.savez` would write it (NPY format 1.0), without numpy."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4), }"
    header = header.ljust(128 - 10 - 1) + b"\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + struct.pack("<4f", -1, 0, 1, 2)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{input_key('x')}.npy", content)
