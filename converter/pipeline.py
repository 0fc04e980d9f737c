"""The stages, in order, and nothing else.

For: `convert()`. Read -> clean -> calibrate -> baseline -> candidates -> choice -> bundle.
Not for: what happens within a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import onnx
from msgspec import Struct, structs

from converter.attempts import Attempt, Edge, Format
from converter.calibrate import Calibration, calibrate, compare_sets
from converter.candidates import Candidate, Choice, Report
from converter.competition import chosen_of
from converter.dataset import Array, Samples, check_labels
from converter.evaluate import outputs_of
from converter.executor import open_executor
from converter.fusion import multiplications
from converter.inputs import Inputs, Options, command_of, read_inputs, utc_now
from converter.limits import LATENCY_RUNS_DEFAULT
from converter.lossless import sparsity
from converter.measured import (
    Bench,
    Measured,
    Progress,
    baseline_alone,
    measure_baseline,
    must_run,
)
from converter.output import require_writable, write
from converter.pack import MANIFEST_NAME, pack
from converter.passes import INTEGER_PASSES, PASSES, SameAnswers, clean_checked
from converter.passes.opset import convert_opset
from converter.provenance import ingredients_of, provenance_of
from converter.quantize import Material
from converter.recipe import format_recipe
from converter.repair.goal import goal_of
from converter.report import CANDIDATES_NAME, PAGE_NAME, render
from converter.rows import Timing, row, timing_of, timing_of_baseline
from converter.sensitivity import measure_sensitivity
from converter.sweep import Sweep, attempts_on, try_all
from converter.tflite.proof import Proof, Verdict
from wire.bundle import Manifest, Provenance
from wire.tasks import Kind

_CLEAN_TOLERANCE = 1e-4
"""Of the largest output: what re-ordered float arithmetic may change, and no more."""
_CLEAN_SAMPLES = 8
_SENSITIVITY_NAMED_MAX = 60
_NOISE_FLOOR_DB = 60.0
"""A tensor whose noise lies further below the signal than this hurts nobody; effects count from here."""
_ZEROS_MIN = 0.01
"""Share of zeros from which a weight is reported; trained weights hit zero by chance."""


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
    task: Kind | None = None,
    metric: str | None = None,
    search: str | Path | None = None,
    threads: int = 1,
    latency_samples: int = LATENCY_RUNS_DEFAULT,
    candidates: Sequence[str] = (),
    format: Format | None = None,  # noqa: A002 - as on the command line
    tflite_edge: Edge | None = None,
    batch: int = 1,
    tflite_runtime: str | Path | None = None,
    quick: bool = False,
    executor: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Converts a model and writes a bundle; InputError where something given cannot be used, and no file.

    Args:
        model: ONNX file with float32 weights, or one that carries Q/DQ pairs.
        calibration: `.npz` with one array per model input, first axis samples.
        validation: the same with what the task judges by, such as `labels`, integers `[N]`.
        target: id or alias of a target, or `host`.
        sla: YAML file of limits (`wire.sla.Limits`).
        output: directory to make; a bundle that lies there is replaced only with `force`.
        name: of the model; by default the file's.
        release: by default the time, UTC.
        dataset: `dataset.yaml`; by default the one beside the calibration set.
        task: what the model is for; what dataset.yaml says, or inferred from the data, by default.
        metric: of regression (`mae`, `rmse`), or `module:function` for a custom one.
        search: labelled samples that a search for islands may look at; they judge nothing.
        threads: of latency sessions.
        latency_samples: timed pairs per candidate.
        candidates: only these, each `[RUNTIME/]RECIPE`, by preference; by default all that suit.
        format: `onnx`, `tflite` or `both`; by default what the target takes.
        tflite_runtime: Python of an environment with tflite-runtime, which is asked too.
        tflite_edge: of quantized `.tflite` files; by default int8 for what takes integers only.
        batch: samples that a `.tflite` file takes at once.
        quick: a first look: fewer validation samples and timed pairs, so wider intervals.
        executor: where candidates are made and answered, `processes:N` or `dask:HOST:PORT`; timed here.
        force: replace an earlier bundle.
        progress: told (stage, done, in all).
    """
    return run(Options(
        model=Path(model), calibration=Path(calibration), validation=Path(validation), target=target,
        sla=Path(sla), output=Path(output), name=name, release=release, dataset=_path(dataset), task=task,
        metric=metric, search=_path(search), threads=threads, latency_samples=latency_samples,
        candidates=tuple(candidates), format=format, tflite_edge=tflite_edge, batch=batch, quick=quick,
        tflite_runtime=_path(tflite_runtime), executor=executor, force=force), progress)  # fmt: skip


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)


def run(options: Options, progress: Progress | None = None) -> Conversion:
    """The stages; see `convert()`."""
    command = command_of(options)
    options = structs.replace(options, output=options.output.resolve())
    require_writable(options.output, force=options.force)
    executor = open_executor(options.executor)
    inputs = read_inputs(options, utc_now())
    files = ingredients_of(options, inputs)
    graph, changes = cleaned(inputs)
    ranges = _calibrated(inputs, graph, progress)
    material = Material(
        model=graph, calibration=ranges, samples=inputs.calibration,
        signature=inputs.source.signature, rules=inputs.target.rules,
        given=inputs.source.quantized,
        goal=goal_of(
            inputs.limits, inputs.calibration, _searchable(inputs), classes=_one_class_each(inputs)
        ),
    )  # fmt: skip
    bench = Bench(inputs=inputs, material=material, progress=progress)
    baseline = structs.replace(measure_baseline(bench), decisions=changes)
    _require_classes(inputs, baseline)
    bench = structs.replace(bench, work=multiplications(graph), baseline=baseline)
    attempts = attempts_on(inputs, graph)
    with executor as workers:
        sweep = Sweep(bench=bench, workers=workers, name=options.executor)
        answered, found = try_all(sweep, attempts)
    baseline = _timed_baseline(bench, baseline, found)
    timings = {one.id: timing_of(inputs, one) for one in found}
    timings[baseline.id] = timing_of_baseline(inputs, baseline, found)
    rows = {one.id: row(inputs, one, timings[one.id]) for one in (baseline, *found)}
    choice = chosen_of(inputs, rows[baseline.id], [rows[one.id] for one in found])
    unneeded = {format_recipe(one.recipe): one.unneeded for one in answered if one.unneeded is not None}
    origin = provenance_of(options, inputs, files, list(rows.values()))
    report = _report(inputs, list(rows.values()), choice, material, command)
    report = structs.replace(report, provenance=msgspec.to_builtins(origin))
    if progress is not None:
        progress("sensitivity of each tensor", 0, 1)
    report = structs.replace(
        report, unneeded=unneeded, parity=_parity(found), sensitivity=_sensitivity(material, attempts)
    )
    if progress is not None:
        progress("sensitivity of each tensor", 1, 1)
    return _written(options, inputs, report, choice, {one.id: one for one in (baseline, *found)}, timings)


def cleaned(inputs: Inputs) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The graph that everything is made of, with what was changed; its answers were compared.

    Raises:
        InputError: `model_opset`, or `baseline_unusable` where the model does not run.
    """
    rules, plain = inputs.target.rules, inputs.source.proto
    same = _comparison(inputs, plain)
    source, converted = convert_opset(plain, rules.opset_min.value, rules.opset_max.value)
    said = inputs.source.decisions
    if converted is not None:
        kept = _holds(same, plain, source)
        source = source if kept else plain
        said += (converted if kept else "opset not converted: that changed the answers",)
    passes = INTEGER_PASSES if rules.format.value == "TFLite" else PASSES
    graph, changes = clean_checked(source, same, passes)
    return graph, said + changes


def _holds(same: SameAnswers, before: onnx.ModelProto, after: onnx.ModelProto) -> bool:
    """Whether the second model runs and answers as the first."""
    try:
        return same(before, after)
    except Exception:  # noqa: BLE001 - a graph that does not run is no conversion
        return False


def _comparison(inputs: Inputs, plain: onnx.ModelProto) -> SameAnswers:
    """Compares answers with those of the plain model, which are computed once, whatever `before` is."""
    names = tuple(spec.name for spec in inputs.source.signature.outputs)
    few = structs.replace(inputs.calibration, n=min(_CLEAN_SAMPLES, inputs.calibration.n))
    with must_run("calibration"):
        old = outputs_of(plain.SerializeToString(), {}, few, names)

    def same(_before: onnx.ModelProto, after: onnx.ModelProto) -> bool:
        new = outputs_of(after.SerializeToString(), {}, few, names)
        return all(_close(old[name], new[name]) for name in names)

    return same


def _close(mine: Array, theirs: Array) -> bool:
    """Equal in type and shape; floats within the tolerance, integers as rounding may order them."""
    if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
        return False
    if mine.dtype.kind != "f" or not mine.size:
        return True
    return float(np.abs(mine - theirs).max()) <= _CLEAN_TOLERANCE * max(1.0, float(np.abs(mine).max()))


def _calibrated(inputs: Inputs, graph: onnx.ModelProto, progress: Progress | None) -> Calibration:
    told = None if progress is None else (lambda done, total: progress("calibrate", done, total))
    with must_run("calibration"):
        found = calibrate(graph, inputs.calibration, inputs.source.signature, told)
        compared = compare_sets(inputs.calibration, inputs.validation)
    return structs.replace(found, findings=(*compared, *found.findings))


def _sensitivity(material: Material, attempts: Sequence[Attempt]) -> tuple[dict[str, object], ...] | None:
    """What each tensor costs alone, for the report's chart; None where it could not be measured."""
    static = next((one.recipe for one in attempts if one.recipe.kind == "static"), None)
    if static is None:
        return None
    plain = structs.replace(static, method="minmax", extras=tuple(x for x in static.extras if x == "sym"))
    try:
        chart = measure_sensitivity(material, plain)
    except Exception:  # noqa: BLE001 - a chart that cannot be drawn ends no conversion
        return None
    return tuple(
        {
            "tensor": one.tensor,
            "kind": one.kind,
            "effect_db": round(_NOISE_FLOOR_DB - one.alone_db, 2),
            "gain_db": one.gain_db,
        }
        for one in chart.tensors[:_SENSITIVITY_NAMED_MAX]
        if one.alone_db < _NOISE_FLOOR_DB
    )


def _parity(found: Sequence[Measured]) -> dict[str, dict[str, object]]:
    """The proofs as plain values; of single operators those that are not equal."""
    proofs = {one.id: one.proof for one in found if one.proof is not None}
    return {key: _told(proof) for key, proof in proofs.items()}


def _told(proof: Proof) -> dict[str, object]:
    odd = tuple(node for node in proof.nodes if node.verdict != "equal")
    counts = {verdict: proof.count(verdict) for verdict in get_args(Verdict)}
    plain: dict[str, object] = msgspec.to_builtins(structs.replace(proof, nodes=odd))
    return plain | {"operators": proof.operators, "counts": counts, "is_twin": proof.is_twin}


def _searchable(inputs: Inputs) -> Samples | None:
    """The labelled samples that the search can score: one class for each; others are searched label-free."""
    search = inputs.search
    scored = search is not None and search.labels is not None and search.labels.ndim == 1
    return search if scored and _one_class_each(inputs) else None


def _one_class_each(inputs: Inputs) -> bool:
    """Whether the answer to a sample is one class."""
    return inputs.task.kind == "classification" and not inputs.task.answer.frames


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


def _report(
    inputs: Inputs, rows: list[Candidate], choice: Choice, material: Material, command: str
) -> Report:
    ranges = material.calibration
    return Report(
        model=inputs.name,
        release=inputs.release,
        target=inputs.target.id,
        baseline=rows[0],
        chosen=choice.chosen,
        chosen_reason=choice.reason,
        candidates=tuple(rows),
        calibration={
            "n_samples": ranges.n_samples,
            "n_tensors": len(ranges.ranges),
            "outliers": msgspec.to_builtins(ranges.outliers),
            "findings": msgspec.to_builtins(ranges.findings),
            "left_out": list(ranges.left_out),
        },
        provenance={},
        created_at=inputs.created_at.isoformat(timespec="seconds").replace("+00:00", "Z"),
        command=command,
        sla_text=inputs.sla_text,
        limits=inputs.limits,
        metric={"name": inputs.task.metric.name, "direction": inputs.task.metric.direction},
        sparsity=tuple(
            msgspec.to_builtins(one)
            for one in sorted(sparsity(material.model), key=lambda one: -one.zeros)
            if one.zeros >= _ZEROS_MIN
        ),
        target_profile=msgspec.to_builtins(inputs.target),
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
    files = {CANDIDATES_NAME: report_bytes(report), PAGE_NAME: render(report)}
    manifest = None
    if choice.chosen is not None:
        base = report.baseline.id
        bundle = pack(
            inputs,
            tuple((measured[key], timings[key]) for key in choice.carried),
            (measured[base], timings[base]),
            msgspec.convert(report.provenance, Provenance),
        )
        manifest = bundle.manifest
        files |= bundle.files | {MANIFEST_NAME: bundle.content}
    write(options.output, files)
    return Conversion(directory=options.output, report=report, manifest=manifest)


def report_bytes(report: Report) -> bytes:
    """`candidates.json`, readable for people."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
