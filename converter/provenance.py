"""What a bundle says about where it comes from: files, versions, machine and options.

For: `wire.bundle.Provenance`, filled with what was in effect, asked for or not, so that somebody else can
hold the very files against it (`shallop-fleet verify`) and convert again.
Not for: checking it, or the command line that asks for the same (`converter.inputs.command_of`).

Every option of a conversion is recorded in one of four ways, and the tables below say in which; a test
holds them against `Options`, so that a new option cannot be forgotten.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import converter
import wire
from converter.attempts import LITERT, TFLITE_RUNTIME
from converter.candidates import Candidate
from converter.dataset import SPLIT_SEED
from converter.errors import InputError
from converter.evaluate.statistics import SEED
from converter.inputs import Inputs, Options, description_path
from converter.runtime import VERSION
from converter.targets.loader import file_of_target
from wire.bundle import INGREDIENTS_MAX, Ingredient, Provenance

AS_FILES = frozenset({"model", "calibration", "validation", "search", "dataset", "sla"})
"""Options that name a file: recorded by its content."""
AS_TOOLS = {"tflite_runtime": TFLITE_RUNTIME, "vela": "ethos-u-vela"}
"""Options that name a program: recorded by its version, under this name."""
AS_NAMES = frozenset({"name", "release"})
"""Recorded as the manifest's own fields."""
WITHOUT_EFFECT = frozenset({"output", "force", "root"})
"""Where the result is put, and where a test's machine is described: nothing in the bundle depends on them."""

_NAME_CHARS, _TEXT_CHARS = 200, 2000
_BLOCK_BYTES = 1 << 20
_UNKNOWN = "unknown"


def provenance_of(
    options: Options, inputs: Inputs, files: tuple[Ingredient, ...], rows: Sequence[Candidate]
) -> Provenance:
    """Where this conversion's bundle comes from.

    Args:
        options: as asked for.
        inputs: as read.
        files: as `ingredients_of` gave them when the inputs had just been read.
        rows: every candidate, the baseline among them.
    """
    machine = inputs.machine
    return Provenance(
        source_model_sha256=inputs.source.sha256,
        calibration_sha256=inputs.calibration.sha256,
        validation_sha256=inputs.validation.sha256,
        sla_sha256=inputs.sla_sha256,
        files=files,
        tools=tools_of(inputs, rows),
        host={
            "arch": clipped(machine.arch),
            "cpu": clipped(machine.cpu),
            "cores": str(os.cpu_count() or _UNKNOWN),
            "system": clipped(platform.system()),
        },
        options=options_of(options, inputs, rows),
    )


# --- files -----------------------------------------------------------------------------------------


def ingredients_of(options: Options, inputs: Inputs) -> tuple[Ingredient, ...]:
    """Every file that was read, each with its own digest.

    The files of a model's external data are all listed, or, where they are too many, none of them: their
    number then stands among the options.

    Raises:
        InputError: `input_changed`: a file is not any more what was read of it a moment ago.
    """
    whole = hashlib.sha256()
    found = [_read("model", options.model, options.model.name, whole)]
    outside = [
        _read("model_data", options.model.parent / name, name, whole) for name in inputs.source.external
    ]
    _require_same(options.model, whole.hexdigest(), inputs.source.sha256)
    for kind, path, was in _others(options, inputs):
        found.append(_read(kind, path, path.name))
        _require_same(path, found[-1].sha256, was)
    return tuple(found + outside) if len(found + outside) <= INGREDIENTS_MAX else tuple(found)


def _others(options: Options, inputs: Inputs) -> Iterator[tuple[str, Path, str | None]]:
    """Kind, path, and the digest of what was read of it, where that is known."""
    yield "calibration", options.calibration, inputs.calibration.sha256
    yield "validation", options.validation, inputs.validation.sha256
    if options.search is not None and inputs.search is not None:
        yield "search", options.search, inputs.search.sha256
    described = description_path(options)
    if described is not None:
        yield "dataset", described, None
    yield "sla", options.sla, inputs.sla_sha256
    yield "target", file_of_target(inputs.target.id), None
    metric = _metric_file(options)
    if metric is not None:
        yield "metric", metric, None


def _metric_file(options: Options) -> Path | None:
    """The file of a custom metric's module; None where there is none, or it is no file."""
    module = (options.metric or "").partition(":")
    if not module[1]:
        return None
    loaded = sys.modules.get(module[0])
    spec = getattr(loaded, "__spec__", None) or importlib.util.find_spec(module[0])
    origin = Path(spec.origin) if spec is not None and spec.origin else None
    return origin if origin is not None and origin.is_file() else None


def _read(kind: str, path: Path, name: str, *also: hashlib._Hash) -> Ingredient:
    """One file; `also` are hashes that its content goes into, too."""
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                size += len(block)
                for one in (digest, *also):
                    one.update(block)
    except OSError as error:
        raise InputError(
            "input_changed", f"{path} was there and cannot be read any more: {error.strerror}; convert again"
        ) from error
    return Ingredient(kind=kind, name=clipped(name, last=True), size_bytes=size, sha256=digest.hexdigest())


def _require_same(path: Path, found: str, was: str | None) -> None:
    if was is not None and found != was:
        raise InputError(
            "input_changed",
            f"{path} was changed while it was converted: its digest cannot be recorded; convert again",
        )


# --- versions and options --------------------------------------------------------------------------


def tools_of(inputs: Inputs, rows: Sequence[Candidate]) -> dict[str, str]:
    """Versions of what was used; what this conversion had no use for is left out."""
    tools = {
        "shallop": _version("shallop"),
        "shallop-source": source_sha256(),
        "python": platform.python_version(),
        "numpy": _version("numpy"),
        "onnx": _version("onnx"),
        "onnxruntime": VERSION,
    }
    if inputs.form != "onnx":
        tools[LITERT] = _version(LITERT)
    if inputs.neighbour is not None:
        tools[AS_TOOLS["tflite_runtime"]] = inputs.neighbour.version
    compilers = {one.compiled.compiler for one in rows if one.compiled is not None}
    if compilers:
        tools[AS_TOOLS["vela"]] = ", ".join(sorted(compilers))
    return {name: clipped(version) for name, version in tools.items()}


def source_sha256() -> str:
    """Of the converter itself, whose version stays the same while it is worked on.

    Over every `.py` and `.yaml` of the packages `converter` and `wire`, by path: the path, a zero byte, and
    the digest of the content.
    """
    whole = hashlib.sha256()
    for package in (converter, wire):
        folder = Path(package.__file__ or "").parent
        for path in sorted(one for one in folder.rglob("*") if one.suffix in {".py", ".yaml"}):
            whole.update(f"{folder.name}/{path.relative_to(folder).as_posix()}".encode() + b"\0")
            whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def options_of(options: Options, inputs: Inputs, rows: Sequence[Candidate]) -> dict[str, str]:
    """What changes the result, as it was in effect."""
    search = inputs.search
    told = {
        "target": options.target,
        "task": f"{inputs.task.kind}, {inputs.task_reason}" if inputs.task_reason else inputs.task.kind,
        "metric": inputs.task.metric.name,
        "format": inputs.form,
        "tflite_edge": inputs.edge,
        "batch": str(inputs.batch),
        "threads": str(inputs.threads),
        "latency_samples": str(inputs.latency_samples),
        "quick": "yes" if options.quick else "no",
        "executor": options.executor or "this process",
        "candidates": ", ".join(options.candidates) or "what suits",
        "tried": ", ".join(one.id for one in rows),
        "latency_of_target_class": "yes" if inputs.host_of_target_class else "no",
        "calibration_samples": str(inputs.calibration.n),
        "validation_samples": str(inputs.validation.n),
        "search_samples": "none" if search is None else str(search.n),
        "seed": str(SPLIT_SEED),
        "seed_resamples": str(SEED),
        "model_data_files": str(len(inputs.source.external)),
    }
    return {name: clipped(value, _TEXT_CHARS) for name, value in told.items()}


def clipped(text: str, chars: int = _NAME_CHARS, *, last: bool = False) -> str:
    """Text as the manifest holds it: valid UTF-8, of so many characters, never empty."""
    plain = text.encode("utf-8", "replace").decode()
    return (plain[-chars:] if last else plain[:chars]) or _UNKNOWN


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return _UNKNOWN
