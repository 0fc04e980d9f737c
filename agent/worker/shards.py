"""Reads validation shards: samples, labels, FP32 outputs and the host's outputs.

For: turning `.npz` files that came over the network into arrays of the names, shapes and types that the
manifest promises, or refusing them by name. No pickle is ever read, and nothing that the trial does not ask
for is unpacked.
Not for: running a model on them.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.errors import FinalError
from agent.worker.job import TrialJob
from wire.bundle import LABELS_KEY, InputData, TensorSpec, fp32_key, host_key, input_key
from wire.errors import ContentError
from wire.preprocess import preprocess
from wire.tasks import Kind

UNPACKED_BYTES_MAX = 256 * 1024 * 1024
"""Of all arrays of all shards of one trial."""

Arrays = dict[str, NDArray[Any]]


class Samples(Struct, frozen=True, kw_only=True):
    """All shards of a trial, one after the other; first axis samples.

    Attributes:
        stored: the samples as they travelled, by input name.
        inputs: what the candidate is given, preprocessed and in its axes, by input name.
        labels: the right answers; None where a shard has none.
        fp32: the baseline's outputs by output name; empty where a shard has none.
        host: the host's outputs of this variant; empty where a shard has none.
    """

    n: int
    stored: Arrays
    inputs: Arrays
    labels: NDArray[Any] | None
    fp32: Arrays
    host: Arrays


def read_samples(job: TrialJob) -> Samples:
    """Everything that the trial asks of the job's shards.

    Raises:
        FinalError: `shard_unreadable`.
    """
    if not job.shards:
        raise FinalError("shard_unreadable", "the release has no validation samples to be tried on")
    inputs = {spec.name: input_key(spec.name) for spec in job.inputs}
    fp32 = {spec.name: fp32_key(spec.name) for spec in job.outputs}
    host = {spec.name: host_key(job.candidate.variant, spec.name) for spec in job.outputs}
    wanted = {LABELS_KEY, *inputs.values(), *fp32.values(), *host.values()}
    shards: list[Arrays] = []
    left_bytes = UNPACKED_BYTES_MAX
    for path in job.shards:
        shard = _open(Path(path), wanted, left_bytes)
        _check_shard(Path(path), shard, set(inputs.values()), job.task)
        left_bytes -= sum(array.nbytes for array in shard.values())
        shards.append(shard)
    stored = {name: _joined(shards, key) for name, key in inputs.items()}
    return Samples(
        n=len(next(iter(stored.values()))),
        stored=stored,
        inputs=model_inputs(stored, job.inputs, job.data, job.candidate.axes),
        labels=_joined(shards, LABELS_KEY) if all(LABELS_KEY in shard for shard in shards) else None,
        fp32=_outputs(shards, fp32),
        host=_outputs(shards, host),
    )


def _open(path: Path, wanted: set[str], bytes_max: int) -> Arrays:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [e for e in archive.infolist() if e.filename.removesuffix(".npy") in wanted]
            size = sum(entry.file_size for entry in entries)
            if size <= bytes_max:
                return {e.filename.removesuffix(".npy"): _array(archive, e) for e in entries}
    except Exception as error:  # noqa: BLE001 - a hostile header is parsed as Python, and raises what that does
        raise _unreadable(path, str(error) or type(error).__name__) from None
    raise _unreadable(path, f"unpacks to {size} bytes, at most {bytes_max} are read")


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[Any]:
    """One array; what its header asks for is compared with its size before any memory is taken.

    Raises:
        ValueError: it asks for more, or would need a pickle, which numpy refuses.
        Exception: whatever a damaged archive makes them raise.
    """
    with archive.open(entry) as file:
        first = np.lib.format.read_magic(file) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    claimed = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and claimed > entry.file_size:
        raise ValueError(f"{entry.filename[:80]} asks for {claimed} bytes and has {entry.file_size}")
    with archive.open(entry) as file:
        found: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return found


def _unreadable(path: Path, why: str) -> FinalError:
    return FinalError("shard_unreadable", f"validation shard {path.name[:80]}: {why}"[:1000])


def _check_shard(path: Path, shard: Arrays, inputs: set[str], task: Kind) -> None:
    """One shard by itself: all inputs there, numbers only, one entry a sample in every array."""
    missing = sorted(inputs - set(shard))
    if missing:
        raise _unreadable(path, f"has no array {missing[0]!r}; it has {', '.join(sorted(shard)[:8])}")
    for name, array in shard.items():
        if array.dtype.kind not in "fiub":
            raise _unreadable(path, f"{name} holds {array.dtype}, not numbers")
    counts = {name: len(array) if array.ndim else 0 for name, array in shard.items()}
    n = counts[min(inputs)]
    for name, array in shard.items():
        if counts[name] != n or n == 0:
            raise _unreadable(path, f"{name} is {list(array.shape)}, where there are {n} samples")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise _unreadable(path, f"{name} holds values that are not finite")
    labels = shard.get(LABELS_KEY)
    if labels is None or task != "classification":
        return
    # In rows of several labels -1 fills up.
    least = 0 if labels.ndim == 1 else -1
    if labels.ndim > 2 or labels.dtype.kind not in "iu" or (labels.size and int(labels.min()) < least):
        raise _unreadable(path, f"labels are {labels.dtype}{list(labels.shape)}, not classes of each sample")


def _joined(shards: Sequence[Arrays], key: str) -> NDArray[Any]:
    arrays = [shard[key] for shard in shards]
    if len({(array.shape[1:], array.dtype) for array in arrays}) != 1:
        raise FinalError("shard_unreadable", f"the shards disagree about shape or type of {key}")
    return np.concatenate(arrays)


def _outputs(shards: Sequence[Arrays], keys: Mapping[str, str]) -> Arrays:
    if any(key not in shard for shard in shards for key in keys.values()):
        return {}
    return {name: _joined(shards, key) for name, key in keys.items()}


def model_inputs(
    stored: Arrays,
    specs: Sequence[TensorSpec],
    data: Mapping[str, InputData],
    axes: Mapping[str, tuple[int, ...]],
) -> Arrays:
    """Stored samples as a model's inputs, one entry of the first axis a sample.

    Args:
        stored: the samples as they travelled, by input name.
        specs: of the release.
        data: how stored samples become what `specs` say.
        axes: by input name: the model's tensor is the release's, transposed by these. The entries of these
            inputs are the model's whole tensors, whatever the others are.

    Raises:
        FinalError: `shard_unreadable`: what comes out is not what the release says.
    """
    inputs = {}
    for spec in specs:
        one = data.get(spec.name)
        values = _input(stored[spec.name], spec, one)
        if spec.name in axes:
            whole = one is not None and one.whole
            tensors = values if whole else values[:, None]
            fresh = not np.may_share_memory(values, stored[spec.name])
            values = _transposed(tensors, axes[spec.name], fresh=fresh)
        inputs[spec.name] = values
    return inputs


def _transposed(tensors: NDArray[Any], axes: tuple[int, ...], *, fresh: bool) -> NDArray[Any]:
    """Each entry transposed, and contiguous; `fresh` memory is written over, so that it is not held twice."""
    order = (0, *(axis + 1 for axis in axes))
    if not (fresh and tensors.flags.c_contiguous):
        return np.ascontiguousarray(tensors.transpose(order))
    laid = tensors.reshape([tensors.shape[axis] for axis in order])
    for there, tensor in zip(laid, tensors, strict=True):
        there[...] = tensor.transpose(axes)  # the same memory: numpy copies first what would be overwritten
    return laid


def _input(stored: NDArray[Any], spec: TensorSpec, data: InputData | None) -> NDArray[Any]:
    try:
        values: NDArray[Any] = stored if data is None else preprocess(data, stored)
    except ContentError as error:
        raise FinalError("shard_unreadable", f"samples of {spec.name}: {error.args[0]}") from None
    needed = spec.shape if data is not None and data.whole else spec.shape[1:]
    fits = len(values.shape) - 1 == len(needed) and all(
        want is None or want == have for want, have in zip(needed, values.shape[1:], strict=True)
    )
    if not fits or values.dtype.name != spec.dtype:
        raise FinalError(
            "shard_unreadable",
            f"samples of {spec.name} are {values.dtype.name}{list(values.shape)}, the model takes "
            f"{spec.dtype}{list(spec.shape)}",
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise FinalError("shard_unreadable", f"samples of {spec.name} hold values that are not finite")
    return values
