"""Bringing a release's content here: the manifest, and the chunks that no disk of ours holds.

For: subscribing, hashing and storing, as `agent.fetch` decides; disk admission before the first byte.
Not for: deciding windows and stalls (`agent.fetch`), or assembling (`agent.slots`).
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from msgspec.structs import replace

from agent import downlink
from agent.admission import require_room
from agent.errors import Cancelled, FinalError, RetryError
from agent.exchange import Box, Exchange
from agent.fetch import TokenBucket, Transfer, TransferLimits, lacking
from agent.metering import behind, require_unmetered
from agent.ports import Clock, Disk, Transport
from agent.slots import Slots
from agent.store import BlobStore
from wire.bundle import Chunk, File, Manifest
from wire.chunks import digest
from wire.encodings import decoded
from wire.errors import ContentError, ShallopError
from wire.topics import BLOB, RELEASE, Topics
from wire.trust import Policy

log = logging.getLogger(__name__)

STALLS_MAX = 4
POLL_S = 0.25
METERED_LOOK_S = 5.0
MANIFEST_WAIT_S = 5.0
MANIFEST_TRIES = 3

Progress = Callable[[tuple[str, ...], bool], None]
"""Told the digests that the broker does not seem to hold, and whether something was stored."""


class Errand:
    """One piece of work's wish for content.

    Attributes:
        cancel: set when it is called off.
        progress: told what arrives and what does not.
        received_bytes: over the network, right, whatever became of the work.
    """

    def __init__(self, cancel: threading.Event, progress: Progress) -> None:
        self.cancel = cancel
        self.progress = progress
        self.received_bytes = 0


_Place = tuple[Path, int, int]
"""Of a chunk's content in an installed file: the file, the offset, the bytes."""


def _content(place: _Place, chunk: Chunk) -> bytes | None:
    """What lies there, if it is still what the chunk's name says."""
    path, offset, size = place
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError:
        return None
    return data if digest(data) == chunk.content else None


class Sources:
    """Where chunks already lie: fetched blobs, and files of installed releases."""

    def __init__(self, store: BlobStore, slots: Slots) -> None:
        self._store = store
        self._slots = slots
        self._installed: dict[str, _Place] = {}
        self._elsewhere: dict[str, list[_Place]] = {}

    def refresh(self) -> None:
        """Looks anew at what is installed."""
        self._installed, self._elsewhere = {}, {}
        for path, file in self._slots.chunk_sources():
            offset = 0
            for chunk in file.chunks:
                place = (path, offset, chunk.length)
                if self._installed.setdefault(chunk.content, place) is not place:
                    # One of the two may be damaged.
                    self._elsewhere.setdefault(chunk.content, []).append(place)
                offset += chunk.length

    def held(self, chunks: Iterable[Chunk]) -> set[str]:
        """Which of these need not be fetched; installed ones are read and hashed to be sure."""
        return {
            chunk.sha256
            for chunk in chunks
            if self._store.has(chunk.sha256, chunk.size_bytes) or self._from_installed(chunk) is not None
        }

    def _from_installed(self, chunk: Chunk) -> bytes | None:
        first = self._installed.get(chunk.content)
        places = [] if first is None else [first, *self._elsewhere.get(chunk.content, ())]
        return next((data for place in places if (data := _content(place, chunk)) is not None), None)

    def read(self, chunk: Chunk) -> bytes:
        """A chunk's checked content.

        Raises:
            RetryError: it has to be fetched again.
            ContentError: the blob is what its name says, and does not unpack to what the manifest says.
        """
        data = self._from_installed(chunk)
        return self.unpacked(chunk) if data is None else data

    def unpacked(self, chunk: Chunk) -> bytes:
        """The same, of what was fetched."""
        return decoded(self._store.read(chunk.sha256), chunk)

    def prune(self, keep: Collection[str]) -> int:
        """Removes what was fetched or built and is not in `keep`; how many of them."""
        return self._store.prune(keep)

    def discard(self, names: Iterable[str]) -> None:
        """Removes what was fetched under these names, to make room; what is not there is no error."""
        self._store.discard(names)

    def built(self, sha256: str) -> Path | None:
        """A whole file that a delta gave, checked."""
        return self._store.built(sha256)


class Fetcher:
    """Fetches over the broker what a release needs and nothing holds yet."""

    def __init__(  # noqa: PLR0913 - it is built once, in agent.app
        self,
        *,
        transport: Transport,
        exchange: Exchange,
        store: BlobStore,
        sources: Sources,
        clock: Clock,
        disk: Disk,
        topics: Topics,
        policy: Policy,
        window_max: int,
        disk_margin_bytes: int,
        limits: TransferLimits = TransferLimits(),  # noqa: B008 - frozen
        signed_at: Callable[[], str] = lambda: "",
    ) -> None:
        self._transport = transport
        self._exchange = exchange
        self._store = store
        self._sources = sources
        self._clock = clock
        self._disk = disk
        self._topics = topics
        self._policy = policy
        self._window_max = window_max
        self._margin_bytes = disk_margin_bytes
        self._hours = limits.metered_hours
        rate = limits.rate_bytes_per_s_max
        self._bucket = None if rate is None else TokenBucket(rate, clock.boot_s())
        self._turning = threading.Lock()
        self._signed_at = signed_at

    def _require_unmetered(self) -> None:
        if not self._hours:
            return
        local = self._clock.local()
        if behind(self._clock.now_text(), self._signed_at()):
            local = replace(local, synchronised=False)
        require_unmetered(self._hours, local)

    # --- the manifest

    def manifest(
        self, model: str, named: str, cancel: threading.Event, progress: Progress
    ) -> tuple[bytes, Manifest]:
        """The manifest of release `named`, from the disk or the broker.

        Raises:
            RetryError: `release_missing`, `network`, `metered_hours` or `clock_unsynchronised`.
            ShallopError: it is not believed, not coherent or not for this model; final.
            Cancelled: it was called off.
        """
        try:
            data = self._store.read(named)
        except RetryError:
            data = self._ask_manifest(named, cancel, progress)
            self._store.put(named, data)
            progress((), True)
        return data, downlink.manifest(data, model)

    def held_manifest(self, model: str, named: str) -> Manifest | None:
        """The same, if it lies here and can be used."""
        try:
            return downlink.manifest(self._store.read(named), model)
        except ShallopError:
            return None

    def _ask_manifest(self, named: str, cancel: threading.Event, progress: Progress) -> bytes:
        self._require_unmetered()
        topic = self._topics.topic(RELEASE, digest=named)
        box: Box = queue.Queue(maxsize=4)
        refused: ShallopError | None = None
        try:
            for attempt in range(MANIFEST_TRIES):
                self._exchange.watch([topic], RELEASE.qos_subscribe, box, RELEASE.size_bytes_max)
                payload = self._next(box, cancel, MANIFEST_WAIT_S)
                if not payload:
                    if attempt:
                        progress((named,), False)
                    continue
                try:
                    return downlink.release(payload, named, self._policy)
                except ShallopError as error:
                    refused = error
                    log.warning("release %s refused: %s", named[:12], error)
                    progress((named,), False)
                    cancel.wait(1.0)
        finally:
            self._exchange.unwatch([topic], box)
        if refused is not None:
            raise refused
        raise self._silence("release_missing", f"the broker holds no release {named[:12]}")

    def _silence(self, code: str, detail: str) -> RetryError:
        if not self._transport.connected:
            return RetryError("network", "there is no connection to the broker")
        return RetryError(code, detail)

    @staticmethod
    def _next(box: Box, cancel: threading.Event, wait_s: float) -> bytes | None:
        """The next payload; None after `wait_s` without one.

        Raises:
            Cancelled: it was called off.
        """
        while True:
            if cancel.is_set():
                raise Cancelled
            try:
                return box.get(timeout=max(0.001, min(POLL_S, wait_s)))[1]
            except queue.Empty:
                wait_s -= POLL_S
                if wait_s <= 0:
                    return None

    # --- chunks

    def admit(self, path: Path, needed_bytes: int) -> None:
        """Whether there is room for that many bytes, and a margin.

        Raises:
            RetryError: `disk_full`, with the figures.
        """
        require_room(needed_bytes, self._margin_bytes, self._disk.free_bytes(path), str(path))

    def lacking(self, files: Iterable[File]) -> tuple[Chunk, ...]:
        """The chunks of these files that nothing here holds, as far as `Sources.refresh` looked."""
        chunks = [chunk for file in files for chunk in file.chunks]
        return lacking(chunks, self._sources.held(chunks))

    def chunks(self, wanted: tuple[Chunk, ...], errand: Errand) -> None:
        """Fetches and stores chunks.

        Raises:
            RetryError: `chunks_missing`, `network`, `metered_hours`, `clock_unsynchronised` or a disk's.
            FinalError: `hash_mismatch`: a chunk's topic gives other bytes again and again.
            Cancelled: it was called off.
        """
        transfer = Transfer(wanted, self._clock.boot_s(), self._window_max, self._bucket)
        box: Box = queue.Queue(maxsize=4 * self._window_max)
        names = {self._topics.topic(BLOB, digest=chunk.sha256): chunk.sha256 for chunk in wanted}
        told: tuple[str, ...] = ()
        look_s = float("-inf")
        try:
            while not transfer.done:
                if self._clock.boot_s() - look_s >= METERED_LOOK_S:
                    self._require_unmetered()
                    look_s = self._clock.boot_s()
                told = self._turn(transfer, box, told, errand.progress)
                self._take(transfer, box, names, errand.cancel, errand.progress)
                self._give_up(transfer)
        finally:
            errand.received_bytes += transfer.bytes_done
            self._exchange.unwatch(list(names), box)

    def _turn(
        self, transfer: Transfer, box: Box, told: tuple[str, ...], progress: Progress
    ) -> tuple[str, ...]:
        with self._turning:  # the bucket is everybody's
            turn = transfer.turn(self._clock.boot_s())
        self._exchange.unwatch([self._topics.topic(BLOB, digest=name) for name in turn.unsubscribe], box)
        asked = [chunk for name in turn.subscribe if (chunk := transfer.expects(name))]
        topics = [self._topics.topic(BLOB, digest=chunk.sha256) for chunk in asked]
        largest = max((chunk.size_bytes for chunk in asked), default=0)
        self._exchange.watch(topics, BLOB.qos_subscribe, box, largest)
        if turn.missing and turn.missing != told:
            progress(turn.missing, False)
            return turn.missing
        return told

    def _take(
        self, transfer: Transfer, box: Box, names: dict[str, str], cancel: threading.Event, progress: Progress
    ) -> None:
        """Takes what has come, all of it before the next turn, so that subscriptions are asked in batches."""
        if cancel.is_set():
            raise Cancelled
        try:
            topic, payload = box.get(timeout=POLL_S)
        except queue.Empty:
            return
        while True:
            self._chunk(transfer, names[topic], payload, progress)
            try:
                topic, payload = box.get_nowait()
            except queue.Empty:
                return

    def _chunk(self, transfer: Transfer, name: str, payload: bytes, progress: Progress) -> None:
        expected = transfer.expects(name)
        if expected is None or not payload:
            return
        if len(payload) != expected.size_bytes:
            log.warning("chunk refused: %d bytes came as blob %s", len(payload), name[:12])
            transfer.spoil(name, self._clock.boot_s())
            return
        first = transfer.bytes_done == 0
        try:
            self._store.put(name, payload)
        except ContentError as error:
            log.warning("chunk refused: %s", error)
            transfer.spoil(name, self._clock.boot_s())
            return
        transfer.arrived(name, self._clock.boot_s())
        if first:
            progress((), True)

    def _give_up(self, transfer: Transfer) -> None:
        spoilt = transfer.spoilt
        if spoilt is not None:
            raise FinalError(
                "hash_mismatch", f"what the broker holds as blob {spoilt[:12]} is something else"
            )
        if transfer.stalls >= STALLS_MAX:
            silent = len(transfer.asked)
            raise self._silence("chunks_missing", f"{silent} chunks were asked for and did not come")
