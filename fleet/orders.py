"""PURE. Turning what was decided into rows and posts of one transaction.

For: the desired document of a device, deploy and restore orders, and the rollback command with its
sealed bytes.
Not for: deciding who gets what (`fleet.rollout`), or publishing (`fleet.conductor`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from msgspec import Struct

from fleet.ports import DesiredRow, Post, Tx
from fleet.publish.content import Rank, clearing
from fleet.rollout import Deploy, Order, Restore
from fleet.rollout_types import Rollout
from wire import topics as wt
from wire.codec import encode
from wire.messages import (
    Command,
    Desired,
    DesiredModel,
    Rollback,
    Slot,
    ToAll,
    ToDevice,
    ToGroup,
)
from wire.roots import Root
from wire.topics import Topics
from wire.trust import Policy, Signer, seal

Scope = ToDevice | ToGroup | ToAll


class Desk(Struct, frozen=True):
    """With what the fleet's words are written.

    Attributes:
        topics: the topic tree.
        signers: the order keys that lie here.
        release_signers: the release keys that lie here; releases may be signed elsewhere instead.
        policy: whose signatures count.
        roots: the chain of root documents as they are published, oldest first.
        root: the last of them; None where nothing is signed.
    """

    topics: Topics
    signers: tuple[Signer, ...] = ()
    release_signers: tuple[Signer, ...] = ()
    policy: Policy = Policy()
    roots: tuple[bytes, ...] = ()
    root: Root | None = None


def utc_text(now: float) -> str:
    """RFC 3339; information only."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")


def desired_post(tx: Tx, desk: Desk, device: str, now: float) -> Post:
    """The device's desired document as its rows say now; retained. A revoked device has none."""
    topic = desk.topics.topic(wt.DESIRED, device=device)
    if tx.revocation(device) is not None:
        return clearing(topic)
    view = tx.device(device)
    message = Desired(
        device=device,
        number=tx.take_orders(1) if desk.signers else 0,
        groups=() if view is None else view.groups,
        models={model: row.entry for model, row in tx.desired(device).items()},
        issued_at=utc_text(now),
    )
    payload = seal(wt.DESIRED.kind or "", encode(message), desk.signers)
    return Post(topic=topic, rank=Rank.DESIRED, retain=wt.DESIRED.retain, payload=payload)


def command_topic(topics: Topics, scope: Scope) -> str:
    """Where a command for that scope is published."""
    match scope:
        case ToDevice():
            return topics.topic(wt.COMMAND, device=scope.device)
        case ToGroup():
            return topics.topic(wt.COMMAND_GROUP, group=scope.group)
        case ToAll():
            return topics.topic(wt.COMMAND_ALL)


def rollback_envelope(desk: Desk, scope: Scope, action: Rollback, now: float) -> bytes:
    """The sealed rollback command; its id names the order, and so does the reply's topic."""
    command_id = rollback_id(action.order)
    command = Command(
        id=command_id,
        to=scope,
        action=action,
        reply_to=f"device/{{device}}/up/reply/{command_id}",
        issued_at=utc_text(now),
    )
    return seal("command", encode(command), desk.signers)


def rollback_of(rollout: Rollout) -> Rollback:
    """The action of a rollout's ready rollback."""
    request = rollout.request
    return Rollback(model=request.model, from_=request.digest, order=rollout.rollback_order)


def rollback_id(order: int) -> str:
    """Id of the command that carries this order."""
    return f"rollback-{order}"


def rollback_post(desk: Desk, scope: Scope, action: Rollback, now: float) -> Post:
    """The rollback command as a post; not retained."""
    envelope = rollback_envelope(desk, scope, action, now)
    return Post(topic=command_topic(desk.topics, scope), rank=Rank.COMMAND, retain=False, payload=envelope)


def give(tx: Tx, desk: Desk, orders: Sequence[Order], rollout: str, now: float) -> None:
    """Writes the orders of a rollout: desired rows, commands and desired documents.

    A restore sends the rollback command, which acts at once and needs no trial, and lets the desired
    document name what the device then holds, for whoever the command does not reach. The entry's number
    is above the command's: a device that obeyed the command ends the entry's order at once, because the
    release runs there already; a command that comes after the entry is stale and changes nothing.
    """
    posts: list[Post] = []
    shut_out = tx.revocations()
    orders = [order for order in orders if order.device not in shut_out]
    restoring = any(isinstance(order, Restore) for order in orders)
    held_order = tx.take_orders(1) if restoring else 0
    for order in orders:
        if isinstance(order, Deploy):
            row = DesiredRow(device=order.device, model=order.model, rollout=rollout, entry=order.desired)
            tx.save_desired(row)
            continue
        if _may_run(tx, order):
            action = Rollback(model=order.model, from_=order.from_digest, order=order.order)
            posts.append(rollback_post(desk, ToDevice(device=order.device), action, now))
        hold(tx, order.device, order.model, order.to, held_order)
    devices = dict.fromkeys(order.device for order in orders)
    posts += [desired_post(tx, desk, device, now) for device in devices]
    tx.post(posts)


def _may_run(tx: Tx, order: Restore) -> bool:
    """Whether the device may have the release; where it says that it has another, no command is needed."""
    view = tx.device(order.device)
    state = None if view is None else view.models.get(order.model)
    if state is None:
        return True
    return order.from_digest in {state.in_flight, None if state.active is None else state.active.digest}


def hold(tx: Tx, device: str, model: str, slot: Slot | None, order: int) -> None:
    """Lets the desired entry name what the device holds; None: nothing, the entry goes."""
    if slot is None:
        tx.drop_desired(device, model)
        return
    entry = held_entry(slot, order)
    tx.save_desired(DesiredRow(device=device, model=model, rollout=None, entry=entry))


def held_entry(slot: Slot, order: int) -> DesiredModel:
    """A desired entry that asks for what already stands in a slot."""
    return DesiredModel(order=order, digest=slot.digest, release=slot.release, variants=(slot.variant,))
