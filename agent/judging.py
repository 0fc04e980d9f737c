"""PURE. From what a trial measured to what the SLA says about it.

For: choosing which figures count, the device's own or those that a conforming device inherits.
Not for: the limits themselves (`wire.sla`), or measuring (`agent.worker`).
"""

from __future__ import annotations

from msgspec.structs import replace

from wire.bundle import Manifest, Variant
from wire.measures import Measure, Source, TrialResult
from wire.messages import TrialSummary
from wire.sla import Measures, Scope, judge


def _inherited(host: Measure | None, own: Measure | None, *, conforms: bool) -> Measure | None:
    """The host measured the full set; a device that answers exactly like it has that accuracy."""
    if conforms and host is not None:
        return replace(host, source=Source.INHERITED)
    return own


def measures_of(result: TrialResult, variant: Variant) -> Measures:
    """The figures that `wire.sla.judge` looks at, in its units."""
    conforms = result.conformance is not None and result.conformance.conforms
    host, latency, peak = variant.host, result.latency, result.memory_bytes_peak
    return Measures(
        accuracy=_inherited(host.accuracy, result.accuracy, conforms=conforms),
        accuracy_ratio=_inherited(host.accuracy_ratio, result.accuracy_ratio, conforms=conforms),
        agreement=_inherited(host.agreement, result.agreement, conforms=conforms),
        latency_ms_p95=None if latency is None else Measure(value=latency.ms_p95, n=latency.n),
        size_bytes=Measure(value=float(variant.size_bytes)),
        energy_mj=result.energy_mj,
        memory_bytes=None if peak is None else Measure(value=float(peak)),
    )


def judged(result: TrialResult, manifest: Manifest, variant: Variant) -> TrialSummary:
    """The trial with its verdict."""
    verdict = judge(manifest.sla, measures_of(result, variant), Scope.DEVICE)
    return TrialSummary(result=result, verdict=verdict)
