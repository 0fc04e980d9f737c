"""PURE. The manifest of a bundle: what a release is made of, down to the hash of each chunk.

For: the type that the converter writes, the registry signs and publishes, and the device checks against.
A release's DIGEST is the SHA-256 of the manifest's exact bytes (the payload of its envelope).
Not for: reading files. `check()` decides whether a manifest is coherent; whether bytes match it is for
whoever holds the bytes.

Unknown fields of a manifest are ignored; the exact bytes are kept, so nothing is lost by re-encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta, Struct

from wire.errors import ContentError
from wire.measures import Latency, Measure
from wire.sla import Limits, checked, require_direction
from wire.tasks import TOP1, Answer, Kind, Metric
from wire.types import (
    Code,
    Count,
    Digest,
    Fraction,
    ModelName,
    Name,
    Positive,
    RelativePath,
    ReleaseName,
    Text,
    VariantId,
)

MANIFEST_BYTES_MAX = 4 * 1024 * 1024
FILE_BYTES_MAX = 2 * 1024**3
CHUNKS_MAX = 65_536
"""At 64 KiB each: 4 GiB, above the largest file."""
INGREDIENTS_MAX = 256
"""A model's weights may lie in a file for each tensor."""

Axes = Annotated[tuple[Annotated[int, Meta(ge=0, le=15)], ...], Meta(min_length=2, max_length=16)]
"""A permutation of a tensor's axes, as numpy's `transpose` takes it."""


RAW, DEFLATE = "raw", "deflate"
ENCODINGS = (RAW, DEFLATE)
"""That this program can decode; a manifest that uses another is refused by name."""
CONTENT_BYTES_MAX = 1024 * 1024
"""Of one chunk, decoded: what a device has to hold in memory at once."""


class Chunk(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One blob; concatenated in order, decoded by `encoding`, the chunks are the file.

    Attributes:
        sha256: of the blob as it travels; its name.
        size_bytes: of the blob as it travels.
        encoding: how the blob holds the content: `raw` is the content itself, `deflate` is RFC 1951
            without a header (`wire.encodings`).
        content_bytes: of the decoded content; None where it is the blob itself.
        content_sha256: of the same, so that content is known again whichever way it travelled.
    """

    sha256: Digest
    size_bytes: Positive
    encoding: Name = RAW
    content_bytes: Annotated[int, Meta(ge=1, le=CONTENT_BYTES_MAX)] | None = None
    content_sha256: Digest | None = None

    @property
    def length(self) -> int:
        """Bytes of the decoded content."""
        return self.size_bytes if self.content_bytes is None else self.content_bytes

    @property
    def content(self) -> str:
        """SHA-256 of the decoded content."""
        return self.content_sha256 or self.sha256


class File(Struct, frozen=True, kw_only=True):
    """A file of the bundle with the hash of its whole content."""

    path: RelativePath
    size_bytes: Annotated[int, Meta(ge=0, le=FILE_BYTES_MAX)]
    sha256: Digest
    chunks: Annotated[tuple[Chunk, ...], Meta(max_length=CHUNKS_MAX)] = ()


class TensorSpec(Struct, frozen=True, kw_only=True):
    """A model's input or output; None in `shape` is a free axis, the first axis counts samples."""

    name: Name
    dtype: Name
    shape: tuple[int | None, ...]


class Scale(Struct, frozen=True, kw_only=True, tag_field="op", tag="scale"):
    """Multiply by `factor`, in float32."""

    factor: float


class Normalize(Struct, frozen=True, kw_only=True, tag_field="op", tag="normalize"):
    """Subtract `mean`, divide by `std`: one value each for all channels, or one per channel."""

    mean: Annotated[tuple[float, ...], Meta(min_length=1, max_length=4096)]
    std: Annotated[tuple[float, ...], Meta(min_length=1, max_length=4096)]


Operation = Scale | Normalize
"""The closed list of preprocessing operations; it grows with the contract's version."""


class InputData(Struct, frozen=True, kw_only=True):
    """How the stored samples of one input become the model's tensor.

    Attributes:
        stored: raw samples are preprocessed, the model's own are not.
        layout: which axis holds the channels.
        preprocessing: in order.
        role: a sample's data; the state of a recurrent model, zeros when a sample begins; or an array
            that is the same for all samples. State and constants are stored per sample as well.
        sample_axis: 0: a stored sample lacks the model's first axis, which counts samples; None: a stored
            sample is the whole tensor, as a sequence whose first axis is time.
    """

    stored: Literal["raw", "model_input"] = "model_input"
    layout: Literal["NCHW", "NHWC", "other"] = "other"
    preprocessing: tuple[Operation, ...] = ()
    role: Literal["data", "state", "constant"] = "data"
    sample_axis: Literal[0] | None = 0

    @property
    def whole(self) -> bool:
        """Whether a stored sample is the model's tensor, without an axis added."""
        return self.sample_axis is None or self.role != "data"


class Requirements(Struct, frozen=True, kw_only=True):
    """What a device must have for a variant; empty means any device.

    Attributes:
        arch: machine names as `uname -m` gives them; any of them will do.
        cpu_any: CPU features of which at least one must be there.
        cpu_none: CPU features that must not be there.
    """

    arch: tuple[Name, ...] = ()
    cpu_any: tuple[Name, ...] = ()
    cpu_none: tuple[Name, ...] = ()


class HostFigures(Struct, frozen=True, kw_only=True):
    """What the host measured of a variant; latency only where it was measured on the target's class."""

    accuracy: Measure | None = None
    accuracy_ratio: Measure | None = None
    agreement: Measure | None = None
    latency: Latency | None = None
    latency_ratio: Measure | None = None
    runtime_version: Name | None = None


class Parity(Struct, frozen=True, kw_only=True):
    """How equal two twins compute, as the host measured it.

    Attributes:
        operators: of the file; those that `equal`, `one_step` and `worse` leave over were not compared.
        equal: operators that gave the same bits as the twin's, each fed the same inputs.
        one_step: operators of which some element lies one quantization step away.
        worse: operators of which some element lies further away.
        outputs_equal: share of the model's output elements that have the twin's bits, end to end.
        first_divergence: the first tensor, in the order of running, that differs; None where none does.
    """

    operators: Count
    equal: Count
    one_step: Count
    worse: Count
    outputs_equal: Fraction
    first_divergence: Name | None = None


class Variant(Struct, frozen=True, kw_only=True):
    """One way to run the model; the first variant of a manifest is the converter's choice.

    Attributes:
        axes: by name of an input or output: the variant's tensor is the manifest's, transposed by these
            axes. A tensor that is not named is as the manifest has it; a TFLite file takes its images
            as NHWC, which for an ONNX model's NCHW is `(0, 2, 3, 1)`.
        twin_of: the variant, in another runtime's format, with the same weights, scales and zero points;
            the release may have left it out.
        parity: how equal the two compute.
    """

    id: VariantId
    runtime: Name
    recipe: Name
    precision: Name
    model_path: RelativePath
    files: Annotated[tuple[File, ...], Meta(min_length=1, max_length=64)]
    requires: Requirements = Requirements()
    host: HostFigures = HostFigures()
    session_config: dict[str, str] = {}
    axes: dict[Name, Axes] = {}
    twin_of: VariantId | None = None
    parity: Parity | None = None

    @property
    def size_bytes(self) -> int:
        """Of all its files."""
        return sum(file.size_bytes for file in self.files)


class Shard(Struct, frozen=True, kw_only=True):
    """A share of the validation set: samples, labels, FP32 outputs and each variant's host outputs.

    The file is an `.npz` without pickle; the names of its arrays are given by `input_key`,
    `LABELS_KEY`, `fp32_key` and `host_key`.
    """

    file: File
    n_samples: Positive


LABELS_KEY = "labels"


def input_key(name: str) -> str:
    """Array that holds the stored samples of input `name`, first axis samples."""
    return f"input/{name}"


def fp32_key(name: str) -> str:
    """Array that holds the FP32 baseline's output `name` on the shard's samples."""
    return f"fp32/{name}"


def host_key(variant: str, name: str) -> str:
    """Array that holds the output `name` of `variant` as the host computed it."""
    return f"host/{variant}/{name}"


class Ingredient(Struct, frozen=True, kw_only=True):
    """A file that went into a bundle, by its content.

    Attributes:
        kind: what it was, such as `model`, `model_data` (weights outside of the model's file), `calibration`,
            `validation`, `search`, `dataset`, `sla`, `target` or `metric`; others may come.
        name: of the file without its folder; of `model_data` as the model names it.
    """

    kind: Code
    name: Name
    size_bytes: Count
    sha256: Digest


class Provenance(Struct, frozen=True, kw_only=True):
    """Where a bundle comes from; digests of what went in, versions of what made it.

    What is None or empty was not recorded: an earlier converter wrote the bundle.

    Attributes:
        source_model_sha256: of the model's file, followed by its files of external data in the order of
            their names.
        files: every file that was read, one by one.
        tools: versions by name, of what was used.
        host: the machine, in words.
        options: what changes the result, as it was in effect, asked for or not.
    """

    source_model_sha256: Digest
    calibration_sha256: Digest | None = None
    validation_sha256: Digest | None = None
    sla_sha256: Digest | None = None
    files: Annotated[tuple[Ingredient, ...], Meta(max_length=INGREDIENTS_MAX)] = ()
    tools: Annotated[dict[Name, Name], Meta(max_length=64)] = {}
    host: Annotated[dict[Name, Name], Meta(max_length=64)] = {}
    options: Annotated[dict[Name, Text], Meta(max_length=128)] = {}


class Manifest(Struct, frozen=True, kw_only=True, tag_field="kind", tag="release"):
    """A release. `created_at` is information (RFC 3339); nothing is decided by it.

    A manifest without `metric` and `answer` is of a time that knew classification only, which the defaults
    describe.
    """

    version: int = 1
    model: ModelName
    release: ReleaseName
    created_at: Name
    task: Kind
    metric: Metric = TOP1
    answer: Answer = Answer()
    target: Name
    sla: Limits
    inputs: Annotated[tuple[TensorSpec, ...], Meta(min_length=1, max_length=64)]
    outputs: Annotated[tuple[TensorSpec, ...], Meta(min_length=1, max_length=64)]
    data: dict[str, InputData] = {}
    labels: Annotated[tuple[Name, ...], Meta(max_length=100_000)] = ()
    variants: Annotated[tuple[Variant, ...], Meta(min_length=1, max_length=32)]
    baseline: HostFigures = HostFigures()
    validation: Annotated[tuple[Shard, ...], Meta(max_length=10_000)] = ()
    provenance: Provenance
    description: Text = ""

    def variant(self, variant_id: str) -> Variant | None:
        """The variant of that id, or None."""
        return next((v for v in self.variants if v.id == variant_id), None)

    def all_files(self) -> Iterator[File]:
        """Every file of every variant and shard; a file that two variants share comes twice."""
        for variant in self.variants:
            yield from variant.files
        for shard in self.validation:
            yield shard.file


def check(manifest: Manifest) -> Manifest:
    """The manifest itself, once the rules that its types cannot say hold.

    Raises:
        ContentError: `manifest_incoherent`: two variants of one id, one path with two contents, a model
            path that is no file of its variant, chunks that do not add up, data of an unknown input,
            a normalization whose mean and std differ in length or divide by zero, axes that are no
            permutation or of an unknown tensor, a variant that is its own twin, a parity that does not
            add up. `unknown_encoding`: chunks that only a newer program can decode.
        LimitsError: an SLA that cannot be judged.
    """
    checked(manifest.sla)
    require_direction(manifest.sla, manifest.metric)
    ids = [variant.id for variant in manifest.variants]
    _require(len(set(ids)) == len(ids), "two variants have the same id")
    for variant in manifest.variants:
        names = [file.path for file in variant.files]
        _require(len(set(names)) == len(names), f"{variant.id} lists a path twice")
        _require(variant.model_path in names, f"{variant.id} lists no file {variant.model_path}")
        _check_axes(manifest, variant)
        _check_twin(variant)
    contents: dict[str, str] = {}
    for file in manifest.all_files():
        known = contents.setdefault(file.path, file.sha256)
        _require(known == file.sha256, f"{file.path} is given two contents")
        _check_chunks(file)
    _check_data(manifest)
    return manifest


def _check_chunks(file: File) -> None:
    for chunk in file.chunks:
        if chunk.encoding not in ENCODINGS:
            raise ContentError(
                "unknown_encoding",
                f"{file.path} has chunks encoded as {chunk.encoding[:40]!r}, this program reads "
                f"{' and '.join(ENCODINGS)}; update it, or publish the release without",
            )
        announced = chunk.content_bytes is not None and chunk.content_sha256 is not None
        bare = chunk.content_bytes is None and chunk.content_sha256 is None
        fits = bare if chunk.encoding == RAW else announced
        _require(fits, f"a chunk of {file.path} is {chunk.encoding} and its content is not announced so")
    total = sum(chunk.length for chunk in file.chunks)
    _require(total == file.size_bytes, f"the chunks of {file.path} do not add up to its size")


def _check_axes(manifest: Manifest, variant: Variant) -> None:
    shapes = {spec.name: spec.shape for spec in (*manifest.inputs, *manifest.outputs)}
    for name, axes in variant.axes.items():
        where = f"{variant.id} gives axes of {name}"
        _require(name in shapes, f"{where}, which is no input or output of the model")
        _require(sorted(axes) == list(range(len(axes))), f"{where} that are no permutation: {list(axes)}")
        # A shape without axes is also what an output has of which ONNX does not know the shape.
        known = not shapes[name] or len(axes) == len(shapes[name])
        _require(known, f"{where} that are {len(axes)}, the tensor has {len(shapes[name])}")


def _check_twin(variant: Variant) -> None:
    _require(variant.twin_of != variant.id, f"{variant.id} is said to be its own twin")
    parity = variant.parity
    if parity is None:
        return
    _require(variant.twin_of is not None, f"{variant.id} has a parity, and no twin that it is of")
    compared = parity.equal + parity.one_step + parity.worse
    _require(
        compared <= parity.operators,
        f"{variant.id} compares {compared} operators of {parity.operators} with its twin's",
    )


def _check_data(manifest: Manifest) -> None:
    names = {spec.name for spec in manifest.inputs}
    for name, data in manifest.data.items():
        _require(name in names, f"data is described for {name}, which is no input of the model")
        for operation in data.preprocessing:
            if isinstance(operation, Normalize):
                _require(
                    len(operation.mean) == len(operation.std) and 0.0 not in operation.std,
                    f"normalize of {name} needs as many std as mean values, none of them zero",
                )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ContentError("manifest_incoherent", f"the manifest contradicts itself: {message}")
