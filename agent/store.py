"""Content-addressed blobs on the disk: what was fetched once is never fetched again.

For: keeping chunks by their SHA-256 until a release is assembled from them, through crashes.
Not for: knowing which chunks are needed (`agent.fetch`), or trusting what lies on the disk: a blob is
hashed again when it is read.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from agent.durable import TEMPORARY_SUFFIX, write_file
from agent.errors import RetryError, disk_error
from wire.chunks import digest
from wire.errors import ContentError

BUILT = "built"


class BlobStore:
    """Blobs below one directory, as `aa/HASH`. Any thread may call it.

    Whole files that deltas gave lie beside them, as `built/HASH`, and go when the blobs go.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        root.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where that blob lies, if it does."""
        return self._root / sha256[:2] / sha256

    def has(self, sha256: str, size_bytes: int) -> bool:
        """Whether a blob of that name and size lies there; its content is checked when it is read."""
        try:
            return self.path(sha256).stat().st_size == size_bytes
        except OSError:
            return False

    def put(self, sha256: str, data: bytes) -> None:
        """Stores a blob under its name.

        It is not synchronised one by one: a blob torn by a power cut fails its hash and is fetched
        again, and the release that is assembled is synchronised as a whole.

        Raises:
            ContentError: `hash_mismatch`: the bytes are not what the name says.
            RetryError: `disk_full` or `disk_failed`.
        """
        if digest(data) != sha256:
            raise ContentError("hash_mismatch", f"{len(data)} bytes arrived that are not blob {sha256[:12]}")
        path = self.path(sha256)
        try:
            with self._lock:
                path.parent.mkdir(exist_ok=True)
                write_file(path, data, durable=False)
        except OSError as error:
            raise disk_error("a blob", error) from error

    def read(self, sha256: str) -> bytes:
        """A blob, hashed again; a damaged one is removed.

        Raises:
            RetryError: `blob_missing` or `blob_damaged`: it has to be fetched again.
        """
        path = self.path(sha256)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RetryError("blob_missing", f"blob {sha256[:12]} cannot be read: {error}") from error
        if digest(data) != sha256:
            path.unlink(missing_ok=True)
            raise RetryError("blob_damaged", f"blob {sha256[:12]} was damaged on the disk")
        return data

    def built_path(self, name: str) -> Path:
        """Where the file of that name lies, or what belongs to its making."""
        return self._root / BUILT / name

    def built(self, sha256: str) -> Path | None:
        """A file that a delta gave, hashed again; a damaged one is removed."""
        path = self.built_path(sha256)
        try:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                    return path
            path.unlink(missing_ok=True)
        except OSError:
            return None
        return None

    def names(self) -> Iterator[str]:
        """Names of the blobs that lie there."""
        for folder in self._root.iterdir():
            if folder.is_dir() and folder.name != BUILT:
                yield from (entry.name for entry in folder.iterdir())

    def discard(self, names: Iterable[str]) -> None:
        """Removes these blobs, where they are."""
        with self._lock:
            for name in names:
                self.path(name).unlink(missing_ok=True)

    def prune(self, keep: Iterable[str]) -> int:
        """Removes every blob that is not in `keep`, and what a crash left half written.

        Returns:
            How many were removed.
        """
        kept = set(keep)
        removed = 0
        with self._lock:
            for folder in [entry for entry in self._root.iterdir() if entry.is_dir()]:
                for path in list(folder.iterdir()):
                    if path.name not in kept:
                        path.unlink(missing_ok=True)
                        removed += not path.name.endswith(TEMPORARY_SUFFIX)
                if not any(folder.iterdir()):
                    os.rmdir(folder)  # noqa: PTH106 - the tests inject crashes into os itself
        return removed
