"""Targets: what a process that ran somebody's model or delta reads, and what it leaves.

For: orders and outcomes, validation shards, a model's answers, deltas against a real base.
Not for: the model files themselves (`tests.fuzz.targets_models`).
"""

from __future__ import annotations

import io
from functools import cache, partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from agent.worker import answers, delta_job, job, shards
from agent.worker.delta_apply import apply_delta
from converter import dataset
from converter.model import Signature
from fleet.deltas.encoder import encode
from tests.fleet.delta_samples import Weights
from tests.fuzz.formats import bent_archive, bent_delta
from tests.fuzz.mutate import bent_json
from tests.fuzz.places import filed, scratch
from tests.fuzz.target import Target
from tests.wire.samples import DIGEST, TRIAL
from wire.bundle import LABELS_KEY, InputData, Normalize, Scale, TensorSpec, fp32_key, host_key, input_key
from wire.tasks import Answer, Boxes, Kind

_VARIANT = "onnxruntime/float_wf32_af32"
_SHAPES: dict[Kind, tuple[int | None, ...]] = {
    "classification": (None, 3), "regression": (None, 3), "embedding": (None, 3), "detection": (None, 4, 6),
    "custom": (None, 3),
}  # fmt: skip


def a_job(task: Kind = "classification", shard: Path | None = None) -> job.TrialJob:
    """A trial of a model of eight features."""
    run = job.ModelRun(model_path="/none/model.onnx", runtime="onnxruntime", variant=_VARIANT, digest=DIGEST)
    return job.TrialJob(
        candidate=run,
        incumbent=run,
        shards=() if shard is None else (str(shard),),
        shard_indices=() if shard is None else (0,),
        inputs=(TensorSpec(name="x", dtype="float32", shape=(None, 8)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=_SHAPES[task]),),
        data={
            "x": InputData(
                stored="raw", preprocessing=(Scale(factor=1 / 255), Normalize(mean=(0.2,), std=(0.5,)))
            )
        },
        task=task,
        answer=_ANSWERS[task],
    )


_ANSWERS: dict[Kind, Answer] = {
    "classification": Answer(), "regression": Answer(), "embedding": Answer(), "custom": Answer(),
    "detection": Answer(boxes=Boxes(layout="rows", boxes="y", nms=True)),
}  # fmt: skip


# --- orders and outcomes


def _outcome(data: bytes) -> object:
    """As it comes over the socket, and as it lies in a file."""
    over = job.outcome_of(data)
    assert repr(job.read_outcome(filed("result.json", data))) == repr(over)
    return over


def _outcomes() -> dict[str, bytes]:
    return {
        "success": job.encoded(job.TrialSuccess(result=TRIAL.result)),
        "failure": job.encoded(job.TrialFailure(code="model_load_failed", detail="no", lasting="retry")),
    }


def _delta_outcome(data: bytes) -> object:
    return delta_job.read_outcome(filed("delta-result.json", data))


def _delta_outcomes() -> dict[str, bytes]:
    made = delta_job.DeltaOutcome(code="delta_invalid", detail="why")
    return {"none": msgspec.json.encode(delta_job.DeltaOutcome()), "failure": msgspec.json.encode(made)}


# --- shards and answers


@cache
def _arrays(task: Kind) -> dict[str, Any]:
    random = np.random.default_rng(3)
    shape = tuple(5 if size is None else size for size in _SHAPES[task])
    given = random.standard_normal(shape).astype(np.float32)
    labels = given.argmax(axis=1) if task == "classification" else given
    return {
        input_key("x"): random.integers(0, 255, (5, 8), np.uint8),
        LABELS_KEY: labels,
        fp32_key("y"): given,
        host_key(_VARIANT, "y"): given,
        "out": given,
    }


def _npz(task: Kind) -> dict[str, bytes]:
    found = {}
    for name, save in (("stored", np.savez), ("deflated", np.savez_compressed)):
        file = io.BytesIO()
        save(file, allow_pickle=False, **_arrays(task))
        found[name] = file.getvalue()
    return found


def _shard(data: bytes) -> object:
    with np.errstate(all="ignore"):
        found = shards.read_samples(a_job(shard=filed("shard.npz", data)))
    return found.n, found.inputs["x"].tobytes(), found.labels


def _answers(task: Kind, data: bytes) -> object:
    """A shard, and what a model answered to it, both from the same hostile archive."""
    path = filed("answers.npz", data)
    order = a_job(task, path)
    with np.errstate(all="ignore"):
        samples = shards.read_samples(order)
        try:
            given = np.load(path, allow_pickle=False)["out"]
        except Exception:  # noqa: BLE001 - the worker has the model's outputs from the runtime
            given = samples.fp32.get("y", np.zeros((samples.n, 3), np.float32))
        if not isinstance(given, np.ndarray) or given.dtype.kind not in "fiub":
            given = np.zeros((samples.n, 3), np.float32)
        return answers.answers_of(order, {"y": given}, samples, None)


# --- the same form on the host


_SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=(None, 8)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(None, 3)),),
    classes=3,
    batch_free=True,
)


def _data_set(data: bytes) -> object:
    """A calibration set; and the types of a file that is only looked at."""
    path = filed("calibration.npz", data)
    described = dataset.Description(inputs=a_job().data)
    seen = sorted((name, str(kind)) for name, kind in dataset.dtypes_of(path).items())
    with np.errstate(all="ignore"):
        found = dataset.read_samples(path, described, _SIGNATURE, labelled=False)
    return seen, found.n, found.arrays["x"].tobytes()


def _sets() -> dict[str, bytes]:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, x=_arrays("classification")[input_key("x")])
    return {"calibration": file.getvalue()}


# --- deltas


@cache
def _versions() -> tuple[bytes, bytes]:
    old = Weights(channels=8, inputs=6)
    return old.onnx(), old.moved(2e-3).onnx()


def _deltas() -> dict[str, bytes]:
    base, new = _versions()
    delta = encode(base, new)
    assert delta is not None
    return {"delta": delta}


def _apply(data: bytes) -> object:
    base, new = _versions()
    here = scratch() / "delta-base"
    if not here.exists():
        here.write_bytes(base)
    output = scratch() / "delta-new"
    output.unlink(missing_ok=True)
    try:
        apply_delta(here, filed("delta", data), output, len(new))
    except Exception:
        assert not output.exists(), "a failure left an output"
        raise
    made = output.read_bytes()
    assert len(made) == len(new)
    return made


def _answering(task: Kind) -> Target:
    return Target(
        name=f"worker.answers.{task}", run=partial(_answers, task), seeds=partial(_npz, task),
        mutate=bent_archive,
        weight=12, guided=True,
    )  # fmt: skip


TARGETS: tuple[Target, ...] = (
    Target(
        name="worker.order", run=job.trial_order, mutate=bent_json, again=job.encoded,

        seeds=lambda: {"order": job.encoded(job.TrialOrder(job=a_job(shard=Path("/none/shard.npz"))))},
    ),
    Target(name="worker.outcome", run=_outcome, seeds=_outcomes, mutate=bent_json, again=job.encoded),

    Target(
        name="worker.delta_outcome", run=_delta_outcome, seeds=_delta_outcomes, mutate=bent_json,
        refuse=(ValueError,)
    ),
    Target(
        name="worker.shard", run=_shard, seeds=partial(_npz, "classification"), mutate=bent_archive,
        weight=40,
        guided=True,
    ),
    *map(_answering, _SHAPES),
    Target(
        name="converter.npz",
        run=_data_set,
        seeds=_sets,
        mutate=bent_archive,
        weight=40,
        guided=True,
    ),
    Target(name="worker.delta", run=_apply, seeds=_deltas, mutate=bent_delta, weight=40, guided=True),
)  # fmt: skip
