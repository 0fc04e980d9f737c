"""PURE. The lifecycle of a deployment: `step(deployment, event) -> (deployment, work)`.

For: deciding what follows from an event, as one table. A phase is one idempotent piece of work; entering
it means persist, then do. Crash recovery is the row of the event `Booted`: do the saved phase again.
Not for: doing the work (`agent.jobs`), keeping time or persisting (`agent.runner`).

`python -m agent.lifecycle` prints the table as a mermaid diagram; docs/lifecycle.md holds it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from agent.deployment import (
    BEFORE_SWITCH,
    BLOCKED_MAX,
    Admitted,
    Block,
    Booted,
    Bounds,
    Cancelled,
    DeadlinePassed,
    Deployment,
    Done,
    Ending,
    Event,
    Failed,
    Notice,
    Ordered,
    Progressed,
    RollbackAsked,
    Standing,
    Ticked,
    Trialed,
    Waiting,
    Work,
)
from agent.errors import LifecycleError
from wire.messages import (
    OrderEnded,
    OrderOutcome,
    OrderRefused,
    Phase,
    PhaseChanged,
    Reason,
    ReportEvent,
    Slot,
    TrialEnded,
    VariantRefused,
)
from wire.sla import Outcome, Verdict

Step: TypeAlias = tuple[Deployment, Work | None]

IDLE, ADMITTING, FETCHING, VERIFYING = Phase.IDLE, Phase.ADMITTING, Phase.FETCHING, Phase.VERIFYING
TRIALING, SWITCHING = Phase.TRIALING, Phase.SWITCHING
SOAKING, REVERTING = Phase.SOAKING, Phase.REVERTING


def step(deployment: Deployment, event: Event, bounds: Bounds = Bounds()) -> Step:  # noqa: B008 - frozen
    """What `event` makes of `deployment`, and the piece of work that begins now, if one does.

    An outcome of a piece of work that is no longer the current one changes nothing.

    Raises:
        LifecycleError: `unexpected_event`: the table has no row for this phase and event.
    """
    serial = getattr(event, "serial", None)
    if serial is not None and serial != deployment.serial:
        return deployment, None
    row = TABLE.get((deployment.phase, type(event)))
    if row is None:
        raise LifecycleError(
            "unexpected_event", f"{type(event).__name__} in phase {deployment.phase} is not in the table"
        )
    after, work = row.handler(deployment, event, bounds)
    if after.phase is not deployment.phase and after.phase not in row.targets:
        raise LifecycleError(
            "undeclared_transition",
            f"{type(event).__name__} led from {deployment.phase} to {after.phase}, which its row lacks",
        )
    return after, work


# --- building blocks --------------------------------------------------------------------------------


def _note(
    d: Deployment, event: ReportEvent, order: int | None = None, digest: str | None = None
) -> Deployment:
    notice = Notice(
        order=d.order if order is None else order,
        digest=digest or (d.desired.digest if d.desired else None),
        event=event,
    )
    return replace(d, notices=(*d.notices, notice))


def _enter(d: Deployment, phase: Phase, reason: Reason | None = None) -> Step:
    """Enters `phase`: progress was made, so its counters begin anew."""
    d = replace(d, phase=phase, serial=d.serial + 1, attempts=0, boots=0, reason=reason)
    variant = d.candidate.variant if d.candidate else None
    d = _note(d, PhaseChanged(phase=phase, variant=variant, reason=reason))
    return d, Work(phase=phase, serial=d.serial)


def _again(d: Deployment, after_s: float = 0.0, *, undo: bool = False) -> Step:
    """The same piece of work once more."""
    d = replace(d, serial=d.serial + 1)
    return d, Work(phase=d.phase, serial=d.serial, after_s=after_s, undo=undo)


def _end(d: Deployment, outcome: OrderOutcome, reason: Reason | None) -> Step:
    """The order is over; a waiting one begins."""
    d = _note(d, OrderEnded(outcome=outcome, reason=reason, active=d.active))
    waiting = d.waiting
    d = replace(
        d, phase=IDLE, desired=None, serial=d.serial + 1, outcome=outcome, reason=reason,
        restore=None, ending=None, waiting=None, missing=(), variants=(), refused=(),
        left_s=0.0, soaked_s=0.0, boots=0, attempts=0,
    )  # fmt: skip
    return (d, None) if waiting is None else _start(d, waiting)


def _start(d: Deployment, waiting: Waiting) -> Step:
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
        return _end(replace(d, active=active, degraded=degraded), OrderOutcome.ACTIVE, None)
    return _enter(d, ADMITTING)


def _runs_already(active: Slot | None, digest: str, variants: tuple[str, ...]) -> bool:
    """It went through its soak here before; doing it again would only interrupt the application."""
    return active is not None and active.digest == digest and (not variants or active.variant in variants)


def _revert(d: Deployment, ending: Ending, bounds: Bounds) -> Step:
    d = replace(d, ending=ending, left_s=bounds.reverting_s_max, missing=())
    return _enter(d, REVERTING, ending.reason)


def _refuse_variant(d: Deployment, reason: Reason) -> Step:
    """The next allowed variant is tried; with none left the order failed."""
    candidate = d.candidate
    if candidate is not None:
        d = _note(d, VariantRefused(variant=candidate.variant, reason=reason))
        d = replace(d, refused=(*d.refused, candidate.variant))
    return _next_variant(d, reason)


def _next_variant(d: Deployment, reason: Reason | None) -> Step:
    if d.candidate is not None:
        return _enter(replace(d, missing=()), FETCHING)
    if d.trial is not None and d.desired is not None and d.desired.mode == "evaluate":
        return _end(d, OrderOutcome.EVALUATED, None)
    return _end(d, OrderOutcome.FAILED, reason)


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


# --- orders -----------------------------------------------------------------------------------------


def _fresh(d: Deployment, event: Ordered) -> tuple[Deployment, Waiting | None]:
    """Takes note of the order's number; None where it is to be ignored or was refused as stale."""
    order = event.desired.order
    if order == d.order or (d.waiting is not None and order == d.waiting.desired.order):
        return d, None
    if order <= d.order_highest:
        detail = f"order {order} is not above {d.order_highest}, the highest seen"
        refusal = OrderRefused(
            reason=Reason(code="stale_order", detail=detail), order_highest=d.order_highest
        )
        return _note(d, refusal, order, event.desired.digest), None
    blocked = tuple(block for block in d.blocked if block.digest != event.desired.digest)
    d = replace(d, order_highest=order, blocked=blocked)
    return d, Waiting(desired=event.desired, source=event.source)


def _superseded(waiting: Waiting) -> Ending:
    reason = Reason(code="superseded", detail=f"order {waiting.desired.order} came")
    return Ending(outcome=OrderOutcome.SUPERSEDED, reason=reason)


def _ordered_idle(d: Deployment, event: Ordered, _: Bounds) -> Step:
    d, waiting = _fresh(d, event)
    return (d, None) if waiting is None else _start(d, waiting)


def _ordered_before_switch(d: Deployment, event: Ordered, _: Bounds) -> Step:
    d, waiting = _fresh(d, event)
    if waiting is None:
        return d, None
    return _end(replace(d, waiting=waiting), OrderOutcome.SUPERSEDED, _superseded(waiting).reason)


def _ordered_switching(d: Deployment, event: Ordered, _: Bounds) -> Step:
    d, waiting = _fresh(d, event)
    if waiting is None:
        return d, None
    return replace(d, waiting=waiting, ending=d.ending or _superseded(waiting)), None


def _ordered_soaking(d: Deployment, event: Ordered, bounds: Bounds) -> Step:
    d, waiting = _fresh(d, event)
    if waiting is None:
        return d, None
    return _revert(replace(d, waiting=waiting), _superseded(waiting), bounds)


def _ordered_reverting(d: Deployment, event: Ordered, _: Bounds) -> Step:
    d, waiting = _fresh(d, event)
    return (d, None) if waiting is None else (replace(d, waiting=waiting), None)


# --- cancelling -------------------------------------------------------------------------------------

_CANCELLED = Ending(
    outcome=OrderOutcome.SUPERSEDED,
    reason=Reason(code="cancelled", detail="the desired document no longer names this model"),
)


def _cancel_nothing(d: Deployment, _event: Cancelled, _: Bounds) -> Step:
    return d, None


def _cancel_before_switch(d: Deployment, _event: Cancelled, _: Bounds) -> Step:
    if d.source == "command":
        return d, None
    return _end(d, _CANCELLED.outcome, _CANCELLED.reason)


def _cancel_switching(d: Deployment, _event: Cancelled, _: Bounds) -> Step:
    return replace(d, waiting=None, ending=d.ending or _CANCELLED), None


def _cancel_soaking(d: Deployment, _event: Cancelled, bounds: Bounds) -> Step:
    return _revert(d, _CANCELLED, bounds)


def _cancel_reverting(d: Deployment, _event: Cancelled, _: Bounds) -> Step:
    return replace(d, waiting=None), None


# --- rollback ---------------------------------------------------------------------------------------

_ROLLED_BACK = Ending(
    outcome=OrderOutcome.ROLLED_BACK, reason=Reason(code="rolled_back", detail="a command took it back")
)


def _refuse_rollback(d: Deployment, event: RollbackAsked, code: str, detail: str) -> Step:
    d = replace(d, order_highest=max(d.order_highest, event.order))
    refusal = OrderRefused(reason=Reason(code=code, detail=detail), order_highest=d.order_highest)
    return _note(d, refusal, event.order, event.digest), None


def _not_applicable(d: Deployment, event: RollbackAsked) -> Step:
    detail = f"release {event.digest[:12]} is neither active nor in flight"
    return _refuse_rollback(d, event, "not_applicable", detail)


def _block(d: Deployment, event: RollbackAsked) -> Deployment:
    """The release is refused from now on, and is nobody's way back."""
    others = tuple(block for block in d.blocked if block.digest != event.digest)
    kept = (*others, Block(digest=event.digest, order=event.order))[-BLOCKED_MAX:]
    previous = None if d.previous and d.previous.digest == event.digest else d.previous
    waiting = None if d.waiting and d.waiting.desired.digest == event.digest else d.waiting
    highest = max(d.order_highest, event.order)
    return replace(d, blocked=kept, previous=previous, waiting=waiting, order_highest=highest)


def _asked(act: Callable[[Deployment, RollbackAsked, Bounds], Step]) -> Callable[..., Step]:
    """A rollback with a number below the highest seen is refused before anything is looked at."""

    def checked(d: Deployment, event: RollbackAsked, bounds: Bounds) -> Step:
        if event.order < d.order_highest:
            detail = f"order {event.order} is below {d.order_highest}, the highest seen"
            return _refuse_rollback(d, event, "stale_order", detail)
        return act(d, event, bounds)

    return checked


def _is(slot: Slot | None, digest: str) -> bool:
    return slot is not None and slot.digest == digest


def _way_back(d: Deployment, slot: Slot | None, leaving: str) -> Slot | None:
    """`slot` as a rollback's target: there, not the release that is being left, not blocked."""
    if slot is None or slot.digest == leaving or d.blocks(slot.digest):
        return None
    return slot


def _rollback_active(d: Deployment, event: RollbackAsked, bounds: Bounds) -> Step:
    """From a release that went through its soak, to the previous one."""
    active = d.active
    target = _way_back(d, d.previous, event.digest)
    if target is None or active is None:
        detail = f"there is no release before {event.digest[:12]} on this device; it stays active"
        return _refuse_rollback(d, event, "no_previous", detail)
    d = _block(d, event)
    d = replace(
        d, desired=None, order=active.order, outcome=None, restore=Standing(active=target),
        variants=(), refused=(),
    )  # fmt: skip
    return _revert(d, _ROLLED_BACK, bounds)


def _rollback_idle(d: Deployment, event: RollbackAsked, bounds: Bounds) -> Step:
    if _is(d.active, event.digest):
        return _rollback_active(d, event, bounds)
    return _not_applicable(d, event)


def _rollback_before_switch(d: Deployment, event: RollbackAsked, bounds: Bounds) -> Step:
    wanted = d.desired
    if wanted is not None and wanted.digest == event.digest:
        if _is(d.active, event.digest) and _way_back(d, d.previous, event.digest):
            return _rollback_active(d, event, bounds)
        return _end(_block(d, event), _ROLLED_BACK.outcome, _ROLLED_BACK.reason)
    if wanted is not None and _is(d.active, event.digest):
        # The order in flight is for another release: it begins again once the active one is left.
        again = Waiting(desired=wanted, source=d.source, left_s=d.left_s)
        after, work = _rollback_active(replace(d, waiting=again), event, bounds)
        return (after, work) if after.phase is REVERTING else (replace(after, waiting=None), work)
    return _not_applicable(d, event)


def _rollback_switching(d: Deployment, event: RollbackAsked, bounds: Bounds) -> Step:
    del bounds
    if d.desired is not None and d.desired.digest == event.digest:
        return replace(_block(d, event), ending=_ROLLED_BACK), None
    if d.waiting is not None and d.waiting.desired.digest == event.digest:
        return _block(d, event), None
    restore = d.restore or Standing()
    if not _is(restore.active, event.digest):
        return _not_applicable(d, event)
    # The release that is being left anyway must not be what a failed soak goes back to.
    target = _way_back(d, restore.previous, event.digest)
    if target is None:
        detail = f"there is no release before {event.digest[:12]} on this device"
        return _refuse_rollback(d, event, "no_previous", detail)
    return replace(_block(d, event), restore=Standing(active=target)), None


def _rollback_soaking(d: Deployment, event: RollbackAsked, bounds: Bounds) -> Step:
    if not _is(d.active, event.digest):
        return _not_applicable(d, event)
    return _revert(_block(d, event), _ROLLED_BACK, bounds)


def _rollback_reverting(d: Deployment, event: RollbackAsked, _: Bounds) -> Step:
    leaving = _is(d.active, event.digest) and not _is(d.restore.active if d.restore else None, event.digest)
    flying = d.desired is not None and d.desired.digest == event.digest
    waits = d.waiting is not None and d.waiting.desired.digest == event.digest
    return (_block(d, event), None) if leaving or flying or waits else _not_applicable(d, event)


# --- outcomes of the work ---------------------------------------------------------------------------


def _admitted(d: Deployment, event: Admitted, _: Bounds) -> Step:
    last: Reason | None = Reason(code="no_variant", detail="the order allows no variant of this release")
    d = replace(d, variants=event.variants)
    for variant, reason in event.refused:
        last = reason
        d = _note(d, VariantRefused(variant=variant, reason=reason))
    return _next_variant(replace(d, refused=tuple(variant for variant, _ in event.refused)), last)


def _progressed(d: Deployment, event: Progressed, _: Bounds) -> Step:
    d = replace(d, missing=event.missing)
    return (replace(d, boots=0, attempts=0) if event.stored else d), None


def _fetched(d: Deployment, _event: Done, _: Bounds) -> Step:
    return _enter(replace(d, missing=()), VERIFYING)


def _verified(d: Deployment, _event: Done, _: Bounds) -> Step:
    return _enter(d, TRIALING)


def _trialed(d: Deployment, event: Trialed, bounds: Bounds) -> Step:
    candidate, desired, verdict = d.candidate, d.desired, event.trial.verdict
    if candidate is None or desired is None or event.trial.result.variant != candidate.variant:
        return _refuse_variant(d, Reason(code="wrong_trial", detail="the trial was of another variant"))
    d = _note(replace(d, trial=event.trial), TrialEnded(trial=event.trial))
    if desired.mode == "evaluate":
        return _next_variant(replace(d, refused=(*d.refused, candidate.variant)), None)
    if not verdict.activatable:
        return _refuse_variant(d, failure_of(verdict))
    standing = Standing(active=d.active, previous=d.previous, degraded=d.degraded)
    return _enter(replace(d, restore=standing, left_s=bounds.switching_s_max), SWITCHING)


def _switched(d: Deployment, _event: Done, bounds: Bounds) -> Step:
    candidate, desired, restore = d.candidate, d.desired, d.restore or Standing()
    if candidate is None or desired is None:
        raise LifecycleError("switched_nothing", "SWITCHING ended without a candidate")
    degraded = candidate.variant != d.variants[0]
    d = replace(d, active=candidate, previous=restore.active, degraded=degraded, soaked_s=0.0)
    if d.ending is not None:
        return _revert(d, d.ending, bounds)
    return _enter(replace(d, left_s=desired.soak_s + bounds.soaking_s_grace), SOAKING)


def _soaked(d: Deployment, _event: Done, _: Bounds) -> Step:
    return _end(d, OrderOutcome.ACTIVE, None)


def _reverted(d: Deployment, _event: Done, _: Bounds) -> Step:
    restore = d.restore or Standing()
    ending = d.ending or Ending(outcome=OrderOutcome.FELL_BACK)
    previous = restore.previous
    if previous is not None and d.blocks(previous.digest):
        previous = None
    d = replace(d, active=restore.active, previous=previous, degraded=restore.degraded)
    reason = ending.reason
    if restore.active is None:
        why = f"{reason.code}: {reason.detail}" if reason else "it did not stay"
        detail = f"the slot is empty, there was no release before this one ({why})"[:1500]
        reason = Reason(code="no_previous", detail=detail)
    return _end(d, ending.outcome, reason)


def _retry(d: Deployment, event: Failed, bounds: Bounds) -> Step:
    wait_s = backoff_s(d.attempts, event.jitter, bounds)
    return _again(replace(d, attempts=d.attempts + 1, reason=event.reason), wait_s)


def _failed_order(d: Deployment, event: Failed, bounds: Bounds) -> Step:
    if event.reason.lasting == "retry":
        return _retry(d, event, bounds)
    return _end(d, OrderOutcome.FAILED, event.reason)


def _failed_variant(d: Deployment, event: Failed, bounds: Bounds) -> Step:
    if event.reason.lasting == "retry":
        return _retry(d, event, bounds)
    return _refuse_variant(d, event.reason)


def _failed_verifying(d: Deployment, event: Failed, bounds: Bounds) -> Step:
    """What did not survive on the disk is fetched again; attempts go on counting for the wait."""
    if event.reason.lasting == "final":
        return _refuse_variant(d, event.reason)
    attempts = d.attempts + 1
    wait_s = backoff_s(d.attempts, event.jitter, bounds)
    d, work = _enter(d, FETCHING, event.reason)
    d = replace(d, attempts=attempts)
    return d, None if work is None else replace(work, after_s=wait_s)


def _failed_running(d: Deployment, event: Failed, bounds: Bounds) -> Step:
    ending = d.ending or Ending(outcome=OrderOutcome.FELL_BACK, reason=event.reason)
    return _revert(d, ending, bounds)


# --- time and crashes -------------------------------------------------------------------------------


def _ticked(d: Deployment, event: Ticked, _: Bounds) -> Step:
    return replace(d, left_s=max(0.0, d.left_s - event.elapsed_s)), None


def _ticked_soaking(d: Deployment, event: Ticked, bounds: Bounds) -> Step:
    return _ticked(replace(d, soaked_s=d.soaked_s + event.elapsed_s), event, bounds)


def _late_before_switch(d: Deployment, _event: DeadlinePassed, _: Bounds) -> Step:
    why = f"{d.reason.code}: {d.reason.detail}" if d.reason else "it was still at work"
    code = d.reason.code if d.reason else "deadline_passed"
    detail = f"gave up at the order's deadline in phase {d.phase}; {why}"[:1500]
    return _end(d, OrderOutcome.FAILED, Reason(code=code, detail=detail))


def _late_switching(d: Deployment, _event: DeadlinePassed, bounds: Bounds) -> Step:
    reason = Reason(code="switch_timeout", detail="SWITCHING took longer than switching_s_max")
    ending = d.ending or Ending(outcome=OrderOutcome.FELL_BACK, reason=reason)
    return replace(d, ending=ending, reason=reason, left_s=bounds.switching_s_max), None


def _late_soaking(d: Deployment, _event: DeadlinePassed, bounds: Bounds) -> Step:
    reason = Reason(code="soak_timeout", detail="the soak did not end; its health check may hang")
    return _revert(d, Ending(outcome=OrderOutcome.FELL_BACK, reason=reason), bounds)


def _late_reverting(d: Deployment, _event: DeadlinePassed, bounds: Bounds) -> Step:
    reason = Reason(
        code="revert_timeout", detail="going back took too long and begins again", lasting="retry"
    )
    return _again(replace(d, left_s=bounds.reverting_s_max, reason=reason))


_BOOT_LOOP = Reason(code="boot_loop", detail="the daemon started too often in this phase without progress")


def _booted_idle(d: Deployment, _event: Booted, _: Bounds) -> Step:
    return d, None


def _booted_before_switch(d: Deployment, _event: Booted, bounds: Bounds) -> Step:
    d = replace(d, boots=d.boots + 1)
    if d.boots > bounds.boots_max:
        return _end(d, OrderOutcome.FAILED, _BOOT_LOOP)
    return _again(d)


def _booted_switching(d: Deployment, _event: Booted, bounds: Bounds) -> Step:
    d = replace(d, boots=d.boots + 1)
    if d.boots > bounds.boots_max:
        return _revert(d, d.ending or Ending(outcome=OrderOutcome.FELL_BACK, reason=_BOOT_LOOP), bounds)
    return _again(d, undo=True)


def _booted_soaking(d: Deployment, _event: Booted, bounds: Bounds) -> Step:
    d = replace(d, boots=d.boots + 1)
    if d.boots > bounds.boots_max:
        return _revert(d, Ending(outcome=OrderOutcome.FELL_BACK, reason=_BOOT_LOOP), bounds)
    return _again(d)


def _booted_reverting(d: Deployment, _event: Booted, _: Bounds) -> Step:
    return _again(replace(d, boots=d.boots + 1))


# --- the table --------------------------------------------------------------------------------------


class Row(Struct, frozen=True):
    """What handles an event in a phase, and which other phases it may lead to."""

    handler: Callable[[Deployment, Any, Bounds], Step]
    targets: tuple[Phase, ...] = ()


# An order that ends may let a waiting one begin, which may already be what runs.
_OVER = (IDLE, ADMITTING)
_REFUSED = (FETCHING, IDLE)

TABLE: dict[tuple[Phase, type], Row] = {
    (IDLE, Ordered): Row(_ordered_idle, (ADMITTING,)),
    (IDLE, Cancelled): Row(_cancel_nothing),
    (IDLE, RollbackAsked): Row(_asked(_rollback_idle), (REVERTING,)),
    (IDLE, Booted): Row(_booted_idle),
    **{(phase, Ordered): Row(_ordered_before_switch, _OVER) for phase in BEFORE_SWITCH},
    **{(phase, Cancelled): Row(_cancel_before_switch, (IDLE,)) for phase in BEFORE_SWITCH},
    **{
        (phase, RollbackAsked): Row(_asked(_rollback_before_switch), (REVERTING, IDLE))
        for phase in BEFORE_SWITCH
    },
    **{(phase, Booted): Row(_booted_before_switch, (IDLE,)) for phase in BEFORE_SWITCH},
    **{(phase, Ticked): Row(_ticked) for phase in BEFORE_SWITCH},
    **{(phase, DeadlinePassed): Row(_late_before_switch, (IDLE,)) for phase in BEFORE_SWITCH},
    (ADMITTING, Progressed): Row(_progressed),
    (ADMITTING, Admitted): Row(_admitted, _REFUSED),
    (ADMITTING, Failed): Row(_failed_order, (IDLE,)),
    (FETCHING, Progressed): Row(_progressed),
    (FETCHING, Done): Row(_fetched, (VERIFYING,)),
    (FETCHING, Failed): Row(_failed_variant, _REFUSED),
    (VERIFYING, Done): Row(_verified, (TRIALING,)),
    (VERIFYING, Failed): Row(_failed_verifying, _REFUSED),
    (TRIALING, Trialed): Row(_trialed, (SWITCHING, *_REFUSED)),
    (TRIALING, Failed): Row(_failed_variant, _REFUSED),
    (SWITCHING, Ordered): Row(_ordered_switching),
    (SWITCHING, Cancelled): Row(_cancel_switching),
    (SWITCHING, RollbackAsked): Row(_asked(_rollback_switching)),
    (SWITCHING, Done): Row(_switched, (SOAKING, REVERTING)),
    (SWITCHING, Failed): Row(_failed_running, (REVERTING,)),
    (SWITCHING, Booted): Row(_booted_switching, (REVERTING,)),
    (SWITCHING, Ticked): Row(_ticked),
    (SWITCHING, DeadlinePassed): Row(_late_switching),
    (SOAKING, Ordered): Row(_ordered_soaking, (REVERTING,)),
    (SOAKING, Cancelled): Row(_cancel_soaking, (REVERTING,)),
    (SOAKING, RollbackAsked): Row(_asked(_rollback_soaking), (REVERTING,)),
    (SOAKING, Done): Row(_soaked, (IDLE,)),
    (SOAKING, Failed): Row(_failed_running, (REVERTING,)),
    (SOAKING, Booted): Row(_booted_soaking, (REVERTING,)),
    (SOAKING, Ticked): Row(_ticked_soaking),
    (SOAKING, DeadlinePassed): Row(_late_soaking, (REVERTING,)),
    (REVERTING, Ordered): Row(_ordered_reverting),
    (REVERTING, Cancelled): Row(_cancel_reverting),
    (REVERTING, RollbackAsked): Row(_asked(_rollback_reverting)),
    (REVERTING, Done): Row(_reverted, _OVER),
    (REVERTING, Failed): Row(_retry),
    (REVERTING, Booted): Row(_booted_reverting),
    (REVERTING, Ticked): Row(_ticked),
    (REVERTING, DeadlinePassed): Row(_late_reverting),
}


def diagram() -> str:
    """The table as a mermaid state diagram; events that lead the same way share an arrow."""
    arrows: dict[tuple[Phase, Phase], list[str]] = {}
    for (phase, event), row in TABLE.items():
        for target in row.targets:
            if target is not phase:
                arrows.setdefault((phase, target), []).append(event.__name__)
    lines = ["stateDiagram-v2", f"    [*] --> {IDLE}"]
    lines += [f"    {a} --> {b}: {', '.join(names)}" for (a, b), names in arrows.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    import sys

    sys.stdout.write(diagram())
