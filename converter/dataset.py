"""Reads calibration and validation sets.

For: `.npz` files with arrays named like the model's inputs (first axis samples), the optional
`dataset.yaml` beside them, and a refusal by name of everything that does not fit the model.
Not for: decoding images or running a model.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import yaml
from msgspec import Struct, structs
from numpy.typing import NDArray

from converter.errors import InputError
from converter.limits import (
    ARRAYS_BYTES_MAX,
    ARRAYS_MAX,
    PREPROCESS_BATCH,
    SAMPLES_MAX,
    TEXT_BYTES_MAX,
)
from converter.model import Signature, read_bytes
from wire.bundle import InputData, Normalize, Scale, TensorSpec
from wire.errors import ContentError
from wire.preprocess import preprocess
from wire.types import Name

Array = NDArray[Any]
Feeds = dict[str, Array]

LABELS = "labels"


class _Scale(Scale, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag="scale"):
    """As it stands in a file: a key that nobody reads is a mistake that nobody sees."""


class _Normalize(
    Normalize, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag="normalize"
):
    """The same."""


class _Input(InputData, frozen=True, kw_only=True, forbid_unknown_fields=True):
    preprocessing: tuple[_Scale | _Normalize, ...] = ()


class _Description(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    inputs: dict[Name, _Input] = {}
    labels: tuple[Name, ...] = ()


class Description(Struct, frozen=True, kw_only=True):
    """`dataset.yaml`: how stored samples become tensors, and what the classes are called."""

    inputs: dict[str, InputData] = {}
    labels: tuple[str, ...] = ()


class Samples(Struct, frozen=True, kw_only=True):
    """A data set held as it is stored; tensors are made in blocks.

    Attributes:
        path: of its file, for messages.
        sha256: of its file.
        arrays: stored samples by input name, first axis samples.
        data: how the stored samples of an input become its tensor.
        n: number of samples.
        labels: class of each sample, int64 `[n]`; None for a calibration set.
    """

    path: str
    sha256: str
    arrays: dict[str, Array]
    data: dict[str, InputData]
    n: int
    labels: NDArray[np.int64] | None = None

    def feeds(self, start: int, stop: int) -> Feeds:
        """The model's input tensors of samples `start` to `stop`."""
        return {
            name: np.ascontiguousarray(preprocess(self.data.get(name, InputData()), array[start:stop]))
            for name, array in self.arrays.items()
        }

    def batches(self, size: int) -> Iterator[Feeds]:
        """All samples in order, `size` at a time, the last batch shorter."""
        for start in range(0, self.n, size):
            yield self.feeds(start, min(start + size, self.n))

    def singles(self, start: int, stop: int) -> Iterator[Feeds]:
        """Samples one at a time, each with a first axis of 1."""
        for block in range(start, stop, PREPROCESS_BATCH):
            feeds = self.feeds(block, min(block + PREPROCESS_BATCH, stop))
            for i in range(min(PREPROCESS_BATCH, stop - block)):
                yield {name: tensor[i : i + 1] for name, tensor in feeds.items()}

    def taken(self, indices: NDArray[np.int64]) -> Samples:
        """Some of the samples, in the given order."""
        return structs.replace(
            self,
            arrays={name: array[indices] for name, array in self.arrays.items()},
            labels=None if self.labels is None else self.labels[indices],
            n=len(indices),
        )


def read_description(path: Path) -> Description:
    """A `dataset.yaml`.

    Raises:
        InputError: `dataset_missing`, `dataset_too_large`, `dataset_malformed`.
    """
    text = read_bytes(path, TEXT_BYTES_MAX, "dataset")
    try:
        strict = msgspec.convert(yaml.safe_load(text) or {}, _Description)
        plain = msgspec.to_builtins(strict)
    except (yaml.YAMLError, msgspec.ValidationError, RecursionError) as error:
        raise InputError(
            "dataset_malformed",
            f"{path} cannot be read: {error}; it holds `inputs` (stored, layout, preprocessing) and `labels`",
        ) from error
    return msgspec.convert(plain, Description)


def read_samples(path: Path, description: Description, signature: Signature, *, labelled: bool) -> Samples:
    """A calibration (`labelled=False`) or validation set that fits the model.

    Raises:
        InputError: its code says what does not fit, its message where and what to do.
    """
    kind = "validation" if labelled else "calibration"
    wanted = {spec.name for spec in signature.inputs} | ({LABELS} if labelled else set())
    unknown = sorted(set(description.inputs) - {spec.name for spec in signature.inputs})
    if unknown:
        names = ", ".join(sorted(spec.name for spec in signature.inputs))
        raise InputError(
            "dataset_malformed",
            f"dataset.yaml describes {', '.join(unknown)}; the model's inputs are {names}",
        )
    arrays = _read_arrays(path, kind, wanted, LABELS)
    labels = arrays.pop(LABELS, None) if labelled else None
    n = _count(path, kind, arrays)
    for spec in signature.inputs:
        _check_stored(path, spec, arrays[spec.name])
    samples = Samples(
        path=str(path), sha256=_sha256(path), arrays=arrays, data=description.inputs, n=n,
        labels=None if labels is None else _checked_labels(path, labels, n),
    )  # fmt: skip
    _check_tensors(samples, signature)
    return samples


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_arrays(path: Path, kind: str, wanted: set[str], optional: str) -> dict[str, Array]:
    """The wanted arrays of an `.npz`; `optional` may be there without being wanted."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {entry.filename.removesuffix(".npy") for entry in archive.infolist()}
            _check_names(path, kind, names, wanted, optional)
            if sum(entry.file_size for entry in archive.infolist()) > ARRAYS_BYTES_MAX:
                raise InputError(
                    f"{kind}_too_large",
                    f"{path} unpacks to more than {ARRAYS_BYTES_MAX} bytes; give fewer samples",
                )
            return {name: _read_array(archive, path, name) for name in sorted(wanted)}
    except FileNotFoundError as error:
        raise InputError(f"{kind}_missing", f"{kind} set {path} does not exist; check the path") from error
    except (OSError, zipfile.BadZipFile, zlib.error, KeyError, RuntimeError, ValueError, EOFError) as error:
        raise InputError(
            f"{kind}_malformed",
            f"{path} is not an .npz file of plain arrays ({error}); write it with numpy.savez",
        ) from error


def _check_names(path: Path, kind: str, names: set[str], wanted: set[str], optional: str) -> None:
    if len(names) > ARRAYS_MAX:
        raise InputError(f"{kind}_names", f"{path} holds {len(names)} arrays, at most {ARRAYS_MAX} are read")
    missing, extra = sorted(wanted - names), sorted(names - wanted - {optional})
    if missing or extra:
        raise InputError(
            f"{kind}_names",
            f"{path} holds {', '.join(sorted(names)) or 'nothing'}, needed are {', '.join(sorted(wanted))}"
            f" (missing: {', '.join(missing) or 'none'}; unknown: {', '.join(extra) or 'none'})",
        )


def _read_array(archive: zipfile.ZipFile, path: Path, name: str) -> Array:
    """One array; its header is compared with its size before any memory is taken."""
    entry = archive.getinfo(f"{name}.npy")
    with archive.open(entry) as file:
        shape, dtype = _header(file)
    if dtype.hasobject or int(np.prod(shape, dtype=object)) * dtype.itemsize > entry.file_size:
        raise ValueError(f"array {name} holds Python objects or is cut short")
    with archive.open(entry) as file:
        try:
            array: Array = np.lib.format.read_array(file, allow_pickle=False)
        except zipfile.BadZipFile as error:
            raise ValueError(f"array {name} of {path.name} is damaged") from error
    return array


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read: Callable[..., Any] = (
        np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(file)
    return shape, dtype


def _count(path: Path, kind: str, arrays: dict[str, Array]) -> int:
    counts = {name: (array.shape[0] if array.ndim else 0) for name, array in arrays.items()}
    n = next(iter(counts.values()))
    if len(set(counts.values())) != 1:
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(f"{kind}_shapes", f"{path}: the inputs differ in their number of samples ({said})")
    if not 0 < n <= SAMPLES_MAX:
        raise InputError(f"{kind}_empty", f"{path} holds {n} samples; give 1 to {SAMPLES_MAX}")
    return n


def _check_stored(path: Path, spec: TensorSpec, array: Array) -> None:
    shape, needed = array.shape[1:], spec.shape[1:]
    fits = len(shape) == len(needed) and all(
        want is None or have == want for have, want in zip(shape, needed, strict=True)
    )
    if not fits:
        want = ", ".join("any" if size is None else str(size) for size in needed)
        hint = "; check the order of axes" if sorted(shape) == sorted(s or 0 for s in needed) else ""
        raise InputError(
            "samples_shape",
            f"{path}: a sample of {spec.name} has shape {list(shape)}, the model takes [{want}]{hint}",
        )
    if array.dtype.kind not in "biuf":
        raise InputError("samples_dtype", f"{path}: {spec.name} holds {array.dtype}, no numbers")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array.reshape(array.shape[0], -1)).all(axis=1))[0])
        raise InputError(
            "samples_not_finite",
            f"{path}: {spec.name} holds NaN or infinity, first in sample {bad}; remove such samples",
        )


def _check_tensors(samples: Samples, signature: Signature) -> None:
    """The first block, once preprocessed, must be what the model takes."""
    try:
        feeds = samples.feeds(0, 1)
    except ContentError as error:
        raise InputError("dataset_malformed", f"{samples.path}: {error.args[0]}; see dataset.yaml") from error
    for spec in signature.inputs:
        have = feeds[spec.name].dtype.name
        if have != spec.dtype:
            raise InputError(
                "samples_dtype",
                f"{samples.path}: {spec.name} comes as {have}, the model takes {spec.dtype}; convert the "
                "array, or say in dataset.yaml how raw samples become tensors (stored: raw, preprocessing)",
            )


def _checked_labels(path: Path, labels: Array, n: int) -> NDArray[np.int64]:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise InputError(
            "labels_type",
            f"{path}: labels are {labels.dtype} {list(labels.shape)}; needed is one integer a sample",
        )
    if labels.shape[0] != n:
        raise InputError("labels_count", f"{path}: {labels.shape[0]} labels for {n} samples")
    return labels.astype(np.int64)


def check_labels(samples: Samples, classes: int, names: tuple[str, ...]) -> None:
    """Labels and their names against the number of classes that the model tells apart.

    Raises:
        InputError: `labels_range`, `labels_names`.
    """
    if names and len(names) != classes:
        raise InputError(
            "labels_names", f"dataset.yaml names {len(names)} labels, the model tells {classes} classes apart"
        )
    if samples.labels is None:
        return
    outside = np.flatnonzero((samples.labels < 0) | (samples.labels >= classes))
    if outside.size:
        first = int(outside[0])
        raise InputError(
            "labels_range",
            f"{samples.path}: {outside.size} labels lie outside 0 to {classes - 1}, first "
            f"{samples.labels[first]} of sample {first}; is this the validation set of this model?",
        )
