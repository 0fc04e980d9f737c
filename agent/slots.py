"""Releases on the disk, and the one symlink that says which of them runs.

For: assembling a release beside the active one, switching `current` in one step, pruning.
Not for: deciding when (`agent.lifecycle`), or fetching (`agent.fetching`).

`MODELS/NAME/current` is a symlink to an immutable directory `releases/DIGEST-RUNTIME-RECIPE`, which
holds the model's files, `release.json`, `labels.json`, `preprocessing.json` and the exact manifest.
An application needs `current` and nothing else. The order of the steps is that of DESIGN.md section 4.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.durable import fsync_dir, point_link, sync_filesystem, write_file
from agent.errors import FinalError, StateError, disk_error
from wire.bundle import Axes, Chunk, File, InputData, Manifest, TensorSpec, Variant
from wire.messages import Slot
from wire.types import Count, Digest, ModelName, Name, RelativePath, ReleaseName, VariantId

PART, GONE = ".part", ".gone"
RELEASE_JSON, MANIFEST_JSON = "release.json", "manifest.json"
LABELS_JSON, PREPROCESSING_JSON = "labels.json", "preprocessing.json"
OWN_FILES = frozenset({RELEASE_JSON, MANIFEST_JSON, LABELS_JSON, PREPROCESSING_JSON})
_NO_LINKS = frozenset({errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK})


class ReleaseInfo(Struct, frozen=True, kw_only=True, tag_field="kind", tag="installed-release"):
    """`release.json`: what an application, or a recovery, has to know about the directory it is in.

    Attributes:
        model_file: name of the model's file in this directory.
        runtime: that the variant was made for; None for an adopted file.
        manifest: whether `manifest.json` is there; an adopted release has none.
        data: how stored samples become its inputs, for a trial beside it; None for an adopted file.
        axes: by name of an input or output: the file's tensor is that of `inputs` or `outputs`, transposed by
            these axes; an application that feeds the file needs them.
    """

    version: int = 1
    model: ModelName
    digest: Digest
    release: ReleaseName
    variant: VariantId
    order: Count = 0
    adopted: bool = False
    model_file: RelativePath
    model_sha256: Digest
    runtime: Name | None = None
    precision: Name | None = None
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    session_config: dict[str, str] = {}
    data: dict[str, InputData] | None = None
    axes: dict[Name, Axes] = {}

    @property
    def slot(self) -> Slot:
        """The slot that this directory fills."""
        return Slot(
            digest=self.digest,
            release=self.release,
            variant=self.variant,
            order=self.order,
            adopted=self.adopted,
        )


def directory_name(slot: Slot) -> str:
    """Name of a slot's directory; neither digest nor variant can hold a '-'."""
    return f"{slot.digest}-{slot.variant.replace('/', '-')}"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in lower-case hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def placed(variant: Variant, path: str) -> str:
    """Where a file of a variant lies in its slot.

    The folders that all its files share in the bundle are left out, so that the model of every variant of
    a release is `current/model.onnx` for the application.
    """
    prefix = variant.model_path.rpartition("/")[0] + "/"
    shared = all(file.path.startswith(prefix) for file in variant.files)
    return path.removeprefix(prefix) if shared else path


class Slots:
    """The releases below one directory of models."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def models(self) -> list[str]:
        """Names of the models that have a directory here."""
        return sorted(entry.name for entry in self._root.iterdir() if entry.is_dir())

    def directory(self, model: str, slot: Slot) -> Path:
        """Where that slot's files lie once they are assembled."""
        return self._releases(model) / directory_name(slot)

    def _releases(self, model: str) -> Path:
        return self._root / model / "releases"

    # --- assembling

    def assemble(
        self,
        model: str,
        slot: Slot,
        manifest: tuple[bytes, Manifest],
        read: Callable[[Chunk], bytes],
        built: Callable[[str], Path | None] = lambda _: None,
    ) -> None:
        """Puts a variant's files together; doing it again when they lie there whole changes nothing.

        Args:
            model: its name.
            slot: digest and variant to assemble.
            manifest: its exact bytes, and what they say.
            read: gives a chunk's checked bytes.
            built: gives a whole, checked file by its SHA-256, where a delta made one.

        Raises:
            FinalError: `hash_mismatch`: all chunks are right and the file is not what the manifest says;
                `path_reserved`: a file of the release has the name of one of ours.
            RetryError: `disk_full`, `disk_failed`, or what `read` raises.
        """
        data, parsed = manifest
        variant = parsed.variant(slot.variant)
        if variant is None:
            raise FinalError("no_variant", f"the manifest has no variant {slot.variant}")
        if any(placed(variant, file.path) in OWN_FILES for file in variant.files):
            raise FinalError("path_reserved", f"{slot.variant} holds a file named like one of the agent's")
        final = self.directory(model, slot)
        try:
            if final.exists():
                if self._whole(final, variant):
                    return
                self._remove(final)
            part = final.with_name(final.name + PART)
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            for file in variant.files:
                target, whole = part / placed(variant, file.path), built(file.sha256)
                if whole is None:
                    write_content(target, file, read)
                else:
                    _link_content(target, whole)
            _describe(part, slot, variant, data, parsed)
            sync_filesystem(part)
            os.rename(part, final)  # noqa: PTH104 - the tests inject crashes into os itself
            self._fsync_up(model)
        except OSError as error:
            raise disk_error("the release", error) from error

    def _fsync_up(self, model: str) -> None:
        """On a first install the directories above are new, too."""
        for folder in (self._releases(model), self._root / model, self._root):
            fsync_dir(folder)

    @staticmethod
    def _whole(directory: Path, variant: Variant) -> bool:
        """Whether every file has its hash."""
        try:
            whole = all(
                file_sha256(directory / placed(variant, file.path)) == file.sha256 for file in variant.files
            )
            return whole and (directory / RELEASE_JSON).exists() and (directory / MANIFEST_JSON).exists()
        except OSError:
            return False

    def adopt(self, info: ReleaseInfo, source: Path) -> None:
        """Copies a model file that a user already runs into a slot, whole before it has its name.

        Raises:
            OSError: the file's or the disk's.
        """
        final = self.directory(info.model, info.slot)
        part = final.with_name(final.name + PART)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        shutil.copyfile(source, part / info.model_file)
        write_file(part / RELEASE_JSON, _pretty(info))
        sync_filesystem(part)
        if final.exists():
            self._remove(final)
        os.rename(part, final)  # noqa: PTH104
        self._fsync_up(info.model)

    # --- switching

    def activate(self, model: str, slot: Slot | None, previous: Slot | None) -> None:
        """Points `current` to `slot`, or removes it; the names are durable when this returns.

        `previous` too is a symlink, for a person and for a recovery without a journal. `current` comes
        first: it is what the application waits for.

        Raises:
            StateError: `slot_missing`: there is no such directory.
            OSError: the disk's; `current` is the old or the new one.
        """
        self._point(model, "current", slot)
        self._point(model, "previous", previous)

    def _point(self, model: str, name: str, slot: Slot | None) -> None:
        link = self._root / model / name
        if slot is None:
            if link.is_symlink():
                link.unlink()
                fsync_dir(link.parent)
            return
        if not self.directory(model, slot).is_dir():
            raise StateError("slot_missing", f"{directory_name(slot)} of {model} is not on the disk")
        target = f"releases/{directory_name(slot)}"
        if self._target(link) != target:
            point_link(link, target)

    @staticmethod
    def _target(link: Path) -> str | None:
        try:
            return os.readlink(link)  # noqa: PTH115
        except OSError:
            return None

    def pointed(self, model: str, name: str = "current") -> str | None:
        """Name of the directory that `current` (or `previous`) points to."""
        target = self._target(self._root / model / name)
        return None if target is None else target.rpartition("/")[2]

    # --- reading

    def info(self, model: str, name: str) -> ReleaseInfo | None:
        """`release.json` of a directory by its name; None where it cannot be read."""
        try:
            data = (self._releases(model) / name / RELEASE_JSON).read_bytes()
            return msgspec.json.decode(data, type=ReleaseInfo)
        except (OSError, msgspec.DecodeError):
            return None

    def manifest_bytes(self, model: str, slot: Slot) -> bytes | None:
        """The exact manifest of an installed release, if it is there and still has its digest."""
        try:
            data = (self.directory(model, slot) / MANIFEST_JSON).read_bytes()
        except OSError:
            return None
        return data if hashlib.sha256(data).hexdigest() == slot.digest else None

    def chunk_sources(self) -> Iterator[tuple[Path, File]]:
        """Every installed file with its chunks: what need not be fetched because it lies here already."""
        for model in self.models():
            with contextlib.suppress(OSError):
                for entry in sorted(self._releases(model).iterdir()):
                    yield from _installed_files(entry)

    def files(self) -> Iterator[tuple[str, Path]]:
        """Every installed file by the SHA-256 that it should have: what a delta may start from."""
        for model in self.models():
            with contextlib.suppress(OSError):
                for entry in sorted(self._releases(model).iterdir()):
                    info = None if entry.name.endswith((PART, GONE)) else self.info(model, entry.name)
                    if info is not None:
                        yield info.model_sha256, entry / info.model_file
                        for path, file in _installed_files(entry):
                            yield file.sha256, path

    # --- pruning

    def prune(self, model: str, keep: Iterable[Slot]) -> list[str]:
        """Removes every release directory that is not in `keep`, and what a crash left half made.

        What `current` points to is kept whatever `keep` says.

        Returns:
            The names that were removed.
        """
        names = {directory_name(slot) for slot in keep} | {self.pointed(model)}
        releases = self._releases(model)
        removed: list[str] = []
        if not releases.is_dir():
            return removed
        for entry in sorted(releases.iterdir()):
            if entry.name not in names:
                self._remove(entry)
                removed.append(entry.name)
        return removed

    @staticmethod
    def _remove(directory: Path) -> None:
        """Renamed first, so that a crash leaves no directory that has its name and lacks files."""
        gone = directory
        if not directory.name.endswith(GONE):
            gone = directory.with_name(directory.name + GONE)
            shutil.rmtree(gone, ignore_errors=True)
            os.rename(directory, gone)  # noqa: PTH104
        shutil.rmtree(gone, ignore_errors=True)


def _installed_files(entry: Path) -> Iterator[tuple[Path, File]]:
    try:
        info = msgspec.json.decode((entry / RELEASE_JSON).read_bytes(), type=ReleaseInfo)
        manifest = msgspec.json.decode((entry / MANIFEST_JSON).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError):
        return
    variant = manifest.variant(info.variant)
    if variant is not None:
        for file in variant.files:
            yield entry / placed(variant, file.path), file


def write_content(path: Path, file: File, read: Callable[[Chunk], bytes]) -> None:
    """Writes a file from its chunks and checks the whole.

    Raises:
        FinalError: `hash_mismatch`.
        RetryError: what `read` raises.
        OSError: the disk's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    total = hashlib.sha256()
    with path.open("wb") as out:
        for chunk in file.chunks:
            data = read(chunk)
            total.update(data)
            out.write(data)
    if total.hexdigest() != file.sha256:
        raise FinalError("hash_mismatch", f"{file.path} is not what the manifest says, though its chunks are")


def _link_content(path: Path, whole: Path) -> None:
    """A second name for a file that will not change; a copy where the file system has no such thing.

    Raises:
        OSError: the disk's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(whole, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(whole, path)


def _describe(part: Path, slot: Slot, variant: Variant, data: bytes, manifest: Manifest) -> None:
    model = next(file for file in variant.files if file.path == variant.model_path)
    info = ReleaseInfo(
        model=manifest.model,
        digest=slot.digest,
        release=manifest.release,
        variant=slot.variant,
        order=slot.order,
        model_file=placed(variant, variant.model_path),
        model_sha256=model.sha256,
        runtime=variant.runtime,
        precision=variant.precision,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        session_config=variant.session_config,
        data=manifest.data,
        axes=variant.axes,
    )
    preprocessing: dict[str, InputData] = manifest.data
    (part / RELEASE_JSON).write_bytes(_pretty(info))
    (part / LABELS_JSON).write_bytes(_pretty(manifest.labels))
    (part / PREPROCESSING_JSON).write_bytes(_pretty(preprocessing))
    (part / MANIFEST_JSON).write_bytes(data)


def _pretty(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
