"""A blob unpacks to exactly what the manifest announces, or is refused by name without the memory."""

from __future__ import annotations

import random
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.wire.samples import MANIFEST
from wire import bundle, codec
from wire.bundle import CONTENT_BYTES_MAX, DEFLATE, MANIFEST_BYTES_MAX, RAW, Chunk
from wire.chunks import digest
from wire.encodings import SAVING_BYTES_MIN, SAVING_MIN, decoded, packed
from wire.errors import ContentError, WireError

TEXT = b"a shallop carries cargo into waters too shallow for big ships. " * 1000


def deflate(data: bytes) -> bytes:
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    return pack.compress(data) + pack.flush()


def chunk_of(blob: bytes, content: bytes, **changes: object) -> Chunk:
    whole = Chunk(
        sha256=digest(blob), size_bytes=len(blob), encoding=DEFLATE, content_bytes=len(content),
        content_sha256=digest(content),
    )  # fmt: skip
    return replace(whole, **changes)


@given(st.binary(min_size=1, max_size=3000), st.integers(1, 40))
def test_what_was_packed_unpacks_to_itself(piece: bytes, times: int) -> None:
    content = piece * times
    chunk, blob = packed(content)
    assert (chunk.sha256, chunk.size_bytes) == (digest(blob), len(blob))
    assert (chunk.content, chunk.length) == (digest(content), len(content))
    assert decoded(blob, chunk) == content
    assert packed(content) == (chunk, blob)
    saved = len(content) - len(blob)
    assert chunk.encoding == RAW or saved >= max(SAVING_BYTES_MIN, SAVING_MIN * len(content))


def test_noise_travels_as_it_is_and_text_does_not() -> None:
    noise = b"".join(bytes.fromhex(digest(bytes([n]))) for n in range(200))
    assert packed(noise)[0] == Chunk(sha256=digest(noise), size_bytes=len(noise))
    assert packed(TEXT)[0].encoding == DEFLATE
    mostly = random.Random(1).randbytes(60_000) + bytes(1500)
    assert packed(mostly)[0].encoding == RAW, "a few hundredths do not pay for unpacking"
    assert packed(b"\0" * 500)[0].encoding == RAW, "a longer entry for a few hundred bytes does not pay"


BLOB = deflate(TEXT)


@pytest.mark.parametrize(
    ("blob", "chunk", "code"),
    [
        (BLOB, chunk_of(BLOB, TEXT, content_bytes=len(TEXT) - 1), "chunk_too_large"),
        (BLOB, chunk_of(BLOB, TEXT, content_bytes=len(TEXT) + 1), "chunk_undecodable"),
        (BLOB[:-9], chunk_of(BLOB[:-9], TEXT), "chunk_undecodable"),
        (BLOB[:-1], chunk_of(BLOB[:-1], TEXT), "chunk_undecodable"),
        (BLOB + b"x", chunk_of(BLOB + b"x", TEXT), "chunk_undecodable"),
        (b"\xff" * 50, chunk_of(b"\xff" * 50, TEXT), "chunk_undecodable"),
        (b"", chunk_of(b"", TEXT), "chunk_undecodable"),
        (BLOB, chunk_of(BLOB, TEXT, content_sha256="0" * 64), "hash_mismatch"),
        (BLOB, chunk_of(BLOB, TEXT, encoding="zstd"), "unknown_encoding"),
    ],
    ids=["more", "less", "cut", "without an end", "followed", "noise", "empty", "other", "zstd"],
)
def test_a_blob_that_is_not_what_was_announced_is_refused_by_name(
    blob: bytes, chunk: Chunk, code: str
) -> None:
    with pytest.raises(ContentError) as refused:
        decoded(blob, chunk)
    assert refused.value.code == code


def test_a_bomb_costs_no_more_memory_than_was_announced() -> None:
    bomb = deflate(bytes(200 * 1024 * 1024))
    assert len(bomb) < 256 * 1024, "it fits into one message"
    chunk = chunk_of(bomb, b"x" * 65536)
    tracemalloc.start()
    try:
        with pytest.raises(ContentError, match="more than the 65536 bytes") as refused:
            decoded(bomb, chunk)
        assert refused.value.code == "chunk_too_large"
        assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
    finally:
        tracemalloc.stop()


def with_chunk(chunk: Chunk) -> bundle.Manifest:
    variant = MANIFEST.variants[0]
    file = replace(variant.files[0], chunks=(chunk,))
    return replace(MANIFEST, variants=(replace(variant, files=(file,)), *MANIFEST.variants[1:]))


SIZE = MANIFEST.variants[0].files[0].size_bytes


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, None),
        ({"encoding": "zstd"}, "unknown_encoding"),
        ({"content_bytes": None}, "manifest_incoherent"),
        ({"content_sha256": None}, "manifest_incoherent"),
        ({"encoding": RAW}, "manifest_incoherent"),
        ({"content_bytes": SIZE + 1}, "manifest_incoherent"),
    ],
)
def test_a_manifest_announces_what_its_chunks_unpack_to(changes: dict[str, object], code: str | None) -> None:
    chunk = chunk_of(b"12345", b"x" * SIZE, **changes)
    manifest = with_chunk(chunk)
    assert codec.decode(codec.encode(manifest), bundle.Manifest, MANIFEST_BYTES_MAX) == manifest
    if code is None:
        assert bundle.check(manifest) is manifest
        return
    with pytest.raises(ContentError) as refused:
        bundle.check(manifest)
    assert refused.value.code == code


def test_no_chunk_may_announce_more_than_a_device_holds_in_memory() -> None:
    data = codec.encode(with_chunk(chunk_of(b"12345", b"x", content_bytes=CONTENT_BYTES_MAX + 1)))
    with pytest.raises(WireError) as refused:
        codec.decode(data, bundle.Manifest, MANIFEST_BYTES_MAX)
    assert refused.value.code == "invalid_field"


def test_a_raw_chunk_is_written_as_shortly_as_it_can_be() -> None:
    raw = Chunk(sha256="a" * 64, size_bytes=5)
    assert codec.encode(with_chunk(raw)).count(b'{"sha256":"' + b"a" * 64 + b'","size_bytes":5}') == 1
