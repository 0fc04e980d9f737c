"""Enrolment, renewal and revocation: each verb is one transaction, decided by `fleet.enrolments`.

For: tokens for people, certificates for devices, and shutting a device out: written down first, then told to
the broker, and told again after a restart if that did not happen.
Not for: deciding who gets a certificate, HTTP(S), or the authority's key (`fleet.adapters.authority`).
"""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from fleet import enrolments as rules
from fleet.audit import By
from fleet.current import Current
from fleet.doorman import Doorman, pending
from fleet.enrolment_ports import Authority
from fleet.enrolment_views import (
    DeviceTrust,
    EnrolAsk,
    EnrolmentView,
    RevokedView,
    TokenShow,
    TrustHealth,
    device_trust,
    enrolment_view,
)
from fleet.enrolments import Again, Ending, Enrolment, Held, Issue, Refuse, Revocation, TokenState
from fleet.inventory import Device
from fleet.orders import Desk, desired_post, utc_text
from fleet.ports import Clock, ConflictError, NotFoundError, Post, Store, Tx
from fleet.publish.content import Rank, clearing
from fleet.rates import Rates
from fleet.verify import root_sha256
from wire import topics as wt
from wire.certificates import Certificate, CertificateRefused, Renewal
from wire.codec import encode
from wire.enrolment import SECRET_BYTES, BrokerAddress, Enrol, Enrolled, Token, write_token
from wire.trust import SignatureCheck, seal

_LOG = logging.getLogger("shallop.fleet.enrolling")

TOKENS_KEPT_S = 90 * rules.DAY_S
"""How long a token that ended is still listed."""
CERTIFICATES_KEPT_S = 30 * rules.DAY_S
DOOR_S_MAX = 8.0
"""How long a device's answer waits for the broker; the agent itself waits 10 s."""
ANSWERS_PER_MINUTE = 6
"""To renewals of one device over MQTT; more are dropped unanswered."""

Judged = Certificate | CertificateRefused


class Office(Struct, frozen=True):
    """With what certificates are given out.

    Attributes:
        authority: the one that counts; None where there is none (`shallop-fleet broker init`).
        check: Ed25519.
        url: where devices enrol, None where the listener is off.
        broker: what devices are told of the broker.
        bounds: of renewals.
        lifetime_s: of a certificate.
        devices_max: known devices; no token is good for one more.
    """

    authority: Callable[[], Authority | None]
    check: SignatureCheck
    url: Callable[[], str | None]
    broker: BrokerAddress
    bounds: rules.Bounds
    lifetime_s: float
    devices_max: int


class Enrolling:
    """The verbs.

    Attributes:
        refused: how often a device was refused, by code.
    """

    def __init__(
        self, store: Store, clock: Clock, desk: Current[Desk], office: Office, doorman: Doorman
    ) -> None:
        self._store = store
        self._clock = clock
        self._desk = desk
        self._office = office
        self._doorman = doorman
        self._answers = Rates(ANSWERS_PER_MINUTE, ANSWERS_PER_MINUTE)
        self.refused: Counter[str] = Counter()

    # --- tokens ---------------------------------------------------------------------------------------

    def make(self, ask: EnrolAsk, by: By) -> list[TokenShow]:
        """New tokens; older unused ones of the same devices end.

        Raises:
            ConflictError: `no_keys`, `no_ca` or `enrolment_off`: what is missing, and what brings it.
        """
        now = self._clock.now()
        with self._store.begin() as tx:
            door = self._require()
            return [self._make(tx, device, ask, door, by, now) for device in dict.fromkeys(ask.devices)]

    def _require(self) -> tuple[Authority, str]:
        """The authority that counts in this transaction, and where devices enrol."""
        if self._desk.now.root is None or not self._desk.now.signers:
            raise ConflictError(
                "no_keys",
                "this registry has no keys for devices to trust; make them by `shallop-fleet keys init`",
            )
        authority = self._office.authority()
        if authority is None:
            raise ConflictError(
                "no_ca", "this registry has no certificate authority; make it by `shallop-fleet broker init`"
            )
        url = self._office.url()
        if url is None:
            raise ConflictError(
                "enrolment_off",
                "devices cannot reach this registry to enrol; set `enrol_listen: 0.0.0.0:8471` and "
                "`enrol_hosts: [NAME]` in fleet.yaml and start it again",
            )
        return authority, url

    def _make(
        self, tx: Tx, device: str, ask: EnrolAsk, door: tuple[Authority, str], by: By, now: float
    ) -> TokenShow:
        authority, url = door
        _cancel_unused(tx, device, now, "a newer token took its place")
        secret, number = secrets.token_bytes(SECRET_BYTES), len(self._desk.now.roots)
        row = Enrolment(
            id=f"en-{secrets.token_hex(6)}", device=device, secret_sha256=rules.secret_sha256(secret),
            root_number=number, issued_at=now, expires_at=now + ask.valid_s,
        )  # fmt: skip
        tx.save_enrolment(row)
        tx.audit(
            at=now, who=by.who, what="enrol.make", subject=device, why=by.why,
            details={"enrolment": row.id, "expires_at": utc_text(row.expires_at)},
        )  # fmt: skip
        token = Token(
            url=url, device=device, ca_sha256=bytes.fromhex(authority.sha256), secret=secret,
            root_sha256=bytes.fromhex(root_sha256(self._desk.now.roots[-1])),
            issued_at=int(now), expires_at=int(row.expires_at),
        )  # fmt: skip
        revocation = tx.revocation(device)
        return TokenShow(
            id=row.id, device=device, token=write_token(token), url=url, expires_at=row.expires_at,
            reinstates=None if revocation is None else revocation.why,
            replaces=any(held.living(now) for held in tx.certificates(device)),
        )  # fmt: skip

    def tokens(self) -> list[EnrolmentView]:
        """All tokens, oldest first; no secret is among them."""
        now = self._clock.now()
        with self._store.begin() as tx:
            return [enrolment_view(row, now) for row in tx.enrolments()]

    def cancel(self, which: str, by: By) -> list[EnrolmentView]:
        """Ends an unused token by its id, or all unused ones of a device.

        Raises:
            NotFoundError: `unknown_enrolment`: there is none that is unused.
        """
        now = self._clock.now()
        with self._store.begin() as tx:
            why = by.why or "cancelled by a person"
            ended = _cancel_unused(tx, which, now, why)
            if not ended:
                raise NotFoundError(
                    "unknown_enrolment",
                    f"there is no unused token {which[:64]!r}; `shallop-fleet enrol list`",
                )
            for row in ended:
                tx.audit(
                    at=now, who=by.who, what="enrol.cancel", subject=row.device, why=by.why,
                    details={"enrolment": row.id},
                )  # fmt: skip
            return [enrolment_view(row, now) for row in ended]

    # --- certificates ---------------------------------------------------------------------------------

    def enrol(self, word: Enrol) -> Enrolled | CertificateRefused:
        """Answers a device that has a token.

        Raises:
            ConflictError: see `make`; nobody enrols while it stands.
        """
        now = self._clock.now()
        with self._store.begin() as tx:
            authority, url = self._require()
            row = tx.enrolment_of_secret(rules.secret_sha256(bytes.fromhex(word.secret)))
            if row is None:
                return self._no(word.device, rules.UNKNOWN_TOKEN)
            held, revocation = tx.certificates(row.device), tx.revocation(row.device)
            verdict = rules.judge_enrolment(word, row, held, revocation, now, self._office.check)
            if isinstance(verdict, Issue) and tx.device(row.device) is None:
                verdict = self._room(tx, verdict)
            if isinstance(verdict, Refuse):
                return self._no(word.device, verdict)
            if isinstance(verdict, Issue):
                given = self._admit(tx, row, word, authority, now)
            else:
                given = _of_serial(held, verdict.serial)
        # Written down first. The device connects when it has the answer: by then the broker should let it in.
        self._doorman.see_to_within(row.device, DOOR_S_MAX)
        return self._enrolled(given, row.root_number - 1, (authority, url), now)

    def _room(self, tx: Tx, verdict: Issue) -> Issue | Refuse:
        if tx.device_count() < self._office.devices_max:
            return verdict
        return Refuse("too_many", f"{self._office.devices_max} devices are known; raise devices_max")

    def _admit(self, tx: Tx, row: Enrolment, word: Enrol, authority: Authority, now: float) -> Held:
        """The first certificate by a token: the token is used up, and whatever was before it ends."""
        held = self._issue(tx, authority, word.device, word.public, now, row.id)
        used = rules.after(row.state, rules.TokenEvent.USE)
        tx.save_enrolment(replace(row, state=used, public=word.public, serial=held.serial, ended_at=now))
        replaced = tx.revoke_certificates(row.device, now, f"replaced by enrolment {row.id}", held.serial)
        reinstated = tx.lift_revocation(row.device, now)
        if tx.device(row.device) is None:
            tx.save_device(Device(id=row.device))
        if reinstated and row.device in tx.desired_devices():
            tx.post([desired_post(tx, self._desk.now, row.device, now)])
        tx.audit(
            at=now, who=f"device:{row.device}", what="enrol.use", subject=row.device,
            details={
                "enrolment": row.id, "serial": held.serial, "replaced": replaced, "reinstated": reinstated,
                "agent_version": word.agent_version,
            },
        )  # fmt: skip
        _LOG.info("%s enrolled by %s", row.device, row.id)
        return held

    def renew(self, word: Renewal) -> Enrolled | CertificateRefused:
        """Answers a device that comes over HTTPS, usually because its certificate ended.

        Raises:
            ConflictError: see `make`.
        """
        now = self._clock.now()
        with self._store.begin() as tx:
            door = self._require()
            given = self._renewed(tx, word, door[0], now, "https")
            if isinstance(given, CertificateRefused):
                return given
            return self._enrolled(given, word.root_number, door, now)

    def renew_over_mqtt(self, tx: Tx, word: Renewal, now: float) -> None:
        """Answers a device at the broker, in the transaction that took its word in."""
        authority, device = self._office.authority(), word.device
        if authority is None or self._desk.now.root is None:
            self.refused["no_ca"] += 1
            return
        if not self._answers.take(device, now):
            self.refused["too_many"] += 1
            return
        given = self._renewed(tx, word, authority, now, "mqtt")
        if isinstance(given, CertificateRefused):
            channel, payload = wt.CERTIFICATE_REFUSED, encode(given)
        else:
            channel, payload = wt.CERTIFICATE, self._sealed(given, authority, self._desk.now, now)
        topic = self._desk.now.topics.topic(channel, device=device)
        tx.post(
            [Post(topic=topic, rank=Rank.COMMAND, retain=channel.retain, qos=channel.qos, payload=payload)]
        )

    def _renewed(
        self, tx: Tx, word: Renewal, authority: Authority, now: float, by: str
    ) -> Held | CertificateRefused:
        held, revocation = tx.certificates(word.device), tx.revocation(word.device)
        office = self._office
        verdict = rules.judge_renewal(word, held, revocation, now, office.bounds, office.check)
        if isinstance(verdict, Refuse):
            return self._no(word.device, verdict)
        if isinstance(verdict, Again):
            return _of_serial(held, verdict.serial)
        given = self._issue(tx, authority, word.device, word.public, now, None)
        tx.audit(
            at=now, who=f"device:{word.device}", what="certificate.renew", subject=word.device,
            details={"serial": given.serial, "by": by},
        )  # fmt: skip
        return given

    def _issue(
        self, tx: Tx, authority: Authority, device: str, public: str, now: float, enrolment: str | None
    ) -> Held:
        issued = authority.issue_device(device, bytes.fromhex(public), now, self._office.lifetime_s)
        held = Held(
            serial=f"{issued.serial:x}", device=device, public=public, issued_at=now,
            not_before=issued.not_before, not_after=issued.not_after, pem=issued.pem, enrolment=enrolment,
        )  # fmt: skip
        tx.save_certificate(held)
        return held

    @staticmethod
    def _sealed(held: Held, authority: Authority, desk: Desk, now: float) -> bytes:
        certificate = Certificate(
            device=held.device, public=held.public, pem=held.pem,
            authorities_pem=authority.certificates_pem, not_before=utc_text(held.not_before),
            not_after=utc_text(held.not_after), issued_at=utc_text(now),
        )  # fmt: skip
        return seal(wt.CERTIFICATE.kind or "", encode(certificate), desk.signers)

    def _enrolled(self, held: Held, known: int, door: tuple[Authority, str], now: float) -> Enrolled:
        """The answer to a device that knows so many roots: those after them, and its certificate."""
        # Read once: the roots lead to the key that signs the certificate, whatever comes after.
        (authority, url), desk = door, self._desk.now
        certificate = self._sealed(held, authority, desk, now)
        return Enrolled(
            roots=desk.roots[known:], certificate=certificate, broker=self._office.broker, url=url
        )

    def _no(self, device: str, refuse: Refuse) -> CertificateRefused:
        self.refused[refuse.code] += 1
        _LOG.warning("no certificate for %s: %s (%s)", device, refuse.detail, refuse.code)
        return CertificateRefused(code=refuse.code, detail=refuse.detail)

    # --- shutting out ---------------------------------------------------------------------------------

    def revoke(self, device: str, by: By) -> RevokedView:
        """Shuts a device out: its certificates, its open tokens, its orders; the broker is told after that.

        Raises:
            NotFoundError: `unknown_device`: neither known nor ever enrolled.
        """
        now = self._clock.now()
        with self._store.begin() as tx:
            known = tx.device(device) is not None or tx.certificates(device) or tx.revocation(device)
            if not known:
                raise NotFoundError(
                    "unknown_device",
                    f"there is no device {device[:64]!r}; `shallop-fleet devices` lists them",
                )
            before = tx.revocation(device)
            if before is None:
                count = self.shut_out(tx, device, by, now)
        told = self._doorman.see_to(device)
        at, why = (now, by.why) if before is None else (before.at, before.why)
        return RevokedView(
            device=device, at=at, why=why, certificates=0 if before else count, in_force=told.in_force,
            detail=told.detail,
        )  # fmt: skip

    def shut_out(self, tx: Tx, device: str, by: By, now: float) -> int:
        """Writes it down; how many certificates ended."""
        count = tx.revoke_certificates(device, now, by.why or "the device was revoked")
        tx.save_revocation(Revocation(device=device, at=now, why=by.why))
        _cancel_unused(tx, device, now, "the device was revoked")
        self._end_rollbacks(tx, device)
        tx.post(self._silence(device))
        tx.audit(
            at=now, who=by.who, what="device.revoke", subject=device, why=by.why,
            details={"certificates": count},
        )  # fmt: skip
        _LOG.warning("%s is revoked, with %d certificates: %s", device, count, by.why)
        return count

    def _silence(self, device: str) -> list[Post]:
        """Nothing of the device, and nothing for it, stays on the broker."""
        channels = (wt.STATUS, wt.IDENTITY, wt.REPORTED, wt.DESIRED)
        return [clearing(self._desk.now.topics.topic(channel, device=device)) for channel in channels]

    @staticmethod
    def _end_rollbacks(tx: Tx, device: str) -> None:
        for row in tx.rollback_rows(open_only=True):
            if row.device == device:
                tx.save_rollback(replace(row, state="failed", detail="the device was revoked"))

    # --- upkeep ---------------------------------------------------------------------------------------

    def upkeep(self, tx: Tx, now: float) -> None:
        """Drops what is long over; another registry on the same database may have revoked something."""
        tx.prune_enrolments(now - TOKENS_KEPT_S)
        heads = tx.certificate_heads()
        newest = {held.device: held for held in reversed(heads)}
        over = [
            held.serial
            for held in heads
            if rules.prunable(held, newest[held.device] is held, now, CERTIFICATES_KEPT_S)
        ]
        tx.drop_certificates(over)

    def health(self) -> TrustHealth:
        """What a person should know."""
        now = self._clock.now()
        with self._store.begin() as tx:
            revocations, living = tx.revocations(), tx.devices_with_certificate(now)
            ending = tx.newest_certificates((now, rules.OVERDUE_FRACTION)).values()
            late = [h for h in ending if rules.overdue(h, now) and h.device not in revocations]
            seen = {device.id: device.seen_at for device in tx.devices()} if late else {}
            errands = [errand.device for errand in pending(tx, now)]
        return TrustHealth(
            enrolment=self._office.url(),
            certificates=living,
            overdue=tuple(
                Ending(device=held.device, not_after=held.not_after, seen_at=seen.get(held.device))
                for held in sorted(late, key=lambda held: held.not_after)
            ),
            revoked=len(revocations),
            not_in_force=tuple(errands),
            refused={code: count for code, count in self.refused.items() if count},
        )


def trusts(tx: Tx, now: float) -> dict[str, DeviceTrust]:
    """What the fleet thinks of every device that ever enrolled or was revoked."""
    newest, revocations = tx.newest_certificates(), tx.revocations()
    return {
        name: device_trust(newest.get(name), revocations.get(name), now) for name in {*newest, *revocations}
    }


def trust_in(tx: Tx, device: str, now: float) -> DeviceTrust:
    """What the fleet thinks of one device."""
    return device_trust(next(iter(tx.certificates(device)), None), tx.revocation(device), now)


def require_welcome(tx: Tx, devices: Sequence[str]) -> None:
    """Returns if none of the devices is revoked.

    Raises:
        ConflictError: `device_revoked`.
    """
    for device in devices:
        if tx.revocation(device) is not None:
            raise ConflictError(
                "device_revoked", f"{device} was revoked and gets no orders; `shallop-fleet enrol {device}`"
            )


def _cancel_unused(tx: Tx, which: str, now: float, why: str) -> list[Enrolment]:
    """Ends the unused tokens of a device, or the one with that id."""
    named = tx.enrolment(which)
    ended = []
    for row in tx.enrolments(which) if named is None else [named]:
        if rules.state_at(row, now) is TokenState.UNUSED:
            cancelled = rules.after(row.state, rules.TokenEvent.CANCEL)
            ended.append(replace(row, state=cancelled, ended_at=now, why=why))
            tx.save_enrolment(ended[-1])
    return ended


def _of_serial(certificates: Sequence[Held], serial: str) -> Held:
    return next(held for held in certificates if held.serial == serial)
