"""A release, its successor, and a delta between them, with all that a broker holds of it."""

from __future__ import annotations

import random
from typing import Any

import msgspec

from tests.agent import plain_delta
from tests.agent.rig import Rig
from tests.agent.twins import TOPICS, MemoryBroker, Release, release
from wire.bundle import Chunk, File
from wire.chunks import cut, digest, pieces
from wire.deltas import DeltaHint, DeltaIndex
from wire.topics import BLOB

NOISE = random.Random(7).randbytes(20_000)
OLD = release("1", content=NOISE)
CHANGED = b"".join(b"changed" + NOISE[at + 7 : at + 1000] for at in range(0, 6000, 1000))
NEW = release("2", content=CHANGED + NOISE[6000:])


def model(which: Release) -> File:
    return which.manifest.variants[0].files[0]


def content(which: Release) -> bytes:
    return b"".join(which.blobs[chunk.sha256] for chunk in model(which).chunks)


class Delta:
    """A delta from OLD to NEW with its blobs, before anything is done to it."""

    def __init__(self, data: bytes | None = None, **index: Any) -> None:  # noqa: ANN401
        self.data = plain_delta.encode(content(OLD), content(NEW)) if data is None else data
        spans = cut(len(self.data), chunk_bytes_max=900)
        parts = [bytes(piece) for piece in pieces(self.data, spans)]
        fields: dict[str, Any] = {
            "algorithm": "tensor-1",
            "delta_bytes": len(self.data),
            "delta_sha256": digest(self.data),
            "chunks": tuple(Chunk(sha256=digest(part), size_bytes=len(part)) for part in parts),
        }
        self.index = msgspec.json.encode(DeltaIndex(**(fields | index)))
        self.blobs = {digest(part): part for part in parts}
        self.hint = DeltaHint(
            from_file_sha256=model(OLD).sha256,
            to_file_sha256=model(NEW).sha256,
            algorithm="tensor-1",
            index=digest(self.index),
            index_bytes=len(self.index),
            size_bytes=len(self.data),
        )

    def hold(self, rig: Rig) -> None:
        self.hold_at(rig.broker)

    def hold_at(self, broker: MemoryBroker) -> None:
        for name, data in {**self.blobs, self.hint.index: self.index}.items():
            broker.retained[TOPICS.topic(BLOB, digest=name)] = data
