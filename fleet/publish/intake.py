"""Taking in a bundle: manifest, then the blobs that are missing, then the release itself.

For: the three steps of an upload, each of which may be repeated, and the publication that follows.
Not for: HTTP (`fleet.api`), or reading a bundle's directory (`fleet.publish.upload`).

Nothing is believed of the uploader: every blob is hashed again, every size is compared with the
manifest, and a release exists only once all of its content is here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from msgspec.structs import replace

from fleet.audit import NOBODY_SAID, By
from fleet.current import Current
from fleet.orders import Desk
from fleet.ports import Blobs, Clock, ConflictError, NotFoundError, ReleaseRow, Store, Tx
from fleet.publish.content import (
    blob_sizes,
    manifest_digest,
    manifest_of,
    read_manifest,
    release_posts,
)
from wire import topics as wt
from wire.errors import ContentError, TrustError
from wire.trust import open_envelope, seal

_LOG = logging.getLogger("shallop.fleet.intake")

UPLOADS_REMEMBERED_MAX = 8

MISSING_NAMED_MAX = 50_000
"""Missing blobs named in one answer; the rest are asked for after those came."""


class Intake:
    """The registry's receiving end."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        clock: Clock,
        desk: Current[Desk],
        published: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`published` is told the digest of each release, once it is in the outbox."""
        self._store = store
        self._blobs = blobs
        self._clock = clock
        self._desk = desk
        self._published = published
        self._uploads: dict[str, dict[str, int]] = {}

    def begin(self, data: bytes, by: By = NOBODY_SAID) -> tuple[ReleaseRow, list[str]]:
        """Takes a manifest in; the release and the digests of the blobs that are still needed.

        Raises:
            WireError, ContentError, LimitsError: the manifest cannot be used.
            ConflictError: `release_exists`: another content has this model and name.
        """
        manifest, digest = read_manifest(data), manifest_digest(data)
        with self._store.begin() as tx:
            known = tx.release(digest)
            if known is None:
                self._make_room(tx, manifest.model, manifest.release)
                known = ReleaseRow(
                    digest=digest,
                    model=manifest.model,
                    name=manifest.release,
                    state="uploading",
                    created_at=self._clock.now(),
                    manifest=data,
                )
                tx.save_release(known)
                self._record(tx, by, "release.upload", known)
            return known, self._missing(known)[:MISSING_NAMED_MAX]

    def blob(self, release: str, digest: str, content: Iterator[bytes]) -> None:
        """Takes one blob of an upload in.

        Raises:
            NotFoundError: `unknown_release`.
            ContentError: `not_in_manifest`, `oversized`, `size_mismatch` or `hash_mismatch`.
        """
        size = self._sizes_of(release).get(digest)
        if size is None:
            raise ContentError("not_in_manifest", f"release {release} names no blob {digest}")
        got = self._blobs.put(digest, content, size)
        if got != size:
            raise ContentError("size_mismatch", f"blob {digest} has {got} bytes, the manifest says {size}")

    def _sizes_of(self, release: str) -> dict[str, int]:
        """Sizes of an upload's blobs; the last few uploads are remembered, a manifest never changes."""
        sizes = self._uploads.get(release)
        if sizes is None:
            with self._store.begin() as tx:
                row = _known(tx, release)
            sizes = blob_sizes(manifest_of(row.manifest))
            while len(self._uploads) >= UPLOADS_REMEMBERED_MAX:
                self._uploads.pop(next(iter(self._uploads)), None)
            self._uploads[release] = sizes
        return sizes

    def finish(self, release: str, envelope: bytes | None = None, by: By = NOBODY_SAID) -> ReleaseRow:
        """Publishes the release: its posts are in the outbox when this returns.

        Finishing a published release again publishes what was cleared from the broker.

        Args:
            release: its digest.
            envelope: the manifest, signed by who holds a release key; None where this registry signs.
            by: who publishes it.

        Raises:
            NotFoundError: `unknown_release`.
            ContentError: `blobs_missing` or `wrong_envelope`.
            WireError, TrustError: the envelope cannot be believed.
            ConflictError: `release_unsigned`: nobody signed it.
        """
        sizes = self._sizes_of(release)
        self._blobs.settle(self._blobs.present(sizes.keys()))
        with self._store.begin() as tx:
            row = _known(tx, release)
            missing = self._missing(row)
            if missing:
                raise ContentError(
                    "blobs_missing", f"{len(missing)} blobs are not here yet, {missing[0]} first; upload them"
                )
            for digest in sizes.keys() - tx.known_blobs(sizes.keys()):
                tx.add_blob(digest, sizes[digest], self._blobs.relative_path(digest))
            row = self._signed(replace(row, state="published"), envelope)
            tx.save_release(row)
            restore_content(tx, row, self._desk.now)
            self._record(tx, by, "release.publish", row, signed_elsewhere=envelope is not None)
        self._published(row.digest)
        return row

    def _record(self, tx: Tx, by: By, what: str, row: ReleaseRow, **more: object) -> None:
        subject, details = f"{row.model}@{row.name}", {"digest": row.digest, **more}
        tx.audit(at=self._clock.now(), who=by.who, what=what, subject=subject, why=by.why, details=details)

    def _signed(self, row: ReleaseRow, envelope: bytes | None) -> ReleaseRow:
        """The release with the signature that came with it, once that is believed."""
        if envelope is None:
            return row
        inner = open_envelope(envelope, "release", self._desk.now.policy, wt.RELEASE.size_bytes_max)
        if inner != row.manifest:
            raise ContentError("wrong_envelope", "what was signed is another manifest than the one uploaded")
        return replace(row, envelope=envelope)

    @staticmethod
    def _make_room(tx: Tx, model: str, name: str) -> None:
        """An upload that was never finished gives way to another content of the same name."""
        other = tx.release_named(model, name)
        if other is None:
            return
        if other.state == "published":
            raise ConflictError(
                "release_exists",
                f"{model}@{name} is published with other content ({other.digest[:12]}); "
                "a release never changes, so give this one another name",
            )
        tx.delete_release(other.digest)

    def _missing(self, row: ReleaseRow) -> list[str]:
        wanted = blob_sizes(manifest_of(row.manifest))
        return sorted(wanted.keys() - self._blobs.present(wanted.keys()))


def _known(tx: Tx, digest: str) -> ReleaseRow:
    row = tx.release(digest)
    if row is None:
        raise NotFoundError(
            "unknown_release", f"there is no release {digest[:64]}; upload its manifest first"
        )
    return row


def sealed_release(row: ReleaseRow, desk: Desk) -> bytes | None:
    """The release as it travels; None where it must be signed and no key that counts did so.

    The signature that came with it is kept while it counts; after its key was revoked this registry's own
    release key signs, if it has one.
    """
    if manifest_digest(row.manifest) != row.digest:
        _LOG.error("%s@%s is not the manifest that was published: release_altered", row.model, row.name)
        return None
    if row.envelope is not None:
        try:
            open_envelope(row.envelope, "release", desk.policy, wt.RELEASE.size_bytes_max)
        except TrustError as error:
            _LOG.warning("%s@%s was signed by a key that counts no more: %s", row.model, row.name, error)
        else:
            return row.envelope
    if desk.root is not None and len(desk.release_signers) < desk.root.release.threshold:
        return None
    return seal("release", row.manifest, desk.release_signers)


def restore_content(tx: Tx, row: ReleaseRow, desk: Desk) -> int:
    """Posts what the broker does not hold of a release; how many posts.

    Requires: all blobs are on disk. Ensures: blobs, then release.

    Raises:
        ConflictError: `release_unsigned`.
    """
    topics, envelope = desk.topics, sealed_release(row, desk)
    if envelope is None:
        raise ConflictError(
            "release_unsigned",
            f"{row.model}@{row.name} carries no signature of a release key that counts, and none lies here; "
            "publish it with --release-key FILE",
        )
    posts = release_posts(topics, row.digest, blob_sizes(manifest_of(row.manifest)), envelope)
    held = tx.retained_topics(f"{topics.root}/{wt.BLOB.pattern.split('{')[0]}")
    held |= tx.retained_topics(f"{topics.root}/{wt.RELEASE.pattern.split('{')[0]}")
    lacking = [post for post in posts if post.topic not in held]
    tx.post(lacking)
    return len(lacking)
