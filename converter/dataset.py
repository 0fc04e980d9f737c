"""Reads calibration and validation sets.

For: `.npz` files with arrays named like the model's inputs (first axis samples), the optional
`dataset.yaml` beside them, and a refusal by name of everything that does not fit the model.
Not for: decoding images or running a model.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import yaml
from msgspec import Meta, Struct, structs
from numpy.typing import NDArray

from converter.archive import head, opened
from converter.errors import InputError
from converter.limits import (
    ARRAYS_BYTES_MAX,
    ARRAYS_MAX,
    PREPROCESS_BATCH,
    REASON_CHARS_MAX,
    SAMPLES_MAX,
    TEXT_BYTES_MAX,
)
from converter.model import Signature, read_bytes
from converter.truth import LABELS, UNREAD, Others, checked_truth, truth_names
from wire import plain_yaml
from wire.bundle import InputData, Normalize, Scale, TensorSpec
from wire.errors import ContentError, WireError
from wire.preprocess import preprocess
from wire.tasks import Answer, Boxes, Kind
from wire.types import Name

Array = NDArray[Any]
Feeds = dict[str, Array]

SPLIT_SEED = 20261121
"""Of the search split; the same set is always split alike."""

_PLAIN = InputData()


class _Scale(Scale, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag="scale"):
    """As it stands in a file: a key that nobody reads is a mistake that nobody sees."""


class _Normalize(
    Normalize, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag="normalize"
):
    """The same."""


class _Input(InputData, frozen=True, kw_only=True, forbid_unknown_fields=True):
    preprocessing: tuple[_Scale | _Normalize, ...] = ()


class _Boxes(Boxes, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same."""


class _Answer(Answer, frozen=True, kw_only=True, forbid_unknown_fields=True):
    boxes: _Boxes = _Boxes()


class _Description(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    inputs: dict[Name, _Input] = {}
    labels: tuple[Name, ...] = ()
    task: Kind | None = None
    metric: Name | None = None
    answer: _Answer = _Answer()
    search_fraction: Annotated[float, Meta(gt=0.0, lt=1.0)] | None = None


class Description(Struct, frozen=True, kw_only=True):
    """`dataset.yaml`.

    Attributes:
        inputs: how stored samples become tensors.
        labels: what the classes are called.
        task: what the model is for; None: inferred.
        metric: of the task, where it has a choice, or `module:function`.
        answer: how outputs are read.
        search_fraction: part of the validation set that may be searched on, and then judges nothing.
    """

    inputs: dict[str, InputData] = {}
    labels: tuple[str, ...] = ()
    task: Kind | None = None
    metric: str | None = None
    answer: Answer = Answer()
    search_fraction: float | None = None


class Samples(Struct, frozen=True, kw_only=True):
    """A data set held as it is stored; tensors are made in blocks.

    Attributes:
        path: of its file, for messages.
        sha256: of its file.
        arrays: stored samples by input name, first axis samples.
        data: how the stored samples of an input become its tensor.
        n: number of samples.
        labels: right answers, first axis samples, as the task wants them; None for a calibration set.
        truth: all arrays of right answers by name, `labels` among them.
    """

    path: str
    sha256: str
    arrays: dict[str, Array]
    data: dict[str, InputData]
    n: int
    labels: Array | None = None
    truth: dict[str, Array] = {}

    @property
    def whole(self) -> bool:
        """Whether a stored sample is the model's whole tensor; such samples are run one at a time only."""
        return any(data.whole for data in self.data.values())

    @property
    def known(self) -> dict[str, Array]:
        """All right answers by name."""
        return self.truth if self.labels is None else {LABELS: self.labels, **self.truth}

    def together(self, wanted: int) -> int:
        """How many samples may run at once where `wanted` would: a whole sample runs alone."""
        return 1 if self.whole else wanted

    def feeds(self, start: int, stop: int) -> Feeds:
        """The model's input tensors of samples `start` to `stop`; a whole sample has no axis added.

        Raises:
            RuntimeError: several samples are asked for at once where each is whole.
        """
        block = self._block(start, stop)
        if not self.whole:
            return block
        if stop - start != 1:
            raise RuntimeError("whole samples make no batch")
        return self._single(block, 0)

    def batches(self, size: int) -> Iterator[Feeds]:
        """All samples in order, `size` at a time, the last batch shorter; whole samples singly."""
        size = self.together(size)
        for start in range(0, self.n, size):
            yield self.feeds(start, min(start + size, self.n))

    def singles(self, start: int, stop: int) -> Iterator[Feeds]:
        """Samples one at a time, each with a first axis of 1, or as it is where it is whole."""
        for block in range(start, stop, PREPROCESS_BATCH):
            feeds = self._block(block, min(block + PREPROCESS_BATCH, stop))
            for i in range(min(PREPROCESS_BATCH, stop - block)):
                yield self._single(feeds, i)

    def taken(self, indices: NDArray[np.int64]) -> Samples:
        """Some of the samples, in the given order."""
        return structs.replace(
            self,
            arrays={name: array[indices] for name, array in self.arrays.items()},
            labels=None if self.labels is None else self.labels[indices],
            truth={name: array[indices] for name, array in self.truth.items()},
            n=len(indices),
        )

    def _block(self, start: int, stop: int) -> Feeds:
        return {
            name: np.ascontiguousarray(preprocess(self.data.get(name, _PLAIN), array[start:stop]))
            for name, array in self.arrays.items()
        }

    def _single(self, block: Feeds, i: int) -> Feeds:
        whole = {name for name in block if self.data.get(name, _PLAIN).whole}
        return {name: tensor[i] if name in whole else tensor[i : i + 1] for name, tensor in block.items()}


def read_description(path: Path) -> Description:
    """A `dataset.yaml`.

    Raises:
        InputError: `dataset_missing`, `dataset_too_large`, `dataset_malformed`.
    """
    text = read_bytes(path, TEXT_BYTES_MAX, "dataset")
    try:
        strict = msgspec.convert(plain_yaml.read(yaml, text) or {}, _Description)
        plain = msgspec.to_builtins(strict)
    except (WireError, msgspec.ValidationError, RecursionError) as error:
        raise InputError(
            "dataset_malformed",
            f"{path} cannot be read: {error}; it holds `inputs` (stored, layout, preprocessing, role, "
            "sample_axis), `labels`, `task`, `metric`, `answer` and `search_fraction`",
        ) from error
    return msgspec.convert(plain, Description)


def read_samples(
    path: Path,
    description: Description,
    signature: Signature,
    *,
    labelled: bool,
    kind: Kind = "classification",
) -> Samples:
    """A calibration (`labelled=False`) or validation set that fits the model.

    State needs no array: it is zeros. A constant's array stands there once, without an axis for samples.

    Raises:
        InputError: its code says what does not fit, its message where and what to do.
    """
    what = "validation" if labelled else "calibration"
    specs = {spec.name: spec for spec in signature.inputs}
    unknown = sorted(set(description.inputs) - set(specs))
    if unknown:
        raise InputError(
            "dataset_malformed",
            f"dataset.yaml describes {', '.join(unknown)}; the model's inputs are {', '.join(sorted(specs))}",
        )
    roles = {name: description.inputs.get(name, _PLAIN).role for name in specs}
    wanted = {name for name, role in roles.items() if role != "state"}
    stored = _read_arrays(path, what, wanted, truth_names(kind) if labelled else UNREAD)
    arrays = {name: stored.pop(name) for name, role in roles.items() if role == "data"}
    n = _count(path, what, arrays)
    for name, role in roles.items():
        if role != "data":
            arrays[name] = _repeated(specs[name], stored.pop(name, None), n)
    for spec in signature.inputs:
        _check_stored(path, spec, arrays[spec.name], whole=description.inputs.get(spec.name, _PLAIN).whole)
    truth = checked_truth(path, kind, stored, n) if labelled else {}
    samples = Samples(
        path=str(path), sha256=_sha256(path), arrays=arrays, data=description.inputs, n=n,
        labels=truth.get(LABELS), truth=truth,
    )  # fmt: skip
    _check_tensors(samples, signature)
    return samples


def _repeated(spec: TensorSpec, array: Array | None, n: int) -> Array:
    """One array for all samples, without its memory taken `n` times; zeros where there is none."""
    if array is None:
        array = np.zeros([size or 1 for size in spec.shape], spec.dtype)
    return np.broadcast_to(array, (n, *array.shape))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_arrays(path: Path, kind: str, wanted: set[str], others: Others) -> dict[str, Array]:
    """The wanted arrays of an `.npz`, and those of the others that are there."""
    try:
        with opened(path) as archive:
            names = {entry.filename.removesuffix(".npy") for entry in archive.infolist()}
            _check_names(path, kind, names, wanted, others)
            _check_size(path, kind, archive)
            read = wanted | (names if others.read else set())
            return {name: _read_array(archive, path, name) for name in sorted(read)}
    except FileNotFoundError as error:
        raise InputError(f"{kind}_missing", f"{kind} set {path} does not exist; check the path") from error
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{kind}_malformed",
            f"{path} is not an .npz file of plain arrays ({str(error)[:REASON_CHARS_MAX]}); "
            "write it with numpy.savez",
        ) from error


def _check_size(path: Path, kind: str, archive: zipfile.ZipFile) -> None:
    if sum(entry.file_size for entry in archive.infolist()) > ARRAYS_BYTES_MAX:
        raise InputError(
            f"{kind}_too_large", f"{path} unpacks to more than {ARRAYS_BYTES_MAX} bytes; give fewer samples"
        )


def _check_names(path: Path, kind: str, names: set[str], inputs: set[str], others: Others) -> None:
    if len(names) > ARRAYS_MAX:
        raise InputError(f"{kind}_names", f"{path} holds {len(names)} arrays, at most {ARRAYS_MAX} are read")
    wanted = inputs | others.needed
    missing = sorted(wanted - names)
    extra = [] if others.known is None else sorted(names - wanted - others.known)
    if missing or extra:
        raise InputError(
            f"{kind}_names",
            f"{path} holds {_listed(names) or 'nothing'}, needed are {_listed(wanted)}"
            f" (missing: {_listed(missing) or 'none'}; unknown: {_listed(extra) or 'none'})",
        )


def _listed(names: Iterable[str]) -> str:
    whole = ", ".join(sorted(names))
    return whole if len(whole) <= REASON_CHARS_MAX else f"{whole[:REASON_CHARS_MAX]}..."


def dtypes_of(path: Path) -> dict[str, np.dtype[Any]]:
    """Type of every array of an `.npz`, from its headers; empty where it cannot be read.

    What is wrong with such a file is told when it is read as a whole.
    """
    try:
        with opened(path) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")][:ARRAYS_MAX]
            found = {}
            for entry in entries:
                with archive.open(entry) as file:
                    found[entry.filename.removesuffix(".npy")] = head(file)[1]
            return found
    except Exception:  # noqa: BLE001 - a header is parsed as Python, and raises what that does
        return {}


def _read_array(archive: zipfile.ZipFile, path: Path, name: str) -> Array:
    """One array; its header is compared with its size before any memory is taken."""
    entry = archive.getinfo(f"{name}.npy")
    with archive.open(entry) as file:
        shape, dtype = head(file)
    if dtype.hasobject or int(np.prod(shape, dtype=object)) * dtype.itemsize > entry.file_size:
        raise ValueError(f"array {name} holds Python objects or is cut short")
    with archive.open(entry) as file:
        try:
            array: Array = np.lib.format.read_array(file, allow_pickle=False)
        except zipfile.BadZipFile as error:
            raise ValueError(f"array {name} of {path.name} is damaged") from error
    return array


def _count(path: Path, kind: str, arrays: dict[str, Array]) -> int:
    counts = {name: (array.shape[0] if array.ndim else 0) for name, array in arrays.items()}
    n = next(iter(counts.values()))
    if len(set(counts.values())) != 1:
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(f"{kind}_shapes", f"{path}: the inputs differ in their number of samples ({said})")
    if not 0 < n <= SAMPLES_MAX:
        raise InputError(f"{kind}_empty", f"{path} holds {n} samples; give 1 to {SAMPLES_MAX}")
    return n


def _check_stored(path: Path, spec: TensorSpec, array: Array, *, whole: bool) -> None:
    shape, needed = array.shape[1:], spec.shape if whole else spec.shape[1:]
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


def split(samples: Samples, fraction: float) -> tuple[Samples, Samples]:
    """The samples that judge, and this part of them that may be searched on; drawn once, from a fixed seed.

    Raises:
        InputError: `search_fraction`: one of the two would be empty.
    """
    n = round(samples.n * fraction)
    if not 0 < n < samples.n:
        raise InputError(
            "search_fraction", f"search_fraction {fraction:g} of {samples.n} samples leaves one side empty"
        )
    order = np.random.default_rng(SPLIT_SEED).permutation(samples.n)
    searched, judging = np.sort(order[:n]), np.sort(order[n:])
    return samples.taken(judging), samples.taken(searched)


def check_labels(samples: Samples, classes: int, names: tuple[str, ...]) -> None:
    """Labels and their names against the number of classes that the model tells apart.

    Raises:
        InputError: `labels_range`, `labels_names`.
    """
    if names and len(names) != classes:
        raise InputError(
            "labels_names", f"dataset.yaml names {len(names)} labels, the model tells {classes} classes apart"
        )
    labels = samples.labels
    if labels is None:
        return
    # In a set of acceptable labels -1 fills the row, but not all of it.
    bad = (labels < (0 if labels.ndim == 1 else -1)) | (labels >= classes)
    if labels.ndim > 1:
        bad |= (labels < 0).all(axis=1, keepdims=True)
    outside = np.argwhere(bad)
    if outside.size:
        first = tuple(outside[0])
        raise InputError(
            "labels_range",
            f"{samples.path}: {len(outside)} labels lie outside 0 to {classes - 1}, first "
            f"{labels[first]} of sample {first[0]}; is this the validation set of this model?",
        )
