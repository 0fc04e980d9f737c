"""The registry's own acts, in the audit log: a wave opened, a rollout halted, completed or paused.

For: the entry that belongs to one step of a rollout, in that step's transaction.
Not for: what people do; their verbs write their own entries.
"""

from __future__ import annotations

from collections.abc import Sequence

from fleet.audit import REGISTRY
from fleet.ports import Tx
from fleet.rollout import Order, Restore, Rollout


def record(tx: Tx, before: Rollout, after: Rollout, orders: Sequence[Order], now: float) -> None:
    """Writes an entry if the step moved the rollout; orders within a wave need none, only a halt takes back.

    Args:
        tx: of the step.
        before: the step.
        after: the step.
        orders: that it gave.
        now: seconds.
    """
    if (before.state, before.wave) == (after.state, after.wave):
        return
    taken_back = [order.device for order in orders if isinstance(order, Restore)]
    what = "rollout.wave" if after.state is before.state else f"rollout.{after.state.value}"
    details = {
        "from": before.state.value,
        "wave": after.wave,
        "ordered": len(orders) - len(taken_back),
        "taken_back": taken_back,
    }
    why = after.reason or after.waiting_for
    tx.audit(at=now, who=REGISTRY, what=what, subject=after.id, why=why, details=details)
