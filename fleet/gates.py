"""PURE. Whether a wave may be followed by the next: limits parsed when a rollout is made, and a verdict.

For: `parse_gate()`, which reads GATE.yaml's mapping and refuses what it does not know, and `evaluate()`,
a worst-of fold over named parts, each with its reason.
Not for: who is in a wave, time-outs and orders (`fleet.rollout`); how trials are pooled and the
statistics themselves (`fleet.evidence`).

A gate fails closed: a part that cannot be evaluated waits while something may still arrive, and is
inconclusive once everything has. Only `pass` of every part opens the next wave.

Example of a GATE.yaml; every key is optional and these are the defaults, except for `proofs`,
`failures_max` and `latency_ratio_max`, which are off unless written:

    min_fraction: 1.0
    failures_max: 0
    degraded_max: 0
    latency_ratio_max: 1.2
    success: {min_rate: 0.95, false_alarm: 0.05}
    accuracy: {incumbent_drop_max: 0.0, baseline_drop_max: 0.01, false_alarm: 0.05}
    silence: {after_s: 3600, max: 0}
    proofs: {success_rate: 0.9, accuracy_drop_max: 0.02, confidence: 0.95}
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from fleet.evidence import (
    Evidence,
    Pooled,
    Standing,
    harm_e_value,
    pool,
    proof_e_value,
    success_harm_e_value,
)
from wire.errors import LimitsError
from wire.figures import median_interval, paired_delta_interval, percentile, sign_test_p_value
from wire.sla import Measures, Outcome, Scope, judge
from wire.types import Count, Seconds

SMALL_FLEET = 40
"""Below so many judged devices one failure is one too many, unless `failures_max` says otherwise: to show
at most 10% failures takes 39 to 69 devices without any (DESIGN.md section 5)."""

NAMED_MAX = 10
"""Devices named in a reason; the rest are counted."""

_Rate = Annotated[float, Meta(gt=0.0, lt=1.0)]
_Share = Annotated[float, Meta(gt=0.0, le=1.0)]
_Drop = Annotated[float, Meta(ge=0.0, lt=1.0)]
_Ratio = Annotated[float, Meta(gt=0.0, le=1000.0)]


class SuccessTest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Harm test on the share of devices that fail.

    Attributes:
        min_rate: fires once it is shown that fewer than this share succeed.
        false_alarm: bound on the probability that it ever fires on a fleet that meets `min_rate`,
            however often it is looked at.
    """

    min_rate: _Rate = 0.95
    false_alarm: _Rate = 0.05


class AccuracyTest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Harm tests on accuracy, paired by sample, pooled per variant, runtime and CPU class.

    Attributes:
        incumbent_drop_max: fires once a larger drop against the release that ran before is shown; a
            fraction of all samples (0.01 is one point). 0: any shown drop fires.
        baseline_drop_max: the same against the bundle's own FP32; None takes what the SLA's
            `min_fraction_of_baseline` leaves, or 0.01 if it has none.
        false_alarm: bound per variant, runtime and CPU class on ever firing on a release that keeps the
            margin.
    """

    incumbent_drop_max: _Drop = 0.0
    baseline_drop_max: _Drop | None = None
    false_alarm: _Rate = 0.05


class Silence(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Devices that got an order and gave no outcome.

    Attributes:
        after_s: from the order (or from a person's resume) until a device counts as silent; None: the
            rollout's deadline and soak together, by when an awake device has answered or given up.
        max: silent devices that a gate tolerates.
    """

    after_s: Seconds | None = None
    max: Count = 0


class Proofs(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What must be shown, not only not refuted, before the last wave opens. Opt-in.

    Attributes:
        success_rate: to be shown as the least share of devices that succeed.
        accuracy_drop_max: to be shown as the largest drop against the incumbent (the baseline on a
            first install), by the paired 95% interval.
        confidence: of `success_rate`.
    """

    success_rate: _Rate | None = None
    accuracy_drop_max: Annotated[float, Meta(gt=0.0, lt=1.0)] | None = None
    confidence: _Rate = 0.95


class Gate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The conditions for opening the next wave, and for being complete after the last.

    Attributes:
        min_fraction: of the devices that neither failed nor are silent, the share that must have ended
            its soak.
        failures_max: devices that may fail, over the whole rollout; None: 0 while fewer than
            SMALL_FLEET are judged, above that `success` decides.
        degraded_max: devices that may run another than their first allowed variant; None: 0 in the
            first wave, then a tenth of those that succeeded, rounded up.
        latency_ratio_max: latency against the incumbent, median over devices; None: not asked.
        success: harm test on failures.
        accuracy: harm tests on accuracy; None (`accuracy: null`) for a release without labels.
        silence: when a device counts as silent, and how many may.
        proofs: opt-in.
    """

    min_fraction: _Share = 1.0
    failures_max: Count | None = None
    degraded_max: Count | None = None
    latency_ratio_max: _Ratio | None = None
    success: SuccessTest = SuccessTest()
    accuracy: AccuracyTest | None = AccuracyTest()
    silence: Silence = Silence()
    proofs: Proofs = Proofs()


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
        """The parts that are not `pass`, worst first, in words; all of them if all pass."""
        ranked = sorted(self.parts, key=lambda part: -list(Decision).index(part.decision))
        standing = [part for part in ranked if part.decision is not Decision.PASS]
        return "; ".join(f"{part.name}: {part.reason}" for part in standing or ranked)
