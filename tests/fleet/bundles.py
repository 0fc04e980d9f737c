"""Valid bundles made of random bytes, for tests that need no model that runs.

For: a directory as shallop-convert would write it, through wire's own types.
Not for: anything that loads the model.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from wire.bundle import Chunk, File, Manifest, Provenance, Shard, TensorSpec, Variant
from wire.chunks import cut, digest, pieces
from wire.codec import encode
from wire.sla import Limits

VARIANT = "onnxruntime/static_wi8_au8_pc_minmax"


def _file(directory: Path, path: str, content: bytes, chunk_bytes_max: int) -> File:
    target = directory / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    chunks = tuple(
        Chunk(sha256=digest(piece), size_bytes=len(piece))
        for piece in pieces(content, cut(len(content), chunk_bytes_max=chunk_bytes_max))
    )
    return File(path=path, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest(), chunks=chunks)


def write_bundle(
    directory: Path,
    release: str,
    *,
    model: str = "camera",
    size_bytes: int = 200_000,
    seed: int = 1,
    shared_bytes: int = 0,
    chunk_bytes_max: int = 16 * 1024,
    shards: int = 2,
    content: bytes | None = None,
) -> Manifest:
    """Writes a bundle; the first `shared_bytes` of its model are the same whatever `seed` is."""
    directory.mkdir(parents=True, exist_ok=True)
    content = content or random.Random(0).randbytes(shared_bytes) + random.Random(seed).randbytes(
        size_bytes - shared_bytes
    )
    model_file = _file(directory, "model/model.onnx", content, chunk_bytes_max)
    validation = tuple(
        Shard(
            file=_file(
                directory, f"validation/{i}.npz", random.Random(1000 + i).randbytes(3000), chunk_bytes_max
            ),
            n_samples=200,
        )
        for i in range(shards)
    )
    spec = TensorSpec(name="x", dtype="float32", shape=(None, 4))
    manifest = Manifest(
        model=model,
        release=release,
        created_at="2026-01-01T00:00:00+00:00",
        task="classification",
        target="x86-64",
        sla=Limits(),
        inputs=(spec,),
        outputs=(spec,),
        variants=(
            Variant(
                id=VARIANT,
                runtime="onnxruntime",
                recipe="static_wi8_au8_pc_minmax",
                precision="int8",
                model_path="model/model.onnx",
                files=(model_file,),
            ),
        ),
        validation=validation,
        provenance=Provenance(source_model_sha256="0" * 64),
    )
    (directory / "manifest.json").write_bytes(encode(manifest))
    return manifest
