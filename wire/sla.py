"""PURE. The SLA: limits written before anything is quantized, and the one function that judges.

For: reading limits from a file's mapping or a manifest, and `judge()`, which a candidate on the host, a
trial on a device and a pooled wave all pass through.
Not for: measuring, choosing among candidates that pass, or promoting waves.

An unknown key is refused everywhere, on the wire too: a limit that cannot be read cannot be kept.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from wire.errors import LimitsError
from wire.measures import Measure, Source
from wire.tasks import Direction, Metric
from wire.types import Fraction, Text

_Above0 = Annotated[float, Meta(gt=0.0)]


class Scope(StrEnum):
    """Where the measures come from, which decides what they can decide."""

    HOST = "host"
    """A host that is not of the target's class: latency, memory and energy are deferred."""
    HOST_OF_TARGET_CLASS = "host_of_target_class"
    """The host stands for the target: latency too is decided."""
    DEVICE = "device"
    """A trial on one device with a share of the samples: accuracy fails only beyond doubt."""
    WAVE = "wave"
    """Figures pooled over the devices of a wave; judged as on a device, with narrower intervals."""


class Maximum(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An upper limit with what to do where it cannot be measured."""

    max: _Above0
    if_unmeasured: Literal["refuse", "accept"] = "refuse"


class AccuracyLimit(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Exactly one of the forms; the metric is the task's.

    Attributes:
        min: least value, where higher is better.
        min_fraction_of_baseline: least ratio to FP32's, where higher is better.
        max: largest value, where lower is better.
        max_ratio_to_baseline: largest ratio to FP32's, where lower is better.
    """

    min: Annotated[float, Meta(ge=0.0)] | None = None
    min_fraction_of_baseline: Annotated[float, Meta(gt=0.0, le=2.0)] | None = None
    max: _Above0 | None = None
    max_ratio_to_baseline: Annotated[float, Meta(gt=0.0, le=100.0)] | None = None

    @property
    def direction(self) -> Direction:
        """Of the metrics that the form is made for."""
        return "higher" if self.max is None and self.max_ratio_to_baseline is None else "lower"

    @property
    def of_baseline(self) -> float | None:
        """The bound on the ratio to FP32's, in either direction."""
        return (
            self.min_fraction_of_baseline
            if self.max_ratio_to_baseline is None
            else self.max_ratio_to_baseline
        )

    @property
    def absolute(self) -> float | None:
        """The bound on the value itself, in either direction."""
        return self.min if self.max is None else self.max


class AgreementLimit(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Least agreement with the FP32 outputs; needs no labels."""

    min: Fraction


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The SLA. Every key is optional; what is not limited is still measured and reported.

    Attributes:
        accuracy: of the task's metric.
        agreement: with the FP32 outputs.
        latency_ms_p95_max: of one warm inference.
        size_bytes_max: of the variant's files.
        energy_mj_max: per inference, idle subtracted.
        memory_bytes_max: the worker's peak resident set, runtime included.
        fallback: `fp32_unbounded` lets FP32 be a variant though it misses the SLA.
        objective: what the choice among passing candidates minimises.
    """

    accuracy: AccuracyLimit | None = None
    agreement: AgreementLimit | None = None
    latency_ms_p95_max: _Above0 | Maximum | None = None
    size_bytes_max: _Above0 | Maximum | None = None
    energy_mj_max: _Above0 | Maximum | None = None
    memory_bytes_max: _Above0 | Maximum | None = None
    fallback: Literal["previous_slot", "fp32_unbounded"] = "previous_slot"
    objective: Literal["latency", "size", "energy"] = "latency"


class Measures(Struct, frozen=True, kw_only=True):
    """What `judge()` looks at; None is unmeasured."""

    accuracy: Measure | None = None
    accuracy_ratio: Measure | None = None
    agreement: Measure | None = None
    latency_ms_p95: Measure | None = None
    size_bytes: Measure | None = None
    energy_mj: Measure | None = None
    memory_bytes: Measure | None = None


class Outcome(StrEnum):
    """What became of one limit."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    """Measured, and the interval reaches across the limit."""
    UNMEASURED = "unmeasured"
    ACCEPTED = "accepted"
    """Unmeasured, and the SLA says to accept that; recorded as such."""
    DEFERRED = "deferred"
    """Out of this scope; another will decide it."""


class Finding(Struct, frozen=True, kw_only=True):
    """One limit, judged."""

    limit: str
    outcome: Outcome
    bound: float
    value: float | None
    reason: Text


class Status(StrEnum):
    """The fold over all findings."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    INCONCLUSIVE = "inconclusive"
    FAIL = "fail"


class Verdict(Struct, frozen=True, kw_only=True):
    """All findings, and what follows from them."""

    findings: tuple[Finding, ...]

    @property
    def status(self) -> Status:
        """Worst of the findings: fail, else inconclusive, else pass."""
        outcomes = {finding.outcome for finding in self.findings}
        if Outcome.FAIL in outcomes:
            return Status.FAIL
        if outcomes & {Outcome.INCONCLUSIVE, Outcome.UNMEASURED}:
            return Status.INCONCLUSIVE
        return Status.PASS

    @property
    def activatable(self) -> bool:
        """Nothing failed and no hard limit went unmeasured (DESIGN.md section 1, rule 2).

        An accuracy interval that reaches across the limit does not forbid activation: it was not shown
        to be outside, and the wave pools it with the other devices' samples.
        """
        outcomes = {finding.outcome for finding in self.findings}
        return not outcomes & {Outcome.FAIL, Outcome.UNMEASURED}

    @property
    def deferred(self) -> tuple[str, ...]:
        """Names of the limits that another scope will decide."""
        return tuple(f.limit for f in self.findings if f.outcome is Outcome.DEFERRED)

    @property
    def reason(self) -> str:
        """The findings that stand in the way, in words; empty if none does."""
        return "; ".join(
            f.reason
            for f in self.findings
            if f.outcome in {Outcome.FAIL, Outcome.UNMEASURED, Outcome.INCONCLUSIVE}
        )


# Which scopes decide an upper limit; accuracy and agreement are decided in every scope.
_DECIDED_BY: dict[str, frozenset[Scope]] = {
    "size_bytes": frozenset(Scope),
    "latency_ms_p95": frozenset({Scope.HOST_OF_TARGET_CLASS, Scope.DEVICE, Scope.WAVE}),
    "memory_bytes": frozenset({Scope.DEVICE, Scope.WAVE}),
    "energy_mj": frozenset({Scope.DEVICE, Scope.WAVE}),
}


def parse_limits(mapping: object) -> Limits:
    """Reads an SLA from what a YAML or JSON file held.

    Raises:
        LimitsError: an unknown key, a wrong type, a limit that no figure could meet or two accuracy
            forms at once; the message names the key.
    """
    try:
        limits = msgspec.convert({} if mapping is None else mapping, Limits)
    except msgspec.ValidationError as error:
        raise LimitsError("sla_malformed", f"the SLA cannot be read: {error}") from None
    return checked(limits)


def checked(limits: Limits) -> Limits:
    """The limits themselves, once the rules that a type cannot say hold.

    Raises:
        LimitsError: accuracy with none or both of its forms, or a limit that is not finite.
    """
    accuracy = limits.accuracy
    if accuracy is not None:
        forms = [bound for bound in msgspec.structs.astuple(accuracy) if bound is not None]
        if len(forms) != 1:
            raise LimitsError(
                "sla_malformed",
                "accuracy needs exactly one of `min` and `min_fraction_of_baseline`, or, where lower is "
                "better, of `max` and `max_ratio_to_baseline`",
            )
        if not math.isfinite(forms[0]):
            raise LimitsError("sla_malformed", "the accuracy limit must be a finite number")
    for name in _MAXIMA:
        bound = _maximum(limits, name)
        if bound is not None and not math.isfinite(bound.max):
            raise LimitsError("sla_malformed", f"{name}_max must be a finite number")
    return limits


def require_direction(limits: Limits, metric: Metric) -> None:
    """Refuses an accuracy limit that points the wrong way for the metric, or that nothing can meet.

    Raises:
        LimitsError: `sla_direction`, `sla_out_of_range`.
    """
    limit = limits.accuracy
    if limit is None:
        return
    if limit.direction != metric.direction:
        fit = (
            "`min` or `min_fraction_of_baseline`"
            if metric.direction == "higher"
            else "`max` or `max_ratio_to_baseline`"
        )
        raise LimitsError(
            "sla_direction", f"of {metric.name}, {metric.direction} is better: limit accuracy by {fit}"
        )
    if limit.min is not None and metric.high is not None and limit.min > metric.high:
        raise LimitsError(
            "sla_out_of_range", f"{metric.name} is at most {metric.high:g}; `min` is {limit.min:g}"
        )


_MAXIMA = ("latency_ms_p95", "size_bytes", "energy_mj", "memory_bytes")


def _maximum(limits: Limits, name: str) -> Maximum | None:
    bound: float | Maximum | None = getattr(limits, f"{name}_max")
    return Maximum(max=bound) if isinstance(bound, int | float) else bound


def judge(limits: Limits, measures: Measures, scope: Scope) -> Verdict:
    """Judges every limit that the SLA sets, in the SLA's order.

    On the host the outcome follows the point estimate. On a device or a wave an accuracy or agreement
    limit fails only if the whole 95% interval lies beyond it, and is inconclusive if only the point
    does; a device has a few hundred samples, and a one-point limit on 200 of them rejects an equal
    model 18% of the time (FACTS.md section 4).
    """
    findings: list[Finding] = []
    if limits.accuracy is not None:
        reaches = _at_least if limits.accuracy.direction == "higher" else _no_more_than
        if limits.accuracy.absolute is not None:
            findings.append(reaches("accuracy", limits.accuracy.absolute, measures.accuracy, scope))
        if limits.accuracy.of_baseline is not None:
            bound = limits.accuracy.of_baseline
            findings.append(reaches("accuracy_ratio", bound, measures.accuracy_ratio, scope))
    if limits.agreement is not None:
        findings.append(_at_least("agreement", limits.agreement.min, measures.agreement, scope))
    for name in _MAXIMA:
        maximum = _maximum(limits, name)
        if maximum is not None:
            findings.append(_at_most(name, maximum, getattr(measures, name), scope))
    return Verdict(findings=tuple(findings))


def _usable(measure: Measure | None) -> Measure | None:
    """An estimate, or a figure that is not a number, decides nothing."""
    if measure is None or measure.source is Source.ESTIMATED or not math.isfinite(measure.value):
        return None
    return measure


_LABELS = {
    "accuracy": "accuracy",
    "accuracy_ratio": "accuracy as a fraction of the baseline",
    "agreement": "agreement with FP32",
    "latency_ms_p95": "latency p95 (ms)",
    "size_bytes": "size (bytes)",
    "energy_mj": "energy per inference (mJ)",
    "memory_bytes": "peak memory (bytes)",
}


def _finding(name: str, outcome: Outcome, bound: float, value: float | None, why: str) -> Finding:
    reason = f"{_LABELS[name]} {why}"
    return Finding(limit=name, outcome=outcome, bound=bound, value=value, reason=reason)


def _at_least(name: str, bound: float, raw: Measure | None, scope: Scope) -> Finding:
    measure = _usable(raw)
    if measure is None:
        return _finding(name, Outcome.UNMEASURED, bound, None, f"is unknown, needs {bound:.4g}")
    value = measure.value
    if value >= bound:
        return _finding(name, Outcome.PASS, bound, value, f"{value:.4g} reaches {bound:.4g}")
    by_interval = scope in {Scope.DEVICE, Scope.WAVE}
    if by_interval and measure.high is not None and measure.high >= bound:
        why = f"{value:.4g} (95% up to {measure.high:.4g}) is not shown to miss {bound:.4g}"
        return _finding(name, Outcome.INCONCLUSIVE, bound, value, why)
    return _finding(name, Outcome.FAIL, bound, value, f"{value:.4g} is below {bound:.4g}")


def _no_more_than(name: str, bound: float, raw: Measure | None, scope: Scope) -> Finding:
    """`_at_least`, for an accuracy whose metric is an error."""
    measure = _usable(raw)
    if measure is None:
        return _finding(name, Outcome.UNMEASURED, bound, None, f"is unknown, limit {bound:.4g}")
    value = measure.value
    if value <= bound:
        return _finding(name, Outcome.PASS, bound, value, f"{value:.4g} is within {bound:.4g}")
    by_interval = scope in {Scope.DEVICE, Scope.WAVE}
    if by_interval and measure.low is not None and measure.low <= bound:
        why = f"{value:.4g} (95% from {measure.low:.4g}) is not shown to exceed {bound:.4g}"
        return _finding(name, Outcome.INCONCLUSIVE, bound, value, why)
    return _finding(name, Outcome.FAIL, bound, value, f"{value:.4g} is above {bound:.4g}")


def _at_most(name: str, maximum: Maximum, raw: Measure | None, scope: Scope) -> Finding:
    bound = maximum.max
    if scope not in _DECIDED_BY[name]:
        return _finding(name, Outcome.DEFERRED, bound, None, "is decided on the device")
    measure = _usable(raw)
    if measure is None and maximum.if_unmeasured == "accept":
        why = "is unknown, which the SLA accepts"
        return _finding(name, Outcome.ACCEPTED, bound, None, why)
    if measure is None:
        return _finding(name, Outcome.UNMEASURED, bound, None, f"is unknown, limit {bound:.6g}")
    value = measure.value
    if value <= bound:
        return _finding(name, Outcome.PASS, bound, value, f"{value:.6g} is within {bound:.6g}")
    return _finding(name, Outcome.FAIL, bound, value, f"{value:.6g} is above {bound:.6g}")
