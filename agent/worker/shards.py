"""Reads validation shards: samples, labels, FP32 outputs and the host's outputs.

For: turning `.npz` files that came over the network into arrays of the names, shapes and types that the
manifest promises, or refusing them by name. No pickle is ever read.
Not for: running a model on them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.errors import FinalError
from agent.worker.job import TrialJob
from wire.bundle import LABELS_KEY, TensorSpec, fp32_key, host_key, input_key
from wire.errors import ContentError
from wire.preprocess import preprocess

UNPACKED_BYTES_MAX = 256 * 1024 * 1024

Arrays = dict[str, NDArray[Any]]


class Samples(Struct, frozen=True, kw_only=True):
    """All shards of a trial, one after the other; first axis samples.

    Attributes:
        inputs: what the model is given, preprocessed, by input name.
        labels: the right answers; None where a shard has none.
        fp32: the baseline's outputs by output name; empty where a shard has none.
        host: the host's outputs of this variant; empty where a shard has none.
    """

    n: int
    inputs: Arrays
    labels: NDArray[Any] | None
    fp32: Arrays
    host: Arrays


def read_samples(job: TrialJob) -> Samples:
    """Everything in the job's shards.

    Raises:
        FinalError: `shard_unreadable`.
    """
    shards = [_open(Path(path)) for path in job.shards]
    if not shards:
        raise FinalError("shard_unreadable", "the release has no validation samples to be tried on")
    counts = [_samples_in(shard, job) for shard in shards]
    return Samples(
        n=sum(counts),
        inputs={spec.name: _input(job, spec, shards) for spec in job.inputs},
        labels=_labels(shards, counts),
        fp32=_outputs(shards, counts, {spec.name: fp32_key(spec.name) for spec in job.outputs}),
        host=_outputs(
            shards, counts, {spec.name: host_key(job.candidate.variant, spec.name) for spec in job.outputs}
        ),
    )


def _open(path: Path) -> Arrays:
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > UNPACKED_BYTES_MAX:
            raise _unreadable(path, f"unpacks to {unpacked} bytes, at most {UNPACKED_BYTES_MAX} are read")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise _unreadable(path, str(error)) from None


def _unreadable(path: Path, why: str) -> FinalError:
    return FinalError("shard_unreadable", f"validation shard {path.name}: {why}")


def _array(shard: Arrays, key: str) -> NDArray[Any]:
    found = shard.get(key)
    if found is None:
        names = ", ".join(sorted(shard)[:8])
        raise FinalError("shard_unreadable", f"a validation shard has no array {key!r}, it has {names}")
    return found


def _samples_in(shard: Arrays, job: TrialJob) -> int:
    lengths = {len(_array(shard, input_key(spec.name))) for spec in job.inputs}
    if len(lengths) != 1 or 0 in lengths:
        raise FinalError("shard_unreadable", f"a validation shard has inputs of {sorted(lengths)} samples")
    return lengths.pop()


def _input(job: TrialJob, spec: TensorSpec, shards: Sequence[Arrays]) -> NDArray[Any]:
    stored = _joined([_array(shard, input_key(spec.name)) for shard in shards], spec.name)
    data = job.data.get(spec.name)
    try:
        values = stored if data is None else preprocess(data, stored)
    except ContentError as error:
        raise FinalError("shard_unreadable", str(error.args[0])) from None
    fits = len(values.shape) == len(spec.shape) and all(
        want is None or want == have for want, have in zip(spec.shape[1:], values.shape[1:], strict=True)
    )
    if not fits or values.dtype.name != spec.dtype:
        raise FinalError(
            "shard_unreadable",
            f"samples of {spec.name} are {values.dtype.name}{list(values.shape)}, the model takes "
            f"{spec.dtype}{list(spec.shape)}",
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise FinalError("shard_unreadable", f"samples of {spec.name} hold values that are no numbers")
    return values


def _joined(arrays: Sequence[NDArray[Any]], name: str) -> NDArray[Any]:
    try:
        return np.concatenate(arrays)
    except ValueError as error:
        raise FinalError("shard_unreadable", f"the shards disagree about {name}: {error}") from None


def _labels(shards: Sequence[Arrays], counts: Sequence[int]) -> NDArray[Any] | None:
    if any(LABELS_KEY not in shard for shard in shards):
        return None
    labels = _joined([shard[LABELS_KEY] for shard in shards], LABELS_KEY)
    if labels.shape != (sum(counts),) or labels.dtype.kind not in "iu":
        raise FinalError(
            "shard_unreadable", f"labels are {labels.dtype.name}{list(labels.shape)}, not one number a sample"
        )
    return labels


def _outputs(shards: Sequence[Arrays], counts: Sequence[int], keys: dict[str, str]) -> Arrays:
    if any(key not in shard for shard in shards for key in keys.values()):
        return {}
    joined = {name: _joined([shard[key] for shard in shards], name) for name, key in keys.items()}
    for name, values in joined.items():
        if len(values) != sum(counts):
            raise FinalError("shard_unreadable", f"{len(values)} outputs {name} for {sum(counts)} samples")
    return joined
