"""PURE. What damage on the disk does to a device at rest.

For: the handlers of what a look at the installed releases found (`agent.mending` looks and mends).
Not for: orders (`agent.steering`), or damage in flight, after which the work begins again (`agent.outcomes`).

| active | before it | then |
|---|---|---|
| mended | any | told |
| lost | whole | back to the one before at once, then the same order again: fetched, tried, switched, soaked |
| lost | none, or lost | it stays where it is, told; another look follows |
| whole | lost | it is nobody's way back any more, told |
"""

from __future__ import annotations

from msgspec.structs import replace

from agent.deployment import Bounds, Damaged, Deployment, Ending, Hurt, Standing, Waiting
from agent.moves import Step, note, revert
from wire.messages import DesiredModel, OrderOutcome, Reason, ReleaseDamaged, Slot

CODE = "release_damaged"


def damaged_idle(d: Deployment, event: Damaged, bounds: Bounds) -> Step:
    """The table above; what is no longer installed is ignored.

    The reason of an order that went well says that its release is damaged, until it is mended; how another
    order ended is not overwritten.
    """
    hurts = [hurt for hurt in event.hurts if hurt.slot in {d.active, d.previous}]
    for hurt in hurts:
        told = ReleaseDamaged(slot=hurt.slot, repaired=hurt.repaired, reason=_reason(hurt))
        d = note(d, told, hurt.slot.order, hurt.slot.digest)
    lost = {hurt.slot: hurt for hurt in hurts if not hurt.repaired}
    if d.previous in lost:
        d = replace(d, previous=None)
    if d.active is None or d.active not in lost:
        mended = d.reason is not None and d.reason.code == CODE and d.outcome is OrderOutcome.ACTIVE
        return (replace(d, reason=None) if mended and hurts else d), None
    reason = _reason(lost[d.active])
    if d.previous is None:
        return (replace(d, reason=reason) if d.outcome is OrderOutcome.ACTIVE else d), None
    d = replace(
        d, desired=None, order=d.active.order, outcome=None, trial=None, variants=(), refused=(),
        restore=Standing(active=d.previous), waiting=_again(d.active),
    )  # fmt: skip
    return revert(d, Ending(outcome=OrderOutcome.FELL_BACK, reason=reason), bounds)


def damaged_busy(d: Deployment, _event: Damaged, _: Bounds) -> Step:
    """An order came while somebody looked; the next look is after it."""
    return d, None


def _reason(hurt: Hurt) -> Reason:
    return Reason(code=CODE, detail=hurt.detail, lasting="retry")


def _again(slot: Slot) -> Waiting | None:
    """The order that brought this release, as far as it matters; an adopted one came by none."""
    if slot.adopted or slot.order < 1:
        return None
    wanted = DesiredModel(
        order=slot.order, digest=slot.digest, release=slot.release, variants=(slot.variant,)
    )
    return Waiting(desired=wanted)
