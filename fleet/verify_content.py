"""PURE. Whether the content of a release is what its manifest names, and the models what it says of them.

For: the rows of files, of models' headers, of deltas, and of what the broker retains.
Not for: fetching or rebuilding anything (`fleet.verification`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

from fleet.verify import SHORT, Fault, Row, failed, not_checked, ok
from wire import onnx_walk, tflite_walk
from wire.bundle import RAW, Chunk, File, Manifest, TensorSpec, Variant
from wire.chunks import digest
from wire.deltas import DeltaHint
from wire.errors import ContentError, ShallopError

Format = Literal["onnx", "tflite"]
FORMATS: dict[str, Format] = {
    "onnxruntime": "onnx",
    "ai-edge-litert": "tflite",
    "ai_edge_litert": "tflite",
    "tflite-runtime": "tflite",
    "tflite_runtime": "tflite",
}
"""What a variant's runtime loads."""
_EDGES = frozenset({"int8", "uint8", "int16"})
"""Types that a TFLite file may take and give in place of float32, with a scale."""
_NAMED_MAX = 3


class Rebuilt(Struct, frozen=True, kw_only=True):
    """A file, put together from its chunks."""

    size_bytes: int
    sha256: str


Found = Mapping[str, Rebuilt | Fault]
"""By path: what came of each file."""


def true_blob(chunk: Chunk, content: bytes) -> bytes:
    """A blob, once it is shown to be what its name says.

    Raises:
        ContentError: `hash_mismatch`, `size_mismatch`.
    """
    name = chunk.sha256[:SHORT]
    if digest(content) != chunk.sha256:
        raise ContentError("hash_mismatch", f"chunk {name} is {digest(content)[:SHORT]} in truth")
    if len(content) != chunk.size_bytes:
        raise ContentError("size_mismatch", f"chunk {name} has {len(content)} bytes, not {chunk.size_bytes}")
    return content


def content_row(check: str, files: Sequence[File], found: Found) -> Row:
    """Whether every one of these files, rebuilt, is what the manifest names."""
    faults = [f"{file.path} {why}" for file in files if (why := _fault(file, found.get(file.path)))]
    if faults:
        return failed(check, f"of {len(files)} files {len(faults)} are not whole: {_few(faults)}")
    chunks = [chunk for file in files for chunk in file.chunks]
    packed = sum(chunk.encoding != RAW for chunk in chunks)
    size = sum(file.size_bytes for file in files)
    counted = f"{len(chunks)} chunks" + (f", {packed} of them compressed" if packed else "")
    return ok(check, f"{_many(len(files), 'file')} of {size:,} bytes rebuilt from {counted}, SHA-256 equal")


def _fault(file: File, found: Rebuilt | Fault | None) -> str:
    """What is wrong with a file; empty where nothing is."""
    if found is None:
        return "was not looked at"
    if isinstance(found, Fault):
        return f"cannot be rebuilt: {found.message} [{found.code}]"
    if found.size_bytes != file.size_bytes:
        return f"has {found.size_bytes} bytes, the manifest says {file.size_bytes}"
    if found.sha256 != file.sha256:
        return f"has SHA-256 {found.sha256[:SHORT]}, the manifest says {file.sha256[:SHORT]}"
    return ""


def _few(words: Sequence[str]) -> str:
    more = len(words) - _NAMED_MAX
    return "; ".join(words[:_NAMED_MAX]) + (f"; and {more} more" if more > 0 else "")


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


# --- headers ---------------------------------------------------------------------------------------


class Tensor(Struct, frozen=True):
    """An input or output as the file has it; None in `shape` is a free axis, a shape of `()` unknown."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class Header(Struct, frozen=True, kw_only=True):
    """What a model file says of itself."""

    format: Format
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def read_header(form: Format, content: bytes | memoryview) -> Header | Fault:
    """The header of a model file of that format; nothing of it is run."""
    try:
        if form == "onnx":
            onnx = onnx_walk.header(content)
            sides = [
                tuple(Tensor(e.name, e.dtype, e.shape) for e in side) for side in (onnx.inputs, onnx.outputs)
            ]
        else:
            lite = tflite_walk.walk(content)
            held = [tuple(lite.tensors[i] for i in side if i >= 0) for side in (lite.inputs, lite.outputs)]
            sides = [tuple(Tensor(e.name, e.dtype, tuple(e.shape)) for e in side) for side in held]
    except ShallopError as error:
        return Fault(code=error.code, message=str(error.args[0]))
    return Header(format=form, inputs=sides[0], outputs=sides[1])


def header_row(manifest: Manifest, variant: Variant, found: Header | Fault | None) -> Row:
    """Whether a variant's model file is of its runtime's format and takes and gives what is said of it."""
    check = f"model {variant.id}"
    form = FORMATS.get(variant.runtime)
    if form is None:
        return not_checked(check, f"this program knows no format of {variant.runtime}; a newer one may")
    if found is None:
        return not_checked(check, "its file is not whole, so nothing is read from it")
    if isinstance(found, Fault):
        return failed(check, f"{variant.model_path} is no {form} model: {found.message} [{found.code}]")
    faults = _edges(manifest.inputs, found.inputs, variant, found.format, "takes")
    extra = {one.name for one in found.inputs} - {one.name for one in manifest.inputs}
    faults += [f"it takes {name}, which the manifest does not name" for name in sorted(extra)]
    faults += _edges(manifest.outputs, found.outputs, variant, found.format, "gives")
    if faults:
        return failed(check, _few(faults))
    takes = ", ".join(f"{one.name} {one.dtype}" for one in found.inputs)
    return ok(check, f"{form}, takes {takes}, as the manifest says")


def _edges(
    said: Sequence[TensorSpec], held: Sequence[Tensor], variant: Variant, form: Format, verb: str
) -> list[str]:
    by_name = {one.name: one for one in held}
    faults = []
    for spec in said:
        one = by_name.get(spec.name)
        if one is None:
            faults.append(f"it {verb} no {spec.name}, the manifest says that it does")
            continue
        if not _same_type(spec.dtype, one.dtype, form):
            faults.append(f"it {verb} {spec.name} as {one.dtype}, the manifest says {spec.dtype}")
        if not fits(spec.shape, one.shape, variant.axes.get(spec.name), form):
            words = f"it {verb} {spec.name} of shape {_words(one.shape)}"
            faults.append(f"{words}, the manifest says {_words(spec.shape)}")
    return faults


def _same_type(said: str, held: str, form: Format) -> bool:
    return said == held or (form == "tflite" and said == "float32" and held in _EDGES)


def fits(
    said: tuple[int | None, ...], held: tuple[int | None, ...], axes: tuple[int, ...] | None, form: Format
) -> bool:
    """Whether a tensor's shape is the manifest's.

    Args:
        said: by the manifest; None is a free axis, `()` of an output that ONNX knows nothing of.
        held: by the file.
        axes: the file's tensor is the manifest's, transposed by these; None: it is not transposed.
        form: a `.tflite` file's shapes are fixed, so its first axis holds the batch that it was written for.
    """
    if not said or not held:
        return True
    order = tuple(range(len(said))) if axes is None else axes
    if len(order) != len(said) or len(held) != len(said):
        return False
    for axis, size in zip(order, held, strict=True):
        batch = form == "tflite" and axis == 0
        if not batch and said[axis] is not None and size is not None and said[axis] != size:
            return False
    return True


def _words(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


# --- deltas and the broker -------------------------------------------------------------------------


def delta_row(manifest: Manifest, found: Sequence[tuple[DeltaHint, Fault | None]] | None) -> Row:
    """Whether the deltas that are offered for a release are whole and lead to files of it.

    Args:
        manifest: of the release.
        found: each hint with what is wrong with its content; None where deltas cannot be offered.
    """
    if found is None:
        return not_checked("deltas", "a directory holds none")
    if not found:
        return not_checked("deltas", "none is offered for this release")
    files = {file.sha256: file for file in manifest.all_files()}
    faults = []
    for hint, fault in found:
        name = f"the delta {hint.from_file_sha256[:SHORT]} to {hint.to_file_sha256[:SHORT]}"
        if hint.to_file_sha256 not in files:
            faults.append(f"{name} makes no file of this release")
        elif fault is not None:
            faults.append(f"{name}: {fault.message} [{fault.code}]")
    if faults:
        return failed("deltas", _few(faults))
    words = f"{_many(len(found), 'delta')} whole; what they make, devices hold against the same SHA-256"
    return ok("deltas", words)


Retained = Mapping[str, str | None]
"""By topic: SHA-256 of what the broker retains there; None: nothing."""


def broker_rows(release: str, expected: Mapping[str, str], held: Retained) -> list[Row]:
    """Whether the broker retains what the registry gives out.

    Args:
        release: topic of the signed release.
        expected: by topic, SHA-256 of what should lie there: the release, the roots, every chunk.
        held: the same of what lies there; a topic that is not among it counts as empty.
    """
    if not any(held.get(topic) for topic in expected):
        return [not_checked("broker", "it retains nothing of this release, nor of the roots")]
    altered = sorted(topic for topic, want in expected.items() if held.get(topic) not in {None, want})
    absent = [topic for topic in expected if held.get(topic) is None]
    rows = [
        failed("broker", f"retains other content: {_few(altered)}")
        if altered
        else ok("broker", f"whatever it retains of {len(expected)} messages is the registry's")
    ]
    if release in absent:
        words = "it does not retain the release: it was never published there, or cleared after its rollout"
        return [*rows, not_checked("broker complete", words)]
    if absent:
        words = f"of {len(expected)} messages {len(absent)} are missing: {_few(sorted(absent))}"
        return [*rows, failed("broker complete", words)]
    return [*rows, ok("broker complete", f"the release, its roots and its chunks: {len(expected)} messages")]
