"""From a measurement to a judged row and to a manifest's figures.

For: `candidates.json` rows (`converter.candidates.Candidate`) with the SLA's verdict, and `HostFigures`.
Not for: measuring, or choosing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import onnx
from msgspec import Struct, structs

from converter.attempts import TFLITE, TFLITE_RUNTIME
from converter.candidates import Candidate, Compilation, Evidence, evidence
from converter.evaluate import Quality
from converter.evaluate.words import needed_by, words_of
from converter.inputs import Inputs
from converter.latency import Ratio, latency_of, ratio_of
from converter.loading import version_of
from converter.measured import Measured, latency_scope
from converter.recipe import format_recipe
from converter.targets.fallback import Verdict, verdict
from converter.targets.tflite_verdict import file_verdict
from converter.targets.vela import Compiled
from wire.bundle import HostFigures, Parity
from wire.figures import Interval
from wire.measures import Latency, Measure
from wire.sla import Limits, Measures, Scope, Status, judge


class Timing(Struct, frozen=True, kw_only=True):
    """Latency figures of one row and where they hold; all None where nothing was timed."""

    latency: Latency | None = None
    ratio: Ratio | None = None
    scope: Literal["host", "target"] | None = None


def timing_of(inputs: Inputs, one: Measured) -> Timing:
    """Of a candidate, from its pairs."""
    if one.pairs is None:
        return Timing()
    latency = latency_of(one.pairs.candidate_ms, one.cold_load_ms)
    return Timing(latency=latency, ratio=ratio_of(one.pairs), scope=_scope(inputs, one))


def timing_of_baseline(inputs: Inputs, baseline: Measured, others: Sequence[Measured]) -> Timing:
    """Of FP32: its runs beside every candidate, pooled."""
    times = [ms for one in others if one.pairs is not None for ms in one.pairs.baseline_ms]
    if baseline.pairs is not None:
        times += baseline.pairs.candidate_ms
    if not times:
        return Timing()
    return Timing(latency=latency_of(times, baseline.cold_load_ms), scope=_scope(inputs, baseline))


def _scope(inputs: Inputs, one: Measured) -> Literal["host", "target"] | None:
    scope = latency_scope(inputs, one.recipe, one.runtime)
    return "target" if scope == "target" else "host" if scope == "host" else None


def row(inputs: Inputs, one: Measured, timing: Timing) -> Candidate:
    """The judged row; a candidate without answers is an error row."""
    recipe = one.recipe
    blank = Candidate(
        id=one.id, recipe=format_recipe(recipe), runtime=one.runtime, precision=recipe.precision,
        status="error", runtime_version=_version(inputs, one.runtime), decisions=one.decisions,
        format="tflite" if one.runtime in TFLITE else "onnx", twin_of=one.twin_of, parity=parity_of(one),
    )  # fmt: skip
    if one.error is not None or one.quality is None or one.content is None:
        return structs.replace(blank, reason=one.error or "it was not measured")
    filled = _with_quality(blank, one, one.quality, inputs.limits)
    filled = _with_timing(filled, timing, inputs.threads)
    if one.audit is not None:
        filled = structs.replace(
            filled,
            fusion=one.audit.fusion,
            int8_fraction=one.audit.int8_fraction,
            fallback_predicted=one.audit.float_multiplies > 0 if recipe.quantized else None,
        )
    if one.runtime not in TFLITE or recipe.quantized:  # a float file is the baseline and runs on the CPU
        filled = _with_rules(filled, inputs, one.content)
    return _judged(filled, inputs, one.quality, timing)


def _version(inputs: Inputs, runtime: str) -> str:
    neighbour = inputs.neighbour
    return neighbour.version if neighbour is not None and runtime == TFLITE_RUNTIME else version_of(runtime)


def parity_of(one: Measured) -> Parity | None:
    """In short, where there is a twin that it is of."""
    return None if one.proof is None or one.twin_of is None else one.proof.summary()


def _with_rules(row: Candidate, inputs: Inputs, content: bytes) -> Candidate:
    """What the target's rules say of the model; one that cannot be checked keeps its row."""
    try:
        told: Verdict
        if row.format == "tflite":
            told = found = file_verdict(inputs.target, content, inputs.vela)
            row = structs.replace(row, compiled=_compilation(found.compiled))
        else:
            told = verdict(inputs.target, onnx.load_model_from_string(content))
    except Exception as error:  # noqa: BLE001 - the check reads whatever graph it is given
        said = f"not checked against the rules of {inputs.target.id}: {type(error).__name__}: {error}"
        return structs.replace(row, decisions=(*row.decisions, said))
    falls_back = told.falls_back if inputs.target.accelerated else row.fallback_predicted
    return structs.replace(row, decisions=row.decisions + told.words, fallback_predicted=falls_back)


def _compilation(found: Compiled | None) -> Compilation | None:
    """In short."""
    if found is None:
        return None
    return Compilation(
        compiler=f"vela {found.version}", accelerator=found.accelerator, system=found.system,
        memory=found.memory, operators=found.operators, on_cpu=len(found.on_cpu), share=found.share,
        cycles_estimated=found.cycles_estimated, inference_ms_estimated=found.inference_ms_estimated,
        sram_kib_estimated=found.sram_kib_estimated, cache_key=found.cache_key,
    )  # fmt: skip


def _with_quality(blank: Candidate, one: Measured, found: Quality, limits: Limits) -> Candidate:
    delta = found.delta if one.recipe.quantized else None
    shown = _evidence(limits, found, one)
    needed = needed_by(limits, found) if shown == "unproven" else None
    return structs.replace(
        blank,
        size_bytes=len(one.content or b""),
        entropy_bytes=one.entropy_bytes,
        sha256=one.sha256,
        n_samples=found.agreement.n,
        accuracy=found.accuracy.value,
        accuracy_ci95=_pair(found.accuracy),
        accuracy_ratio=None if found.ratio is None else found.ratio.value,
        accuracy_ratio_ci95=_pair(found.ratio) if one.recipe.quantized else None,
        accuracy_delta_ci95=_pair(delta),
        accuracy_evidence="unproven" if shown == "proven" and one.saturation_unknown else shown,
        samples_needed=needed,
        accuracy_words=words_of(found, needed) if one.recipe.quantized else None,
        metric=found.metric.name,
        metric_direction=found.metric.direction,
        metrics=found.others,
        agreement=found.agreement.value,
        agreement_ci95=_pair(found.agreement) if one.recipe.quantized else None,
    )


def _pair(measure: Measure | None) -> tuple[float, float] | None:
    if measure is None or measure.low is None or measure.high is None:
        return None
    return (measure.low, measure.high)


def _evidence(limits: Limits, found: Quality, one: Measured) -> Evidence | None:
    """How well the accuracy limit is shown; None where there is none. FP32 is its own baseline."""
    limit = limits.accuracy
    if limit is None:
        return None
    if limit.absolute is not None:
        return evidence(limit.absolute, _interval(found.accuracy), limit.direction)
    bound = limit.of_baseline or 0.0
    own = _interval(found.ratio) if one.recipe.quantized else Interval(1.0, 1.0)
    return evidence(bound, own, limit.direction)


def _interval(measure: Measure | None) -> Interval | None:
    pair = _pair(measure)
    return None if pair is None else Interval(*pair)


def _with_timing(filled: Candidate, timing: Timing, threads: int) -> Candidate:
    latency, ratio = timing.latency, timing.ratio
    if latency is None:
        return filled
    # Only the baseline has no pairs of its own: over itself it is 1 by definition, without an interval.
    return structs.replace(
        filled,
        latency_ms_p50=latency.ms_p50,
        latency_ms_p95=latency.ms_p95,
        latency_ms_p99=latency.ms_p99,
        latency_ratio=1.0 if ratio is None else ratio.value,
        latency_ratio_ci95=None if ratio is None else (ratio.interval.low, ratio.interval.high),
        latency_scope=timing.scope,
        latency_runs=latency.n,
        cold_load_ms=latency.cold_load_ms,
        threads=threads,
    )


def _judged(filled: Candidate, inputs: Inputs, found: Quality, timing: Timing) -> Candidate:
    measures = Measures(
        accuracy=found.accuracy,
        accuracy_ratio=found.ratio,
        agreement=found.agreement,
        latency_ms_p95=_p95(timing),
        size_bytes=None if filled.size_bytes is None else Measure(value=float(filled.size_bytes)),
    )
    scope = Scope.HOST_OF_TARGET_CLASS if inputs.host_of_target_class else Scope.HOST
    verdict = judge(inputs.limits, measures, scope)
    status: Literal["pass", "fail"] = "pass" if verdict.status is Status.PASS else "fail"
    return structs.replace(filled, status=status, reason=verdict.reason, deferred=verdict.deferred)


def _p95(timing: Timing) -> Measure | None:
    latency = timing.latency
    return None if latency is None else Measure(value=latency.ms_p95, n=latency.n)


def host_figures(inputs: Inputs, one: Measured, timing: Timing) -> HostFigures:
    """For the manifest; latency only where it was measured on the target's class."""
    quality, ratio = one.quality, timing.ratio if timing.scope == "target" else None
    quantized = one.recipe.quantized
    return HostFigures(
        accuracy=None if quality is None else quality.accuracy,
        accuracy_ratio=quality.ratio if quality is not None and quantized else None,
        agreement=quality.agreement if quality is not None and quantized else None,
        latency=timing.latency if timing.scope == "target" else None,
        latency_ratio=None
        if ratio is None
        else Measure(value=ratio.value, low=ratio.interval.low, high=ratio.interval.high, n=ratio.n),
        runtime_version=_version(inputs, one.runtime),
    )
