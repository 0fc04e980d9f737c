"""A bundle's directory as a place that holds a release, for checking it.

For: the port `fleet.verification.Holder`: the manifest's bytes, and each file chunk by chunk, compared with
the chunk's own digest.
Not for: reading a bundle to publish it (`fleet.publish.upload`), which refuses where this tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fleet.publish.upload import manifest_bytes
from fleet.verify import Named
from wire.bundle import Chunk, File
from wire.chunks import digest
from wire.deltas import DeltaHint
from wire.errors import ContentError

MANIFEST = "manifest.json"


class DirectoryHolder:
    """A directory that `shallop-convert` wrote, or a copy of one."""

    named = Named()

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def manifest(self) -> bytes:
        """The manifest's bytes.

        Raises:
            ContentError: `file_missing`.
        """
        return manifest_bytes(self._directory / MANIFEST)

    def envelope(self) -> bytes | None:
        """None: a directory is not signed."""
        return None

    def roots(self) -> Sequence[bytes]:
        """None here."""
        return ()

    def deltas(self) -> Sequence[DeltaHint] | None:
        """None: a directory has none."""
        return None

    def blob(self, chunk: Chunk) -> bytes:
        """There are no blobs by name.

        Raises:
            ContentError: `blob_lost`.
        """
        raise ContentError("blob_lost", f"a directory holds no blob {chunk.sha256[:12]} by its name")

    def content(self, file: File) -> Iterator[bytes]:
        """The content of each chunk of a file, once it is shown to be the chunk's.

        Raises:
            ContentError: `file_missing`, `outside_bundle`, `hash_mismatch`, `size_mismatch`.
        """
        root = self._directory.resolve()
        path = (root / file.path).resolve()
        if not path.is_relative_to(root):
            raise ContentError("outside_bundle", f"{file.path} leads out of {self._directory}")
        try:
            with path.open("rb") as held:
                for place, chunk in enumerate(file.chunks):
                    piece = held.read(chunk.length)
                    if digest(piece) != chunk.content:
                        raise ContentError("hash_mismatch", f"its chunk {place} is not what is named")
                    yield piece
                if held.read(1):
                    raise ContentError("size_mismatch", f"it goes on after its {file.size_bytes} bytes")
        except OSError as error:
            raise ContentError("file_missing", f"it cannot be read ({error.strerror})") from None
