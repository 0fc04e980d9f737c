"""Everything that the user gave, read once and refused by name.

For: the conversion's first stage; after it, nothing from outside is parsed any more.
Not for: work on the model.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import yaml
from msgspec import Struct, structs

from converter.attempts import LITERT, TFLITE_RUNTIME, Attempt, Edge, Format, parse_attempt
from converter.dataset import (
    Description,
    Samples,
    check_labels,
    dtypes_of,
    read_description,
    read_samples,
    split,
)
from converter.errors import InputError
from converter.evaluate import Task, task_of
from converter.evaluate.registry import inferred
from converter.limits import LATENCY_RUNS_DEFAULT, LATENCY_RUNS_MIN, QUICK_SAMPLES_MAX, TEXT_BYTES_MAX
from converter.model import Signature, SourceModel, read_bytes, read_model, words
from converter.neighbour import version_at
from converter.recipe import FLOAT32, format_recipe
from converter.targets.detect import Machine, detect_machine, detect_target, of_class
from converter.targets.lint import require_shapes
from converter.targets.loader import Rule, Target, broken_rule, usable_target
from converter.targets.vela import vela_for
from converter.truth import LABELS
from wire import plain_yaml
from wire.errors import LimitsError, WireError
from wire.sla import Limits, parse_limits, require_direction
from wire.tasks import Kind, Metric
from wire.types import ModelName, ReleaseName


class Options(Struct, frozen=True, kw_only=True):
    """What `convert()` was asked for; see there."""

    model: Path
    calibration: Path
    validation: Path
    target: str
    sla: Path
    output: Path
    name: str | None = None
    release: str | None = None
    dataset: Path | None = None
    task: Kind | None = None
    metric: str | None = None
    search: Path | None = None
    threads: int = 1
    latency_samples: int = LATENCY_RUNS_DEFAULT
    candidates: tuple[str, ...] = ()
    format: Format | None = None
    tflite_edge: Edge | None = None
    batch: int = 1
    tflite_runtime: Path | None = None
    vela: Path | None = None
    quick: bool = False
    executor: str | None = None
    force: bool = False
    root: Path = Path("/")


def command_of(options: Options) -> str:
    """The command line that asks for the same, whatever asked first; what is left out is the default."""
    words = ["shallop-convert", "convert", str(options.model)]
    for field in msgspec.structs.fields(Options):
        value = getattr(options, field.name)
        if field.name in {"model", "root"} or value == field.default or value is None:
            continue
        words.append(f"--{field.name.replace('_', '-')}")
        if value is True:
            continue
        words.append(",".join(map(str, value)) if isinstance(value, tuple) else str(value))
    return shlex.join(words)


class Neighbouring(Struct, frozen=True, kw_only=True):
    """An environment with tflite-runtime.

    Attributes:
        python: its interpreter.
        version: of the runtime.
    """

    python: str
    version: str


class Inputs(Struct, frozen=True, kw_only=True):
    """What was given, typed.

    Attributes:
        name: of the model.
        release: of the bundle.
        created_at: when, UTC.
        source: the model.
        description: of the data set; empty where there is none.
        calibration: samples without labels.
        validation: samples with labels, which judge; nothing is searched on them.
        search: other samples with labels, which a search may look at; None where there are none.
        task: what the model is for.
        task_reason: where that is known from.
        limits: the SLA.
        sla_sha256: of the SLA's file.
        sla_text: the file as it was written.
        target: that the bundle is for.
        machine: this host.
        host_of_target_class: whether this host is of the target's class.
        threads: of latency sessions.
        latency_samples: pairs to time.
        asked: what alone is tried, in the order of preference; empty for all that suits.
        form: what is written.
        edge: type of the inputs and outputs of quantized `.tflite` files.
        batch: samples that a `.tflite` file takes at once.
        neighbour: where tflite-runtime is; None where nothing is asked of it.
        vela: program that compiles for Ethos-U; None where there is none, or the target is another.
    """

    name: str
    release: str
    created_at: datetime
    source: SourceModel
    description: Description
    calibration: Samples
    validation: Samples
    search: Samples | None = None
    task: Task
    task_reason: str = ""
    limits: Limits
    sla_sha256: str
    sla_text: str
    target: Target
    machine: Machine
    host_of_target_class: bool
    threads: int
    latency_samples: int
    asked: tuple[Attempt, ...] = ()
    form: Format = "onnx"
    edge: Edge = "float32"
    batch: int = 1
    neighbour: Neighbouring | None = None
    vela: Path | None = None


def read_inputs(options: Options, now: datetime) -> Inputs:
    """Reads all of it.

    Raises:
        InputError: the code says what cannot be used, the message why and what to do.
    """
    limits, sla_text = read_sla(options.sla)
    machine = detect_machine(options.root)
    target = detect_target(machine) if options.target == "host" else usable_target(options.target)
    form = form_of(target, options.format)
    asked = asked_of(target, options.candidates, form)
    neighbour = neighbour_of(options, asked, form)
    name = _checked_name(options.name or default_name(options.model), ModelName, "--name")
    release = _checked_name(options.release or f"{now:%Y%m%d-%H%M%S}", ReleaseName, "--release")
    source = read_model(options.model)
    require_shapes(target, source.proto)
    description = _description(options)
    calibration = read_samples(options.calibration, description, source.signature, labelled=False)
    task, task_reason = read_task(options, description, source.signature)
    _require_direction(limits, task.metric, options.sla)
    validation, search = _labelled(options, description, source.signature, task)
    if options.quick:
        validation = thinned(validation, QUICK_SAMPLES_MAX)
    return Inputs(
        name=name, release=release, created_at=now, source=source, description=description,
        calibration=calibration, validation=validation, search=search, task=task, task_reason=task_reason,
        limits=limits,
        sla_sha256=hashlib.sha256(sla_text).hexdigest(), sla_text=sla_text.decode("utf-8", "replace"),
        target=target, machine=machine, host_of_target_class=of_class(machine, target),
        threads=options.threads,
        latency_samples=LATENCY_RUNS_MIN if options.quick else options.latency_samples,
        asked=asked, form=form, edge=options.tflite_edge or _edge(target), batch=options.batch,
        neighbour=neighbour,
        vela=vela_for(target, options.vela),
    )  # fmt: skip


def takes_onnx(target: Target) -> bool:
    """Whether ONNX models can be made for it."""
    return target.rules.format.value != "TFLite"


def _edge(target: Target) -> Edge:
    return "float32" if target.tflite is None else target.tflite.edge.value


def form_of(target: Target, asked: Format | None) -> Format:
    """What is written for a target: what was asked for, else both where both run there.

    Raises:
        InputError: `format_forbidden`: the target takes only the other.
    """
    if not takes_onnx(target):
        possible: tuple[Format, ...] = ("tflite",)
    elif target.tflite is None:
        possible = ("onnx",)
    else:
        possible = ("both", "onnx", "tflite")
    if asked is not None and asked not in possible:
        raise InputError(
            "format_forbidden",
            f"{target.id} takes {possible[0]} models only; leave --format {asked} away, "
            f"or convert for a CPU target",
        )
    return asked or possible[0]


def neighbour_of(options: Options, asked: Sequence[Attempt], form: Format) -> Neighbouring | None:
    """The environment of tflite-runtime, asked for its version, where one is given.

    Raises:
        InputError: `neighbour_missing`: there is no such runtime; `neighbour_unwanted`: no TFLite is written;
            `neighbour_unnamed`: a candidate is for that runtime, and nothing says where it is.
    """
    python = options.tflite_runtime
    if python is None:
        if any(TFLITE_RUNTIME in one.runtimes for one in asked):
            raise InputError(
                "neighbour_unnamed",
                "a candidate is for tflite-runtime; name the Python of its environment with --tflite-runtime",
            )
        return None
    if form == "onnx":
        raise InputError(
            "neighbour_unwanted", "--tflite-runtime is given, but no .tflite file is written here"
        )
    return Neighbouring(python=str(python), version=version_at(str(python)))


def asked_of(target: Target, names: tuple[str, ...], form: Format) -> tuple[Attempt, ...]:
    """What these names ask for, in this order; empty where none are named.

    Where only TFLite competes FP32 is among it, for there it is what a device falls back to.

    Raises:
        InputError: `candidate_forbidden`: the target's rules forbid one of them, or one stands twice.
        RecipeNameError: one is no recipe, or none of its runtime's.
    """
    if not names:
        return ()
    attempts = tuple(parse_attempt(name, form, takes_onnx=takes_onnx(target)) for name in names)
    ids = [key for one in attempts for key in one.ids]
    recipes = tuple(dict.fromkeys(format_recipe(one.recipe) for one in attempts))
    rule = Rule(value=recipes, confidence="V", source="asked for with --candidates")
    asked = structs.replace(target, rules=structs.replace(target.rules, recipes=rule))
    fault = "one stands twice" if len(set(ids)) < len(ids) else broken_rule(asked)
    if fault is not None:
        raise InputError(
            "candidate_forbidden",
            f"--candidates does not fit the target {target.id}: {fault}; "
            f"`shallop-convert targets {target.id}` shows its rules and recipes",
        )
    fallback = Attempt(FLOAT32, (LITERT,))
    return attempts if form != "tflite" or fallback.ids[0] in ids else (*attempts, fallback)


def thinned(samples: Samples, n_max: int) -> Samples:
    """At most so many samples, evenly spread, so that a set sorted by class keeps all of them."""
    if samples.n <= n_max:
        return samples
    return samples.taken(np.linspace(0, samples.n - 1, n_max).astype(np.int64))


def read_task(options: Options, description: Description, signature: Signature) -> tuple[Task, str]:
    """The task: asked for, or described, or inferred from the validation set; and which of these.

    Raises:
        InputError: `metric_unknown`, `entry_point`, `model_outputs`.
    """
    metric = options.metric or description.metric
    dtypes = dtypes_of(options.validation)
    if options.task is not None:
        kind, reason = options.task, "--task"
    elif description.task is not None:
        kind, reason = description.task, "dataset.yaml"
    else:
        kind, why = inferred(dtypes, metric)
        reason = f"inferred: {why}"
    task = task_of(kind, description.answer, metric, labelled=LABELS in dtypes)
    require_answer(task, signature)
    return task, reason


def require_answer(task: Task, signature: Signature) -> None:
    """Refuses outputs that cannot hold the task's answers, before anything is run.

    Raises:
        InputError: `model_outputs`.
    """
    found = ", ".join(f"{spec.name} {spec.dtype} {words(spec.shape)}" for spec in signature.outputs)
    named = task.answer.output
    specs = [spec for spec in signature.outputs if named is None or spec.name == named]
    if not specs:
        raise InputError("model_outputs", f"dataset.yaml names output {named}; the model gives {found}")
    frames = task.answer.frames
    if task.kind == "classification" and not frames and len(specs[0].shape) not in {1, 2}:
        raise InputError(
            "model_outputs",
            f"a classification model gives float32 scores of shape [N, classes]; this one gives {found}; "
            "for scores of every frame, say `answer: {frames: true}` in dataset.yaml",
        )


def _require_direction(limits: Limits, metric: Metric, path: Path) -> None:
    try:
        require_direction(limits, metric)
    except LimitsError as error:
        raise InputError(error.code, f"{path}: {error.args[0]}") from error


def _labelled(
    options: Options, description: Description, signature: Signature, task: Task
) -> tuple[Samples, Samples | None]:
    """The samples that judge and those that may be searched on: two files, or one that is split."""
    kind = task.kind
    validation = read_samples(options.validation, description, signature, labelled=True, kind=kind)
    search = None
    if options.search is not None:
        search = read_samples(options.search, description, signature, labelled=True, kind=kind)
        if search.sha256 == validation.sha256:
            raise InputError(
                "search_is_validation",
                f"{options.search} is the validation set itself: what is searched on cannot judge; "
                "give other samples, or `search_fraction` in dataset.yaml",
            )
    elif description.search_fraction is not None:
        validation, search = split(validation, description.search_fraction)
    if kind == "classification" and not task.answer.frames and task.answer.output is None:
        # One score stands for two classes.
        classes = signature.classes if signature.classes != 1 else 2
        for samples in (validation, search):
            if samples is not None and classes is not None:
                check_labels(samples, classes, description.labels)
    return validation, search


def read_sla(path: Path) -> tuple[Limits, bytes]:
    """The SLA, and its file as it was written.

    Raises:
        InputError: `sla_missing`, `sla_too_large`, `sla_malformed`.
    """
    text = read_bytes(path, TEXT_BYTES_MAX, "sla")
    try:
        limits = parse_limits(plain_yaml.read(yaml, text))
    except WireError as error:
        raise InputError("sla_malformed", f"{path} is not YAML: {error}") from error
    except LimitsError as error:
        known = ", ".join(field.name for field in msgspec.structs.fields(Limits))
        raise InputError("sla_malformed", f"{path}: {error.args[0]}; the keys are {known}") from error
    return limits, text


def default_name(model: Path) -> str:
    """A model name made of the file's stem."""
    return re.sub(r"[^a-z0-9._-]+", "-", model.stem.lower()).strip("-._")[:63] or "model"


def _checked_name(name: str, kind: object, option: str) -> str:
    try:
        checked: str = msgspec.convert(name, kind)
    except msgspec.ValidationError as error:
        raise InputError("bad_name", f"{option} {name[:80]!r} cannot be used: {error}") from error
    return checked


def description_path(options: Options) -> Path | None:
    """The `dataset.yaml` that was named, else the one beside the calibration set, else none."""
    if options.dataset is not None:
        return options.dataset
    beside = options.calibration.parent / "dataset.yaml"
    return beside if beside.is_file() else None


def _description(options: Options) -> Description:
    path = description_path(options)
    return Description() if path is None else read_description(path)


def utc_now() -> datetime:
    """The clock's time; only ever information in a bundle."""
    return datetime.now(tz=UTC)
