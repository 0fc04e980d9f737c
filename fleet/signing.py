"""Signing everything anew after the fleet's root changed, in one transaction.

For: what a registry does once when it starts with a root that it has not signed under before: publish the
chain of roots, open the epoch, and seal releases, desired documents and ready rollbacks with the keys
that count now. Until then devices that followed the root refuse the old signatures by name.
Not for: keys or roots themselves (`fleet.keys`, `wire.roots`).
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from fleet.audit import REGISTRY
from fleet.bars import KIND, bars_post, sealed_bars
from fleet.facts import read_rollout
from fleet.orders import Desk, desired_post, rollback_envelope, rollback_of
from fleet.ports import Post, Tx
from fleet.publish.content import Rank
from fleet.publish.intake import sealed_release
from wire import topics as wt
from wire.errors import TrustError
from wire.messages import ToAll
from wire.roots import first_order
from wire.trust import open_envelope


class Renewed(Struct, frozen=True, kw_only=True):
    """What was signed anew.

    Attributes:
        rollbacks: ready payloads by rollout, to be written to their files.
        unsigned: releases that only a release key elsewhere can sign, to be published again; and the list of
            barred ones where that is so for it.
    """

    roots: int = 0
    releases: int = 0
    documents: int = 0
    rollbacks: dict[str, bytes] = {}
    unsigned: tuple[str, ...] = ()


def renew(tx: Tx, desk: Desk, now: float) -> Renewed:
    """Signs anew whatever was signed under an earlier root, or under none.

    Requires: the desk's chain was checked. Ensures: a second call does nothing.
    """
    root = desk.root
    if root is None or tx.mark().signed_root >= root.number:
        return Renewed()
    tx.raise_orders(first_order(root.epoch))
    tx.post(_roots(desk))
    releases, unsigned = _releases(tx, desk)
    tx.post(releases)
    devices = _told(tx, desk)
    tx.post([desired_post(tx, desk, device, now) for device in devices])
    rollbacks = _rollbacks(tx, desk, now)
    unsigned += _bars(tx, desk, now)
    tx.signed_under(root.number)
    details = {"releases": len(releases), "documents": len(devices), "unsigned": unsigned}
    tx.audit(at=now, who=REGISTRY, what="registry.sign-anew", subject=f"root {root.number}", details=details)
    return Renewed(
        roots=len(desk.roots), releases=len(releases), documents=len(devices), rollbacks=rollbacks,
        unsigned=unsigned,
    )  # fmt: skip


def _roots(desk: Desk) -> list[Post]:
    """Every root of the chain, so that a device that was off for years catches up."""
    return [
        Post(
            topic=desk.topics.topic(wt.ROOT, number=str(index + 1)), rank=Rank.ROOT, retain=True,
            payload=envelope,
        )
        for index, envelope in enumerate(desk.roots)
    ]  # fmt: skip


def _releases(tx: Tx, desk: Desk) -> tuple[list[Post], tuple[str, ...]]:
    """The envelopes of the releases that the broker holds."""
    held = tx.retained_topics(f"{desk.topics.root}/{wt.RELEASE.pattern.split('{')[0]}")
    posts, unsigned = [], []
    for row in tx.releases():
        topic = desk.topics.topic(wt.RELEASE, digest=row.digest)
        if topic not in held:
            continue
        envelope = sealed_release(row, desk)
        if envelope is None:
            unsigned.append(f"{row.model}@{row.name}")
        else:
            posts.append(Post(topic=topic, rank=Rank.RELEASE, retain=True, payload=envelope))
    return posts, tuple(unsigned)


def _told(tx: Tx, desk: Desk) -> list[str]:
    """Devices that have a desired document: with an entry, or one that only names their groups."""
    held = tx.retained_topics(f"{desk.topics.root}/{wt.DESIRED.pattern.split('{')[0]}")
    parsed = [found for topic in held if (found := desk.topics.parse(topic)) is not None]
    named = {params["device"] for channel, params in parsed if channel is wt.DESIRED}
    return sorted(named.union(tx.desired_devices()))


def _bars(tx: Tx, desk: Desk, now: float) -> tuple[str, ...]:
    """The list of barred releases keeps its number; its name if nobody here can sign it any more."""
    envelope, number = tx.bars_envelope(), tx.mark().bars
    if envelope is None or desk.root is None:
        return ()
    try:
        open_envelope(envelope, KIND, desk.policy, wt.BARS.size_bytes_max)
    except TrustError:
        if len(desk.release_signers) < desk.root.release.threshold:
            return ("the list of barred releases",)
        digests = [row.digest for row in tx.barred()]
        envelope = sealed_bars(number, digests, now, desk.release_signers)
        tx.save_bars(number, envelope)
    tx.post([bars_post(desk, envelope)])
    return ()


def _rollbacks(tx: Tx, desk: Desk, now: float) -> dict[str, bytes]:
    """Ready payloads keep their reserved numbers, by which a rollout knows that its own was used."""
    sealed = {}
    for row in tx.rollouts():
        sealed[row.id] = rollback_envelope(desk, ToAll(), rollback_of(read_rollout(row)), now)
        tx.save_rollout(replace(row, rollback_payload=sealed[row.id]))
    return sealed
