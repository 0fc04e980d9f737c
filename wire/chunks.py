"""PURE. How content is cut into chunks and named.

For: the one rule by which host and registry cut a file, so that equal parts of two versions get equal
names and travel once.
Not for: hashing or storing bytes of a stream (the agent's store), or deltas' payloads.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator

from msgspec import Struct

CHUNK_BYTES_MAX = 64 * 1024
"""Default largest chunk; a broker profile may ask for less (Azure Event Grid: 60 KiB)."""

WINDOW_DEFAULT = 32
"""Chunks asked for at once."""


class Span(Struct, frozen=True):
    """A run of bytes of a file."""

    offset: int
    size_bytes: int


def digest(data: bytes | memoryview) -> str:
    """SHA-256 of `data`, the name of a blob."""
    return hashlib.sha256(data).hexdigest()


def cut(
    size_bytes: int, boundaries: Iterable[int] = (), chunk_bytes_max: int = CHUNK_BYTES_MAX
) -> tuple[Span, ...]:
    """Cuts a file of `size_bytes` into consecutive spans of at most `chunk_bytes_max`.

    A tensor of a chunk or more starts a chunk of its own at its boundary, so that a change in one
    tensor shifts no other; smaller neighbours share a chunk, so that a graph of many scalars does not
    become many messages.

    Args:
        size_bytes: of the file; 0 gives no span.
        boundaries: offsets at which a tensor's payload begins or ends, in any order; those outside the
            file are ignored.
        chunk_bytes_max: positive.

    Raises:
        ValueError: a negative size or a chunk size that is not positive.
    """
    if size_bytes < 0 or chunk_bytes_max <= 0:
        raise ValueError(f"cannot cut {size_bytes} bytes into chunks of {chunk_bytes_max}")
    marks = sorted({b for b in boundaries if 0 < b < size_bytes} | {0, size_bytes})
    spans: list[Span] = []
    start = 0
    for here, after in itertools.pairwise(marks):
        if after - start <= chunk_bytes_max:
            continue
        if here > start:
            spans.append(Span(start, here - start))
            start = here
        while after - start > chunk_bytes_max:
            spans.append(Span(start, chunk_bytes_max))
            start += chunk_bytes_max
    if size_bytes > start:
        spans.append(Span(start, size_bytes - start))
    return tuple(spans)


def pieces(data: bytes, spans: Iterable[Span]) -> Iterator[memoryview]:
    """The bytes of each span, without copying."""
    view = memoryview(data)
    for span in spans:
        yield view[span.offset : span.offset + span.size_bytes]
