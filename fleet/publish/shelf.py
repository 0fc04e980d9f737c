"""The shelf of deltas: made once, in a thread of their own, kept, published, and offered with orders.

For: what the conductor asks for when it gives orders (`hints`), and the thread that answers questions
asked earlier (`consider`). A rollout never waits for it: a delta that is not there yet, or that could not
be made, is not offered, and devices take chunks.
Not for: choosing which deltas pay (`fleet.publish.hints`), or the codec (`fleet.deltas`).

What was tried is kept as a small file for each pair, DIR/BASE-NEW.json; the content is in the blob store,
on disk before a hint names it.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from fleet.orders import Desk
from fleet.ports import Blobs, DeltaMaker, Post, Store, Tx
from fleet.publish.content import Rank, manifest_of, releases_of
from fleet.publish.hints import Made, Wanted, lacking_bytes, model_file, pays, wanted
from fleet.rollout import Deploy, Order
from wire import topics as wt
from wire.bundle import Chunk, File, Manifest
from wire.chunks import cut, digest, pieces
from wire.deltas import HINTS_MAX, DeltaHint, DeltaIndex
from wire.encodings import decoded
from wire.errors import ContentError, ShallopError
from wire.topics import Topics

_LOG = logging.getLogger("shallop.fleet.deltas")

FILE_BYTES_MAX = 256 * 1024**2
"""Of either file; the encoder needs a few dozen times as much memory."""
RECORD_BYTES_MAX = 4 * 1024**2
# Made by the thread that imports this, as in `wire.codec`.
_MADE = msgspec.json.Decoder(Made)


class DeltaShelf:
    """Deltas of one registry.

    Args:
        folder: for the records.
        store: for devices and releases, and to post content.
        blobs: for files and deltas.
        maker: makes one delta; may take minutes.
        desk: the topics.
    """

    def __init__(self, folder: Path, store: Store, blobs: Blobs, maker: DeltaMaker, desk: Desk) -> None:
        self._folder, self._store, self._blobs, self._maker = folder, store, blobs, maker
        self._topics = desk.topics
        folder.mkdir(parents=True, exist_ok=True)
        self._made = {(one.base, one.new): one for one in map(_read, folder.glob("*.json")) if one}
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._asked: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="deltas", daemon=True)

    def start(self) -> None:
        """Begins to answer questions."""
        self._thread.start()

    def stop(self) -> None:
        """Answers no further question; one that is worked on is given up."""
        self._maker.stop()
        self._queue.put(None)
        self._thread.join(5.0)

    def consider(self, release: str) -> None:
        """Asks for the deltas that pay for a release; returns at once."""
        if release not in self._asked:
            self._asked.add(release)
            self._queue.put(release)

    def work(self, release: str) -> int:
        """Makes what pays for a release and is not there; how many were tried. For the thread, and tests."""
        with self._store.begin() as tx:
            missing = [one for one in _wanted(tx, release) if one.key not in self._made]
        for one in missing:
            self._keep(one, self._try(one))
        return len(missing)

    def _run(self) -> None:
        while (release := self._queue.get()) is not None:
            self._asked.discard(release)
            try:
                self.work(release)
            except Exception:  # noqa: BLE001 - deltas are a saving; whatever fails is logged whole
                _LOG.exception("no deltas were made for release %s", release[:12])

    def with_hints(self, tx: Tx, orders: Sequence[Order]) -> list[Order]:
        """The same orders, with the deltas that are on the shelf for each one's release.

        Ensures: content that the broker does not hold is posted in this transaction, before the orders.
        """
        known: dict[str, tuple[DeltaHint, ...]] = {}
        found: list[Order] = []
        for order in orders:
            if not isinstance(order, Deploy):
                found.append(order)
                continue
            release = order.desired.digest
            if release not in known:
                known[release] = self._hints(tx, release)
                self.consider(release)
            found.append(replace(order, desired=replace(order.desired, deltas=known[release])))
        return found

    def _hints(self, tx: Tx, release: str) -> tuple[DeltaHint, ...]:
        made = [self._made[one.key] for one in _wanted(tx, release) if one.key in self._made]
        useful = [one for one in made if one.hint is not None][:HINTS_MAX]
        self._post(tx, useful)
        return tuple(one.hint for one in useful if one.hint is not None)

    def _post(self, tx: Tx, made: Sequence[Made]) -> None:
        blobs = {blob: size for one in made for blob, size in one.blobs.items()}
        held = tx.retained_topics(f"{self._topics.root}/blob/") if blobs else set()
        for blob in blobs.keys() - tx.known_blobs(blobs.keys()):
            tx.add_blob(blob, blobs[blob], self._blobs.relative_path(blob))
        topics = {self._topics.topic(wt.BLOB, digest=blob): blob for blob in sorted(blobs)}
        tx.post(
            Post(topic=topic, rank=Rank.BLOB, retain=True, blob=blob)
            for topic, blob in topics.items()
            if topic not in held
        )

    def _try(self, one: Wanted) -> Made:
        nothing = Made(base=one.base.sha256, new=one.new.sha256)
        if max(one.base.size_bytes, one.new.size_bytes) > FILE_BYTES_MAX or not lacking_bytes(one):
            return nothing
        try:
            delta = self._maker.make(content_of(self._blobs, one.base), content_of(self._blobs, one.new))
        except (ShallopError, OSError) as error:
            _LOG.warning(
                "no delta from %s to %s: %s; devices take its chunks", one.base.path, one.new.path, error
            )
            return nothing
        return nothing if delta is None else self._shelved(one, delta)

    def _shelved(self, one: Wanted, delta: bytes) -> Made:
        cut_up = [bytes(piece) for piece in pieces(delta, cut(len(delta)))]
        listed = tuple(Chunk(sha256=digest(piece), size_bytes=len(piece)) for piece in cut_up)
        algorithm, size = self._maker.algorithm, len(delta)
        index = msgspec.json.encode(
            DeltaIndex(algorithm=algorithm, delta_bytes=size, delta_sha256=digest(delta), chunks=listed)
        )
        nothing = Made(base=one.base.sha256, new=one.new.sha256)
        if not pays(one, len(delta) + len(index)):
            return nothing
        chunks = {digest(piece): piece for piece in (*cut_up, index)}
        for blob, content in chunks.items():
            self._blobs.put(blob, iter([content]), len(content))
        self._blobs.settle(chunks.keys())
        hint = DeltaHint(
            from_file_sha256=one.base.sha256, to_file_sha256=one.new.sha256, algorithm=algorithm,
            index=digest(index), index_bytes=len(index), size_bytes=len(delta),
        )  # fmt: skip
        _LOG.info("delta to %s: %d bytes instead of %d", one.new.path, len(delta), lacking_bytes(one))
        return replace(nothing, hint=hint, blobs={blob: len(held) for blob, held in chunks.items()})

    def _keep(self, one: Wanted, made: Made) -> None:
        """On disk, then posted, then offered; a kill in between makes or posts it again."""
        target = self._folder / f"{made.base[:32]}-{made.new[:32]}.json"
        part = target.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(made))
        part.replace(target)
        with self._store.begin() as tx:
            self._post(tx, [made])
        self._made[one.key] = made

    def leading_to(self, files: Collection[str]) -> tuple[DeltaHint, ...]:
        """Every delta on the shelf that makes one of these files, whether or not it was offered yet."""
        made = list(self._made.values())
        return tuple(one.hint for one in made if one.hint is not None and one.new in files)

    def blobs_besides(self, kept: Collection[str]) -> set[str]:
        """Blobs of deltas that no kept file needs: those that make a file which is not among `kept`."""
        made = list(self._made.values())
        needed = {blob for one in made if one.new in kept for blob in one.blobs}
        return {blob for one in made for blob in one.blobs} - needed


def content_of(blobs: Blobs, file: File) -> bytes:
    """A file of a release, from its chunks.

    Raises:
        ContentError: `hash_mismatch` or `blob_lost`: its chunks do not make it up.
    """
    content = b"".join(decoded(blobs.read(chunk.sha256), chunk) for chunk in file.chunks)
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise ContentError("hash_mismatch", f"the chunks of {file.path} do not make it up")
    return content


def files_of(manifest: Manifest) -> set[str]:
    """Hashes of the model files of a release."""
    return {file.sha256 for variant in manifest.variants if (file := model_file(variant)) is not None}


def _wanted(tx: Tx, release: str) -> tuple[Wanted, ...]:
    row = tx.release(release)
    if row is None:
        return ()
    manifest = manifest_of(row.manifest)
    devices = [device for device in tx.devices() if manifest.model in device.models]
    digests = {one for device in devices for one in releases_of(device.models[manifest.model])}
    rows = [found for one in sorted(digests) if (found := tx.release(one)) is not None]
    return wanted(manifest, devices, {one.digest: manifest_of(one.manifest) for one in rows})


def clearable(topics: Topics, shelf: DeltaShelf | None, kept: Collection[Manifest]) -> set[str]:
    """Topics of deltas that no release needs which is kept."""
    if shelf is None:
        return set()
    files = {file for manifest in kept for file in files_of(manifest)}
    return {topics.topic(wt.BLOB, digest=blob) for blob in shelf.blobs_besides(files)}


def _read(path: Path) -> Made | None:
    """A record; one that cannot be read is forgotten, and its delta made again."""
    try:
        with path.open("rb") as file:
            return _MADE.decode(file.read(RECORD_BYTES_MAX))
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _LOG.warning("the record %s cannot be read (%s); its delta is made again", path.name, error)
        return None
