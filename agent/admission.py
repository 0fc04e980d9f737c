"""PURE. How much room on the disk a deployment takes, before its first byte is fetched.

For: one sum of everything that will be written: blobs, files put together, deltas and what comes out of
them, shards, and the room that the journal and the reports need to tell how it went.
Not for: asking the disk (`agent.ports.Disk`).
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from agent.errors import RetryError
from wire.bundle import Chunk, File

BLOCK_BYTES = 4096
"""Files take whole blocks; of ext4 and f2fs on the cards and disks that devices have."""
JOURNAL_MARGIN_BYTES = 1024 * 1024
"""The journal and its copy, its reserve, and the reports of one deployment."""


class Shortcut(Struct, frozen=True, kw_only=True):
    """A file that comes by a delta.

    Attributes:
        blobs_bytes: index and chunks that are still to be fetched.
        delta_bytes: put together from them.
        output_bytes: of the file; the slot gets it by another name and not as a copy.
    """

    blobs_bytes: int
    delta_bytes: int
    output_bytes: int


def on_disk(size_bytes: int) -> int:
    """What a file of that size takes."""
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


def room_needed(chunks: Iterable[Chunk], files: Iterable[File], shortcuts: Iterable[Shortcut] = ()) -> int:
    """Bytes that a deployment will write and keep while it is in flight.

    Args:
        chunks: to fetch.
        files: to put together from chunks: of the variant, and shards.
        shortcuts: files that come by a delta.
    """
    blobs = sum(on_disk(chunk.size_bytes) for chunk in chunks)
    put_together = sum(on_disk(file.size_bytes) for file in files)
    deltas = sum(
        on_disk(one.blobs_bytes) + on_disk(one.delta_bytes) + on_disk(one.output_bytes) for one in shortcuts
    )
    return blobs + put_together + deltas + JOURNAL_MARGIN_BYTES


def require_room(needed_bytes: int, kept_free_bytes: int, free_bytes: int, where: str) -> None:
    """Lets a deployment pass for which there is room.

    Raises:
        RetryError: `disk_full`, with the figures.
    """
    if free_bytes < needed_bytes + kept_free_bytes:
        raise RetryError(
            "disk_full",
            f"{needed_bytes} bytes are needed and {kept_free_bytes} kept free, "
            f"{free_bytes} are free at {where}",
        )
