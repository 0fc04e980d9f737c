"""PURE. What became of a rollout's devices, and their trials pooled: what a gate looks at.

For: `standing_of()`, one device's fate under one order; `pool()`, trials pooled over distinct samples per
variant, runtime and CPU class.
Not for: limits and verdicts (`fleet.gates`), nor the tests themselves (`fleet.evalues`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

from msgspec import Struct

from fleet.inventory import Device
from wire.figures import PairedCounts, paired_ratio_interval, wilson_interval
from wire.measures import Measure, Source, TrialResult, pooled_mean
from wire.messages import ModelState, OrderOutcome, Phase
from wire.sla import Limits, Measures


class Standing(StrEnum):
    """What became of a device under a rollout's order."""

    SUCCEEDED = "succeeded"
    """The device itself says: this order, this release, an allowed variant, soak ended."""
    FAILED = "failed"
    """Refused, fell back, was rolled back, or says success while something else runs."""
    IN_FLIGHT = "in_flight"
    SILENT = "silent"
    """No outcome though its time is up."""
    TAKEN_OVER = "taken_over"
    """A newer order concerns it now; not counted."""
    GONE = "gone"
    """Forgotten by a person; not counted."""


class DeviceEvidence(Struct, frozen=True, kw_only=True):
    """One device, as a gate sees it.

    Attributes:
        device: its id.
        standing: what became of it.
        detail: in words.
        degraded: it succeeded on another than its first allowed variant.
        held: it ran the release before the order came, so there was nothing to try.
        trial: of this order, if there was one.
        arch: of the machine; with the trial's `cpu` it is the CPU class.
    """

    device: str
    standing: Standing
    detail: str = ""
    degraded: bool = False
    held: bool = False
    trial: TrialResult | None = None
    arch: str = "unknown"


class Evidence(Struct, frozen=True, kw_only=True):
    """All that a gate looks at.

    Attributes:
        devices: all that the rollout has reached so far, in that order.
        unreached: devices of the open wave that have no order yet (the pace holds them back).
        wave: index of the open wave.
        waves: their number.
        limits: the release's SLA.
        size_bytes: by variant.
        proof_devices: what the open wave can reach; proofs are due where it is enough.
        proof_samples: distinct samples that the open wave can trial.
    """

    devices: tuple[DeviceEvidence, ...]
    unreached: int = 0
    wave: int = 0
    waves: int = 1
    limits: Limits = Limits()
    size_bytes: dict[str, int] = {}
    proof_devices: int = 0
    proof_samples: int = 0


class Stratum(Struct, frozen=True, order=True, kw_only=True):
    """What must be alike for two trials to be pooled."""

    variant: str
    runtime: str
    cpu: str

    def __str__(self) -> str:
        return f"{self.variant} on {self.cpu}"


class Pooled(Struct, frozen=True, kw_only=True):
    """The trials of one stratum.

    Attributes:
        stratum: what they have in common.
        devices: number of trials.
        running: trials of devices that did not fail.
        incumbents: trials that had an incumbent to compare with.
        baseline: paired counts against FP32 over distinct shards; None: no trial had them.
        incumbent: paired counts against the incumbent over distinct shards; None: no trial had them.
        measures: accuracy and agreement pooled; of latency, energy and memory the worst.
        unmeasured: upper limits that at least one trial did not measure.
        latency_ratios: to the incumbent, one of each trial that has it.
    """

    stratum: Stratum
    devices: int
    running: int
    incumbents: int
    baseline: PairedCounts | None
    incumbent: PairedCounts | None
    measures: Measures
    unmeasured: frozenset[str]
    latency_ratios: tuple[float, ...]


class Terms(Struct, frozen=True, kw_only=True):
    """What one device was ordered to do.

    Attributes:
        order: its number.
        rollback_order: of the rollout; its ready rollback may have been sent by a person's hand.
        digest: of the release.
        variants: allowed.
        evaluate: trial only.
        time_is_up: whether it has had all the time that silence is given.
    """

    order: int
    rollback_order: int
    digest: str
    variants: tuple[str, ...]
    evaluate: bool
    time_is_up: bool


_FAILURES = frozenset({OrderOutcome.FAILED, OrderOutcome.FELL_BACK, OrderOutcome.ROLLED_BACK})


def standing_of(device: Device, state: ModelState | None, terms: Terms) -> tuple[Standing, str]:
    """What became of a device under an order, and why, from its own reports.

    Args:
        device: its view.
        state: of the rollout's model; None if it reported none.
        terms: what was ordered, and whether its time is up.
    """
    if state is None or state.order < terms.order:
        return _unsettled(terms, "has not taken up the order")
    if state.order == terms.rollback_order and state.outcome is OrderOutcome.ROLLED_BACK:
        return Standing.FAILED, f"rolled_back{_because(state)}"
    if state.order > terms.order or state.outcome is OrderOutcome.SUPERSEDED:
        return Standing.TAKEN_OVER, f"follows a newer order than {terms.order}"
    if state.outcome is None:
        return _unsettled(terms, f"is {state.phase.value}{_because(state)}")
    wrong = _failure(state, terms)
    if wrong:
        return Standing.FAILED, wrong
    return _success(device, state, terms)


def _success(device: Device, state: ModelState, terms: Terms) -> tuple[Standing, str]:
    """The claim of success is right; whether it is final and to be believed."""
    if state.phase is not Phase.IDLE:
        return _unsettled(terms, f"is {state.phase.value} still")
    if device.duplicate_identity:
        return _unsettled(terms, "two machines answer under this id")
    return Standing.SUCCEEDED, "evaluated" if terms.evaluate else "active after its soak"


def _failure(state: ModelState, terms: Terms) -> str:
    """How an order that ended went wrong; empty if it did not."""
    outcome = OrderOutcome.EVALUATED if terms.evaluate else OrderOutcome.ACTIVE
    if state.outcome in _FAILURES:
        return f"{state.outcome.value}{_because(state)}"
    if state.outcome is not None and state.outcome is not outcome:
        return f"says {state.outcome.value}, which was not ordered"
    return "" if terms.evaluate else _not_running(state, terms)


def _because(state: ModelState) -> str:
    if state.reason is None:
        return ""
    detail = f": {state.reason.detail}" if state.reason.detail else ""
    return f" ({state.reason.code}{detail})"


def _unsettled(terms: Terms, what: str) -> tuple[Standing, str]:
    return (Standing.SILENT if terms.time_is_up else Standing.IN_FLIGHT), what


def _not_running(state: ModelState, terms: Terms) -> str:
    """Why a device that claims success does not run what was ordered; empty if it does."""
    active = state.active
    if active is None or active.digest != terms.digest:
        runs = "nothing" if active is None else f"{active.release} ({active.digest[:12]})"
        return f"says success while {runs} is active"
    if active.variant not in terms.variants:
        return f"runs {active.variant}, which it was not allowed"
    return ""


# --- pooling ------------------------------------------------------------------------------------------

_MAXIMA = ("latency_ms_p95", "energy_mj", "memory_bytes")


def pool(evidence: Evidence) -> tuple[Pooled, ...]:
    """Trials by stratum, each pooled over distinct shards.

    Two devices that run the same variant on the same shard give the same answers: the second adds no
    sample. Trials of devices that failed count for accuracy, which leaving them out would flatter, and
    not for latency, energy and memory, whose failures are already counted as failed devices.
    """
    groups: dict[Stratum, list[DeviceEvidence]] = {}
    for device in evidence.devices:
        if device.trial is not None and device.standing not in {Standing.TAKEN_OVER, Standing.GONE}:
            groups.setdefault(_stratum(device, device.trial), []).append(device)
    return tuple(_pooled(s, members, evidence.size_bytes) for s, members in sorted(groups.items()))


def _stratum(device: DeviceEvidence, trial: TrialResult) -> Stratum:
    runtime = f"{trial.runtime} {trial.runtime_version}"
    return Stratum(variant=trial.variant, runtime=runtime, cpu=f"{device.arch} {trial.cpu or 'unknown'}")


def _pooled(stratum: Stratum, members: Sequence[DeviceEvidence], sizes: dict[str, int]) -> Pooled:
    trials = [member.trial for member in members if member.trial is not None]
    running = [m.trial for m in members if m.trial is not None and m.standing is not Standing.FAILED]
    worst = {name: _worst(name, running) for name in _MAXIMA}
    size = sizes.get(stratum.variant)
    return Pooled(
        stratum=stratum,
        devices=len(trials),
        running=len(running),
        incumbents=sum(trial.incumbent is not None for trial in trials),
        baseline=_counts(trials, "against_baseline"),
        incumbent=_counts(trials, "against_incumbent"),
        measures=Measures(
            accuracy=_accuracy(trials),
            accuracy_ratio=_accuracy_ratio(trials),
            agreement=_agreement(trials),
            size_bytes=None if size is None else Measure(value=float(size)),
            latency_ms_p95=worst["latency_ms_p95"],
            energy_mj=worst["energy_mj"],
            memory_bytes=worst["memory_bytes"],
        ),
        unmeasured=frozenset(n for n in _MAXIMA if any(_maximum(n, trial) is None for trial in running)),
        latency_ratios=tuple(
            trial.latency_ratio_to_incumbent.value
            for trial in running
            if trial.latency_ratio_to_incumbent is not None and not trial.throttled
        ),
    )


def _distinct(trials: Iterable[TrialResult]) -> list[TrialResult]:
    """The trials whose shards no earlier one had; no shard at all counts as one shard."""
    taken: set[int] = set()
    kept = []
    for trial in trials:
        shards = set(trial.shards) or {-1}
        if not shards & taken:
            taken |= shards
            kept.append(trial)
    return kept


def _counts(trials: Sequence[TrialResult], field: str) -> PairedCounts | None:
    having = [trial for trial in trials if getattr(trial, field) is not None]
    total = PairedCounts(both=0, candidate_only=0, reference_only=0, neither=0)
    for trial in _distinct(having):
        total += getattr(trial, field)
    return total if total.n else None


def _own(trials: Iterable[TrialResult], field: str) -> list[TrialResult]:
    """The trials whose figure is their own, not inherited from the host."""
    return [t for t in trials if (m := getattr(t, field)) is not None and m.source is Source.MEASURED]


def _inherited(trials: Iterable[TrialResult], field: str) -> Measure | None:
    """The lowest of the inherited figures; devices of one stratum inherit the same one."""
    measures: list[Measure] = [m for t in trials if (m := getattr(t, field)) is not None]
    inherited = [measure for measure in measures if measure.source is Source.INHERITED]
    return min(inherited, key=lambda measure: measure.value, default=None)


def _accuracy(trials: Sequence[TrialResult]) -> Measure | None:
    """Of the devices that do not conform, if any; else what the conforming ones inherit."""
    own = _own(trials, "accuracy")
    return _share(own, "accuracy") if own else _inherited(trials, "accuracy")


def _agreement(trials: Sequence[TrialResult]) -> Measure | None:
    own = _own(trials, "agreement")
    return _share(own, "agreement") if own else _inherited(trials, "agreement")


def _share(own: Sequence[TrialResult], field: str) -> Measure:
    """A proportion pooled over distinct shards, with Wilson's interval; any other mean by its own.

    Where a trial does not say on how many samples its figure rests, the lowest figure stands alone.
    """
    measures: list[Measure] = [getattr(trial, field) for trial in _distinct(own)]
    if any(measure.n == 0 for measure in measures):
        return min(measures, key=lambda measure: measure.value)
    if not all(_is_share(measure) for measure in measures):
        return pooled_mean(measures)
    n = sum(measure.n for measure in measures)
    right = min(n, sum(round(measure.value * measure.n) for measure in measures))
    interval = wilson_interval(right, n)
    return Measure(value=right / n, low=interval.low, high=interval.high, n=n)


def _is_share(measure: Measure) -> bool:
    """A whole number of samples over their number; a cosine or an error is not, but by chance."""
    right = measure.value * measure.n
    return 0.0 <= measure.value <= 1.0 and abs(right - round(right)) < 1e-6


def _accuracy_ratio(trials: Sequence[TrialResult]) -> Measure | None:
    own = _own(trials, "accuracy_ratio")
    if not own:
        return _inherited(trials, "accuracy_ratio")
    counts = _counts(own, "against_baseline")
    interval = None if counts is None else paired_ratio_interval(counts)
    if counts is None or interval is None:
        ratios: list[Measure] = [t.accuracy_ratio for t in _distinct(own) if t.accuracy_ratio is not None]
        return pooled_mean(ratios)
    value = (counts.both + counts.candidate_only) / (counts.both + counts.reference_only)
    return Measure(value=value, low=interval.low, high=interval.high, n=counts.n)


def _maximum(name: str, trial: TrialResult) -> Measure | None:
    """A figure that can prove something: measured, and on a machine that was not held back."""
    if name == "latency_ms_p95":
        latency = None if trial.throttled else trial.latency
        return None if latency is None else Measure(value=latency.ms_p95, n=latency.n)
    if name == "energy_mj":
        energy = None if trial.throttled else trial.energy_mj
        return None if energy is None or energy.source is Source.ESTIMATED else energy
    peak = trial.memory_bytes_peak
    return None if peak is None else Measure(value=float(peak))


def _worst(name: str, trials: Iterable[TrialResult]) -> Measure | None:
    measures = [m for trial in trials if (m := _maximum(name, trial)) is not None]
    return max(measures, key=lambda measure: measure.value, default=None)
