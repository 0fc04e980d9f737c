"""Small real ONNX models and validation shards for the tests of the trial worker.

For: a linear classifier over eight features with three classes, and models that hang, eat memory, give
something else, or are no models.
Not for: anything about accuracy on real data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from agent.errors import FinalError
from agent.worker.job import ModelRun, TrialJob, TrialSettings
from agent.worker.measuring import run_trial
from wire.bundle import LABELS_KEY, TensorSpec, fp32_key, host_key, input_key

FEATURES, CLASSES = 8, 3
VARIANT = "onnxruntime/float_wf32_af32"
DIGEST = "a" * 64
OTHER_DIGEST = "b" * 64
FAST = TrialSettings(warmup=2, latency_runs=20)

Array = NDArray[Any]


def value(name: str, shape: list[int | str], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    constants: dict[str, Array],
    *,
    inputs: list[onnx.ValueInfoProto] | None = None,
    outputs: list[onnx.ValueInfoProto] | None = None,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "small",
        inputs or [value("x", ["N", FEATURES])],
        outputs or [value("y", ["N", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def weight(seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((FEATURES, CLASSES)).astype(np.float32)


def linear(path: Path, matrix: Array | None = None) -> Path:
    """Scores `y = x @ weight`."""
    return save(
        path,
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"w": weight() if matrix is None else matrix},
    )


def hanging(path: Path) -> Path:
    """A Loop that would run for years."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Neg", ["v"], ["v2"])],
        "body",
        [value("i", [], TensorProto.INT64), value("c", [], TensorProto.BOOL), value("v", ["N", CLASSES])],
        [value("c2", [], TensorProto.BOOL), value("v2", ["N", CLASSES])],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["s"]),
        helper.make_node("Loop", ["trips", "go", "s"], ["y"], body=body),
    ]
    return save(path, nodes, {"w": weight(), "trips": np.array(2**62, np.int64), "go": np.array(True)})


def gluttonous(path: Path) -> Path:
    """Asks for 64 GiB at its first inference."""
    nodes = [
        helper.make_node("Shape", ["x"], ["n"], start=0, end=1),
        helper.make_node("Mul", ["n", "many"], ["count"]),
        helper.make_node("ConstantOfShape", ["count"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["nothing"], keepdims=0),
        helper.make_node("MatMul", ["x", "w"], ["s"]),
        helper.make_node("Add", ["s", "nothing"], ["y"]),
    ]
    return save(path, nodes, {"w": weight(), "many": np.array([2**34], np.int64)})


def scores(path: Path, x: Array) -> Array:
    """What this machine's runtime computes, sample by sample as the worker does."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": x[i : i + 1]})[0] for i in range(len(x))])


def samples(n: int = 40, seed: int = 7) -> Array:
    return np.random.default_rng(seed).standard_normal((n, FEATURES)).astype(np.float32)


def shard_arrays(x: Array, reference: Array) -> dict[str, Array]:
    """A shard whose labels, FP32 and host outputs are all those of `reference`."""
    return {
        input_key("x"): x,
        LABELS_KEY: reference.argmax(axis=1).astype(np.int64),
        fp32_key("y"): reference,
        host_key(VARIANT, "y"): reference,
    }


def save_shard(path: Path, arrays: dict[str, Array]) -> Path:
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    return path


def run_of(model: Path, digest: str = DIGEST) -> ModelRun:
    return ModelRun(model_path=str(model), runtime="onnxruntime", variant=VARIANT, digest=digest)


def job_of(
    model: Path, *shards: Path, incumbent: ModelRun | None = None, settings: TrialSettings = FAST
) -> TrialJob:
    return TrialJob(
        candidate=run_of(model),
        incumbent=incumbent,
        shards=tuple(str(shard) for shard in shards),
        shard_indices=tuple(range(len(shards))),
        inputs=(TensorSpec(name="x", dtype="float32", shape=(None, FEATURES)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(None, CLASSES)),),
        settings=settings,
    )


def good_job(folder: Path, incumbent: ModelRun | None = None, settings: TrialSettings = FAST) -> TrialJob:
    """A linear model on a shard that it answers perfectly."""
    model = linear(folder / "model.onnx")
    x = samples()
    shard = save_shard(folder / "shard.npz", shard_arrays(x, scores(model, x)))
    return job_of(model, shard, incumbent=incumbent, settings=settings)


def model_of(job: TrialJob) -> Path:
    return Path(job.candidate.model_path)


def with_arrays(job: TrialJob, folder: Path, change: Mapping[str, Array | None]) -> TrialJob:
    """The job on a shard in which some arrays are others, or missing."""
    x = samples()
    arrays = {**shard_arrays(x, scores(model_of(job), x)), **change}
    kept = {name: array for name, array in arrays.items() if array is not None}
    return replace(job, shards=(str(save_shard(folder / "changed.npz", kept)),))


def refused(job: TrialJob, code: str) -> str:
    with pytest.raises(FinalError) as raised:
        run_trial(job)
    assert raised.value.code == code
    return str(raised.value)
