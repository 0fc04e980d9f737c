"""PURE. What outcomes of work, time and crashes do to a deployment.

For: the handlers of what happens on the device.
Not for: what the fleet wants (`agent.steering`), or the table itself (`agent.lifecycle`).
"""

from __future__ import annotations

from msgspec.structs import replace

from agent.deployment import (
    Admitted,
    Booted,
    Bounds,
    DeadlinePassed,
    Deployment,
    Done,
    Ending,
    Failed,
    Progressed,
    Standing,
    Ticked,
    Trialed,
)
from agent.errors import LifecycleError
from agent.moves import (
    Step,
    again,
    backoff_s,
    end,
    enter,
    failure_of,
    next_variant,
    note,
    refuse_variant,
    revert,
)
from wire.messages import OrderOutcome, Phase, Reason, TrialEnded, VariantRefused


def admitted(d: Deployment, event: Admitted, _: Bounds) -> Step:
    """Variants that this machine cannot run are refused before anything is fetched."""
    last: Reason | None = Reason(code="no_variant", detail="the order allows no variant of this release")
    d = replace(d, variants=event.variants)
    for variant, reason in event.refused:
        last = reason
        d = note(d, VariantRefused(variant=variant, reason=reason))
    return next_variant(replace(d, refused=tuple(variant for variant, _ in event.refused)), last)


def progressed(d: Deployment, event: Progressed, _: Bounds) -> Step:
    """Chunks that arrive are progress; chunks that do not are told."""
    d = replace(d, missing=event.missing)
    return (replace(d, boots=0, attempts=0) if event.stored else d), None


def fetched(d: Deployment, event: Done, _: Bounds) -> Step:
    """Everything is here."""
    if event.fetched is not None:
        d = note(d, event.fetched)
    return enter(replace(d, missing=()), Phase.VERIFYING)


def verified(d: Deployment, _event: Done, _: Bounds) -> Step:
    """Everything is what the manifest says."""
    return enter(d, Phase.TRIALING)


def trialed(d: Deployment, event: Trialed, bounds: Bounds) -> Step:
    """Only a verdict that allows it, of this very variant, leads to SWITCHING."""
    candidate, desired, verdict = d.candidate, d.desired, event.trial.verdict
    if candidate is None or desired is None or event.trial.result.variant != candidate.variant:
        return refuse_variant(d, Reason(code="wrong_trial", detail="the trial was of another variant"))
    d = note(replace(d, trial=event.trial), TrialEnded(trial=event.trial))
    if desired.mode == "evaluate":
        return next_variant(replace(d, refused=(*d.refused, candidate.variant)), None)
    if not verdict.activatable:
        return refuse_variant(d, failure_of(verdict))
    standing = Standing(active=d.active, previous=d.previous, degraded=d.degraded)
    return enter(replace(d, restore=standing, left_s=bounds.switching_s_max), Phase.SWITCHING)


def switched(d: Deployment, event: Done, bounds: Bounds) -> Step:
    """`current` points to the candidate; from here a failure goes back."""
    candidate, desired, restore = d.candidate, d.desired, d.restore or Standing()
    if candidate is None or desired is None:
        raise LifecycleError("switched_nothing", "SWITCHING ended without a candidate")
    degraded = candidate.variant != d.variants[0]
    d = replace(d, active=candidate, previous=restore.active, degraded=degraded, soaked_s=0.0)
    d = replace(d, baseline=event.baseline)
    if d.ending is not None:
        return revert(d, d.ending, bounds)
    return enter(replace(d, left_s=desired.soak_s + bounds.soaking_s_grace), Phase.SOAKING)


def soaked(d: Deployment, _event: Done, _: Bounds) -> Step:
    """The candidate is good: the only success."""
    return end(d, OrderOutcome.ACTIVE, None)


def reverted(d: Deployment, event: Done, _: Bounds) -> Step:
    """The device is back at what ran before; that its application may not know it is told."""
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
    elif event.untold is not None:
        reason = reason or Reason(code="activate_failed")
        untold = f"the application was not told of the way back: {event.untold[:500]}"
        reason = replace(reason, detail="; ".join(filter(None, (reason.detail[:900], untold))))
    return end(d, ending.outcome, reason)


def retry(d: Deployment, event: Failed, bounds: Bounds) -> Step:
    """The same work again, after a random wait, or sooner where it is known when it may begin.

    Starts of the daemon while it waits are no boot loop: a machine may be switched off every night.
    """
    wait_s = backoff_s(d.attempts, event.jitter, bounds)
    if event.again_s_max is not None:
        wait_s = min(wait_s, event.again_s_max)
    boots = 0 if event.not_yet else d.boots
    return again(replace(d, attempts=d.attempts + 1, boots=boots, reason=event.reason), wait_s)


def failed_order(d: Deployment, event: Failed, bounds: Bounds) -> Step:
    """What fails in ADMITTING for good fails for every variant; a precondition is waited for."""
    if event.reason.lasting == "retry":
        return retry(d, event, bounds)
    return end(d, OrderOutcome.FAILED, event.reason)


def failed_variant(d: Deployment, event: Failed, bounds: Bounds) -> Step:
    """What fails for good fails for this variant."""
    if event.reason.lasting == "retry":
        return retry(d, event, bounds)
    return refuse_variant(d, event.reason)


def failed_verifying(d: Deployment, event: Failed, bounds: Bounds) -> Step:
    """What did not survive on the disk is fetched again; attempts go on counting for the wait."""
    if event.reason.lasting == "final":
        return refuse_variant(d, event.reason)
    attempts = d.attempts + 1
    wait_s = backoff_s(d.attempts, event.jitter, bounds)
    d, work = enter(d, Phase.FETCHING, event.reason)
    d = replace(d, attempts=attempts)
    return d, None if work is None else replace(work, after_s=wait_s)


def failed_trialing(d: Deployment, event: Failed, bounds: Bounds) -> Step:
    """A candidate that did not survive on the disk is fetched again, else as for any variant."""
    if event.reason.code == "slot_damaged":
        return failed_verifying(d, event, bounds)
    return failed_variant(d, event, bounds)


def failed_switching(d: Deployment, event: Failed, bounds: Bounds) -> Step:
    """A disk that is full for a while costs no trial: undone and tried again until the phase's deadline.

    What ran before runs meanwhile, or the candidate, which passed its trial. A switch that will be undone in
    any case is not waited for.
    """
    if event.reason.lasting == "final" or d.ending is not None:
        return failed_running(d, event, bounds)
    d, work = retry(d, event, bounds)
    return d, None if work is None else replace(work, undo=True)


def failed_running(d: Deployment, event: Failed, bounds: Bounds) -> Step:
    """What runs does not work: back."""
    ending = d.ending or Ending(outcome=OrderOutcome.FELL_BACK, reason=event.reason)
    return revert(d, ending, bounds)


# --- time and crashes -------------------------------------------------------------------------------


def ticked(d: Deployment, event: Ticked, _: Bounds) -> Step:
    """Time that passed counts against the deadline."""
    return replace(d, left_s=max(0.0, d.left_s - event.elapsed_s)), None


def ticked_soaking(d: Deployment, event: Ticked, bounds: Bounds) -> Step:
    """In SOAKING it counts for the soak, too."""
    return ticked(replace(d, soaked_s=d.soaked_s + event.elapsed_s), event, bounds)


def late_before_switch(d: Deployment, _event: DeadlinePassed, _: Bounds) -> Step:
    """Nothing was touched; the order failed, for the reason it was waiting for."""
    why = f"{d.reason.code}: {d.reason.detail}" if d.reason else "it was still at work"
    code = d.reason.code if d.reason else "deadline_passed"
    detail = f"gave up at the order's deadline in phase {d.phase}; {why}"[:1500]
    return end(d, OrderOutcome.FAILED, Reason(code=code, detail=detail))


def late_switching(d: Deployment, _event: DeadlinePassed, bounds: Bounds) -> Step:
    """The switch completes, if it does; then it is undone."""
    why = f"; {d.reason.code}: {d.reason.detail}" if d.reason else ""
    reason = Reason(code="switch_timeout", detail=f"SWITCHING took longer than switching_s_max{why}"[:1500])
    ending = d.ending or Ending(outcome=OrderOutcome.FELL_BACK, reason=reason)
    return replace(d, ending=ending, reason=reason, left_s=bounds.switching_s_max), None


def late_soaking(d: Deployment, _event: DeadlinePassed, bounds: Bounds) -> Step:
    """A soak that does not end is a failed one."""
    reason = Reason(code="soak_timeout", detail="the soak did not end; its health check may hang")
    return revert(d, Ending(outcome=OrderOutcome.FELL_BACK, reason=reason), bounds)


def late_reverting(d: Deployment, _event: DeadlinePassed, bounds: Bounds) -> Step:
    """Going back is never given up."""
    reason = Reason(
        code="revert_timeout", detail="going back took too long and begins again", lasting="retry"
    )
    return again(replace(d, left_s=bounds.reverting_s_max, reason=reason))


_BOOT_LOOP = Reason(code="boot_loop", detail="the daemon started too often in this phase without progress")


def booted_idle(d: Deployment, _event: Booted, _: Bounds) -> Step:
    """There is nothing to take up again."""
    return d, None


def booted_before_switch(d: Deployment, _event: Booted, bounds: Bounds) -> Step:
    """The saved phase again, a bounded number of times."""
    d = replace(d, boots=d.boots + 1)
    if d.boots > bounds.boots_max:
        return end(d, OrderOutcome.FAILED, _BOOT_LOOP)
    return again(d)


def booted_switching(d: Deployment, _event: Booted, bounds: Bounds) -> Step:
    """Undone, and entered again, a bounded number of times."""
    d = replace(d, boots=d.boots + 1)
    if d.boots > bounds.boots_max:
        return revert(d, d.ending or Ending(outcome=OrderOutcome.FELL_BACK, reason=_BOOT_LOOP), bounds)
    return again(d, undo=True)


def booted_soaking(d: Deployment, _event: Booted, bounds: Bounds) -> Step:
    """The candidate stays and the soak goes on, a bounded number of times."""
    d = replace(d, boots=d.boots + 1)
    if d.boots > bounds.boots_max:
        return revert(d, Ending(outcome=OrderOutcome.FELL_BACK, reason=_BOOT_LOOP), bounds)
    return again(d)


def booted_reverting(d: Deployment, _event: Booted, _: Bounds) -> Step:
    """Going back goes on."""
    return again(replace(d, boots=d.boots + 1))
