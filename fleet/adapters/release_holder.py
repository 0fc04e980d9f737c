"""A registry's release as a place that holds it, over HTTP, for checking it from outside.

For: the port `fleet.verification.Holder`; every answer is capped, and a blob is what its name says or is
refused.
Not for: deciding what that proves (`fleet.verify`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TypeVar
from urllib.parse import quote

import msgspec

from fleet.adapters.client import Client, RefusedError, ServerUnreachableError
from fleet.ports import NotFoundError
from fleet.verify import Named
from fleet.verify_content import true_blob
from fleet.views import ReleaseView
from wire import topics as wt
from wire.bundle import MANIFEST_BYTES_MAX, Chunk, File
from wire.deltas import DeltaHint
from wire.encodings import decoded
from wire.errors import ContentError

ROOTS_BYTES_MAX = 64 * 1024 * 1024
HINTS_BYTES_MAX = 4 * 1024 * 1024
PREFIX_CHARS_MIN = 8
"""Of a digest that is cut short."""

_ROOTS = msgspec.json.Decoder(list[bytes])
_HINTS = msgspec.json.Decoder(list[DeltaHint])

T = TypeVar("T")


def find_release(client: Client, name: str) -> Named:
    """The release that MODEL@RELEASE, a digest or the beginning of one names.

    Raises:
        NotFoundError: `unknown_release`, also where a beginning fits several.
    """
    model, at, release = name.partition("@")
    prefix = re.fullmatch(rf"[0-9a-f]{{{PREFIX_CHARS_MIN},64}}", name)

    def meant(one: ReleaseView) -> bool:
        if at:
            return (one.model, one.release) == (model, release)
        return prefix is not None and one.digest.startswith(name)

    found = [one for one in client.releases() if meant(one)]
    if len(found) != 1:
        how = f"{len(found)} releases begin" if found else "no release goes by it"
        raise NotFoundError(
            "unknown_release",
            f"{name[:80]!r}: {how}; write MODEL@RELEASE or a digest, `shallop-fleet releases` lists them",
        )
    if at:
        return Named(digest=found[0].digest, model=model, release=release)
    return Named(digest=name if len(name) == 64 else found[0].digest)


class RegistryHolder:
    """A release of the registry that `client` speaks to."""

    def __init__(self, client: Client, named: Named) -> None:
        self._client = client
        self._named = named
        self._path = f"/api/releases/{quote(named.digest or '', safe='')}"

    @property
    def named(self) -> Named:
        """Under which name the release was asked for."""
        return self._named

    def manifest(self) -> bytes:
        """The manifest's bytes."""
        return self._client.fetch(f"{self._path}/manifest", MANIFEST_BYTES_MAX)

    def envelope(self) -> bytes | None:
        """The signed release.

        Raises:
            ContentError: the registry has none to give, as it says.
        """
        try:
            return self._client.fetch(f"{self._path}/envelope", wt.RELEASE.size_bytes_max)
        except RefusedError as error:
            raise ContentError(error.code, str(error.args[0])) from None

    def roots(self) -> Sequence[bytes]:
        """The signed roots, oldest first."""
        return _read(_ROOTS, self._client.fetch("/api/roots", ROOTS_BYTES_MAX))

    def deltas(self) -> Sequence[DeltaHint] | None:
        """What is on the registry's shelf for this release."""
        return _read(_HINTS, self._client.fetch(f"{self._path}/deltas", HINTS_BYTES_MAX))

    def content(self, file: File) -> Iterator[bytes]:
        """The content of each chunk of a file, once it is shown to be the chunk's.

        Raises:
            ContentError: `hash_mismatch`, `oversized`, `blob_lost`, or why a chunk cannot be unpacked.
        """
        for chunk in file.chunks:
            yield decoded(self.blob(chunk), chunk)

    def blob(self, chunk: Chunk) -> bytes:
        """A blob, once it is shown to be what its name says.

        Raises:
            ContentError: `hash_mismatch`, `size_mismatch`, `oversized`, or as the registry says.
        """
        try:
            content = self._client.fetch(f"/api/blobs/{chunk.sha256}", chunk.size_bytes)
        except RefusedError as error:
            raise ContentError(error.code, f"chunk {chunk.sha256[:12]}: {error.args[0]}") from None
        return true_blob(chunk, content)


def _read(decoder: msgspec.json.Decoder[T], content: bytes) -> T:
    try:
        return decoder.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ServerUnreachableError(
            "not_a_registry", f"the registry answered something else: {error}"
        ) from None
