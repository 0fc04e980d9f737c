"""A bundle's directory, read and checked before anything of it is sent.

For: DIR/manifest.json with the files at DIR/PATH: hashes, sizes and chunks as the manifest says, and the
chunks' bytes one after the other.
Not for: sending them (`fleet.adapters.client`), or believing them at the other end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from fleet.publish.content import manifest_digest, read_manifest
from wire.bundle import MANIFEST_BYTES_MAX, RAW, Chunk, File, Manifest
from wire.encodings import packed
from wire.errors import ContentError


class Place(Struct, frozen=True):
    """Where a chunk's content lies.

    Attributes:
        size_bytes: of the blob as it travels.
        content_bytes: of the content in the file.
        encoding: of the blob.
    """

    path: Path
    offset: int
    size_bytes: int
    content_bytes: int
    encoding: str = RAW

    def read(self) -> bytes:
        """The content."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.content_bytes)


class Bundle(Struct, frozen=True, kw_only=True):
    """A checked bundle: the manifest's exact bytes and where each blob lies."""

    data: bytes
    digest: str
    manifest: Manifest
    places: dict[str, Place]

    def blob(self, digest: str) -> bytes:
        """The bytes of one blob."""
        place = self.places[digest]
        content = place.read()
        return content if place.encoding == RAW else packed(content)[1]


def read_bundle(directory: Path) -> Bundle:
    """Reads and checks a bundle's directory.

    Raises:
        ContentError: `file_missing`, `outside_bundle`, `size_mismatch`, `hash_mismatch`,
            `packed_otherwise`: its chunks were compressed by another zlib than this one, or what the
            manifest's own rules say.
        WireError, LimitsError: the manifest cannot be read.
    """
    data = manifest_bytes(directory / "manifest.json")
    manifest = read_manifest(data)
    places: dict[str, Place] = {}
    for file in {file.path: file for file in manifest.all_files()}.values():
        for chunk, place in _checked_chunks(directory, file):
            places[chunk.sha256] = place
    return Bundle(data=data, digest=manifest_digest(data), manifest=manifest, places=places)


def manifest_bytes(path: Path) -> bytes:
    """What a manifest's file holds, and one byte above what is read where it holds more.

    Raises:
        ContentError: `file_missing`.
    """
    try:
        with path.open("rb") as file:
            return file.read(MANIFEST_BYTES_MAX + 1)
    except OSError as error:
        raise ContentError(
            "file_missing",
            f"{path} cannot be read ({error.strerror}); name a directory that shallop-convert wrote",
        ) from None


def _checked_chunks(directory: Path, file: File) -> Iterator[tuple[Chunk, Place]]:
    path = _inside(directory, file.path)
    offset, whole = 0, hashlib.sha256()
    try:
        with path.open("rb") as content:
            if path.stat().st_size != file.size_bytes:
                raise ContentError(
                    "size_mismatch",
                    f"{path} has {path.stat().st_size} bytes, the manifest says {file.size_bytes}",
                )
            for chunk in file.chunks:
                piece = content.read(chunk.length)
                whole.update(piece)
                if hashlib.sha256(piece).hexdigest() != chunk.content:
                    raise _damaged(path)
                _check_packing(path, chunk, piece)
                yield chunk, Place(path, offset, chunk.size_bytes, chunk.length, chunk.encoding)
                offset += chunk.length
    except OSError as error:
        raise ContentError(
            "file_missing", f"{path} stands in the manifest and cannot be read ({error.strerror})"
        ) from None
    if whole.hexdigest() != file.sha256:
        raise _damaged(path)


def _check_packing(path: Path, chunk: Chunk, piece: bytes) -> None:
    if chunk.encoding != RAW and packed(piece)[0] != chunk:
        raise ContentError(
            "packed_otherwise",
            f"the chunks of {path} were compressed by another zlib than this machine's, and differ "
            "here; publish the bundle where it was compressed, or convert it again",
        )


def _damaged(path: Path) -> ContentError:
    return ContentError("hash_mismatch", f"{path} is not what the manifest names; convert again")


def _inside(directory: Path, name: str) -> Path:
    """The file, which must not be reached over a link that leads out of the bundle."""
    path = (directory / name).resolve()
    if not path.is_relative_to(directory.resolve()):
        raise ContentError("outside_bundle", f"{name} leads out of {directory}")
    return path
