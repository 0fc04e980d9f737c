"""PURE. The candidate table's rows and the choice among them.

For: `candidates.json` as a type, and `choose()`: which candidate a bundle carries first, and why
(DESIGN.md section 7: objective, ties, order of preference).
Not for: measuring, or judging one candidate against the SLA (`wire.sla`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct, structs

from wire.bundle import Parity
from wire.figures import Interval, PairedCounts
from wire.measures import Measure
from wire.sla import Limits
from wire.tasks import Direction, Kind

Evidence = Literal["proven", "unproven", "refuted"]

_LATENCY_TIE = 0.05
"""Of the fastest ratio: nearer than this nobody tells them apart on a device, and intervals of 200 pairs are
narrower than the difference from one start of a process to the next (docs/adr/0007)."""
_Z_ONE_SIDED_5 = 1.6448536269514722
_Z_POWER_80 = 0.8416212335729143


class Fusion(Struct, frozen=True, kw_only=True):
    """What the runtime really runs, counted in the graph that it optimized.

    Attributes:
        integer: kernels that compute on integers.
        float: kernels that compute on floating point.
        qdq_left: QuantizeLinear and DequantizeLinear that were fused into nothing.
    """

    integer: int
    float: int
    qdq_left: int


class Compilation(Struct, frozen=True, kw_only=True):
    """What an accelerator's compiler made of a row's file; its figures are its estimates, no measurements.

    Attributes:
        compiler: name and version.
        accelerator: configuration that it compiled for.
        system: of memories and clocks that it assumes.
        memory: mode that it assumes.
        operators: of the file.
        on_cpu: of these, what it leaves to the CPU.
        share: of all multiplications, those on the accelerator.
        cycles_estimated: of one inference.
        inference_ms_estimated: at the clock that `system` assumes.
        sram_kib_estimated: of SRAM in use.
        cache_key: sha256 over what the compiled file depends on.
    """

    compiler: str
    accelerator: str
    system: str
    memory: str
    operators: int
    on_cpu: int
    share: float | None
    cycles_estimated: int
    inference_ms_estimated: float
    sram_kib_estimated: float
    cache_key: str


class Candidate(Struct, frozen=True, kw_only=True):
    """One row; None is a figure that was not measured. Times in milliseconds, sizes in bytes."""

    id: str
    recipe: str
    runtime: str
    precision: str
    status: Literal["pass", "fail", "error"]
    reason: str = ""
    size_bytes: int | None = None
    accuracy: float | None = None
    accuracy_ci95: tuple[float, float] | None = None
    accuracy_ratio: float | None = None
    accuracy_ratio_ci95: tuple[float, float] | None = None
    accuracy_delta_ci95: tuple[float, float] | None = None
    accuracy_evidence: Evidence | None = None
    samples_needed: int | None = None
    accuracy_words: str | None = None
    metric: str | None = None
    metric_direction: Direction | None = None
    metrics: dict[str, Measure] = {}
    agreement: float | None = None
    agreement_ci95: tuple[float, float] | None = None
    latency_ms_p50: float | None = None
    latency_ms_p95: float | None = None
    latency_ms_p99: float | None = None
    latency_ratio: float | None = None
    latency_ratio_ci95: tuple[float, float] | None = None
    latency_scope: Literal["host", "target"] | None = None
    latency_runs: int | None = None
    cold_load_ms: float | None = None
    threads: int | None = None
    int8_fraction: float | None = None
    fusion: Fusion | None = None
    fallback_predicted: bool | None = None
    sha256: str | None = None
    format: str = "onnx"
    n_samples: int | None = None
    deferred: tuple[str, ...] = ()
    runtime_version: str | None = None
    twin_of: str | None = None
    parity: Parity | None = None
    top5: float | None = None
    entropy_bytes: int | None = None
    decisions: tuple[str, ...] = ()
    compiled: Compilation | None = None


class Report(Struct, frozen=True, kw_only=True):
    """`candidates.json`. `candidates` holds the baseline too, first.

    Attributes:
        created_at: when, RFC 3339; information.
        command: the command line that makes it again, from the folder in which it was given.
        sla_text: the SLA's file as it was written, comments included.
        limits: the same as it was read.
        target_profile: the target's rules, each with source and confidence, as they were that day.
        sensitivity: of each tensor, quantized alone: its name, kind, `effect_db` (noise at the outputs,
            in dB above a millionth of the signal) and `gain_db` (what an island there gains over full
            quantization), worst first; None where it was not measured.
        sparsity: FP32 weights of which some share is zero (`converter.lossless.Sparsity`), most first.
        metric: name and direction of what stands in every field called accuracy; None is top-1.
        parity: by id of a twin's row for LiteRT, how near its file is to the ONNX graph that it was made of
            (`converter.tflite.proof.Proof`; of single operators those that are not equal).
        unneeded: recipes that are no candidates of this model and SLA, by name, and why.
    """

    model: str
    release: str
    target: str
    baseline: Candidate
    chosen: str | None
    chosen_reason: str
    candidates: tuple[Candidate, ...]
    calibration: dict[str, object]
    provenance: dict[str, object]
    created_at: str | None = None
    command: str | None = None
    sla_text: str | None = None
    limits: Limits | None = None
    target_profile: dict[str, object] | None = None
    sensitivity: tuple[dict[str, object], ...] | None = None
    metric: dict[str, object] | None = None
    sparsity: tuple[dict[str, object], ...] | None = None
    parity: dict[str, dict[str, object]] = {}
    unneeded: dict[str, str] = {}
    task: Kind = "classification"
    task_reason: str = ""
    version: int = 1


class Choice(Struct, frozen=True, kw_only=True):
    """What a bundle carries.

    Attributes:
        chosen: id of the first variant; None where nothing passes.
        reason: why this one, in words.
        carried: ids of all variants in order: `chosen`, the best of another runtime (or, on a host that is
            not of the target's class, the second of its own), and FP32 last where it is not chosen.
    """

    chosen: str | None
    reason: str
    carried: tuple[str, ...] = ()


def evidence(bound: float, interval: Interval | None, direction: Direction = "higher") -> Evidence:
    """How well the samples show that a figure keeps to `bound`: with its whole interval, or not."""
    if interval is None:
        return "unproven"
    if direction == "lower":
        if interval.high <= bound:
            return "proven"
        return "refuted" if interval.low > bound else "unproven"
    if interval.low >= bound:
        return "proven"
    return "refuted" if interval.high < bound else "unproven"


def samples_needed(counts: PairedCounts, ratio_min: float) -> int | None:
    """Samples that would prove the accuracy limit at this discordance, with 80% power at one-sided 5%.

    n = (1.645 + 0.842)^2 d / m^2, with d the fraction of samples on which candidate and baseline differ
    in being right and m the distance of the difference from what the limit allows (normal approximation
    of McNemar's test, Connor 1987). None where the point estimate itself misses or just meets the
    limit, or nothing differs.
    """
    n = counts.n
    right_reference = counts.both + counts.reference_only
    discordant = counts.candidate_only + counts.reference_only
    if n == 0 or right_reference == 0 or discordant == 0:
        return None
    delta = (counts.candidate_only - counts.reference_only) / n
    margin = delta - (ratio_min - 1.0) * right_reference / n
    if margin <= 0.0:
        return None
    return math.ceil((_Z_ONE_SIDED_5 + _Z_POWER_80) ** 2 * (discordant / n) / margin**2)


def choose(
    baseline: Candidate,
    quantized: Sequence[Candidate],
    limits: Limits,
    *,
    host_of_target_class: bool,
    untimed: Sequence[Candidate] = (),
) -> Choice:
    """The choice among judged candidates.

    Args:
        baseline: FP32's row; where only another runtime competes, the row of FP32 there.
        quantized: the other rows that compete, of any runtime, in the target's order of preference.
        limits: the SLA; its objective and fallback are looked at, its limits were judged before.
        host_of_target_class: whether latency measured here speaks for the target.
        untimed: rows of a runtime in which nothing is timed here: none is chosen, and the best that passes is
            carried for devices that have only that runtime.
    """
    choice = _choose(baseline, quantized, limits, host_of_target_class=host_of_target_class)
    passing = [row for row in untimed if row.status == "pass"]
    if choice.chosen is None or not passing:
        return choice
    best = _by_preference(passing, limits.objective)[0][0]
    return structs.replace(choice, carried=(*choice.carried, best.id))


def _choose(
    baseline: Candidate, quantized: Sequence[Candidate], limits: Limits, *, host_of_target_class: bool
) -> Choice:
    """Among rows that are timed, or could be."""
    passing = [row for row in quantized if row.status == "pass"]
    fp32_passes = baseline.status == "pass"
    allowed = fp32_passes or limits.fallback == "fp32_unbounded"
    fp32 = (baseline.id,) if allowed and baseline.status != "error" else ()
    if not passing:
        if fp32_passes:
            reason = "no quantized candidate passes the SLA, FP32 does"
            return Choice(chosen=baseline.id, reason=reason, carried=(baseline.id,))
        return Choice(chosen=None, reason="no candidate passes the SLA")
    worth = passing
    if host_of_target_class and fp32_passes and limits.objective != "size":
        worth = [row for row in passing if not _slower(row)]
    # FP32 stands for its own runtime, so there nothing slower is carried beside it.
    spare = [row for row in passing if row in worth or row.runtime != baseline.runtime]
    if not worth:
        why = "what passes quantized is slower than FP32, and no limit needs it"
        beside = _of_other_runtime(spare, baseline.runtime, limits, measured=True)
        return Choice(chosen=baseline.id, reason=why, carried=(baseline.id, *beside))
    ordered, reason = _ordered(worth, limits.objective, measured=host_of_target_class)
    best = ordered[0]
    beside = _of_other_runtime(spare, best.runtime, limits, measured=host_of_target_class)
    if not beside and not host_of_target_class:
        # The device may find the second one faster.
        beside = tuple(row.id for row in ordered[1:2])
    return Choice(chosen=best.id, reason=reason, carried=(best.id, *beside, *fp32))


def _ordered(rows: Sequence[Candidate], objective: str, *, measured: bool) -> tuple[list[Candidate], str]:
    """The best first, and why; of measured rows nothing is said of the order behind it."""
    if not measured:
        return _by_preference(rows, objective)
    best, reason = _best_measured(rows, objective)
    return [best], reason


def _of_other_runtime(
    rows: Sequence[Candidate], runtime: str, limits: Limits, *, measured: bool
) -> tuple[str, ...]:
    """The best of those that need another runtime: a device that has only that one finds a variant."""
    others = [row for row in rows if row.runtime != runtime]
    if not others:
        return ()
    ordered, _ = _ordered(others, limits.objective, measured=measured)
    return (ordered[0].id,)


def _slower(row: Candidate) -> bool:
    """Shown to be slower than FP32: the whole interval of the ratio lies above 1."""
    return row.latency_ratio is not None and _ratio_interval(row).low > 1.0


def _best_measured(passing: Sequence[Candidate], objective: str) -> tuple[Candidate, str]:
    """The best on a host of the target's class; `passing` is not empty and in order of preference."""
    rows = list(passing)
    if objective == "size":
        smallest = min(_size(row) for row in rows)
        rows = [row for row in rows if _size(row) == smallest]
        best, _ = _fastest(rows)
        return best, "smallest of those that pass"
    best, ties = _fastest(rows)
    reason = "fastest of those that pass, measured interleaved with FP32"
    if best.latency_ratio is None:
        reason = "first in the target's order of preference; no latency was measured"
    elif ties > 1:
        reason = f"of {ties} equally fast (within 5% or the interval) the best agreement, then the smallest"
    if objective == "energy":
        reason += "; energy is decided on the device"
    return best, reason


def _fastest(rows: Sequence[Candidate]) -> tuple[Candidate, int]:
    """The fastest and how many tie with it; those that were not measured stand behind."""
    measured = [row for row in rows if row.latency_ratio is not None]
    if not measured:
        return rows[0], 1
    lead = min(measured, key=lambda row: row.latency_ratio or 0.0)
    high = max(_ratio_interval(lead).high, (lead.latency_ratio or 0.0) * (1.0 + _LATENCY_TIE))
    ties = [row for row in measured if _ratio_interval(row).low <= high]
    return min(ties, key=lambda row: (-(row.agreement or 0.0), _size(row))), len(ties)


def _ratio_interval(row: Candidate) -> Interval:
    """Of a measured row; a ratio without an interval is a point."""
    point = row.latency_ratio or 0.0
    low, high = row.latency_ratio_ci95 or (point, point)
    return Interval(low, high)


def _by_preference(passing: Sequence[Candidate], objective: str) -> tuple[list[Candidate], str]:
    """Order for a target of another class: nothing here was measured that speaks for its speed.

    Candidates whose fusion audit shows no integer kernel go last, for there is nothing to win.
    """
    fused = sorted(passing, key=lambda row: row.fusion is not None and row.fusion.integer == 0)
    if objective == "size":
        return sorted(fused, key=_size), "smallest of those that pass"
    reason = "first in the target's order of preference among those that pass; the device decides latency"
    return fused, reason


def _size(row: Candidate) -> int:
    """Unknown sizes stand behind all known ones."""
    return 2**63 if row.size_bytes is None else row.size_bytes
