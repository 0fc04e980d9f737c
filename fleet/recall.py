"""A registry on an older database: what it finds of its own on the broker, takes up, and says aloud.

For: signed words of this registry that its database does not know (desired documents, the list of barred
releases, the next root), taken up in the transaction that read them; rollouts paused; the audit entry; what
is left for a person, for `health`.
Not for: deciding what follows from them (`fleet.restored`), device's words about order numbers
(`fleet.ingest`), or the audit log's own head (`fleet.audit_watch`).

Why so little is believed: docs/adr/0020-restored-registry.md.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fleet.audit import REGISTRY, By, clean
from fleet.bars import (
    DATABASE,
    KIND,
    LISTS_UNKNOWN,
    UNKNOWN_WORDS,
    barred_row,
    bars_post,
    sealed_bars,
)
from fleet.current import Current
from fleet.facts import read_rollout, with_rollout
from fleet.inventory import Device, labelled
from fleet.orders import Desk, utc_text
from fleet.ports import DesiredRow, Post, Store, Tx
from fleet.publish.content import Rank
from fleet.recalled import (
    PAUSED_WHY,
    SETTLE_S,
    RestoredHealth,
    database_left,
    devices_left,
    lists_left,
    names_of,
)
from fleet.restored import (
    Gap,
    can_be_signed,
    counted,
    entries_after,
    gap_after,
    list_after,
    outruns,
    require_near,
)
from fleet.rollout import TRANSITIONS, Event, RolloutState, pause
from fleet.verify import follow
from wire import topics as wt
from wire.codec import decode
from wire.messages import Bars, Desired, MessageRefused, Report
from wire.roots import require_epoch
from wire.trust import SignatureCheck, open_envelope

_LOG = logging.getLogger("shallop.fleet.recall")

RESTORED = "registry.restored"
CLAIMS_MAX = 1000
_PAUSABLE = tuple(state.value for state in RolloutState if (state, Event.PAUSE) in TRANSITIONS)


class Recall:
    """What one registry does not remember.

    Args:
        desk: its keys.
        orders: its counter when it started, before anything raised it.
        entries: number of its last audit entry then.
        check: Ed25519.
        authority: whether it gives certificates out, so that every device should have one.
    """

    def __init__(
        self,
        desk: Current[Desk],
        orders: int,
        entries: int,
        check: SignatureCheck,
        *,
        authority: bool = False,
    ) -> None:
        self._desk = desk
        self._orders = orders
        self._entries = entries
        self._check = check
        self._authority = authority
        self._heard: set[str] = set()
        self._claims: dict[str, tuple[int, str]] = {}
        self._hint = ""
        self._gap: Gap | None = None
        self._ahead: set[str] = set()
        self._listed = self._list_lost = False
        self._connected_at: float | None = None
        self._newer_root, self._newer_root_words = 0, ""
        self._looking = self._compared = False

    @classmethod
    def beginning(
        cls, store: Store, desk: Current[Desk], check: SignatureCheck, *, authority: bool = False
    ) -> Recall:
        """That of a registry that starts, where its database ends now."""
        with store.begin() as tx:
            mark, last = tx.mark(), tx.audit_last()
        return cls(desk, mark.orders, 0 if last is None else last.number, check, authority=authority)

    @property
    def signs(self) -> bool:
        """Whether words of this registry can be told from anybody's."""
        return bool(self._desk.now.signers) and self._desk.now.policy.verifier is not None

    @property
    def older_keys(self) -> str:
        """Why nothing may be published: the fleet follows a root that does not lie here. Else empty."""
        root = self._desk.now.root
        return "" if root is None or root.number >= self._newer_root else self._newer_root_words

    def filters(self) -> list[tuple[str, int]]:
        """What is read on a connection, beyond the desired documents; before the marker, which ends it."""
        root = self._desk.now.root
        if not self.signs or root is None:
            return []
        topics = self._desk.now.topics
        following = topics.topic(wt.ROOT, number=str(root.number + 1))
        return [(following, wt.ROOT.qos), (topics.topic(wt.BARS), wt.BARS.qos)]

    def begin(self, now: float, orders: int) -> None:
        """A new connection, on which the broker shows what it holds; our counter stands at `orders`.

        At the first one it counts what this database knew when it was started. Later all numbers up to now
        are remembered, and whatever the broker shows of them is no news: it may be an old one put back.
        """
        if self._compared:
            self._orders = orders
        self._connected_at, self._looking = now, True

    def end(self) -> None:
        """All was shown; from here on numbers are given out, and what comes now unasked is no news either."""
        self._looking, self._compared = False, True

    # --- our own words --------------------------------------------------------------------------------

    def desired(self, tx: Tx, desired: Desired, payload: bytes, now: float) -> None:
        """A desired document that our order keys signed.

        Raises:
            TrustError: `future_epoch` or `order_unbelievable`.
        """
        highest = counted(desired)
        if self._desk.now.root is not None:
            require_epoch(self._desk.now.root, highest)
        require_near(highest, tx.mark().orders)
        tx.raise_orders(highest)
        topic = self._desk.now.topics.topic(wt.DESIRED, device=desired.device)
        # A document that we remember is none to take up, nor is an old one that somebody put back.
        news = self._looking and highest > self._orders
        if not news or tx.retained_payload(topic) == payload:
            return
        words = f"the broker holds desired document {desired.number} of {desired.device}, signed by us"
        self.older(tx, f"{words}; our numbers ended at {self._orders}", now)
        if tx.revocation(desired.device) is not None:
            return
        after = entries_after({m: row.entry for m, row in tx.desired(desired.device).items()}, desired)
        for model, entry in after.saved.items():
            tx.save_desired(DesiredRow(device=desired.device, model=model, rollout=None, entry=entry))
        for model in after.dropped:
            tx.drop_desired(desired.device, model)
        view = tx.device(desired.device) or Device(id=desired.device)
        tx.save_device(view)
        tx.save_labels(labelled(view, view.labels_own, desired.groups))
        tx.post([Post(topic=topic, rank=Rank.DESIRED, retain=wt.DESIRED.retain, payload=payload)])

    def bars(self, tx: Tx, payload: bytes, now: float) -> None:
        """A list of barred releases that lies on the broker.

        Raises:
            WireError, TrustError: it is not ours, or unbelievable.
        """
        if payload == tx.bars_envelope():
            self._listed = True
            return
        inner = open_envelope(payload, KIND, self._desk.now.policy, wt.BARS.size_bytes_max)
        found = decode(inner, Bars, wt.BARS.size_bytes_max)
        self._listed = True
        number, ours = tx.mark().bars, {row.digest for row in tx.barred()}
        after = list_after(number, ours, found)
        if after is None:
            return
        self.older(
            tx,
            f"the broker holds list {found.number} of barred releases, signed by us; ours is {number}",
            now,
        )
        taken = sorted(set(found.digests) - ours)
        why = f"taken up from list {found.number} on the broker, which the release role signed"
        for digest in taken:
            tx.bar(barred_row(tx, digest, now, By(who=REGISTRY, why=why)))
        envelope, number = payload, found.number
        if after.sign and self._may_sign() and can_be_signed(after):
            envelope = sealed_bars(after.number, after.digests, now, self._desk.now.release_signers)
            number = after.number
        tx.save_bars(number, envelope)
        tx.post([bars_post(self._desk.now, envelope)])
        tx.audit(
            at=now, who=REGISTRY, what="release.bars-taken-up", subject="the list",
            details={"found": found.number, "list": number, "barred": taken},
        )  # fmt: skip
        _LOG.error("list %d of barred releases was taken up: %d more are barred", found.number, len(taken))

    def _may_sign(self) -> bool:
        root = self._desk.now.root
        return root is not None and len(self._desk.now.release_signers) >= root.release.threshold

    def root(self, tx: Tx, payload: bytes, now: float) -> None:
        """What lies where the root after ours would.

        Raises:
            WireError, TrustError: our root's keys did not sign it.
        """
        desk = self._desk.now
        # Our own, where it was taken up after it was asked for.
        if desk.root is None or payload in desk.roots:
            return
        before, _ = follow(None, desk.roots[-1], self._check)
        root, _ = follow(before, payload, self._check)
        self._newer_root = root.number
        self._newer_root_words = (
            f"devices follow root {root.number}, and the newest that lies here is {before.number}: they "
            "would refuse what is signed here, so nothing is published. Put "
            f"root-{root.number}.json and the keys that it names back from a newer backup "
            "(docs/operate.md, 9)"
        )
        words = f"the broker holds root {root.number}, which the keys of root {before.number} signed"
        self.older(tx, f"{words}; the newest here is {before.number}", now)
        _LOG.error("%s", self.older_keys)

    def marker(self, tx: Tx, found: int, ours: int, now: float) -> None:
        """The broker's marker is ahead of us. Nobody signs it, so by itself it is only a hint."""
        self._hint = (
            f"the broker's marker says publication {found}, ours was {ours}: this database is older than "
            "it was, or somebody else writes to the broker"
        )
        _LOG.error("%s", self._hint)
        if not self._noticed(tx):
            tx.audit(at=now, who=REGISTRY, what="registry.marker-ahead", subject=DATABASE, why=self._hint)

    # --- what follows ---------------------------------------------------------------------------------

    def older(self, tx: Tx, how: str, now: float) -> None:
        """This database is older than it was: on record, once a start, and every open rollout paused."""
        if self._noticed(tx):
            return
        _LOG.error("this database is older than what was once published: %s", how)
        paused = []
        for row in tx.rollouts(_PAUSABLE):
            tx.save_rollout(with_rollout(row, pause(read_rollout(row), PAUSED_WHY)))
            paused.append(row.id)
            tx.audit(at=now, who=REGISTRY, what="rollout.pause", subject=row.id, why=PAUSED_WHY)
        details = {"orders": self._orders, "entries": self._entries, "paused": paused}
        tx.audit(at=now, who=REGISTRY, what=RESTORED, subject=DATABASE, why=how, details=details)

    def _noticed(self, tx: Tx) -> bool:
        """Whether the log has it since this start; read there, since a transaction may be undone."""
        newest = [e for e in tx.audit_newest(5, REGISTRY, DATABASE) if e.what == RESTORED]
        return bool(newest) and newest[-1].number > self._entries

    # --- devices' words, which nobody signed ----------------------------------------------------------

    def hears(self, tx: Tx, message: object, device: str) -> None:
        """Something that a device said: who is there, and who holds a newer list of barred releases."""
        self._heard.add(device)
        event = message.event if isinstance(message, Report) else None
        if not isinstance(event, MessageRefused) or event.channel != wt.BARS.name:
            return
        if event.reason.code == "stale_bars" and len(self._claims) < CLAIMS_MAX:
            self._claims[device] = (tx.mark().bars, clean(event.reason.detail, 200))
            _LOG.error("%s refuses our list of barred releases: %s", device, self._claims[device][1])

    def outrun(self, tx: Tx, highest: Mapping[str, int], now: float) -> None:
        """The highest order numbers that devices say they have seen.

        One device may lie and hold up every rollout; two who say the same are believed that far.
        """
        for device, number in sorted(highest.items()):
            orders = tx.mark().orders
            if outruns(self._gap, orders, number):
                self._ahead.add(device)
            self._gap = gap_after(self._gap, orders, number)
        if not self._ahead or self._gap is None:
            return
        words = f"{names_of(self._ahead)} saw orders up to {self._gap.seen}, which this database never gave"
        if len(self._ahead) >= min(2, tx.device_count()):
            self.older(tx, words, now)
            self._lists_lost(tx, now)
        elif not self._hint:
            self._hint = f"{words}; nobody signed that"
            _LOG.error("%s", self._hint)

    def _lists_lost(self, tx: Tx, now: float) -> None:
        """The broker lost its memory too, where it held no list of barred releases to hold ours against."""
        if self._listed or self._list_lost:
            return
        self._list_lost = True
        details = {"list": tx.mark().bars}
        tx.audit(
            at=now, who=REGISTRY, what=LISTS_UNKNOWN, subject=DATABASE, why=UNKNOWN_WORDS, details=details
        )

    # --- health ---------------------------------------------------------------------------------------

    def health(self, store: Store, now: float) -> RestoredHealth | None:
        """What a person should know; None where nothing ever went back."""
        with store.begin() as tx:
            entries = [e for e in tx.audit_newest(20, REGISTRY, DATABASE) if e.what == RESTORED]
            left = [self.older_keys] if self.older_keys else []
            left += lists_left(tx, self._claims)
            if entries:
                settled = self._connected_at is not None and now - self._connected_at > SETTLE_S
                left += database_left(tx, self._desk.now)
                left += devices_left(tx, self._heard, authority=self._authority, settled=settled)
        if not entries and not left and not self._hint:
            return None
        newest = entries[-1] if entries else None
        return RestoredHealth(
            at="" if newest is None else utc_text(newest.at_ms / 1000),
            entry=0 if newest is None else newest.number,
            found=self._hint if newest is None else newest.why,
            left=tuple(left),
        )
