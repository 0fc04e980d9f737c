"""From the chosen candidates to a bundle's files and manifest.

For: the exact bytes of every file, cut into named chunks, and the manifest that lists them.
Not for: writing them (`converter.output`), signing or publishing them (fleet).
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from converter.attempts import LITERT, TFLITE, variant_id
from converter.errors import InputError
from converter.inputs import Inputs
from converter.measured import Measured
from converter.recipe import format_recipe
from converter.rows import Timing, host_figures, parity_of
from converter.shards import npz_bytes, shard_arrays
from wire.bundle import (
    MANIFEST_BYTES_MAX,
    Chunk,
    File,
    Manifest,
    Provenance,
    Requirements,
    Shard,
    Variant,
    check,
)
from wire.chunks import cut, digest, pieces
from wire.codec import encode
from wire.onnx_walk import boundaries
from wire.tflite_walk import boundaries as edges_of

MANIFEST_NAME = "manifest.json"


class Bundle(Struct, frozen=True, kw_only=True):
    """A manifest with all files that it names.

    Attributes:
        manifest: checked.
        content: of `manifest.json`; its SHA-256 is the release's digest.
        files: content by path.
    """

    manifest: Manifest
    content: bytes
    files: dict[str, bytes]


def pack(
    inputs: Inputs,
    variants: tuple[tuple[Measured, Timing], ...],
    baseline: tuple[Measured, Timing],
    provenance: Provenance,
) -> Bundle:
    """The bundle of these variants, the chosen one first.

    Raises:
        InputError: `bundle_too_large`: the manifest would be larger than anyone reads.
        ContentError: the manifest contradicts itself; a fault of this program.
    """
    files: dict[str, bytes] = {}
    listed = tuple(_variant(inputs, one, timing, files) for one, timing in variants)
    shards = _shards(inputs, baseline[0], {one.id: one for one, _ in variants}, files)
    signature = inputs.source.signature
    manifest = check(
        Manifest(
            model=inputs.name,
            release=inputs.release,
            created_at=inputs.created_at.isoformat(timespec="seconds").replace("+00:00", "Z"),
            task=inputs.task.kind,
            metric=inputs.task.metric,
            answer=inputs.task.answer,
            target=inputs.target.id,
            sla=inputs.limits,
            inputs=signature.inputs,
            outputs=signature.outputs,
            data=inputs.description.inputs,
            labels=inputs.description.labels,
            variants=listed,
            baseline=host_figures(inputs, *baseline),
            validation=shards,
            provenance=provenance,
        )
    )
    content = encode(manifest)
    if len(content) > MANIFEST_BYTES_MAX:
        raise InputError(
            "bundle_too_large",
            f"the manifest has {len(content)} bytes, at most {MANIFEST_BYTES_MAX} are read; "
            "give fewer validation samples",
        )
    return Bundle(manifest=manifest, content=content, files=files)


def _variant(inputs: Inputs, one: Measured, timing: Timing, files: dict[str, bytes]) -> Variant:
    content = one.content
    if content is None:
        raise RuntimeError(f"{one.id} has no graph to pack")
    tflite = one.runtime in TFLITE
    # One file, whichever runtime loads it.
    shared = variant_id(one.recipe, LITERT)
    path = f"variants/{shared}/model.tflite" if tflite else f"variants/{format_recipe(one.recipe)}/model.onnx"
    files[path] = content
    # FP32 runs anywhere; quantized arithmetic is chosen for one class of CPU.
    requires = inputs.target.requires.value if one.recipe.quantized else Requirements()
    return Variant(
        id=one.id,
        runtime=one.runtime,
        recipe=format_recipe(one.recipe),
        precision=one.recipe.precision,
        model_path=path,
        files=(file_of(path, content, edges_of(content) if tflite else boundaries(content)),),
        requires=requires,
        host=host_figures(inputs, one, timing),
        session_config={} if tflite else inputs.target.session_config(one.recipe),
        axes=one.axes,
        twin_of=one.twin_of,
        parity=parity_of(one),
    )


def _shards(
    inputs: Inputs, baseline: Measured, variants: Mapping[str, Measured], files: dict[str, bytes]
) -> tuple[Shard, ...]:
    hosts = {key: one.outputs for key, one in variants.items() if one.outputs is not None}
    shards = []
    for i, arrays in enumerate(shard_arrays(inputs.validation, baseline.outputs or {}, hosts)):
        path, content = f"validation/shard-{i:04d}.npz", npz_bytes(arrays)
        files[path] = content
        n_samples = len(next(iter(arrays.values())))
        shards.append(Shard(file=file_of(path, content), n_samples=n_samples))
    return tuple(shards)


def file_of(path: str, content: bytes, edges: tuple[int, ...] = ()) -> File:
    """A file's entry: its hash, and its chunks cut at `edges` where those allow."""
    chunks = tuple(
        Chunk(sha256=digest(piece), size_bytes=len(piece))
        for piece in pieces(content, cut(len(content), edges))
    )
    return File(path=path, size_bytes=len(content), sha256=digest(content), chunks=chunks)
