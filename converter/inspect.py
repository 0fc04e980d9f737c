"""What a bundle, an ONNX or a TFLite file is, read from nothing but its own bytes.

For: `shallop-convert inspect`: the manifest, whether every file is what the manifest names, how each
variant is quantized, and what the runtime here makes of it.
Not for: measuring accuracy or latency, or judging an SLA.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from converter.confined import looked
from converter.errors import InputError
from converter.look import Job, Model
from converter.model import read_bytes
from converter.targets.detect import Machine, detect_machine, meets
from converter.targets.loader import all_targets
from converter.tflite_summary import TFLiteModel
from wire.bundle import MANIFEST_BYTES_MAX, File, Manifest, Variant, check
from wire.codec import decode
from wire.errors import ContentError

Progress = Callable[[str, int, int], None]

_MANIFEST_NAME, _CANDIDATES_NAME = "manifest.json", "candidates.json"
_READ_BYTES = 1024 * 1024
_NAMED_MAX = 5


class InspectedVariant(Struct, frozen=True, kw_only=True):
    """A variant with its model looked into; None where its model is of another kind."""

    variant: Variant
    model: Model | TFLiteModel | None


class Bundle(Struct, frozen=True, kw_only=True):
    """A bundle whose every file was found to be what the manifest names.

    Attributes:
        digest: SHA-256 of the manifest, which is the release's name.
        files: each path once.
        unlisted: names in the directory that the manifest does not list.
    """

    digest: str
    manifest: Manifest
    files: tuple[File, ...]
    unlisted: tuple[str, ...]
    variants: tuple[InspectedVariant, ...]


def inspect(path: Path, progress: Progress | None = None) -> Bundle | Model | TFLiteModel:
    """A bundle's directory, an ONNX file or a TFLite file.

    Args:
        path: of either.
        progress: told (stage, done, in all).

    Raises:
        InputError: `nothing_there`, `no_bundle`, `model_not_onnx`, `model_not_tflite`, `model_too_large`.
        ContentError: `bundle_damaged`: the files that are missing or not what the manifest names.
        WireError, LimitsError: the manifest itself cannot be read.
    """
    if path.is_dir():
        return _bundle(path, progress)
    if not path.exists():
        raise InputError(
            "nothing_there", f"{path} does not exist; name a bundle's directory, an .onnx or a .tflite file"
        )
    return next(looked([Job(path=str(path), name=path.name, tflite=path.suffix == ".tflite")]))


def _bundle(directory: Path, progress: Progress | None) -> Bundle:
    place = directory / _MANIFEST_NAME
    if not place.is_file():
        raise InputError("no_bundle", f"{directory} holds no {_MANIFEST_NAME}{_hint(directory)}")
    content = read_bytes(place, MANIFEST_BYTES_MAX, "manifest")
    manifest = check(decode(content, Manifest, MANIFEST_BYTES_MAX))
    files = tuple({file.path: file for file in manifest.all_files()}.values())
    _require_whole(directory, files, progress)
    return Bundle(
        digest=hashlib.sha256(content).hexdigest(),
        manifest=manifest,
        files=files,
        unlisted=_unlisted(directory, files),
        variants=tuple(_variants(directory, manifest, progress)),
    )


def _hint(directory: Path) -> str:
    if (directory / _CANDIDATES_NAME).is_file():
        return (
            ": no candidate passed the SLA, so none was bundled; "
            f"`shallop-convert candidates {directory}` says why"
        )
    return "; name a directory that `shallop-convert convert` wrote, or an .onnx file"


def _require_whole(directory: Path, files: tuple[File, ...], progress: Progress | None) -> None:
    """Looks at all of them before it names those that are damaged."""
    faults = []
    for i, file in enumerate(files, start=1):
        fault = _fault(directory, file)
        if fault is not None:
            faults.append(f"{file.path} {fault}")
        if progress is not None:
            progress("check files", i, len(files))
    if faults:
        named = "; ".join(faults[:_NAMED_MAX])
        more = f"; and {len(faults) - _NAMED_MAX} more" if len(faults) > _NAMED_MAX else ""
        raise ContentError(
            "bundle_damaged", f"{directory} is damaged: {named}{more}; copy it again or convert again"
        )


def _fault(directory: Path, file: File) -> str | None:
    """What is wrong with one file, in words, or None."""
    place = (directory / file.path).resolve()
    if not place.is_relative_to(directory.resolve()):
        return "leads out of the bundle"
    whole, size_bytes = hashlib.sha256(), 0
    try:
        with place.open("rb") as content:
            while piece := content.read(_READ_BYTES):
                whole.update(piece)
                size_bytes += len(piece)
                if size_bytes > file.size_bytes:
                    return f"has more than the {file.size_bytes} bytes that the manifest says"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if size_bytes != file.size_bytes:
        return f"has {size_bytes} bytes, the manifest says {file.size_bytes}"
    return None if whole.hexdigest() == file.sha256 else "is not what the manifest names (SHA-256 differs)"


def _unlisted(directory: Path, files: tuple[File, ...]) -> tuple[str, ...]:
    known = {file.path for file in files} | {_MANIFEST_NAME}
    found = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    return tuple(sorted(name for name in found if name not in known))


def _variants(directory: Path, manifest: Manifest, progress: Progress | None) -> list[InspectedVariant]:
    machine = detect_machine()
    jobs = {
        variant.id: Job(
            path=str(directory / variant.model_path),
            name=variant.model_path,
            tflite=variant.model_path.endswith(".tflite"),
            config=session_config(manifest, variant, machine),
        )
        for variant in manifest.variants
        if variant.model_path.endswith((".onnx", ".tflite"))
    }
    models, found = looked(list(jobs.values())), []
    for i, variant in enumerate(manifest.variants, start=1):
        model = next(models) if variant.id in jobs else None
        found.append(InspectedVariant(variant=variant, model=model))
        if progress is not None:
            progress("look into variants", i, len(manifest.variants))
    return found


def session_config(manifest: Manifest, variant: Variant, machine: Machine) -> dict[str, str]:
    """Session entries with which `machine` runs the variant as its target would, as far as it can.

    On a machine of another class those that emulate the target's arithmetic are added, as the conversion
    did; a target that is not known here adds nothing.
    """
    config = dict(variant.session_config)
    target = next((one for one in all_targets() if one.id == manifest.target), None)
    if target is None or variant.precision.startswith("fp") or meets(machine, variant.requires):
        return config
    return config | target.rules.emulation_config.value
