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

from agent.durable import exchange, fsync_dir, point_link, sync_filesystem, write_file
from agent.errors import UNREADABLE, FinalError, StateError, disk_error
from agent.installed import (
    INFO,
    LABELS_JSON,
    MANIFEST,
    MANIFEST_JSON,
    OWN_FILES,
    PREPROCESSING_JSON,
    RELEASE_JSON,
    ReleaseInfo,
    damage,
    directory_name,
    file_sha256,
    placed,
    release_info,
)
from wire.bundle import Chunk, File, InputData, Manifest, Variant
from wire.messages import Slot

__all__ = [
    "MANIFEST_JSON",
    "OWN_FILES",
    "RELEASE_JSON",
    "ReleaseInfo",
    "Slots",
    "directory_name",
    "file_sha256",
    "placed",
    "write_content",
]

PART, GONE = ".part", ".gone"
COPY_BYTES = 1024 * 1024
_NO_LINKS = frozenset({errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK})


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
            if final.exists() and damage(final, slot) is None:
                return
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
            self._place(part, final)
            self._fsync_up(model)
        except OSError as error:
            raise disk_error("the release", error) from error

    def _place(self, part: Path, final: Path) -> None:
        """Gives the release its name; a damaged one that has it goes in the same step, `current` or not."""
        if final.exists():
            try:
                exchange(part, final)
            except OSError as error:
                if error.errno not in {errno.ENOSYS, errno.EINVAL}:
                    raise
                self._remove(final)
                os.rename(part, final)  # noqa: PTH104
            else:
                self._remove(part)
            return
        os.rename(part, final)  # noqa: PTH104 - the tests inject crashes into os itself

    def _fsync_up(self, model: str) -> None:
        """On a first install the directories above are new, too."""
        for folder in (self._releases(model), self._root / model, self._root):
            fsync_dir(folder)

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
            _set_aside(link)
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
            return INFO.decode(data)
        except (OSError, *UNREADABLE):
            return None

    def slot(self, model: str, name: str) -> Slot | None:
        """What fills the directory of that name: by `release.json`, else by the manifest."""
        info = self.info(model, name)
        if info is not None and directory_name(info.slot) == name:
            return info.slot
        directory = self._releases(model) / name
        found = _manifest_of(directory)
        if found is None:
            return None
        manifest, variant = found
        return Slot(digest=name.partition("-")[0], release=manifest.release, variant=variant.id)

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


def _manifest_of(entry: Path) -> tuple[Manifest, Variant] | None:
    """By the manifest and the directory's name alone, so that a damaged release still gives its chunks."""
    try:
        manifest = MANIFEST.decode((entry / MANIFEST_JSON).read_bytes())
    except (OSError, *UNREADABLE):
        return None
    named = entry.name.partition("-")[2]
    variant = next((one for one in manifest.variants if one.id.replace("/", "-") == named), None)
    return None if variant is None else (manifest, variant)


def _installed_files(entry: Path) -> Iterator[tuple[Path, File]]:
    found = _manifest_of(entry)
    if found is not None:
        for file in found[1].files:
            yield entry / placed(found[1], file.path), file


def _set_aside(link: Path) -> None:
    """A file or folder that somebody put where a link belongs is kept, under another name."""
    if link.is_symlink() or not link.exists():
        return
    names = (link.with_name(f"{link.name}.displaced{n or ''}") for n in range(100))
    free = next((name for name in names if not os.path.lexists(name)), None)
    if free is not None:
        os.rename(link, free)  # noqa: PTH104


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
    preprocessing: dict[str, InputData] = manifest.data
    (part / RELEASE_JSON).write_bytes(_pretty(release_info(slot, variant, manifest)))
    (part / LABELS_JSON).write_bytes(_pretty(manifest.labels))
    (part / PREPROCESSING_JSON).write_bytes(_pretty(preprocessing))
    (part / MANIFEST_JSON).write_bytes(data)


def _pretty(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
