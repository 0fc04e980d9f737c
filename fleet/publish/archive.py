"""What the registry gives out of a release, for whoever checks it from outside.

For: manifest, signed envelope, roots, deltas and blobs, as they lie here or are published.
Not for: checking them (`fleet.verification`): whoever checks takes nothing from a registry but bytes.
"""

from __future__ import annotations

import re

from fleet.current import Current
from fleet.orders import Desk
from fleet.ports import Blobs, ConflictError, NotFoundError, ReleaseRow, Store
from fleet.publish.content import manifest_of
from fleet.publish.intake import sealed_release
from fleet.publish.shelf import DeltaShelf, files_of
from wire.deltas import DeltaHint

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Archive:
    """The registry's giving end; it changes nothing."""

    def __init__(self, store: Store, blobs: Blobs, desk: Current[Desk], deltas: DeltaShelf | None) -> None:
        self._store = store
        self._blobs = blobs
        self._desk = desk
        self._deltas = deltas

    def roots(self) -> tuple[bytes, ...]:
        """The signed roots, oldest first; none where nothing is signed."""
        return self._desk.now.roots

    def manifest(self, release: str) -> bytes:
        """The manifest's exact bytes.

        Raises:
            NotFoundError: `unknown_release`.
        """
        return self._row(release).manifest

    def envelope(self, release: str) -> bytes:
        """The release as it is published.

        Raises:
            NotFoundError: `unknown_release`.
            ConflictError: `release_unsigned`: no key that counts signed it.
        """
        row = self._row(release)
        envelope = sealed_release(row, self._desk.now)
        if envelope is None:
            raise ConflictError(
                "release_unsigned",
                f"{row.model}@{row.name} carries no signature of a release key that counts; "
                "publish it with --release-key FILE",
            )
        return envelope

    def deltas(self, release: str) -> tuple[DeltaHint, ...]:
        """Deltas on the shelf that make a file of the release.

        Raises:
            NotFoundError: `unknown_release`.
        """
        manifest = manifest_of(self._row(release).manifest)
        return () if self._deltas is None else self._deltas.leading_to(files_of(manifest))

    def blob(self, digest: str) -> bytes:
        """One blob, of whatever release or delta.

        Raises:
            NotFoundError: `unknown_blob`.
            ContentError: `hash_mismatch`: it was damaged on the disk.
        """
        if not _DIGEST.fullmatch(digest) or not self._blobs.present([digest]):
            raise NotFoundError("unknown_blob", f"there is no blob {digest[:64]!r} here")
        return self._blobs.read(digest)

    def _row(self, release: str) -> ReleaseRow:
        with self._store.begin() as tx:
            row = tx.release(release)
        if row is None:
            raise NotFoundError("unknown_release", f"there is no release {release[:64]!r} here")
        return row
