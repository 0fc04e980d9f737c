"""Releases for attacks: small real models, whole in memory, so that a test can bend any byte of them.

For: the manifest's exact bytes, the blobs, and both changed by hand.
Not for: putting them on a broker (`tests.attacks.scene`).
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from tests.integration.bundles import Harm, make_bundle
from wire import chunks
from wire.bundle import Chunk, File, Manifest
from wire.codec import encode

MODEL = "tiny"


class Cargo(Struct, frozen=True, kw_only=True):
    """A release that is not signed yet; `blobs` by name, whatever their bytes are."""

    manifest: Manifest
    blobs: dict[str, bytes]

    @property
    def raw(self) -> bytes:
        """The manifest's exact bytes."""
        return encode(self.manifest)

    @property
    def digest(self) -> str:
        """Of the release."""
        return chunks.digest(self.raw)

    @property
    def file(self) -> File:
        """The model's file."""
        return self.manifest.variants[0].files[0]

    def with_file(self, file: File, **blobs: bytes) -> Cargo:
        """The same release with another file for its model; blobs are given by their names."""
        variant = replace(self.manifest.variants[0], files=(file,), model_path=file.path)
        manifest = replace(self.manifest, variants=(variant,))
        return replace(self, manifest=manifest, blobs={**self.blobs, **blobs})


@functools.cache
def cargo(
    release: str, seed: int, *, model: str = MODEL, ballast_bytes: int = 0, harm: Harm = "none"
) -> Cargo:
    """A release of a tiny linear model, made once."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = make_bundle(
            folder, model=model, release=release, seed=seed, ballast_bytes=ballast_bytes, harm=harm
        )
        blobs: dict[str, bytes] = {}
        for file in manifest.all_files():
            data = (folder / file.path).read_bytes()
            blobs |= {
                chunks.digest(piece): bytes(piece) for piece in chunks.pieces(data, chunks.cut(len(data)))
            }
    return Cargo(manifest=manifest, blobs=blobs)


def of_chunks(path: str, content: bytes, pieces: list[tuple[Chunk, bytes]]) -> tuple[File, dict[str, bytes]]:
    """A file of these chunks, and their blobs."""
    file = File(
        path=path, size_bytes=len(content), sha256=chunks.digest(content), chunks=tuple(c for c, _ in pieces)
    )
    return file, {chunk.sha256: blob for chunk, blob in pieces}


def plain(piece: bytes) -> tuple[Chunk, bytes]:
    """A chunk that travels as it is."""
    return Chunk(sha256=chunks.digest(piece), size_bytes=len(piece)), piece


def bent(release: Cargo, change: Callable[[Manifest], Manifest]) -> Cargo:
    """The release with its manifest changed."""
    return replace(release, manifest=change(release.manifest))
