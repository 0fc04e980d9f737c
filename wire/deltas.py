"""PURE. A shorter way to a file that a release names: hints of deltas, and the index of one.

For: the types by which a desired document offers deltas and a device finds their chunks. A delta is a
hint outside the signed manifest and never a truth of its own: size and hash of the result are the
manifest's, and whatever goes wrong with a delta ends in fetching the file's chunks (DESIGN.md section 3).
Not for: making deltas (`fleet.deltas`) or applying them (`agent.worker.delta`).
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from wire.bundle import FILE_BYTES_MAX, Chunk
from wire.types import Digest, Name, Positive

VERSION = 1
HINTS_MAX = 16
"""Per model: at most three bases of each variant's files that the devices of a rollout may use."""
INDEX_BYTES_MAX = 1024 * 1024


class DeltaHint(Struct, frozen=True, kw_only=True):
    """One delta that the broker holds.

    Attributes:
        from_file_sha256: the base; a device without a file of this content cannot use the hint.
        to_file_sha256: a file of the release's manifest.
        algorithm: how the delta is read; a device skips one that it does not know.
        index: the blob that holds the `DeltaIndex`.
        index_bytes: its size.
        size_bytes: of the delta as it travels, its index left out: what the hint costs.
    """

    from_file_sha256: Digest
    to_file_sha256: Digest
    algorithm: Name
    index: Digest
    index_bytes: Annotated[int, Meta(ge=1, le=INDEX_BYTES_MAX)]
    size_bytes: Positive


class DeltaIndex(Struct, frozen=True, kw_only=True, tag_field="kind", tag="delta"):
    """The chunks of one delta; a blob of its own, since a delta may be as large as a model.

    Attributes:
        delta_bytes: of the delta, its chunks decoded and concatenated.
        delta_sha256: of the same.
    """

    version: int = VERSION
    algorithm: Name
    delta_bytes: Annotated[int, Meta(ge=1, le=FILE_BYTES_MAX)]
    delta_sha256: Digest
    chunks: Annotated[tuple[Chunk, ...], Meta(min_length=1, max_length=8192)]
