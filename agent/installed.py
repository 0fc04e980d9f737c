"""An installed release: its own description, and whether it still is what was installed.

For: the files that the agent adds to a release, and one answer, in words, from reading every file of a slot:
what the daemon asks at its start, once a day, before a trial and before a switch.
Not for: putting releases there (`agent.slots`), what follows from damage (`agent.repair`), or mending it
(`agent.mending`).

A file that cannot be read is damage too, whatever took it away: a bad block, a wrong owner, a wrong mode.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent.errors import UNREADABLE
from wire.bundle import MANIFEST_BYTES_MAX, Axes, InputData, Manifest, TensorSpec, Variant
from wire.chunks import digest
from wire.messages import Slot
from wire.types import Count, Digest, ModelName, Name, RelativePath, ReleaseName, VariantId

RELEASE_JSON, MANIFEST_JSON = "release.json", "manifest.json"
LABELS_JSON, PREPROCESSING_JSON = "labels.json", "preprocessing.json"
_BLOCK_BYTES = 64 * 1024
"""`hashlib.file_digest` takes 256 KiB, which the C library keeps for each model whose thread hashed."""
OWN_FILES = frozenset({RELEASE_JSON, MANIFEST_JSON, LABELS_JSON, PREPROCESSING_JSON})


class ReleaseInfo(Struct, frozen=True, kw_only=True, tag_field="kind", tag="installed-release"):
    """`release.json`: what an application, or a recovery, has to know about the directory it is in.

    Attributes:
        model_file: name of the model's file in this directory.
        runtime: that the variant was made for; None for an adopted file.
        manifest: whether `manifest.json` is there; an adopted release has none.
        data: how stored samples become its inputs, for a trial beside it; None for an adopted file.
        axes: by name of an input or output: the file's tensor is that of `inputs` or `outputs`, transposed by
            these axes; an application that feeds the file needs them.
    """

    version: int = 1
    model: ModelName
    digest: Digest
    release: ReleaseName
    variant: VariantId
    order: Count = 0
    adopted: bool = False
    model_file: RelativePath
    model_sha256: Digest
    runtime: Name | None = None
    precision: Name | None = None
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    session_config: dict[str, str] = {}
    data: dict[str, InputData] | None = None
    axes: dict[Name, Axes] = {}

    @property
    def slot(self) -> Slot:
        """The slot that this directory fills."""
        return Slot(
            digest=self.digest,
            release=self.release,
            variant=self.variant,
            order=self.order,
            adopted=self.adopted,
        )


def directory_name(slot: Slot) -> str:
    """Name of a slot's directory; neither digest nor variant can hold a '-'."""
    return f"{slot.digest}-{slot.variant.replace('/', '-')}"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in lower-case hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    found, block = hashlib.sha256(), memoryview(bytearray(_BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            found.update(block[:size])
    return found.hexdigest()


def placed(variant: Variant, path: str) -> str:
    """Where a file of a variant lies in its slot.

    The folders that all its files share in the bundle are left out, so that the model of every variant of
    a release is `current/model.onnx` for the application.
    """
    prefix = variant.model_path.rpartition("/")[0] + "/"
    shared = all(file.path.startswith(prefix) for file in variant.files)
    return path.removeprefix(prefix) if shared else path


# Made by the thread that imports this, as in `wire.codec`.
INFO = msgspec.json.Decoder(ReleaseInfo)
MANIFEST = msgspec.json.Decoder(Manifest)
_LABELS = msgspec.json.Decoder(tuple[str, ...])
_DATA = msgspec.json.Decoder(dict[str, InputData])


def release_info(slot: Slot, variant: Variant, manifest: Manifest) -> ReleaseInfo:
    """What `release.json` says of a variant in a slot."""
    model = next(file for file in variant.files if file.path == variant.model_path)
    return ReleaseInfo(
        model=manifest.model,
        digest=slot.digest,
        release=manifest.release,
        variant=slot.variant,
        order=slot.order,
        model_file=placed(variant, variant.model_path),
        model_sha256=model.sha256,
        runtime=variant.runtime,
        precision=variant.precision,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        session_config=variant.session_config,
        data=manifest.data,
        axes=variant.axes,
    )


def damage(directory: Path, slot: Slot) -> str | None:
    """What is wrong with the release of `slot` in `directory`; None where every byte that matters is right.

    Every file of the variant is hashed; of the agent's own files the content counts, not the bytes, so that
    one written by an older agent is whole.
    """
    try:
        return _adopted(directory, slot) if slot.adopted else _installed(directory, slot)
    except FileNotFoundError as error:
        return f"{Path(error.filename or directory).name} is missing"
    except OSError as error:
        return f"{Path(error.filename or directory).name} cannot be read: {error.strerror}"
    except UNREADABLE as error:
        return f"a file of the agent's own cannot be read: {error}"


def _adopted(directory: Path, slot: Slot) -> str | None:
    info = INFO.decode((directory / RELEASE_JSON).read_bytes())
    if file_sha256(directory / info.model_file) != slot.digest:
        return f"{info.model_file} is not what was adopted"
    return None


def _installed(directory: Path, slot: Slot) -> str | None:
    with (directory / MANIFEST_JSON).open("rb") as opened:
        raw = opened.read(MANIFEST_BYTES_MAX + 1)
    if digest(raw) != slot.digest:
        return f"{MANIFEST_JSON} is not that of the release"
    manifest = MANIFEST.decode(raw)
    variant = manifest.variant(slot.variant)
    if variant is None:
        return f"the manifest has no variant {slot.variant}"
    for file in variant.files:
        if file_sha256(directory / placed(variant, file.path)) != file.sha256:
            return f"{file.path} is damaged"
    expected = release_info(slot, variant, manifest)
    info = INFO.decode((directory / RELEASE_JSON).read_bytes())
    # An order that names what runs already changes the slot's number and no file.
    if replace(info, order=expected.order) != expected:
        return f"{RELEASE_JSON} is not that of the release"
    labels = _LABELS.decode((directory / LABELS_JSON).read_bytes())
    if labels != manifest.labels:
        return f"{LABELS_JSON} is damaged"
    data = _DATA.decode((directory / PREPROCESSING_JSON).read_bytes())
    return None if data == manifest.data else f"{PREPROCESSING_JSON} is damaged"
