"""PURE. How a blob holds a chunk's content: as it is, or compressed where that pays.

For: packing content for the broker, and unpacking it again within the size that the manifest announces, so
that no blob can ask for more memory than was agreed.
Not for: choosing chunks (`wire.chunks`), or saying which encodings a manifest may use (`wire.bundle.check`).

Why raw deflate and not zstd: docs/adr/0011-chunk-compression.md.
"""

from __future__ import annotations

import zlib

from wire.bundle import DEFLATE, RAW, Chunk
from wire.chunks import digest
from wire.errors import ContentError

SAVING_MIN = 0.05
"""A chunk that shrinks by less travels as it is: unpacking costs a device 4 ms a MB on x86-64."""
SAVING_BYTES_MIN = 512
"""What the longer entry in the manifest, with its second hash, has to be worth."""

_RAW_DEFLATE = -15
_LEVEL = 9


def packed(content: bytes | memoryview) -> tuple[Chunk, bytes]:
    """The chunk of `content` and the blob that travels: compressed where it saves enough."""
    pack = zlib.compressobj(_LEVEL, zlib.DEFLATED, _RAW_DEFLATE, zlib.DEF_MEM_LEVEL)
    blob = pack.compress(content) + pack.flush()
    saved = len(content) - len(blob)
    if saved < max(SAVING_BYTES_MIN, SAVING_MIN * len(content)):
        return Chunk(sha256=digest(content), size_bytes=len(content)), bytes(content)
    chunk = Chunk(
        sha256=digest(blob),
        size_bytes=len(blob),
        encoding=DEFLATE,
        content_bytes=len(content),
        content_sha256=digest(content),
    )
    return chunk, blob


def decoded(blob: bytes, chunk: Chunk) -> bytes:
    """The content that a blob holds.

    Never more than `chunk.length` bytes, and one to see that there are more, are unpacked.

    Args:
        blob: bytes whose hash is the chunk's name.
        chunk: as the manifest has it.

    Raises:
        ContentError: `unknown_encoding`; `chunk_too_large`: it would unpack to more than announced;
            `chunk_undecodable`: it is damaged, holds less, or something follows it;
            `hash_mismatch`: it unpacks to another content.
    """
    if chunk.encoding == RAW:
        return blob
    name = chunk.sha256[:12]
    if chunk.encoding != DEFLATE:
        raise ContentError("unknown_encoding", f"chunk {name} is encoded as {chunk.encoding[:40]!r}")
    unpack = zlib.decompressobj(_RAW_DEFLATE)
    try:
        content = unpack.decompress(blob, chunk.length + 1)
    except zlib.error as error:
        raise ContentError("chunk_undecodable", f"chunk {name} cannot be unpacked: {error}") from None
    if len(content) > chunk.length:
        raise ContentError(
            "chunk_too_large", f"chunk {name} unpacks to more than the {chunk.length} bytes announced"
        )
    if not unpack.eof or unpack.unused_data or unpack.unconsumed_tail or len(content) != chunk.length:
        raise ContentError(
            "chunk_undecodable", f"chunk {name} does not unpack to the {chunk.length} bytes announced"
        )
    if digest(content) != chunk.content:
        raise ContentError("hash_mismatch", f"chunk {name} unpacks to another content than announced")
    return content
