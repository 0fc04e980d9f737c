"""Files of the registry: content by hash (the port `Blobs` as DIR/aa/HASH) and ready rollback payloads.

For: keeping each so that a power cut leaves either all of one or nothing, and reading blobs back with
their hash checked.
Not for: knowing which release needs which (`fleet.publish`).
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Collection, Iterator
from pathlib import Path

from fleet.adapters.durable import fsync_directory, write_durably
from wire.errors import ContentError
from wire.topics import BLOB


class BlobFiles:
    """A directory of blobs; what an interrupted upload left behind is removed at the start."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob("*/.part-*"):
            leftover.unlink(missing_ok=True)

    @property
    def root(self) -> Path:
        """The blob directory."""
        return self._root

    def relative_path(self, digest: str) -> str:
        """Where it lies below the blob directory."""
        return f"{digest[:2]}/{digest}"

    def put(self, digest: str, content: Iterator[bytes], size_bytes_max: int) -> int:
        """Keeps content whose SHA-256 is `digest`, whole and on disk before it has its name; its size.

        Raises:
            ContentError: `hash_mismatch` or `oversized`; nothing is kept.
        """
        target = self._root / self.relative_path(digest)
        target.parent.mkdir(exist_ok=True)
        part = target.parent / f".part-{secrets.token_hex(8)}"
        try:
            size = _write_checked(part, digest, content, size_bytes_max)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return size

    def present(self, digests: Collection[str]) -> set[str]:
        """Which of them lie here; a file gets its name only once it is whole."""
        return {digest for digest in digests if (self._root / self.relative_path(digest)).is_file()}

    def settle(self, digests: Collection[str]) -> None:
        """Makes the names of these blobs durable; before that a power cut may lose whole ones."""
        for directory in sorted({digest[:2] for digest in digests}):
            fsync_directory(self._root / directory)
        fsync_directory(self._root)

    def read(self, digest: str) -> bytes:
        """The content.

        Raises:
            ContentError: `blob_lost` or `hash_mismatch`: the disk does not hold what it held.
        """
        try:
            with (self._root / self.relative_path(digest)).open("rb") as file:
                content = file.read(BLOB.size_bytes_max + 1)
        except OSError as error:
            raise ContentError(
                "blob_lost", f"blob {digest} cannot be read ({error.strerror}); upload its bundle again"
            ) from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise ContentError("hash_mismatch", f"blob {digest} was damaged on disk; upload its bundle again")
        return content


class PayloadFiles:
    """A directory of ready rollback payloads, one file a rollout."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        root.mkdir(parents=True, exist_ok=True)

    def path(self, rollout_id: str) -> str:
        """Where the payload of a rollout lies."""
        return str(self._root / f"{rollout_id}.json")

    def write(self, rollout_id: str, payload: bytes) -> None:
        """Keeps it, durable before it returns; writing the same again changes nothing."""
        target = Path(self.path(rollout_id))
        if target.exists() and target.read_bytes() == payload:
            return
        write_durably(target, payload)


def _write_checked(part: Path, digest: str, content: Iterator[bytes], size_bytes_max: int) -> int:
    size, hasher = 0, hashlib.sha256()
    with part.open("xb") as file:
        for piece in content:
            size += len(piece)
            if size > size_bytes_max:
                raise ContentError("oversized", f"blob {digest} is larger than {size_bytes_max} bytes")
            hasher.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    if hasher.hexdigest() != digest:
        raise ContentError(
            "hash_mismatch", f"the bytes sent as blob {digest} hash to {hasher.hexdigest()}; send them again"
        )
    return size
