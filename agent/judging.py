"""PURE. From what a trial measured to what the SLA says about it.

For: choosing which figures count, the device's own or those that a conforming device inherits, and none of
latency and energy where the machine was held back while they were measured.
Not for: the limits themselves (`wire.sla`), or measuring (`agent.worker`).
"""

from __future__ import annotations

from msgspec.structs import replace

from agent.errors import RetryError
from wire.bundle import Manifest, Variant
from wire.measures import Measure, Source, TrialResult
from wire.messages import TrialSummary
from wire.sla import Finding, Measures, Outcome, Scope, Verdict, judge


def _inherited(host: Measure | None, own: Measure | None, *, conforms: bool) -> Measure | None:
    """The host measured the full set; a device that answers exactly like it has that accuracy."""
    if conforms and host is not None:
        return replace(host, source=Source.INHERITED)
    return own


def measures_of(result: TrialResult, variant: Variant) -> Measures:
    """The figures that `wire.sla.judge` looks at, in its units."""
    fair = not result.throttled
    conforms = result.conformance is not None and result.conformance.conforms
    host, latency, peak = variant.host, result.latency, result.memory_bytes_peak
    return Measures(
        accuracy=_inherited(host.accuracy, result.accuracy, conforms=conforms),
        accuracy_ratio=_inherited(host.accuracy_ratio, result.accuracy_ratio, conforms=conforms),
        agreement=_inherited(host.agreement, result.agreement, conforms=conforms),
        latency_ms_p95=Measure(value=latency.ms_p95, n=latency.n) if latency is not None and fair else None,
        size_bytes=Measure(value=float(variant.size_bytes)),
        energy_mj=result.energy_mj if fair else None,
        memory_bytes=None if peak is None else Measure(value=float(peak)),
    )


def judged(result: TrialResult, manifest: Manifest, variant: Variant) -> TrialSummary:
    """The trial with its verdict."""
    verdict = judge(manifest.sla, measures_of(result, variant), Scope.DEVICE)
    if result.throttled:
        verdict = Verdict(findings=tuple(_told(finding) for finding in verdict.findings))
    return TrialSummary(result=result, verdict=verdict)


_HELD_BACK = frozenset({"latency_ms_p95", "energy_mj"})
"""Limits on what a machine that is held back does not show."""


def _told(finding: Finding) -> Finding:
    """Why a figure that was measured counts as unknown."""
    if finding.limit not in _HELD_BACK or finding.value is not None:
        return finding
    why = f"{finding.reason}: the machine was throttled while it was measured"
    return replace(finding, reason=why)


def require_fair(summary: TrialSummary) -> None:
    """Refuses to decide about a candidate that nothing speaks against but a machine that was held back.

    Raises:
        RetryError: `throttled`: the same trial on a cooler machine, or with a better supply, may pass.
    """
    if not summary.result.throttled:
        return
    standing = [f for f in summary.verdict.findings if f.outcome in {Outcome.FAIL, Outcome.UNMEASURED}]
    if standing and all(f.limit in _HELD_BACK for f in standing):
        raise RetryError(
            "throttled",
            f"{standing[0].reason}, {summary.result.runs_void + 1} times in a row; see to its cooling and "
            "its power supply",
        )
