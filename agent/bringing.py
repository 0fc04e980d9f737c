"""FETCHING as a whole: room first, then the shortest way to each file, then the chunks that are left.

For: the one piece of work that brings a candidate's content here, told in one event at its end.
Not for: the ways themselves (`agent.rebuilding`, `agent.fetching`), or putting files together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from agent.admission import Shortcut, room_needed
from agent.errors import RetryError
from agent.fetch import lacking as distinct
from agent.fetching import Errand, Fetcher, Sources
from agent.ports import Clock
from wire.bundle import Chunk, File
from wire.messages import ContentFetched, DesiredModel

if TYPE_CHECKING:
    from agent.rebuilding import Planned, Rebuilder

log = logging.getLogger(__name__)

Lacks = dict[str, tuple[File, tuple[Chunk, ...]]]
"""By SHA-256 of a file: the file, and which of its chunks have to be fetched."""


class Wanted(Struct, frozen=True, kw_only=True):
    """What a candidate is made of.

    Attributes:
        files: of the variant.
        shards: of the trial.
        standing: SHA-256 of those for which no room is needed, because they lie where they should.
    """

    files: tuple[File, ...]
    shards: tuple[File, ...]
    standing: frozenset[str] = frozenset()


class Bringing:
    """Brings content here.

    Args:
        rebuilder: makes what applies deltas, when the first order comes that offers one: few do, and it
            takes a quarter of a megabyte; None where deltas are not to be used.
        where: on the file system that gets it.
    """

    def __init__(
        self,
        *,
        fetcher: Fetcher,
        sources: Sources,
        rebuilder: Callable[[], Rebuilder] | None,
        clock: Clock,
        where: Path,
    ) -> None:
        self._fetcher = fetcher
        self._sources = sources
        self._make_rebuilder = rebuilder
        self._rebuilder: Rebuilder | None = None
        self._clock = clock
        self._where = where
        self._claims: dict[str, frozenset[str]] = {}

    def bring(self, model: str, order: DesiredModel, wanted: Wanted, errand: Errand) -> ContentFetched | None:
        """Everything that a candidate needs is on this disk when it returns.

        Returns:
            What it took; None where nothing had to be fetched.

        Raises:
            RetryError: `disk_full` before the first byte, the network's, the clock's or the disk's.
            FinalError: `hash_mismatch`.
            Cancelled: it was called off.
        """
        began_s = self._clock.boot_s()
        self._claims[model] = _claim(order, wanted)
        self._sources.refresh()
        if order.deltas and self._rebuilder is None and self._make_rebuilder is not None:
            self._rebuilder = self._make_rebuilder()
        lacks = self._lacks(wanted.files)
        shards = self._lacks(wanted.shards)
        plan = self._plan(order, lacks)
        if plan and self._rebuilder is not None:
            self._admit(lacks, shards, plan, wanted)
            self._rebuilder.rebuild(order, plan, errand)
            lacks = {sha256: lack for sha256, lack in lacks.items() if not self._sources.built(sha256)}
        self._admit(lacks, shards, (), wanted)
        chunks = _distinct(lacks, shards)
        if chunks:
            self._fetcher.chunks(chunks, errand)
        uses = self._rebuilder.uses(order, wanted.files) if self._rebuilder else ()
        if not (errand.received_bytes or uses):
            return None
        took_s = self._clock.boot_s() - began_s
        log.info("%s: fetched %d bytes in %.1f s", model, errand.received_bytes, took_s)
        return ContentFetched(bytes_received=errand.received_bytes, took_s=took_s, deltas=uses)

    def _lacks(self, files: tuple[File, ...]) -> Lacks:
        """Files that were not built by a delta before a crash, each with the chunks that nothing holds."""
        return {
            file.sha256: (file, self._fetcher.lacking((file,)))
            for file in files
            if not self._sources.built(file.sha256)
        }

    def _plan(self, order: DesiredModel, lacks: Lacks) -> tuple[Planned, ...]:
        if self._rebuilder is None:
            return ()
        costs = [(file, sum(chunk.size_bytes for chunk in chunks)) for file, chunks in lacks.values()]
        return self._rebuilder.plan(order, costs)

    def _admit(self, lacks: Lacks, shards: Lacks, plan: tuple[Planned, ...], wanted: Wanted) -> None:
        """Room for all of it, before the first byte."""
        short = {file.sha256 for file, _ in plan}
        by_chunks = {sha256: lack for sha256, lack in lacks.items() if sha256 not in short}
        files = [
            file for file, _ in (*by_chunks.values(), *shards.values()) if file.sha256 not in wanted.standing
        ]
        shortcuts = [
            Shortcut(
                blobs_bytes=hint.index_bytes + hint.size_bytes,
                delta_bytes=hint.size_bytes,
                output_bytes=file.size_bytes,
            )
            for file, hint in plan
        ]
        needed = room_needed(_distinct(by_chunks, shards), files, shortcuts)
        try:
            self._fetcher.admit(self._where, needed)
        except RetryError:
            # What an order left that was superseded is nobody's any more, and no order was idle since.
            if not self._sources.prune(frozenset().union(*self._claims.values())):
                raise
            self._fetcher.admit(self._where, needed)

    def forget(self, model: str) -> None:
        """Nothing is in flight for this model."""
        self._claims.pop(model, None)


def _claim(order: DesiredModel, wanted: Wanted) -> frozenset[str]:
    """Names in the store that this order needs or may come to need."""
    files = (*wanted.files, *wanted.shards)
    endings = ("", ".memory", ".delta", ".part")
    whole = {file.sha256 + ending for file in files for ending in endings}
    chunks = {chunk.sha256 for file in files for chunk in file.chunks}
    return frozenset({order.digest, *(hint.index for hint in order.deltas), *whole, *chunks})


def _distinct(*lacks: Lacks) -> tuple[Chunk, ...]:
    """Chunks of all these files, each once: two files may share some."""
    return distinct((chunk for some in lacks for _, chunks in some.values() for chunk in chunks), ())
