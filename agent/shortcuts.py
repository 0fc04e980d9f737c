"""PURE. Which delta is worth taking instead of a file's chunks.

For: choosing among the hints of an order, and whether a delta's index is one that can be followed.
Not for: fetching or applying it (`agent.rebuilding`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from agent.errors import UNREADABLE
from wire.bundle import ENCODINGS, File
from wire.deltas import INDEX_BYTES_MAX, VERSION, DeltaHint, DeltaIndex
from wire.errors import ContentError

# Made by the thread that imports this, as in `wire.codec`.
_INDEX = msgspec.json.Decoder(DeltaIndex)

ALGORITHMS = frozenset({"tensor-1"})
"""That `agent.worker.delta` knows."""
DELTA_BYTES_OVER_MAX = 1024 * 1024
"""A delta that is larger than its file by more is no shorter way, whatever its chunks shrink to."""


def cheapest(
    file: File, hints: Iterable[DeltaHint], bases: Collection[str], full_bytes: int
) -> DeltaHint | None:
    """The hint that costs least, if one of them costs less than the chunks.

    Args:
        file: that is lacking.
        hints: of the order, for any of its files.
        bases: SHA-256 of files that lie on this device.
        full_bytes: what the file's chunks would still cost.
    """
    usable = [
        hint
        for hint in hints
        if hint.to_file_sha256 == file.sha256 and hint.from_file_sha256 in bases and cost(hint) < full_bytes
    ]
    return min(usable, key=cost, default=None)


def cost(hint: DeltaHint) -> int:
    """Bytes over the network, if nothing of it is here yet."""
    return hint.index_bytes + hint.size_bytes


def index_of(data: bytes, hint: DeltaHint, file: File) -> DeltaIndex:
    """The chunks of a delta.

    Args:
        data: of the blob that the hint names.
        hint: that named it.
        file: that is to come out.

    Raises:
        ContentError: `delta_index_damaged`: it is none, or contradicts itself or the hint;
            `delta_algorithm`: this program cannot read the delta.
    """
    if len(data) > INDEX_BYTES_MAX:
        raise _damaged(f"it has {len(data)} bytes")
    try:
        index = _INDEX.decode(data)
    except UNREADABLE as error:
        raise _damaged(str(error)) from None
    if index.version != VERSION or index.algorithm not in ALGORITHMS:
        raise ContentError(
            "delta_algorithm",
            f"the delta is of {index.algorithm[:40]!r}, version {index.version}, unknown to this agent",
        )
    if index.algorithm != hint.algorithm:
        raise _damaged(f"it is of {index.algorithm}, the hint says {hint.algorithm[:40]}")
    if any(chunk.encoding not in ENCODINGS for chunk in index.chunks):
        raise _damaged("its chunks are encoded in a way that this agent cannot read")
    if sum(chunk.length for chunk in index.chunks) != index.delta_bytes:
        raise _damaged("its chunks do not add up to the delta")
    if index.delta_bytes > file.size_bytes + DELTA_BYTES_OVER_MAX:
        raise _damaged(f"the delta has {index.delta_bytes} bytes, its file only {file.size_bytes}")
    return index


def _damaged(why: str) -> ContentError:
    return ContentError("delta_index_damaged", f"the index of the delta cannot be used: {why}")
