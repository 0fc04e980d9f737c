"""What the daemon and its worker hand each other: an order in, an outcome out, by files or over a socket.

For: the types of both and their one way of being read, with the size capped.
Not for: running anything. No numpy here: the daemon imports this module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from agent.errors import UNREADABLE, FinalError, RetryError
from agent.worker.limits import WorkerLimits
from wire.bundle import Axes, InputData, TensorSpec
from wire.measures import TrialResult
from wire.tasks import TOP1, Answer, Kind, Metric
from wire.types import Code, Count, Digest, Name, Text, VariantId

ORDER_BYTES_MAX = 8 * 1024 * 1024
"""A release may have ten thousand shards, each named by a path."""
OUTCOME_BYTES_MAX = 1024 * 1024
DETAIL_CHARS_MAX = 1500
DOES_NOT_FIT = "failed to map segment"
"""What the dynamic linker says of a library that is there, but larger than the memory limit allows."""


class ModelRun(Struct, frozen=True, kw_only=True):
    """One model to run.

    Attributes:
        model_path: absolute path of the model file.
        runtime: such as `onnxruntime`.
        variant: id; names the host's outputs in the shards.
        digest: of the release it belongs to.
        session_config: entries for the runtime's session.
        data: how stored samples become its inputs; None: as the job says.
        axes: by name of an input or output: its tensor is the job's, transposed by these.
    """

    model_path: str
    runtime: Name
    variant: VariantId
    digest: Digest
    session_config: dict[str, str] = {}
    data: dict[str, InputData] | None = None
    axes: dict[Name, Axes] = {}


class TrialSettings(Struct, frozen=True, kw_only=True):
    """How much is measured.

    Attributes:
        threads: of the runtime, for one inference.
        warmup: inferences of each model that are not counted.
        latency_runs: timed inferences of each model, interleaved.
        energy_windows: load windows for the energy per inference, the median of which counts.
        energy_window_s: length of the idle and of each load window.
        throttled_repeats_max: further runs where the machine was held back in one.
        cooling_s_max: waited before each of them.
        wall_s_max: for the whole trial, kept by the daemon; no run is begun that could not end in time.
    """

    threads: Annotated[int, Meta(ge=1, le=256)] = 1
    warmup: Annotated[int, Meta(ge=0, le=10_000)] = 10
    latency_runs: Annotated[int, Meta(ge=1, le=100_000)] = 200
    energy_windows: Annotated[int, Meta(ge=5, le=100)] = 5
    energy_window_s: Annotated[float, Meta(ge=0.05, le=600.0)] = 30.0
    throttled_repeats_max: Annotated[int, Meta(ge=0, le=10)] = 2
    cooling_s_max: Annotated[float, Meta(ge=0.0, le=3600.0)] = 60.0
    wall_s_max: Annotated[float, Meta(gt=0.0)] = 900.0


class TrialJob(Struct, frozen=True, kw_only=True):
    """Everything that a trial needs to know.

    Attributes:
        candidate: the variant on trial.
        incumbent: what is active now, run beside it on the same samples; None on a first install.
        shards: absolute paths of the validation shards, in the order of `shard_indices`.
        shard_indices: their indices in the manifest, repeated in the result.
        data: how stored samples become inputs, by input name.
        task: what the model is for.
        metric: what is called accuracy.
        answer: how outputs are read.
        system_root: where /sys and /proc are looked for.
    """

    candidate: ModelRun
    incumbent: ModelRun | None = None
    shards: tuple[str, ...] = ()
    shard_indices: tuple[Count, ...] = ()
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    data: dict[str, InputData] = {}
    task: Kind = "classification"
    metric: Metric = TOP1
    answer: Answer = Answer()
    settings: TrialSettings = TrialSettings()
    system_root: str = "/"


class TrialFailure(Struct, frozen=True, kw_only=True, tag_field="type", tag="failure"):
    """The candidate could not be measured, and why; `lasting` says whether another try may help."""

    code: Code
    detail: Text = ""
    lasting: Literal["retry", "final"] = "final"


class TrialSuccess(Struct, frozen=True, kw_only=True, tag_field="type", tag="success"):
    """What was measured."""

    result: TrialResult


class WorkerOrder(Struct, frozen=True, kw_only=True):
    """The file that a worker is started with.

    Attributes:
        result_path: absolute; where the outcome goes.
        limits: that the worker puts on itself.
        parent_pid: the process it must not outlive; None where a person starts it by hand.
    """

    job: TrialJob
    result_path: str
    limits: WorkerLimits = WorkerLimits()
    parent_pid: Count | None = None


class TrialOrder(Struct, frozen=True, kw_only=True, tag_field="kind", tag="trial"):
    """The line that a worker behind a socket is asked with; another kind of order would be another type.

    Attributes:
        limits: asked for; those that the worker's unit has stay where they are lower.
    """

    job: TrialJob
    limits: WorkerLimits = WorkerLimits()


# Made by the thread that imports this, as in `wire.codec`: outcomes of several models are read at once.
_WORKER_ORDER = msgspec.json.Decoder(WorkerOrder)
_TRIAL_ORDER = msgspec.json.Decoder(TrialOrder)
_OUTCOME: msgspec.json.Decoder[TrialSuccess | TrialFailure] = msgspec.json.Decoder(
    TrialSuccess | TrialFailure
)


def encoded(value: TrialSuccess | TrialFailure | TrialOrder) -> bytes:
    """An order or an outcome as it travels: JSON without a newline inside."""
    return msgspec.json.encode(value)


def write_file(path: Path, value: WorkerOrder | TrialSuccess | TrialFailure) -> None:
    """Writes an order or an outcome as JSON, by rename, so that it is whole or not there."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(msgspec.json.encode(value))
    part.replace(path)


def _read(path: Path, size_bytes_max: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(size_bytes_max + 1)
    if len(data) > size_bytes_max:
        raise FinalError("trial_file_oversized", f"{path.name} is larger than {size_bytes_max} bytes")
    return data


def read_order(path: Path) -> WorkerOrder:
    """The order in a file.

    Raises:
        FinalError: `trial_file_oversized`.
        msgspec.ValidationError: it is not one; the daemon wrote it, so this is a mistake of ours.
    """
    return _WORKER_ORDER.decode(_read(path, ORDER_BYTES_MAX))


def trial_order(line: bytes) -> TrialOrder:
    """The order that a worker read from its socket.

    Raises:
        FinalError: `order_invalid`: no order, or one of a kind that this worker does not know.
    """
    try:
        return _TRIAL_ORDER.decode(line)
    except UNREADABLE as error:
        raise FinalError(
            "order_invalid", f"the worker does not understand its order ({error}); is it of another version?"
        ) from None


def outcome_of(data: bytes) -> TrialSuccess | TrialFailure:
    """What a worker said; one that ran a hostile model may have said anything.

    Raises:
        FinalError: `trial_result_invalid`.
    """
    try:
        return _OUTCOME.decode(data)
    except UNREADABLE as error:
        raise FinalError("trial_result_invalid", f"the worker left no readable result: {error}") from None


def result_of(outcome: TrialSuccess | TrialFailure) -> TrialResult:
    """What was measured.

    Raises:
        FinalError, RetryError: the worker's own reason.
    """
    if isinstance(outcome, TrialSuccess):
        return outcome.result
    raise (RetryError if outcome.lasting == "retry" else FinalError)(outcome.code, outcome.detail)


def read_outcome(path: Path) -> TrialSuccess | TrialFailure:
    """What a worker left in a file.

    Raises:
        FinalError: `trial_result_invalid`, `trial_file_oversized`.
    """
    try:
        data = _read(path, OUTCOME_BYTES_MAX)
    except OSError as error:
        raise FinalError("trial_result_invalid", f"the worker left no readable result: {error}") from None
    return outcome_of(data)
