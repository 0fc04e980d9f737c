"""Rollbacks: asked for by a person, followed until each device has answered, and written down.

For: choosing the command for a scope, following open rollbacks, and letting the desired document say what
a device holds after it went back, whoever sent the message.
Not for: a rollout's own failure action (`fleet.rollout` decides it, `fleet.orders` writes it).
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence

from msgspec import Struct
from msgspec.structs import replace

from fleet.inventory import Device
from fleet.orders import Desk, Scope, desired_post, hold, rollback_post
from fleet.ports import NotFoundError, RollbackRow, Tx
from wire.messages import ModelState, OrderOutcome, Phase, Rollback, Slot, ToDevice


class _Target(Struct, frozen=True):
    device: str
    from_digest: str


def ask(tx: Tx, desk: Desk, model: str, devices: Sequence[Device], scope: Scope | None, now: float) -> str:
    """Sends rollback commands to the devices that have the model; the id of the rollback.

    One command is sent for each release that runs there, since a command acts only where its `from` is
    active or in flight; each has an order number of its own.

    Args:
        tx: the transaction.
        desk: with what orders are written.
        model: concerned.
        devices: meant.
        scope: one topic for all of them; None: each device on its own.
        now: seconds.

    Raises:
        NotFoundError: `nothing_to_roll_back`.
    """
    targets = [_Target(d.id, digest) for d in devices if (digest := _running(d.models.get(model)))]
    if not targets:
        raise NotFoundError(
            "nothing_to_roll_back",
            f"none of the {len(devices)} devices meant has reported an active or arriving {model}",
        )
    rollback_id = f"rb-{secrets.token_hex(6)}"
    posts = []
    for digest in sorted({target.from_digest for target in targets}):
        order = tx.take_orders(1)
        action = Rollback(model=model, from_=digest, order=order)
        members = [target.device for target in targets if target.from_digest == digest]
        scopes = [scope] if scope is not None else [ToDevice(device=device) for device in members]
        posts += [rollback_post(desk, one, action, now) for one in scopes]
        for device in members:
            tx.save_rollback(
                RollbackRow(
                    id=rollback_id,
                    device=device,
                    model=model,
                    from_digest=digest,
                    order=order,
                    state="commanded",
                    asked_at=now,
                )
            )
    tx.post(posts)
    return rollback_id


def _running(state: ModelState | None) -> str | None:
    """The release that a rollback would take back: the one arriving, else the active one."""
    if state is None:
        return None
    return state.in_flight or (None if state.active is None else state.active.digest)


def follow_up(tx: Tx, desk: Desk, changed: Collection[str] | None, now: float, answer_s: float) -> None:
    """Writes down what devices did, and orders by desired document what a command did not reach.

    Args:
        tx: the transaction.
        desk: with what orders are written.
        changed: devices that said something new; None: look at all.
        now: seconds.
        answer_s: how long a command may go unanswered.
    """
    devices = tx.devices() if changed is None else [d for name in changed if (d := tx.device(name))]
    for device in devices:
        if _write_down(tx, device):
            tx.post([desired_post(tx, desk, device.id, now)])
    for row in tx.rollback_rows(open_only=True):
        view = tx.device(row.device)
        follower = _followed(row, view)
        if follower is row and row.state == "commanded":
            offline = view is None or not view.online
            if offline or now - row.asked_at >= answer_s:
                follower = _by_desired(tx, desk, row, view, now)
        if follower is not row:
            tx.save_rollback(follower)


def _write_down(tx: Tx, device: Device) -> bool:
    """Lets desired entries say what the device holds after a rollback by message; whether any changed.

    The device reports the order that was taken back with the outcome `rolled_back`. The entry gets a
    fresh number, which the device ends at once because that release runs there already.
    """
    changed = False
    for model, row in tx.desired(device.id).items():
        state = device.models.get(model)
        if state is None or state.outcome is not OrderOutcome.ROLLED_BACK or state.order < row.entry.order:
            continue
        hold(tx, device.id, model, state.active, tx.take_orders(1))
        changed = True
    return changed


def _followed(row: RollbackRow, view: Device | None) -> RollbackRow:
    """The row as the device's last word leaves it; the row itself while that does not decide."""
    state = None if view is None else view.models.get(row.model)
    if state is None or state.phase is not Phase.IDLE or state.order_highest < row.order:
        return row
    if row.state == "by_desired" and state.order < row.order:
        return row
    if _running(state) != row.from_digest:
        return replace(row, state="done", detail="")
    detail = "it stays active" if state.reason is None else state.reason.detail
    return replace(row, state="failed", detail=detail)


def _by_desired(tx: Tx, desk: Desk, row: RollbackRow, view: Device | None, now: float) -> RollbackRow:
    """The desired document takes the command's place, under a fresh order number."""
    state = None if view is None else view.models.get(row.model)
    target = None if state is None else _target(state, row.from_digest)
    if target is None:
        return replace(row, state="failed", detail="the device has no earlier release to go back to")
    order = tx.take_orders(1)
    hold(tx, row.device, row.model, target, order)
    tx.post([desired_post(tx, desk, row.device, now)])
    return replace(row, state="by_desired", order=order, detail="by its desired document")


def _target(state: ModelState, from_digest: str) -> Slot | None:
    """What the device holds once `from_digest` is gone."""
    if state.active is not None and state.active.digest != from_digest:
        return state.active
    return state.previous
