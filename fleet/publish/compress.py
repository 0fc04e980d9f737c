"""Compressing a bundle's chunks where that pays, before it is published.

For: the same bundle with chunks that travel smaller; files, their hashes and their cuts stay what they were.
The manifest says how each chunk travels, so its bytes and with them the release's digest are others: a
manifest that is to be signed is compressed first.
Not for: the encodings themselves (`wire.encodings`), or deltas (`fleet.deltas`).
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from fleet.publish.content import manifest_digest, read_manifest
from fleet.publish.upload import Bundle, Place
from wire.bundle import MANIFEST_BYTES_MAX, RAW, Chunk
from wire.encodings import packed


def compressed(bundle: Bundle) -> Bundle:
    """The bundle with every chunk as small as `wire.encodings` makes it; itself where nothing pays.

    Ensures: equal bundles and equal zlibs give equal bytes, so publishing again changes nothing.
    """
    places: dict[str, Place] = {}
    smaller: dict[str, Chunk] = {}
    for digest, place in bundle.places.items():
        chunk, _ = packed(place.read()) if place.encoding == RAW else (None, b"")
        if chunk is None or chunk.encoding == RAW:
            places[digest] = place
            continue
        smaller[digest] = chunk
        places[chunk.sha256] = replace(place, size_bytes=chunk.size_bytes, encoding=chunk.encoding)
    if not smaller:
        return bundle
    data = _with(bundle.data, smaller)
    if len(data) > MANIFEST_BYTES_MAX:
        # Two hashes a chunk do not fit; the chunks then travel as they are.
        return bundle
    return Bundle(data=data, digest=manifest_digest(data), manifest=read_manifest(data), places=places)


def _with(manifest: bytes, smaller: dict[str, Chunk]) -> bytes:
    """The manifest with these chunks; fields that only a newer converter knows stay in it."""
    tree = msgspec.json.decode(manifest)
    files = [file for variant in tree["variants"] for file in variant["files"]]
    for file in files + [shard["file"] for shard in tree.get("validation", ())]:
        file["chunks"] = [smaller.get(chunk["sha256"], chunk) for chunk in file.get("chunks", ())]
    return msgspec.json.encode(tree, order="deterministic")
