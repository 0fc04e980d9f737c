"""A release checked end to end: the thin loop that fetches, and hands to the pure checks.

For: `verify()` over a place that holds a release (a registry, a bundle's directory), rebuilding every file
from its chunks.
Not for: deciding anything (`fleet.verify`, `fleet.verify_content`, `fleet.verify_origin`), or the places
themselves (`fleet.adapters.release_holder`, `fleet.publish.directory`).
"""

from __future__ import annotations

import hashlib
import mmap
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

import msgspec
from msgspec import Struct

from fleet.given_files import read_given
from fleet.publish.content import blob_sizes
from fleet.verify import (
    Fault,
    Named,
    Row,
    Verification,
    chain_of,
    failed,
    fault_of,
    holds,
    manifest_row,
    not_checked,
    signature_row,
)
from fleet.verify_content import (
    FORMATS,
    Format,
    Header,
    Rebuilt,
    Retained,
    broker_rows,
    content_row,
    delta_row,
    header_row,
    read_header,
)
from fleet.verify_origin import given_rows, recorded_rows
from wire import topics as wt
from wire.bundle import Chunk, File, Manifest
from wire.chunks import digest
from wire.deltas import DeltaHint, DeltaIndex
from wire.encodings import decoded
from wire.errors import ContentError, ShallopError
from wire.topics import Topics
from wire.trust import SignatureCheck

Progress = Callable[[str, int, int], None]
"""Told what is looked at, how many bytes of it are done, and of how many."""

# Made by the thread that imports this, as in `wire.codec`.
_INDEX = msgspec.json.Decoder(DeltaIndex)


class Holder(Protocol):
    """Where a release lies.

    Every method raises ContentError where something cannot be had, which is a finding, and another
    ShallopError where the place cannot be reached any more, which ends the check.
    """

    @property
    def named(self) -> Named:
        """Under which name the release was asked for."""

    def manifest(self) -> bytes:
        """The manifest's bytes."""

    def envelope(self) -> bytes | None:
        """The signed release; None in a place where releases lie unsigned."""

    def roots(self) -> Sequence[bytes]:
        """The signed roots, oldest first."""

    def content(self, file: File) -> Iterator[bytes]:
        """The content of each chunk of a file, once it is shown to be the chunk's."""

    def blob(self, chunk: Chunk) -> bytes:
        """A blob, once it is shown to be what its name says."""

    def deltas(self) -> Sequence[DeltaHint] | None:
        """What is offered; None in a place that has none."""


class Asked(Struct, frozen=True, kw_only=True):
    """What a person asks for.

    Attributes:
        subject: what is checked, in their words.
        root_sha256: the root that they trust beforehand.
        given: files to hold against the release, by kind.
        retained: asks a broker what it retains on topics; None: no broker is asked.
        topics: the broker's topic tree.
    """

    subject: str
    root_sha256: str | None = None
    given: Mapping[str, Path] = {}
    retained: Callable[[Sequence[str]], Retained] | None = None
    topics: Topics = Topics()


def verify(
    holder: Holder, asked: Asked, check: SignatureCheck, progress: Progress = lambda *_: None
) -> Verification:
    """All checks of a release; a check that cannot be made is a row that says why.

    Raises:
        ShallopError: the place cannot be reached at all or has no such release, or a given file cannot be
            read.
    """
    data = holder.manifest()
    signed = _signed(holder)
    roots = () if signed is None else tuple(holder.roots())
    row, manifest = manifest_row(data, holder.named)
    rows = [*_trust_rows(asked, signed, roots, data, check), row]
    if manifest is None:
        rows.append(not_checked("content", "without a manifest nothing says what it should be"))
    else:
        origin = manifest.provenance
        given = {kind: read_given(path, kind, origin) for kind, path in asked.given.items()}
        rows += [*_content_rows(holder, manifest, progress), delta_row(manifest, _deltas(holder))]
        rows += [*recorded_rows(origin), *given_rows(origin, given)]
        rows += _broker_rows(asked, manifest, digest(data), signed, roots)
    return Verification(subject=asked.subject, digest=digest(data), holds=holds(rows), rows=tuple(rows))


def _signed(holder: Holder) -> bytes | Fault | None:
    """The signed release, or why there is none; None in a place where there cannot be one."""
    try:
        return holder.envelope()
    except ContentError as error:
        return fault_of(error)


def _trust_rows(
    asked: Asked, signed: bytes | Fault | None, roots: Sequence[bytes], data: bytes, check: SignatureCheck
) -> list[Row]:
    if signed is not None:
        chain = chain_of(roots, asked.root_sha256, check)
        return [chain.row, signature_row(signed, data, chain.roots, check)]
    row = not_checked("signature", "a directory carries none; publish it and check the release")
    if asked.root_sha256 is None:
        return [row]
    return [failed("roots", "a root is pinned, and a directory carries no roots"), row]


# --- content ---------------------------------------------------------------------------------------


def _content_rows(holder: Holder, manifest: Manifest, progress: Progress) -> list[Row]:
    files = {file.path: file for file in manifest.all_files()}
    formats = {variant.model_path: FORMATS.get(variant.runtime) for variant in manifest.variants}
    total, done = sum(file.size_bytes for file in files.values()), 0
    found: dict[str, Rebuilt | Fault] = {}
    headers: dict[str, Header | Fault] = {}
    for path, file in files.items():
        progress(path, done, total)
        form = formats.get(path)
        if form is None:
            found[path] = _rebuilt(holder, file, None)
        else:
            found[path], header = _model(holder, file, form)
            if header is not None:
                headers[path] = header
        done += file.size_bytes
    progress("", total, total)
    rows: list[Row] = []
    for variant in manifest.variants:
        rows.append(content_row(f"content {variant.id}", variant.files, found))
        rows.append(header_row(manifest, variant, headers.get(variant.model_path)))
    shards = [shard.file for shard in manifest.validation]
    return [*rows, content_row("content validation", shards, found)] if shards else rows


def _model(holder: Holder, file: File, form: Format) -> tuple[Rebuilt | Fault, Header | Fault | None]:
    """A model's file, and its header where the file is whole; it lies on the disk, however large it is."""
    with tempfile.TemporaryFile() as spool:
        found = _rebuilt(holder, file, spool)
        whole = isinstance(found, Rebuilt) and found.sha256 == file.sha256
        spool.flush()
        if not whole:
            return found, None
        content = mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_READ) if file.size_bytes else b""
        return found, read_header(form, memoryview(content))


def _rebuilt(holder: Holder, file: File, spool: IO[bytes] | None) -> Rebuilt | Fault:
    """A file, put together from its chunks; kept in `spool` where there is one."""
    whole, size = hashlib.sha256(), 0
    try:
        for piece in holder.content(file):
            whole.update(piece)
            size += len(piece)
            if spool is not None:
                spool.write(piece)
    except ContentError as error:
        return fault_of(error)
    return Rebuilt(size_bytes=size, sha256=whole.hexdigest())


def _deltas(holder: Holder) -> list[tuple[DeltaHint, Fault | None]] | None:
    hints = holder.deltas()
    return None if hints is None else [(hint, _delta_fault(holder, hint)) for hint in hints]


def _delta_fault(holder: Holder, hint: DeltaHint) -> Fault | None:
    """What is wrong with the index or the chunks of a delta."""
    whole, size = hashlib.sha256(), 0
    try:
        index = _INDEX.decode(holder.blob(Chunk(sha256=hint.index, size_bytes=hint.index_bytes)))
        for chunk in index.chunks:
            piece = decoded(holder.blob(chunk), chunk)
            whole.update(piece)
            size += len(piece)
    except ContentError as error:
        return fault_of(error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Fault(code="index_malformed", message=f"its index cannot be read: {error}")
    if (size, whole.hexdigest()) != (index.delta_bytes, index.delta_sha256):
        return Fault(code="hash_mismatch", message="its chunks do not make it up")
    return None


# --- the broker ------------------------------------------------------------------------------------


def _broker_rows(
    asked: Asked, manifest: Manifest, release: str, signed: bytes | Fault | None, roots: Sequence[bytes]
) -> list[Row]:
    if asked.retained is None:
        return [not_checked("broker", "give --broker URL to compare what it retains")]
    if not isinstance(signed, bytes):
        return [not_checked("broker", "there is no signed release that it could be compared with")]
    topic = asked.topics.topic(wt.RELEASE, digest=release)
    few = {topic: digest(signed)}
    for number, root in enumerate(roots, start=1):
        few[asked.topics.topic(wt.ROOT, number=str(number))] = digest(root)
    chunks = {asked.topics.topic(wt.BLOB, digest=blob): blob for blob in blob_sizes(manifest)}
    try:
        held = dict(asked.retained(list(few)))
        # Where the release is not retained its chunks need not be; each that is missing costs a wait.
        if held.get(topic) is not None:
            held.update(asked.retained(list(chunks)))
    except ShallopError as error:
        return [failed("broker", f"{error}")]
    return broker_rows(topic, few | chunks, held)
