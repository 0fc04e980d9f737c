"""PURE. What a release is made of: its blobs, its posts, and which content may be cleared.

For: the list of blobs that a manifest names, the posts that put a release on the broker, and the
decision which content no release that matters names any more.
Not for: reading or writing bytes, or the database (`fleet.publish.intake`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from fleet.ports import Post
from wire import topics as wt
from wire.bundle import MANIFEST_BYTES_MAX, Manifest, check
from wire.codec import decode
from wire.errors import ContentError
from wire.messages import ModelState
from wire.topics import Topics

BUNDLE_BYTES_MAX = 8 * 1024**3
"""All distinct blobs of one release together."""

BLOBS_MAX = 200_000
"""Distinct blobs of one release."""


# Made by the thread that imports this, as in `wire.codec`.
_MANIFEST = msgspec.json.Decoder(Manifest)


class Rank:
    """Which posts go first: nobody is told of what the broker does not hold yet."""

    COMMAND = 0
    ROOT = 1
    BLOB = 2
    RELEASE = 3
    DESIRED = 4
    CLEAR = 5


def read_manifest(data: bytes) -> Manifest:
    """The manifest, once its types, its coherence and its limits hold.

    Raises:
        WireError: it is no manifest of this version.
        ContentError: `manifest_incoherent`, `bundle_too_large` or `empty_release`.
        LimitsError: its SLA cannot be judged.
    """
    manifest = check(decode(data, Manifest, MANIFEST_BYTES_MAX))
    sizes = blob_sizes(manifest)
    too_large = [d for d, size in sizes.items() if size > wt.BLOB.size_bytes_max]
    if too_large:
        raise ContentError(
            "bundle_too_large",
            f"chunk {too_large[0]} is larger than the {wt.BLOB.size_bytes_max} bytes of one message",
        )
    if len(sizes) > BLOBS_MAX or sum(sizes.values()) > BUNDLE_BYTES_MAX:
        raise ContentError(
            "bundle_too_large",
            f"{len(sizes)} chunks of {sum(sizes.values())} bytes; at most {BLOBS_MAX} chunks "
            f"and {BUNDLE_BYTES_MAX} bytes are carried",
        )
    return manifest


def manifest_digest(data: bytes) -> str:
    """The release's digest: of the manifest's exact bytes."""
    return hashlib.sha256(data).hexdigest()


def blob_sizes(manifest: Manifest) -> dict[str, int]:
    """Distinct blobs with their sizes.

    Raises:
        ContentError: `manifest_incoherent`: one blob is given two sizes.
    """
    sizes: dict[str, int] = {}
    for file in manifest.all_files():
        for chunk in file.chunks:
            if sizes.setdefault(chunk.sha256, chunk.size_bytes) != chunk.size_bytes:
                raise ContentError(
                    "manifest_incoherent", f"the manifest gives chunk {chunk.sha256} two sizes"
                )
    return sizes


def release_posts(topics: Topics, digest: str, blobs: Iterable[str], envelope: bytes) -> list[Post]:
    """What puts a release on the broker; blobs first."""
    posts = [
        Post(topic=topics.topic(wt.BLOB, digest=blob), rank=Rank.BLOB, retain=True, blob=blob)
        for blob in sorted(set(blobs))
    ]
    topic = topics.topic(wt.RELEASE, digest=digest)
    return [*posts, Post(topic=topic, rank=Rank.RELEASE, retain=True, payload=envelope)]


def clearing(topic: str) -> Post:
    """Takes a retained message from the broker."""
    return Post(topic=topic, rank=Rank.CLEAR, retain=True, payload=b"")


def releases_of(state: ModelState) -> set[str]:
    """Releases that a device holds, is getting, or may go back to."""
    slots = {slot.digest for slot in (state.active, state.previous) if slot is not None}
    return slots | ({state.in_flight} if state.in_flight else set())


def manifest_of(data: bytes) -> Manifest:
    """A manifest that was checked when it was uploaded."""
    return _MANIFEST.decode(data)
