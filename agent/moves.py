"""PURE. What every transition is made of: entering a phase, doing it again, ending an order.

For: the building blocks of `agent.steering` and `agent.outcomes`.
Not for: saying which event leads where (`agent.lifecycle`).
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec.structs import replace

from agent.deployment import Bounds, Deployment, Ending, Notice, Waiting, Work
from wire.messages import (
    OrderEnded,
    OrderOutcome,
    Phase,
    PhaseChanged,
    Reason,
    ReportEvent,
    Slot,
    VariantRefused,
)
from wire.sla import Outcome, Verdict

NOTICES_MAX = 200
"""Kept in the journal while the outbox cannot be written."""

Step: TypeAlias = tuple[Deployment, Work | None]


def note(
    d: Deployment, event: ReportEvent, order: int | None = None, digest: str | None = None
) -> Deployment:
    """The deployment with one more thing to report."""
    notice = Notice(
        order=d.order if order is None else order,
        digest=digest or (d.desired.digest if d.desired else None),
        event=event,
    )
    return replace(d, notices=(*d.notices, notice)[-NOTICES_MAX:])


def enter(d: Deployment, phase: Phase, reason: Reason | None = None) -> Step:
    """Enters `phase`: progress was made, so its counters begin anew."""
    d = replace(d, phase=phase, serial=d.serial + 1, attempts=0, boots=0, reason=reason)
    variant = d.candidate.variant if d.candidate else None
    d = note(d, PhaseChanged(phase=phase, variant=variant, reason=reason))
    return d, Work(phase=phase, serial=d.serial)


def again(d: Deployment, after_s: float = 0.0, *, undo: bool = False) -> Step:
    """The same piece of work once more."""
    d = replace(d, serial=d.serial + 1)
    return d, Work(phase=d.phase, serial=d.serial, after_s=after_s, undo=undo)


def end(d: Deployment, outcome: OrderOutcome, reason: Reason | None) -> Step:
    """The order is over; a waiting one begins."""
    d = note(d, OrderEnded(outcome=outcome, reason=reason, active=d.active))
    waiting = d.waiting
    d = replace(
        d, phase=Phase.IDLE, desired=None, serial=d.serial + 1, outcome=outcome, reason=reason,
        restore=None, ending=None, waiting=None, missing=(), variants=(), refused=(),
        left_s=0.0, soaked_s=0.0, baseline=None, boots=0, attempts=0,
    )  # fmt: skip
    return (d, None) if waiting is None else start(d, waiting)


def start(d: Deployment, waiting: Waiting) -> Step:
    """Takes an order up; one for what runs already ends at once."""
    desired = waiting.desired
    d = replace(
        d, desired=desired, source=waiting.source, order=desired.order, outcome=None, reason=None,
        trial=None, variants=desired.variants, refused=(), soaked_s=0.0,
        left_s=desired.deadline_s if waiting.left_s is None else waiting.left_s,
    )  # fmt: skip
    if desired.mode == "deploy" and _runs_already(d.active, desired.digest, desired.variants):
        active = replace(d.active, order=desired.order) if d.active else None
        worse = bool(desired.variants) and active is not None and active.variant != desired.variants[0]
        degraded = worse if desired.variants else d.degraded
        return end(replace(d, active=active, degraded=degraded), OrderOutcome.ACTIVE, None)
    return enter(d, Phase.ADMITTING)


def _runs_already(active: Slot | None, digest: str, variants: tuple[str, ...]) -> bool:
    """It went through its soak here before; doing it again would only interrupt the application."""
    return active is not None and active.digest == digest and (not variants or active.variant in variants)


def revert(d: Deployment, ending: Ending, bounds: Bounds) -> Step:
    """Enters REVERTING; `ending` is how the order will have ended."""
    d = replace(d, ending=ending, left_s=bounds.reverting_s_max, missing=())
    return enter(d, Phase.REVERTING, ending.reason)


def refuse_variant(d: Deployment, reason: Reason) -> Step:
    """The next allowed variant is tried; with none left the order failed."""
    candidate = d.candidate
    if candidate is not None:
        d = note(d, VariantRefused(variant=candidate.variant, reason=reason))
        d = replace(d, refused=(*d.refused, candidate.variant))
    return next_variant(d, reason)


def next_variant(d: Deployment, reason: Reason | None) -> Step:
    """Fetches the next variant that is not refused, or ends the order."""
    if d.candidate is not None:
        return enter(replace(d, missing=()), Phase.FETCHING)
    if d.trial is not None and d.desired is not None and d.desired.mode == "evaluate":
        return end(d, OrderOutcome.EVALUATED, None)
    return end(d, OrderOutcome.FAILED, reason)


def backoff_s(attempts: int, jitter: float, bounds: Bounds) -> float:
    """Exponential with full jitter: anything from nothing to the doubled ceiling."""
    return jitter * min(bounds.backoff_s_max, bounds.backoff_s_base * 2.0 ** min(attempts, 30))


def failure_of(verdict: Verdict) -> Reason:
    """The first finding that forbids activation, as a reason."""
    suffix = {Outcome.UNMEASURED: "unmeasured", Outcome.FAIL: "above_limit"}
    for finding in verdict.findings:
        if finding.outcome in suffix:
            low = finding.limit in {"accuracy", "accuracy_ratio", "agreement"}
            below = low and finding.outcome is Outcome.FAIL
            word = "below_limit" if below else suffix[finding.outcome]
            return Reason(code=f"{finding.limit}_{word}", detail=verdict.reason[:1500])
    return Reason(code="not_activatable", detail=verdict.reason[:1500])
