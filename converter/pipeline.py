"""The stages, in order, and nothing else.

For: `convert()`. Read -> clean -> calibrate -> baseline -> candidates -> choice -> bundle.
Not for: what happens within a stage.
"""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import msgspec
import numpy as np
import onnx
from msgspec import Struct, structs

from converter.calibrate import Calibration, calibrate
from converter.candidates import Candidate, Choice, Report, choose
from converter.dataset import check_labels
from converter.evaluate import outputs_of
from converter.fusion import multiplications
from converter.inputs import Inputs, Options, read_inputs, utc_now
from converter.limits import LATENCY_RUNS_DEFAULT
from converter.measured import (
    Bench,
    Measured,
    Progress,
    baseline_alone,
    measure_baseline,
    measure_candidate,
    must_run,
)
from converter.output import require_writable, write
from converter.pack import MANIFEST_NAME, pack
from converter.passes import clean
from converter.passes.opset import convert_opset
from converter.quantize import Material
from converter.rows import Timing, row, timing_of, timing_of_baseline
from converter.runtime import VERSION
from wire.bundle import Manifest, Provenance

CANDIDATES_NAME = "candidates.json"

_CLEAN_TOLERANCE = 1e-4
"""Of the largest output: what re-ordered float arithmetic may change, and no more."""
_CLEAN_SAMPLES = 8


class Conversion(Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        directory: where the files lie.
        report: `candidates.json`.
        manifest: None where nothing passed the SLA.
    """

    directory: Path
    report: Report
    manifest: Manifest | None

    @property
    def passed(self) -> bool:
        """Whether there is a bundle."""
        return self.manifest is not None


def convert(  # noqa: PLR0913 - every argument but the first is a keyword, as on the command line
    model: str | Path,
    *,
    calibration: str | Path,
    validation: str | Path,
    target: str,
    sla: str | Path,
    output: str | Path,
    name: str | None = None,
    release: str | None = None,
    dataset: str | Path | None = None,
    threads: int = 1,
    latency_samples: int = LATENCY_RUNS_DEFAULT,
    force: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Converts a model and writes a bundle.

    Args:
        model: ONNX file with float32 weights, for classification.
        calibration: `.npz` with one array per model input, first axis samples.
        validation: the same with `labels`, integers `[N]`.
        target: id or alias of a target, or `host`.
        sla: YAML file of limits (`wire.sla.Limits`).
        output: directory to make; a bundle that lies there is replaced only with `force`.
        name: of the model; made of the file's name by default.
        release: by default the time, UTC.
        dataset: `dataset.yaml`; by default the one beside the calibration set, if there is one.
        threads: of latency sessions.
        latency_samples: timed pairs per candidate.
        force: replace an earlier bundle.
        progress: told (stage, done, in all).

    Raises:
        InputError: something given cannot be used; nothing was written.
    """
    options = Options(
        model=Path(model), calibration=Path(calibration), validation=Path(validation), target=target,
        sla=Path(sla), output=Path(output), name=name, release=release,
        dataset=None if dataset is None else Path(dataset), threads=threads,
        latency_samples=latency_samples, force=force,
    )  # fmt: skip
    return run(options, progress)


def run(options: Options, progress: Progress | None = None) -> Conversion:
    """The stages; see `convert()`."""
    options = structs.replace(options, output=options.output.resolve())
    require_writable(options.output, force=options.force)
    inputs = read_inputs(options, utc_now())
    graph, changes = cleaned(inputs)
    ranges = _calibrated(inputs, graph, progress)
    material = Material(
        model=graph, calibration=ranges, samples=inputs.calibration,
        signature=inputs.source.signature, rules=inputs.target.rules,
    )  # fmt: skip
    bench = Bench(inputs=inputs, material=material, progress=progress)
    baseline = structs.replace(measure_baseline(bench), decisions=changes)
    _require_classes(inputs, baseline)
    bench = structs.replace(bench, work=multiplications(graph), baseline=baseline)
    found = [measure_candidate(bench, recipe) for recipe in inputs.target.recipes]
    baseline = _timed_baseline(bench, baseline, found)
    timings = {one.id: timing_of(inputs, one) for one in found}
    timings[baseline.id] = timing_of_baseline(inputs, baseline, found)
    rows = {one.id: row(inputs, one, timings[one.id]) for one in (baseline, *found)}
    choice = choose(
        rows[baseline.id],
        [rows[one.id] for one in found],
        inputs.limits,
        host_of_target_class=inputs.host_of_target_class,
    )
    report = _report(inputs, list(rows.values()), choice, ranges)
    return _written(options, inputs, report, choice, {one.id: one for one in (baseline, *found)}, timings)


def cleaned(inputs: Inputs) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The graph that everything is made of, with what was changed; its answers were compared.

    Raises:
        InputError: `model_opset`, or `baseline_unusable` where the model does not run.
    """
    rules = inputs.target.rules
    source, converted = convert_opset(inputs.source.proto, rules.opset_min.value, rules.opset_max.value)
    graph, changes = clean(source)
    said = changes if converted is None else (converted, *changes)
    if not said or _same_answers(inputs, inputs.source.proto, graph):
        return graph, said
    plain = inputs.source.proto
    return plain, ("cleaning was undone: it changed the answers",)


def _same_answers(inputs: Inputs, before: onnx.ModelProto, after: onnx.ModelProto) -> bool:
    names = tuple(spec.name for spec in inputs.source.signature.outputs)
    few = structs.replace(inputs.calibration, n=min(_CLEAN_SAMPLES, inputs.calibration.n))
    with must_run("calibration"):
        old = outputs_of(before.SerializeToString(), {}, few, names)
        new = outputs_of(after.SerializeToString(), {}, few, names)
    floats = [(old[name], new[name]) for name in names if old[name].dtype.kind == "f"]
    return all(
        float(np.abs(mine - theirs).max()) <= _CLEAN_TOLERANCE * max(1.0, float(np.abs(mine).max()))
        for mine, theirs in floats
    )


def _calibrated(inputs: Inputs, graph: onnx.ModelProto, progress: Progress | None) -> Calibration:
    told = None if progress is None else (lambda done, total: progress("calibrate", done, total))
    with must_run("calibration"):
        return calibrate(graph, inputs.calibration, inputs.source.signature, told)


def _require_classes(inputs: Inputs, baseline: Measured) -> None:
    """Where the graph leaves the number of classes open, the first answers tell it."""
    answer = inputs.source.signature.answer
    one_of_classes = inputs.task.kind == "classification" and not inputs.task.answer.frames
    if not one_of_classes or inputs.task.answer.output is not None or baseline.outputs is None:
        return
    shape = baseline.outputs[answer].shape
    if inputs.source.signature.classes is None and len(shape) == 2 and shape[1] > 1:
        classes = shape[1]
        check_labels(inputs.validation, classes, inputs.description.labels)


def _timed_baseline(bench: Bench, baseline: Measured, found: list[Measured]) -> Measured:
    """FP32 was timed beside the candidates; where none was, it is timed alone."""
    if any(one.pairs is not None for one in found) or not bench.inputs.host_of_target_class:
        return baseline
    pairs, cold_load_ms = baseline_alone(bench, baseline)
    return structs.replace(baseline, pairs=pairs, cold_load_ms=cold_load_ms)


def _report(inputs: Inputs, rows: list[Candidate], choice: Choice, ranges: Calibration) -> Report:
    return Report(
        model=inputs.name,
        release=inputs.release,
        target=inputs.target.id,
        baseline=rows[0],
        chosen=choice.chosen,
        chosen_reason=choice.reason,
        candidates=tuple(rows),
        calibration={
            "method": "minmax",
            "n_samples": ranges.n_samples,
            "n_tensors": len(ranges.ranges),
            "outliers": msgspec.to_builtins(ranges.outliers),
        },
        provenance=msgspec.to_builtins(_provenance(inputs)),
        task=inputs.task.kind,
        task_reason=inputs.task_reason,
    )


def _written(
    options: Options,
    inputs: Inputs,
    report: Report,
    choice: Choice,
    measured: dict[str, Measured],
    timings: dict[str, Timing],
) -> Conversion:
    files = {CANDIDATES_NAME: report_bytes(report)}
    manifest = None
    if choice.chosen is not None:
        base = report.baseline.id
        bundle = pack(
            inputs,
            tuple((measured[key], timings[key]) for key in choice.carried),
            (measured[base], timings[base]),
            _provenance(inputs),
        )
        manifest = bundle.manifest
        files |= bundle.files | {MANIFEST_NAME: bundle.content}
    write(options.output, files)
    return Conversion(directory=options.output, report=report, manifest=manifest)


def report_bytes(report: Report) -> bytes:
    """`candidates.json`, readable for people."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def _provenance(inputs: Inputs) -> Provenance:
    machine = inputs.machine
    return Provenance(
        source_model_sha256=inputs.source.sha256,
        calibration_sha256=inputs.calibration.sha256,
        validation_sha256=inputs.validation.sha256,
        sla_sha256=inputs.sla_sha256,
        tools={
            "shallop": _version("shallop"),
            "onnxruntime": VERSION,
            "onnx": _version("onnx"),
            "numpy": _version("numpy"),
            "python": platform.python_version(),
        },
        host={"arch": machine.arch, "cpu": machine.cpu[:200], "cores": str(os.cpu_count() or "unknown")},
        options={"threads": str(inputs.threads), "latency_samples": str(inputs.latency_samples)},
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
