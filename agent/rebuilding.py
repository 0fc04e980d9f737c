"""Files by a shorter way: what a delta and a file that lies here make of each other.

For: fetching a delta's index and chunks, having it applied in a process that ends, and keeping the result
only if its SHA-256 is the manifest's. Whatever goes wrong with a delta is remembered for that file and
order, told, and never more than a detour: the file's chunks are fetched then.
Not for: choosing a hint (`agent.shortcuts`), or putting a slot together (`agent.slots`).

What came out lies in the store as `built/SHA256` until the store is tidied. It is hashed again before it is
believed, so neither a crash nor a power cut at any step needs a rule of its own.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.durable import write_file
from agent.errors import (
    DISK_ERRNOS,
    UNREADABLE,
    Cancelled,
    FinalError,
    RetryError,
    disk_error,
    reason_of,
)
from agent.fetching import Errand, Fetcher, Sources
from agent.ports import DeltaRunner
from agent.shortcuts import cheapest, index_of
from agent.slots import Slots, file_sha256
from agent.store import BlobStore
from wire.bundle import Chunk, File
from wire.deltas import DeltaHint, DeltaIndex
from wire.errors import ShallopError
from wire.messages import DeltaUse, DesiredModel, Reason
from wire.types import Count, Digest

log = logging.getLogger(__name__)

STARTS_MAX = 2
"""Of one delta's worker within one order: a delta that takes the daemon down with it is left alone."""
PASSING = frozenset({
    "network", "metered_hours", "clock_unsynchronised", "disk_full", "disk_failed",
    "blob_missing", "blob_damaged",
})  # fmt: skip
"""Not the delta's fault, and no better with chunks: the whole piece of work is tried again later."""
_WAIT_S = 0.25


class _Memory(Struct, frozen=True, kw_only=True, tag_field="kind", tag="delta-memory"):
    """What was tried for one file; saved before the worker starts."""

    version: int = 1
    order: Count
    base: Digest
    index: Digest
    starts: Count = 0
    failure: Reason | None = None


# Made by the thread that imports this, as in `wire.codec`.
_MEMORY = msgspec.json.Decoder(_Memory)

Planned = tuple[File, DeltaHint]


class Rebuilder:
    """Applies deltas, one at a time on a device."""

    def __init__(
        self, *, fetcher: Fetcher, sources: Sources, store: BlobStore, slots: Slots, runner: DeltaRunner
    ) -> None:
        self._fetcher = fetcher
        self._sources = sources
        self._store = store
        self._slots = slots
        self._runner = runner
        self._one = threading.Lock()

    def plan(self, wanted: DesiredModel, lacking: Iterable[tuple[File, int]]) -> tuple[Planned, ...]:
        """Files for which a delta is the cheapest way and was not found wanting in this order.

        Args:
            wanted: the order.
            lacking: files, each with the bytes of its chunks that are not here.
        """
        bases = {sha256 for sha256, _ in self._slots.files()} if wanted.deltas else set()
        found = ((file, cheapest(file, wanted.deltas, bases, full)) for file, full in lacking)
        return tuple((file, hint) for file, hint in found if hint is not None and self._untried(wanted, file))

    def _untried(self, wanted: DesiredModel, file: File) -> bool:
        memory = self._recall(wanted, file)
        return memory is None or (memory.failure is None and memory.starts < STARTS_MAX)

    def rebuild(self, wanted: DesiredModel, plan: Iterable[Planned], errand: Errand) -> None:
        """Follows a plan; each file is built, or its delta is remembered as useless.

        Raises:
            RetryError: one of `PASSING`.
            Cancelled: it was called off.
        """
        for file, hint in plan:
            try:
                with self._alone(errand.cancel):
                    self._build(wanted, file, hint, errand)
            except ShallopError as error:
                if isinstance(error, RetryError) and error.code in PASSING:
                    raise
                self._give_up(wanted, file, hint, reason_of(error))
            except OSError as error:
                if error.errno in DISK_ERRNOS:
                    raise disk_error("a delta", error) from error
                reason = Reason(code="delta_io", detail=str(error)[:1500], lasting="retry")
                self._give_up(wanted, file, hint, reason)

    @contextlib.contextmanager
    def _alone(self, cancel: threading.Event) -> Iterator[None]:
        while not self._one.acquire(timeout=_WAIT_S):
            if cancel.is_set():
                raise Cancelled
        try:
            yield
        finally:
            self._one.release()

    def _build(self, wanted: DesiredModel, file: File, hint: DeltaHint, errand: Errand) -> None:
        if self._store.built(file.sha256) is not None:
            return
        base = self._base(hint)
        index = self._index(file, hint, errand)
        self._fetch(index.chunks, errand)
        delta, part = (self._store.built_path(file.sha256 + suffix) for suffix in (".delta", ".part"))
        try:
            self._join(index, delta)
            with self._started(wanted, file, hint):
                self._runner.apply(base, delta, part, file.size_bytes, errand.cancel)
            if part.stat().st_size != file.size_bytes or file_sha256(part) != file.sha256:
                raise FinalError(
                    "delta_wrong_result", "what came out is not the file that the manifest names"
                )
            part.replace(self._store.built_path(file.sha256))
        finally:
            for left in (delta, part):
                left.unlink(missing_ok=True)
        log.info("%s came by a delta of %d bytes", file.path, hint.size_bytes)

    def _base(self, hint: DeltaHint) -> Path:
        for sha256, path in self._slots.files():
            if sha256 == hint.from_file_sha256:
                with contextlib.suppress(OSError):
                    if file_sha256(path) == sha256:
                        return path
        raise FinalError("delta_base_changed", "no installed file has the content that the delta starts from")

    def _index(self, file: File, hint: DeltaHint, errand: Errand) -> DeltaIndex:
        self._fetch((Chunk(sha256=hint.index, size_bytes=hint.index_bytes),), errand)
        return index_of(self._store.read(hint.index), hint, file)

    def _fetch(self, chunks: Iterable[Chunk], errand: Errand) -> None:
        wanted = {chunk.sha256: chunk for chunk in chunks}
        lacking = tuple(c for c in wanted.values() if not self._store.has(c.sha256, c.size_bytes))
        if lacking:
            self._fetcher.chunks(lacking, errand)

    def _join(self, index: DeltaIndex, target: Path) -> None:
        target.parent.mkdir(exist_ok=True)
        with target.open("wb") as out:
            for chunk in index.chunks:
                out.write(self._sources.unpacked(chunk))
        if file_sha256(target) != index.delta_sha256:
            raise FinalError("delta_damaged", "the delta's chunks are right and the delta is not")

    # --- what was tried

    def _memory_path(self, file: File) -> Path:
        return self._store.built_path(f"{file.sha256}.memory")

    def _recall(self, wanted: DesiredModel, file: File) -> _Memory | None:
        try:
            memory = _MEMORY.decode(self._memory_path(file).read_bytes())
        except (OSError, *UNREADABLE):
            return None
        return memory if memory.order == wanted.order else None

    @contextlib.contextmanager
    def _started(self, wanted: DesiredModel, file: File, hint: DeltaHint) -> Iterator[None]:
        """Persisted before the worker starts, which may be what ends this process; taken back if not."""
        before = self._recall(wanted, file)
        starts = before.starts if before else 0
        self._save(file, _of(wanted, hint, starts=starts + 1))
        try:
            yield
        except Exception:
            self._save(file, _of(wanted, hint, starts=starts))
            raise

    def _give_up(self, wanted: DesiredModel, file: File, hint: DeltaHint, reason: Reason) -> None:
        log.warning("%s: no delta, its chunks are fetched: %s: %s", file.path, reason.code, reason.detail)
        self._save(file, _of(wanted, hint, failure=reason))

    def _save(self, file: File, memory: _Memory) -> None:
        path = self._memory_path(file)
        path.parent.mkdir(exist_ok=True)
        write_file(path, msgspec.json.encode(memory))

    def uses(self, wanted: DesiredModel, files: Iterable[File]) -> tuple[DeltaUse, ...]:
        """What became of the deltas of an order, for the report."""
        found = []
        for file in files:
            memory = self._recall(wanted, file)
            if memory is None:
                continue
            failure = memory.failure
            if failure is None and not self._store.built_path(file.sha256).exists():
                if memory.starts < STARTS_MAX:
                    continue
                detail = f"its worker was started {memory.starts} times and this program did not outlive it"
                failure = Reason(code="delta_interrupted", detail=detail)
            found.append(DeltaUse(to_file_sha256=file.sha256, from_file_sha256=memory.base, failure=failure))
        return tuple(found)


def _of(wanted: DesiredModel, hint: DeltaHint, *, starts: int = 0, failure: Reason | None = None) -> _Memory:
    return _Memory(
        order=wanted.order, base=hint.from_file_sha256, index=hint.index, starts=starts, failure=failure
    )
