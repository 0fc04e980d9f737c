"""PURE. Whether a wave may be followed by the next: a verdict with its reasons.

For: `evaluate()`, a worst-of fold over named parts, each with its reason. The limits stand in
`fleet.gate_limits` and are given on from here.
Not for: who is in a wave, time-outs and orders (`fleet.rollout`); how trials are pooled and the
statistics themselves (`fleet.evidence`, `fleet.evalues`).

A gate fails closed: a part that cannot be evaluated waits while something may still arrive, and is
inconclusive once everything has. Only `pass` of every part opens the next wave.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum

import msgspec
from msgspec import Struct

from fleet.evalues import (
    harm_e_value,
    no_harm_e_value,
    proof_devices_min,
    proof_e_value,
    proof_samples_min,
    success_harm_e_value,
)
from fleet.evidence import Evidence, Pooled, Standing, pool
from fleet.gate_limits import (
    SMALL_FLEET,
    AccuracyTest,
    Gate,
    Proofs,
    Silence,
    SuccessTest,
    check_proofs,
    parse_gate,
)
from wire.figures import (
    PairedCounts,
    median_interval,
    paired_delta_interval,
    percentile,
    sign_test_p_value,
)
from wire.sla import Measures, Outcome, Scope, judge

__all__ = [
    "SMALL_FLEET",
    "AccuracyTest",
    "Decision",
    "Gate",
    "GateVerdict",
    "Part",
    "Proofs",
    "Silence",
    "SuccessTest",
    "check_proofs",
    "evaluate",
    "parse_gate",
]

NAMED_MAX = 10
"""Devices named in a reason; the rest are counted."""


class Decision(StrEnum):
    """What a part, and the gate as a whole, says; from best to worst."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    WAIT = "wait"
    """Not yet: something that is under way will decide."""
    INCONCLUSIVE = "inconclusive"
    """Nothing is under way that could decide; a person must."""
    FAIL = "fail"


class Part(Struct, frozen=True, kw_only=True):
    """One condition, evaluated."""

    name: str
    decision: Decision
    reason: str


class GateVerdict(Struct, frozen=True, kw_only=True):
    """All parts, in a fixed order, and what follows from them."""

    parts: tuple[Part, ...]

    @property
    def decision(self) -> Decision:
        """The worst of the parts; nothing at all is inconclusive."""
        if not self.parts:
            return Decision.INCONCLUSIVE
        return max((part.decision for part in self.parts), key=list(Decision).index)

    @property
    def reason(self) -> str:
        """The parts that decided, in words."""
        if self.decision is Decision.PASS:
            return "all conditions hold"
        deciding = [part for part in self.parts if part.decision is self.decision]
        return "; ".join(f"{part.name}: {part.reason}" for part in deciding) or "nothing was evaluated"


def evaluate(gate: Gate, evidence: Evidence) -> GateVerdict:
    """The gate of the open wave, over all devices that the rollout has reached so far."""
    view = _View(gate, evidence)
    parts = tuple(
        Part(name=name, decision=decision, reason=reason)
        for name, judge_part in _PARTS
        for decision, reason in [judge_part(view)]
    )
    return GateVerdict(parts=parts)


_Said = tuple[Decision, str]


class _View:
    """The evidence, counted once for all parts."""

    def __init__(self, gate: Gate, evidence: Evidence) -> None:
        self.gate = gate
        self.evidence = evidence
        self.by_standing: dict[Standing, list[str]] = {standing: [] for standing in Standing}
        for device in evidence.devices:
            named = f"{device.device} {device.detail}".strip()
            self.by_standing[device.standing].append(named)
        self.pooled = pool(evidence)

    def count(self, *standings: Standing) -> int:
        return sum(len(self.by_standing[standing]) for standing in standings)

    def named(self, standing: Standing) -> str:
        names = self.by_standing[standing]
        more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
        return ", ".join(names[:NAMED_MAX]) + more

    @property
    def counted(self) -> int:
        return self.count(Standing.SUCCEEDED, Standing.FAILED, Standing.IN_FLIGHT, Standing.SILENT)

    def lacking(self, what: str) -> _Said:
        """A part that cannot be evaluated: it waits while something may still arrive."""
        under_way = self.evidence.unreached or self.count(Standing.IN_FLIGHT)
        return (Decision.WAIT if under_way else Decision.INCONCLUSIVE), what

    def untried(self, what: str) -> _Said:
        """No trial to judge: nothing is missing only if every device ran the release already."""
        at_work = {Standing.SUCCEEDED, Standing.IN_FLIGHT}
        held = [device.held for device in self.evidence.devices if device.standing in at_work]
        if held and all(held):
            return Decision.PASS, "every device ran the release already; there was nothing to try"
        return self.lacking(what)


def _reach(view: _View) -> _Said:
    if view.evidence.unreached:
        return Decision.WAIT, f"{view.evidence.unreached} devices of the wave have no order yet"
    if not view.counted:
        others = [view.named(s) for s in (Standing.TAKEN_OVER, Standing.GONE) if view.count(s)]
        return Decision.INCONCLUSIVE, "; ".join(["no device is left to judge", *others])
    return Decision.PASS, f"{view.counted} devices have their order"


def _failures(view: _View) -> _Said:
    failures, limit = view.count(Standing.FAILED), view.gate.failures_max
    if limit is None and view.counted < SMALL_FLEET:
        limit = 0
    if limit is None:
        return Decision.PASS, f"{failures} failed of {view.counted}; the success test decides"
    if failures > limit:
        return Decision.FAIL, f"{failures} failed, at most {limit} may: {view.named(Standing.FAILED)}"
    return Decision.PASS, f"{failures} failed, at most {limit} may"


def _success(view: _View) -> _Said:
    test = view.gate.success
    failures = view.count(Standing.FAILED)
    n = failures + view.count(Standing.SUCCEEDED)
    e_value = success_harm_e_value(failures, n, 1.0 - test.min_rate)
    figures = f"{failures} of {n} failed, e-value {e_value:.3g}"
    if e_value >= 1.0 / test.false_alarm:
        return Decision.FAIL, f"fewer than {test.min_rate:.4g} succeed: {figures}"
    return Decision.PASS, f"not shown that fewer than {test.min_rate:.4g} succeed: {figures}"


def _soak(view: _View) -> _Said:
    done, going = view.count(Standing.SUCCEEDED), view.count(Standing.IN_FLIGHT)
    if done == 0:
        under_way = view.named(Standing.IN_FLIGHT)
        return view.lacking("no device has ended its soak" + (f": {under_way}" if under_way else ""))
    if done < view.gate.min_fraction * (done + going):
        return Decision.WAIT, f"{done} of {done + going} ended: {view.named(Standing.IN_FLIGHT)}"
    return Decision.PASS, f"{done} of {done + going} ended their soak"


def _degraded(view: _View) -> _Said:
    names = [device.device for device in view.evidence.devices if device.degraded]
    limit = view.gate.degraded_max
    if limit is None:
        limit = 0 if view.evidence.wave == 0 else math.ceil(view.count(Standing.SUCCEEDED) / 10)
    if len(names) > limit:
        why = f"{len(names)} run another than their first variant, at most {limit} may"
        return Decision.FAIL, f"{why}: {', '.join(names[:NAMED_MAX])}"
    return Decision.PASS, f"{len(names)} run another than their first variant, at most {limit} may"


def _silence(view: _View) -> _Said:
    silent, limit = view.count(Standing.SILENT), view.gate.silence.max
    if silent > limit:
        why = f"{silent} gave no outcome in time, at most {limit} may"
        return Decision.INCONCLUSIVE, f"{why}: {view.named(Standing.SILENT)}"
    return Decision.PASS, f"{silent} gave no outcome in time, at most {limit} may"


def _accuracy(view: _View) -> _Said:
    test = view.gate.accuracy
    if test is None:
        return Decision.PASS, "switched off by the gate"
    if not view.pooled:
        return view.untried("no trial has been reported")
    baseline_drop = _baseline_drop_max(test, view.evidence)
    missing, said = [], []
    for pooled in view.pooled:
        pairs = [("FP32", pooled.baseline, baseline_drop, True)]
        pairs.append(("the incumbent", pooled.incumbent, test.incumbent_drop_max, pooled.incumbents > 0))
        for reference, counts, drop_max, expected in pairs:
            if counts is None and expected:
                missing.append(f"{pooled.stratum} was not compared with {reference}")
            if counts is None:
                continue
            e_value = harm_e_value(counts, drop_max)
            figures = _compared(pooled, reference, counts, e_value)
            if e_value >= 1.0 / test.false_alarm:
                return Decision.FAIL, f"shown to lose more than {drop_max:.4g}: {figures}"
            said.append(figures)
    if missing:
        return view.lacking("; ".join(missing[:NAMED_MAX]))
    return Decision.PASS, "; ".join(said[:NAMED_MAX])


def _baseline_drop_max(test: AccuracyTest, evidence: Evidence) -> float:
    """The gate's own margin, else what the SLA leaves, else one point."""
    if test.baseline_drop_max is not None:
        return test.baseline_drop_max
    limit = evidence.limits.accuracy
    if limit is None or limit.min_fraction_of_baseline is None:
        return 0.01
    return min(0.99, max(0.0, 1.0 - limit.min_fraction_of_baseline))


def _compared(pooled: Pooled, reference: str, counts: PairedCounts, e_value: float) -> str:
    interval = paired_delta_interval(counts)
    delta = (counts.candidate_only - counts.reference_only) / counts.n
    return (
        f"{pooled.stratum}: {delta:+.4f} against {reference} on {counts.n} samples "
        f"(95% {interval.low:+.4f} to {interval.high:+.4f}, sign test p {sign_test_p_value(counts):.3g}, "
        f"e-value {e_value:.3g})"
    )


def _sla(view: _View) -> _Said:
    limits = view.evidence.limits
    running = [pooled for pooled in view.pooled if pooled.running]
    if not judge(limits, Measures(), Scope.WAVE).findings:
        return Decision.PASS, "the SLA sets no limit"
    if not running:
        return view.untried("no device that carries the release has reported a trial")
    open_questions: list[str] = []
    for pooled in running:
        unknown = dict.fromkeys(pooled.unmeasured)
        for measures in (pooled.measures, msgspec.structs.replace(pooled.measures, **unknown)):
            findings = judge(limits, measures, Scope.WAVE).findings
            failed = [f.reason for f in findings if f.outcome is Outcome.FAIL]
            if failed:
                return Decision.FAIL, f"{pooled.stratum}: {'; '.join(failed)}"
            doubtful = [f.reason for f in findings if f.outcome in _DOUBT]
            open_questions += [f"{pooled.stratum}: {reason}" for reason in doubtful]
    if open_questions:
        return view.lacking("; ".join(list(dict.fromkeys(open_questions))[:NAMED_MAX]))
    return Decision.PASS, "every limit of the SLA holds over the devices so far"


_DOUBT = frozenset({Outcome.INCONCLUSIVE, Outcome.UNMEASURED})


def _latency(view: _View) -> _Said:
    limit = view.gate.latency_ratio_max
    if limit is None:
        return Decision.PASS, "not asked"
    rated = [pooled for pooled in view.pooled if pooled.latency_ratios]
    if not rated:
        return view.untried("no device measured its latency against an incumbent")
    doubtful = []
    for pooled in rated:
        median = percentile(pooled.latency_ratios, 0.5)
        interval = median_interval(pooled.latency_ratios)
        figures = (
            f"{pooled.stratum}: {median:.3g} of the incumbent's ({interval.low:.3g}-{interval.high:.3g})"
        )
        if interval.low > limit:
            return Decision.FAIL, f"{figures}, at most {limit:.3g} may be"
        if median > limit:
            doubtful.append(f"{figures} is not shown to keep {limit:.3g}")
    if doubtful:
        return view.lacking("; ".join(doubtful[:NAMED_MAX]))
    return Decision.PASS, f"the median over devices is within {limit:.3g} of the incumbent's"


def _proofs(view: _View) -> _Said:
    said = [said for said in (_success_proof(view), _accuracy_proof(view)) if said is not None]
    if not said:
        return Decision.PASS, "none is asked of this wave"
    return max(said, key=lambda pair: list(Decision).index(pair[0]))


def _success_proof(view: _View) -> _Said | None:
    proofs, last = view.gate.proofs, view.evidence.wave == view.evidence.waves - 1
    if proofs.success_rate is None:
        return None
    needed = proof_devices_min(proofs.success_rate, proofs.confidence)
    if view.evidence.proof_devices < needed and not last:
        return None
    failures = view.count(Standing.FAILED)
    n = failures + view.count(Standing.SUCCEEDED)
    e_value = proof_e_value(failures, n, 1.0 - proofs.success_rate)
    if e_value >= 1.0 / (1.0 - proofs.confidence):
        return Decision.PASS, f"a success rate of {proofs.success_rate:.4g} is shown on {n} devices"
    why = f"a success rate of {proofs.success_rate:.4g} is not shown by {n} devices ({failures} failed)"
    return view.lacking(f"{why}; without a failure {needed} would do")


def _accuracy_proof(view: _View) -> _Said | None:
    proofs, last = view.gate.proofs, view.evidence.wave == view.evidence.waves - 1
    drop_max = proofs.accuracy_drop_max
    if drop_max is None:
        return None
    needed = proof_samples_min(drop_max, proofs.confidence)
    if view.evidence.proof_samples < needed and not last:
        return None
    if not view.pooled:
        return view.lacking("no trial has been reported")
    for pooled in view.pooled:
        counts = pooled.incumbent if pooled.incumbents else pooled.baseline
        e_value = 0.0 if counts is None else no_harm_e_value(counts, drop_max)
        if e_value < 1.0 / (1.0 - proofs.confidence):
            n = 0 if counts is None else counts.n
            why = f"a drop below {drop_max:.4g} is not shown by {n} samples on {pooled.stratum}"
            return view.lacking(f"{why}; with full agreement {needed} would do")
    return Decision.PASS, f"a drop below {drop_max:.4g} is shown"


_PARTS: tuple[tuple[str, Callable[[_View], _Said]], ...] = (
    ("reach", _reach),
    ("failures", _failures),
    ("success", _success),
    ("soak", _soak),
    ("silence", _silence),
    ("degraded", _degraded),
    ("accuracy", _accuracy),
    ("sla", _sla),
    ("latency", _latency),
    ("proofs", _proofs),
)
"""The fold, in the order in which a person reads it."""
