"""Makes a release that is whole by its hashes and wrong by its answers.

For: the demo's third release: what a wrong file packed by hand, or a bad disk on the build machine, would
send out. Every variant's weights are overwritten with noise and the manifest is written to match, so no
hash and no signature can tell; only the trial on the device does.
Not for: anything that should ever run.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import msgspec

from wire import bundle, chunks, codec


def damaged_bundle(source: Path, target: Path, release: str) -> None:
    """Copies the bundle at `source` to `target` as `release`, with noise for weights."""
    shutil.copytree(source, target)
    manifest = codec.decode(
        (source / "manifest.json").read_bytes(), bundle.Manifest, bundle.MANIFEST_BYTES_MAX
    )
    variants = tuple(
        msgspec.structs.replace(variant, files=tuple(_damage(target, file) for file in variant.files))
        for variant in manifest.variants
    )
    changed = msgspec.structs.replace(manifest, release=release, variants=variants)
    (target / "manifest.json").write_bytes(codec.encode(changed))


def _damage(folder: Path, file: bundle.File) -> bundle.File:
    """Overwrites the middle of the file's largest stretch of weights and describes the result."""
    path = folder / file.path
    data = bytearray(path.read_bytes())
    spans = _spans(file)
    noise = random.Random(3)
    for span in spans:
        # Whole chunks that hold nothing but one large tensor's weights: the graph still loads.
        if span.size_bytes == max(s.size_bytes for s in spans):
            middle = slice(span.offset + 64, span.offset + span.size_bytes - 64)
            data[middle] = noise.randbytes(middle.stop - middle.start)
    path.write_bytes(data)
    pieces = chunks.pieces(bytes(data), spans)
    return msgspec.structs.replace(
        file,
        sha256=chunks.digest(bytes(data)),
        chunks=tuple(bundle.Chunk(sha256=chunks.digest(p), size_bytes=len(p)) for p in pieces),
    )


def _spans(file: bundle.File) -> list[chunks.Span]:
    spans, offset = [], 0
    for chunk in file.chunks:
        spans.append(chunks.Span(offset, chunk.size_bytes))
        offset += chunk.size_bytes
    return spans
