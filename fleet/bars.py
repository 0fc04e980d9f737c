"""Barred releases: a list signed by the release role, which no order may go against.

For: bar and unbar as one transaction each: the rows, the list's next number, its signed form for the broker,
the entry in the audit log. The list is signed here where the release keys lie here, else by whoever holds
them, on their own machine.
Not for: the devices' side (`agent.believing`), or signing anew after a rotation (`fleet.signing`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from fleet.audit import REGISTRY, WHY_CHARS_MAX, By, clean
from fleet.current import Current
from fleet.orders import Desk, utc_text
from fleet.ports import Clock, ConflictError, NotFoundError, Post, RegistryError, Store, Tx
from fleet.ports_people import BarredRow
from fleet.publish.content import Rank
from fleet.rollout import ENDS
from wire import topics as wt
from wire.codec import decode, encode
from wire.messages import BARRED_MAX
from wire.messages import Bars as BarsMessage
from wire.trust import Envelope, Signer, open_envelope, seal
from wire.types import Count, Digest

KIND = "bars"

NUMBER_MAX = 2**53 - 1
"""Of a list (`wire.types.Positive`)."""

DATABASE = "database"
"""Subject of what is on record about a database that went back (`fleet.recall`)."""
LISTS_UNKNOWN = "registry.lists-unknown"
UNKNOWN_WORDS = (
    "this database went back and the broker held no list, so what was barred since is not known here"
)
UNKNOWN_REMEDY = (
    "look it up in an export of the audit log (`release.bar`), and bar it again, the first time with "
    "--above and the number of the newest list there"
)

_Digests = Annotated[tuple[Digest, ...], Meta(max_length=BARRED_MAX)]
_ENDED = frozenset(state.value for state in ENDS)


class BarsAsk(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A change of the list; with neither it is only signed anew.

    Attributes:
        envelope: the whole list as it will be, signed; None where this registry signs.
        above: number of a list that devices believe and this registry does not know; the next is above.
    """

    bar: _Digests = ()
    unbar: _Digests = ()
    why: Annotated[str, Meta(max_length=2000)] = ""
    envelope: Envelope | None = None
    above: Count = 0


class BarredView(Struct, frozen=True, kw_only=True):
    """A barred release; `release` is MODEL@RELEASE, empty where the registry does not know it."""

    digest: str
    release: str
    at: float
    who: str
    why: str


class BarsShow(Struct, frozen=True, kw_only=True):
    """The list.

    Attributes:
        number: of the list; 0 before the first.
        signed_here: whether this registry can sign it.
        open_rollouts: of barred releases; devices refuse what they would order, and a person aborts them.
    """

    number: int
    signed_here: bool
    barred: tuple[BarredView, ...]
    open_rollouts: tuple[str, ...] = ()


class Bars:
    """The list of one registry."""

    def __init__(self, store: Store, clock: Clock, desk: Current[Desk], insecure_unsigned: bool) -> None:
        self._store = store
        self._clock = clock
        self._desk = desk
        self._insecure_unsigned = insecure_unsigned

    def show(self) -> BarsShow:
        """The list as it is."""
        with self._store.begin() as tx:
            return self._shown(tx)

    def change(self, ask: BarsAsk, by: By) -> BarsShow:
        """Bars and unbars releases; devices hear of it with the next publication.

        Raises:
            RegistryError: `why_missing`, or `bars_full`: more than BARRED_MAX.
            ConflictError: `already_barred`; `bars_unknown`: see `lists_unknown`;
                `bars_unsigned`: nobody signed the list;
                `stale_bars`: what was signed is not the list that follows, because somebody else changed it.
            NotFoundError: `not_barred`.
            WireError, TrustError: the envelope cannot be believed.
        """
        if not by.why.strip():
            raise RegistryError("why_missing", "say why: --why 'crashes on the first frame'")
        now = self._clock.now()
        with self._store.begin() as tx:
            known = {row.digest for row in tx.barred()}
            _require_change(ask, known)
            after = tuple(sorted((known | set(ask.bar)) - set(ask.unbar)))
            if not ask.above and lists_unknown(tx):
                raise ConflictError("bars_unknown", f"{UNKNOWN_WORDS}: {UNKNOWN_REMEDY}")
            number = next_number(tx.mark().bars, ask.above)
            envelope = self._signed(ask, number, after, now)
            for digest in ask.bar:
                tx.bar(barred_row(tx, digest, now, by))
                self._record(tx, by, "release.bar", _subject(tx, digest), digest, number)
            for digest in ask.unbar:
                tx.unbar(digest)
                self._record(tx, by, "release.unbar", _subject(tx, digest), digest, number)
            if not (ask.bar or ask.unbar):
                self._record(tx, by, "release.bars-signed", "the list", "", number)
            tx.save_bars(number, envelope)
            tx.post([bars_post(self._desk.now, envelope)])
            return self._shown(tx)

    def _signed(self, ask: BarsAsk, number: int, after: tuple[str, ...], now: float) -> bytes:
        if len(after) > BARRED_MAX:
            raise RegistryError(
                "bars_full", f"at most {BARRED_MAX} releases are barred; unbar what nobody has"
            )
        if ask.envelope is not None:
            return self._believed(msgspec.json.encode(ask.envelope), number, after)
        if not self._may_sign():
            raise ConflictError(
                "bars_unsigned",
                "the release role signs this list, and its keys do not lie here; give --release-key FILE, as "
                "often as its threshold asks",
            )
        return sealed_bars(number, after, now, self._desk.now.release_signers)

    def _may_sign(self) -> bool:
        desk = self._desk.now
        if desk.root is None:
            return self._insecure_unsigned
        return len(desk.release_signers) >= desk.root.release.threshold

    def _believed(self, envelope: bytes, number: int, after: tuple[str, ...]) -> bytes:
        inner = open_envelope(envelope, KIND, self._desk.now.policy, wt.BARS.size_bytes_max)
        bars = decode(inner, BarsMessage, wt.BARS.size_bytes_max)
        if (bars.number, bars.digests) != (number, after):
            raise ConflictError(
                "stale_bars",
                f"what was signed is list {bars.number} of {len(bars.digests)}, what follows here is list "
                f"{number} of {len(after)}; somebody changed it meanwhile, so try again",
            )
        return envelope

    def _record(self, tx: Tx, by: By, what: str, subject: str, digest: str, number: int) -> None:
        details = {"digest": digest, "list": number}
        tx.audit(at=self._clock.now(), who=by.who, what=what, subject=subject, why=by.why, details=details)

    def _shown(self, tx: Tx) -> BarsShow:
        rows = tx.barred()
        digests = {row.digest for row in rows}
        going = [r.id for r in tx.rollouts() if r.release in digests and r.state not in _ENDED]
        return BarsShow(
            number=tx.mark().bars,
            signed_here=self._may_sign(),
            barred=tuple(_view(row) for row in rows),
            open_rollouts=tuple(going),
        )


def lists_unknown(tx: Tx) -> bool:
    """Whether devices may believe a list that nobody here knows, and ours is still the one of the backup.

    Then a next list under a number that is not above theirs is refused by some, and one that happens to be
    unbars for them what it does not hold. So a person says the number once.
    """
    found = [e for e in tx.audit_newest(20, REGISTRY, DATABASE) if e.what == LISTS_UNKNOWN]
    return bool(found) and found[-1].details.get("list") == tx.mark().bars


def next_number(number: int, above: int = 0) -> int:
    """The number after ours, or after the one that devices believe; the highest of all follows itself.

    Devices take a list of the same number up again, so even a thief of the release key who used the numbers
    up leaves a way.
    """
    return min(max(number, above) + 1, NUMBER_MAX)


def sealed_bars(number: int, digests: Sequence[str], now: float, signers: Sequence[Signer]) -> bytes:
    """A list as it travels."""
    bars = BarsMessage(number=number, digests=tuple(digests), issued_at=utc_text(now))
    return seal(KIND, encode(bars), signers)


def bars_post(desk: Desk, envelope: bytes) -> Post:
    """The list as a post; it goes before whatever it is about."""
    return Post(topic=desk.topics.topic(wt.BARS), rank=Rank.ROOT, retain=wt.BARS.retain, payload=envelope)


def require_not_barred(tx: Tx, digest: str) -> None:
    """Returns if orders may bring this release.

    Raises:
        ConflictError: `release_barred`.
    """
    for row in tx.barred():
        if row.digest == digest:
            raise ConflictError(
                "release_barred",
                f"{_name(row) or digest[:12]} was barred by {row.who}: {row.why}; devices would refuse it "
                "(`shallop-fleet unbar` takes that back)",
            )


def _require_change(ask: BarsAsk, known: set[str]) -> None:
    again, never = known & set(ask.bar), set(ask.unbar) - known
    if again:
        raise ConflictError("already_barred", f"{min(again)[:12]} is barred already; see `bars`")
    if never:
        raise NotFoundError("not_barred", f"{min(never)[:12]} is not barred; see `bars`")


def barred_row(tx: Tx, digest: str, now: float, by: By) -> BarredRow:
    """What is kept of a release that is barred now; one that is not known here has no name."""
    release = tx.release(digest)
    return BarredRow(
        digest=digest,
        model=None if release is None else release.model,
        name=None if release is None else release.name,
        at=now,
        who=by.who,
        why=clean(by.why, WHY_CHARS_MAX),
    )


def _subject(tx: Tx, digest: str) -> str:
    release = tx.release(digest)
    return digest if release is None else f"{release.model}@{release.name}"


def _name(row: BarredRow) -> str:
    return "" if row.model is None else f"{row.model}@{row.name}"


def _view(row: BarredRow) -> BarredView:
    return BarredView(digest=row.digest, release=_name(row), at=row.at, who=row.who, why=row.why)
