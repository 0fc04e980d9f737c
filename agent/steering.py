"""PURE. What orders, cancellations and rollbacks do to a deployment, phase by phase.

For: the handlers of what the fleet or a person wants.
Not for: outcomes of work and time (`agent.outcomes`), or the table itself (`agent.lifecycle`).
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from agent.deployment import (
    BLOCKED_MAX,
    Block,
    Bounds,
    Cancelled,
    Deployment,
    Ending,
    Ordered,
    RollbackAsked,
    Standing,
    Waiting,
)
from agent.moves import Step, again, end, note, revert, start
from wire.messages import OrderOutcome, OrderRefused, Phase, Reason, Slot


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
        return note(d, refusal, order, event.desired.digest), None
    blocked = tuple(block for block in d.blocked if block.digest != event.desired.digest)
    d = replace(d, order_highest=order, blocked=blocked)
    return d, Waiting(desired=event.desired, source=event.source)


def _superseded(waiting: Waiting) -> Ending:
    reason = Reason(code="superseded", detail=f"order {waiting.desired.order} came")
    return Ending(outcome=OrderOutcome.SUPERSEDED, reason=reason)


def ordered_idle(d: Deployment, event: Ordered, _: Bounds) -> Step:
    """A new order is taken up."""
    d, waiting = _fresh(d, event)
    return (d, None) if waiting is None else start(d, waiting)


def ordered_before_switch(d: Deployment, event: Ordered, _: Bounds) -> Step:
    """The work is dropped for the newer order."""
    d, waiting = _fresh(d, event)
    if waiting is None:
        return d, None
    return end(replace(d, waiting=waiting), OrderOutcome.SUPERSEDED, _superseded(waiting).reason)


def ordered_switching(d: Deployment, event: Ordered, _: Bounds) -> Step:
    """The switch completes first; then it is undone and the newer order begins."""
    d, waiting = _fresh(d, event)
    if waiting is None:
        return d, None
    return replace(d, waiting=waiting, ending=d.ending or _superseded(waiting)), None


def ordered_soaking(d: Deployment, event: Ordered, bounds: Bounds) -> Step:
    """What soaks was never good: back, then the newer order."""
    d, waiting = _fresh(d, event)
    if waiting is None:
        return d, None
    return revert(replace(d, waiting=waiting), _superseded(waiting), bounds)


def ordered_reverting(d: Deployment, event: Ordered, _: Bounds) -> Step:
    """The newer order waits until the device is back."""
    d, waiting = _fresh(d, event)
    return (d, None) if waiting is None else (replace(d, waiting=waiting), None)


# --- cancelling -------------------------------------------------------------------------------------

_CANCELLED = Ending(
    outcome=OrderOutcome.SUPERSEDED,
    reason=Reason(code="cancelled", detail="the desired document no longer names this model"),
)


def cancel_nothing(d: Deployment, _event: Cancelled, _: Bounds) -> Step:
    """Nothing is in flight."""
    return d, None


def cancel_before_switch(d: Deployment, _event: Cancelled, _: Bounds) -> Step:
    """The work is dropped; a command is nothing that the document could cancel."""
    if d.source == "command":
        return d, None
    return end(d, _CANCELLED.outcome, _CANCELLED.reason)


def cancel_switching(d: Deployment, _event: Cancelled, _: Bounds) -> Step:
    """The switch completes first; then it is undone."""
    return replace(d, waiting=None, ending=d.ending or _CANCELLED), None


def cancel_soaking(d: Deployment, _event: Cancelled, bounds: Bounds) -> Step:
    """What soaks was never good: back."""
    return revert(d, _CANCELLED, bounds)


def cancel_reverting(d: Deployment, _event: Cancelled, _: Bounds) -> Step:
    """A waiting order does not begin."""
    return replace(d, waiting=None), None


# --- rollback ---------------------------------------------------------------------------------------

_ROLLED_BACK = Ending(
    outcome=OrderOutcome.ROLLED_BACK, reason=Reason(code="rolled_back", detail="a command took it back")
)


def _no_previous(event: RollbackAsked) -> Reason:
    detail = f"there is no release before {event.digest[:12]} on this device; it stays active"
    return Reason(code="no_previous", detail=detail)


def _refuse_rollback(d: Deployment, event: RollbackAsked, reason: Reason) -> Step:
    d = replace(d, order_highest=max(d.order_highest, event.order))
    refusal = OrderRefused(reason=reason, order_highest=d.order_highest)
    return note(d, refusal, event.order, event.digest), None


def _not_applicable(d: Deployment, event: RollbackAsked) -> Step:
    detail = f"release {event.digest[:12]} is neither active nor in flight"
    return _refuse_rollback(d, event, Reason(code="not_applicable", detail=detail))


def _block(d: Deployment, event: RollbackAsked) -> Deployment:
    """The release is refused from now on, and is nobody's way back."""
    others = tuple(block for block in d.blocked if block.digest != event.digest)
    kept = (*others, Block(digest=event.digest, order=event.order))[-BLOCKED_MAX:]
    previous = None if d.previous and d.previous.digest == event.digest else d.previous
    waiting = None if d.waiting and d.waiting.desired.digest == event.digest else d.waiting
    highest = max(d.order_highest, event.order)
    return replace(d, blocked=kept, previous=previous, waiting=waiting, order_highest=highest)


def asked(act: Callable[[Deployment, RollbackAsked, Bounds], Step]) -> Callable[..., Step]:
    """A rollback with a number below the highest seen is refused before anything is looked at."""

    def checked(d: Deployment, event: RollbackAsked, bounds: Bounds) -> Step:
        if event.order < d.order_highest:
            detail = f"order {event.order} is below {d.order_highest}, the highest seen"
            return _refuse_rollback(d, event, Reason(code="stale_order", detail=detail))
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
        return _refuse_rollback(d, event, _no_previous(event))
    d = _block(d, event)
    d = replace(
        d, desired=None, order=active.order, outcome=None, trial=None, restore=Standing(active=target),
        variants=(), refused=(),
    )  # fmt: skip
    return revert(d, _ROLLED_BACK, bounds)


def rollback_idle(d: Deployment, event: RollbackAsked, bounds: Bounds) -> Step:
    """Only the active release can be left."""
    if _is(d.active, event.digest):
        return _rollback_active(d, event, bounds)
    return _not_applicable(d, event)


def rollback_before_switch(d: Deployment, event: RollbackAsked, bounds: Bounds) -> Step:
    """The order in flight is dropped, or the active release left under it."""
    wanted = d.desired
    if wanted is not None and wanted.digest == event.digest:
        if not _is(d.active, event.digest):
            return end(_block(d, event), _ROLLED_BACK.outcome, _ROLLED_BACK.reason)
        if _way_back(d, d.previous, event.digest):
            return _rollback_active(d, event, bounds)
        # Another variant of the only release there is: that one is dropped, the release stays.
        d = replace(d, order_highest=max(d.order_highest, event.order))
        return end(d, _ROLLED_BACK.outcome, _no_previous(event))
    if wanted is not None and _is(d.active, event.digest):
        # The order in flight is for another release: it begins again once the active one is left.
        again = Waiting(desired=wanted, source=d.source, left_s=d.left_s)
        after, work = _rollback_active(replace(d, waiting=again), event, bounds)
        return (after, work) if after.phase is Phase.REVERTING else (replace(after, waiting=None), work)
    return _not_applicable(d, event)


def _take_back(d: Deployment, event: RollbackAsked) -> Deployment:
    """Blocks the release, and bends the way back around it.

    The active release may be another variant of the one that is taken back; the way back then leads to
    the release before it. Where there is none it stays: a device keeps a working model.
    """
    restore = d.restore or Standing()
    if not _is(restore.active, event.digest):
        return _block(d, event)
    target = _way_back(d, restore.previous, event.digest)
    if target is not None:
        return replace(_block(d, event), restore=Standing(active=target))
    waiting = None if d.waiting and d.waiting.desired.digest == event.digest else d.waiting
    return replace(d, waiting=waiting, order_highest=max(d.order_highest, event.order))


def rollback_switching(d: Deployment, event: RollbackAsked, _: Bounds) -> Step:
    """The switch completes first; its way back must not be a refused release."""
    if _flies(d, event.digest):
        return replace(_take_back(d, event), ending=_ROLLED_BACK), None
    if _waits(d, event.digest):
        return _take_back(d, event), None
    restore = d.restore or Standing()
    if not _is(restore.active, event.digest):
        return _not_applicable(d, event)
    # The release that is being left anyway must not be what a failed soak goes back to.
    if _way_back(d, restore.previous, event.digest) is None:
        return _refuse_rollback(d, event, _no_previous(event))
    return _take_back(d, event), None


def rollback_soaking(d: Deployment, event: RollbackAsked, bounds: Bounds) -> Step:
    """Back to what ran before."""
    if not _is(d.active, event.digest):
        return _not_applicable(d, event)
    return revert(_take_back(d, event), _ROLLED_BACK, bounds)


def rollback_reverting(d: Deployment, event: RollbackAsked, _: Bounds) -> Step:
    """It is on its way back already; the release is refused from now on, also as the place to go to."""
    leaving = _is(d.active, event.digest) and not _is(d.restore.active if d.restore else None, event.digest)
    if not (leaving or _flies(d, event.digest) or _waits(d, event.digest)):
        return _not_applicable(d, event)
    after = _take_back(d, event)
    return (after, None) if after.restore == d.restore else again(after)


def _flies(d: Deployment, digest: str) -> bool:
    return d.desired is not None and d.desired.digest == digest


def _waits(d: Deployment, digest: str) -> bool:
    return d.waiting is not None and d.waiting.desired.digest == digest
