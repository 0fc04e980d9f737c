"""The next certificate: keys, messages and files behind `agent.renewing`.

For: looking now and then whether one is due, asking for it, checking what comes, and telling the transport
with which certificate to connect. All of it on the runner's thread, but `Introduction`, which the
transport's thread asks, and the request over HTTPS, which has a thread of its own.
Not for: deciding (`agent.renewing`), or a device that was never enrolled (`agent.enrolling`).

Over HTTPS what is imported stays in memory until the daemon starts again; only a device that was cut off goes
that way.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from agent import identity, renewing, tls
from agent.errors import FinalError, RetryError, StateError, reason_of
from agent.identities import CURRENT, NEXT, Identities
from agent.identity import Home, Identity
from agent.ports import Clock, Keys, Randomness, Registry, Transport
from agent.renewing import (
    Accepted,
    Act,
    Barred,
    Connected,
    Failed,
    Granted,
    Looked,
    Phase,
    Rejected,
    Renewing,
)
from agent.runner import Runner
from agent.signed_time import text_of
from agent.statusing import Board, IdentityNote
from agent.trust import Trust
from wire import codec, trust
from wire.certificates import Certificate, CertificateRefused, Renewal
from wire.errors import ShallopError, TrustError
from wire.messages import Phase as Work
from wire.messages import Reason
from wire.topics import CERTIFICATE, CERTIFICATE_REFUSED, RENEWAL, Channel, Topics

log = logging.getLogger(__name__)

LOOK_S = 60.0
BUSY = frozenset({Work.FETCHING, Work.VERIFYING, Work.TRIALING, Work.SWITCHING, Work.REVERTING})
"""Work that a new connection would slow down, or whose figures it would spoil."""


class Line(Transport, Protocol):
    """A transport that can be told to connect anew."""

    def reconnect(self) -> None:
        """Ends the connection in order and makes another one at once."""


class Parts(Struct, frozen=True, kw_only=True):
    """What a renewal works with; built once, in agent.app."""

    device: str
    install_id: str
    identities: Identities
    trusted: Trust
    keys: Keys
    registry: Callable[[], Registry]
    line: Line
    topics: Topics
    clock: Clock
    now_s: Callable[[], float]
    random: Randomness
    runner: Runner
    board: Board
    moved: Callable[[], None]


class Introduction:
    """With which certificate this device introduces itself; for the transport's thread.

    Attributes:
        chosen: the file of the connection that was made last.
        attempts: to connect, since a connection stood.
        signed_s: highest time that came signed with a certificate.
        ceiling_s: up to which signed times count: two thirds of the life of the certificate in use.
        heard: where the TLS leaves why it failed.
        told: who is told when the broker refuses the certificate.
    """

    def __init__(self, identities: Identities, found: Identity) -> None:
        self._identities = identities
        self.chosen, self.attempts, self.signed_s = CURRENT, 0, found.signed_s
        self.ceiling_s = renewing.due_s(found.not_before_s, found.not_after_s)
        self.heard = tls.Heard()
        self.told: Callable[[str], None] = log.warning

    def choose(self) -> Identity:
        """For the connection that is now being made.

        Raises:
            StateError: none of them can be read.
        """
        attempt, self.attempts = self.attempts, self.attempts + 1
        for name in (NEXT, CURRENT) if renewing.prefers_new(attempt) else (CURRENT, NEXT):
            found = self._identities.usable(name)
            if found is not None:
                self.chosen, self.signed_s = name, max(self.signed_s, found.signed_s)
                if name == CURRENT:
                    self.ceiling_s = renewing.due_s(found.not_before_s, found.not_after_s)
                return found
        raise StateError(
            "identity_lost",
            f"{self._identities.folder} holds no identity that can be used; enrol this device again",
        )

    def barred(self, why: str) -> None:
        """The broker refused this device's certificate."""
        self.told(why)


class RenewalWork:
    """One device that is enrolled."""

    def __init__(self, parts: Parts, introduction: Introduction, found: Identity) -> None:
        self._parts = parts
        self._introduction = introduction
        introduction.told = self._barred
        waits = parts.identities.usable(NEXT)
        if waits is None:
            parts.identities.forget(NEXT)
        self._state = Renewing(
            not_before_s=found.not_before_s, not_after_s=found.not_after_s, place=place(found.public),
            phase=Phase.RESTING if waits is None else Phase.PROVING,
        )  # fmt: skip
        self._note()

    # --- the transport's thread

    @property
    def chosen(self) -> str:
        """The file of the identity with which the connection that now stands was made."""
        return self._introduction.chosen

    def _barred(self, why: str) -> None:
        detail = f"the broker refuses this device's certificate: {why}"
        reason = Reason(code="certificate_refused", detail=detail)

        def act() -> None:
            self._let(Barred(reason=reason))
            self._look()

        self._parts.runner.post(act)

    # --- the runner's thread

    def look(self) -> None:
        """Looks now, and again after a while."""
        self._parts.runner.after(LOOK_S, self.look)
        self._look()

    def _look(self) -> None:
        parts = self._parts
        busy = any(d.phase in BUSY for d in parts.runner.models.values())
        self._let(
            Looked(
                now_s=parts.now_s(),
                boot_s=parts.clock.boot_s(),
                connected=parts.line.connected,
                quiet=not busy,
            )
        )

    def channels(self) -> list[tuple[Channel, str]]:
        """What is listened to."""
        topic, device = self._parts.topics.topic, self._parts.device
        return [(channel, topic(channel, device=device)) for channel in (CERTIFICATE, CERTIFICATE_REFUSED)]

    def connected(self, chosen: str) -> None:
        """A connection stands: the certificate that it was made with is now known to be good."""
        self._introduction.attempts = 0
        identities = self._parts.identities
        waits = identities.usable(NEXT)
        if waits is None:
            self._let(Connected())
        elif chosen == NEXT:
            identities.accept()
            log.info("the certificate was renewed; it ends %s", text_of(waits.not_after_s))
            self._accepted(waits)
        else:
            identities.forget(NEXT)
            detail = "the broker accepts the certificate before it and not the new one"
            reason = Reason(code="certificate_rejected", detail=detail, lasting="retry")
            self._let(Rejected(reason=reason, **self._chance()))
        self._look()

    def _accepted(self, found: Identity) -> None:
        self._let(
            Accepted(
                not_before_s=found.not_before_s,
                not_after_s=found.not_after_s,
                place=place(found.public),
                boot_s=self._parts.clock.boot_s(),
            )
        )

    def take(self, channel: Channel, payload: bytes) -> None:
        """An answer came over the broker."""
        if self._state.phase is not Phase.ASKING:
            return
        if channel is CERTIFICATE_REFUSED:
            refused = codec.decode(payload, CertificateRefused, channel.size_bytes_max)
            self._failed(FinalError(refused.code, refused.detail))
            return
        present = self._present()
        if present is not None:
            self._granted(payload, present, present.home)

    # --- what is decided, and done

    def _let(self, event: renewing.Event) -> None:
        before = self._state
        self._state, act = renewing.step(before, event)
        if self._state != before:
            self._note()
        if self._state.why is not None and self._state.why != before.why:
            log.warning("the certificate: %s: %s", self._state.why.code, self._state.why.detail)
        if act is Act.RECONNECT:
            self._introduction.attempts = 0
            self._parts.line.reconnect()
        elif act is not None:
            try:
                self._ask(act)
            except (ShallopError, OSError) as error:
                self._failed(error)

    def _chance(self) -> dict[str, float]:
        return {"boot_s": self._parts.clock.boot_s(), "unit": self._parts.random.unit()}

    def _failed(self, error: ShallopError | OSError) -> None:
        reason = (
            reason_of(error)
            if isinstance(error, ShallopError)
            else Reason(code="disk_failed", detail=str(error)[:1000], lasting="retry")
        )
        self._let(Failed(reason=reason, **self._chance()))

    def _present(self) -> Identity | None:
        """What the next certificate follows: the newest one; no ended one before it proves anything."""
        try:
            return self._parts.identities.usable(NEXT) or self._parts.identities.read()
        except StateError as error:
            self._failed(error)
            return None

    def _ask(self, act: Act) -> None:
        from wire.enrolment import renewal_statement  # noqa: PLC0415 - a few times a year

        parts, present = self._parts, self._present()
        if present is None:
            return
        seed = parts.identities.renewing(parts.keys, present)
        public = parts.keys.public_of(seed).hex()
        statement = renewal_statement(parts.device, public)
        word = Renewal(
            device=parts.device, install_id=parts.install_id, public=public,
            proof=parts.keys.sign(seed, statement).hex(),
            proof_before=parts.keys.sign(present.seed, statement).hex(),
            root_number=parts.trusted.state.root.number,
        )  # fmt: skip
        if act is Act.ASK_BROKER:
            log.info("asking for the next certificate; the present one ends %s", text_of(present.not_after_s))
            topic = parts.topics.topic(RENEWAL, device=parts.device)
            if not parts.line.publish(topic, codec.encode(word), qos=RENEWAL.qos, retain=RENEWAL.retain):
                raise RetryError("not_connected", "the connection went while the certificate was asked for")
            return
        log.info("asking the registry at %s for a certificate", present.home.url)
        threading.Thread(target=self._over_https, args=(word, present), name="renewal", daemon=True).start()

    def _over_https(self, word: Renewal, present: Identity) -> None:
        """On a thread of its own; its outcome goes to the runner's."""
        from wire.enrolment import RENEW_PATH  # noqa: PLC0415 - see the module

        post, body = self._parts.runner.post, codec.encode(word)
        try:
            said = self._parts.registry().post(present.home.url, RENEW_PATH, body, present.authorities_pem)
        except (ShallopError, OSError) as error:
            failed = error
            post(lambda: self._failed(failed))
        else:
            post(lambda: self._answered(*said, present))

    def _answered(self, status: int, answer: bytes, present: Identity) -> None:
        from agent import enrolling  # noqa: PLC0415 - see the module

        if self._state.phase is not Phase.ASKING:
            return
        try:
            granted = enrolling.accepted(status, answer)
            for data in granted.roots:
                self._parts.trusted.rotate(data)
        except (ShallopError, OSError) as error:
            self._failed(error)
            return
        self._granted(granted.certificate, present, enrolling.home_of(granted))

    def _granted(self, envelope: bytes, present: Identity, home: Home) -> None:
        """Checks a certificate that came, and keeps it beside the present one."""
        parts = self._parts
        seed = parts.identities.renewing(parts.keys, present)
        try:
            inner = trust.open_envelope(
                envelope, "certificate", trust.Policy(verifier=parts.trusted), CERTIFICATE.size_bytes_max
            )
            certificate = codec.decode(inner, Certificate, CERTIFICATE.size_bytes_max)
            found = checked(certificate, seed, parts.keys.public_of(seed).hex(), present, home)
            tls.require_usable(found)
            parts.identities.granted(found)
        except (ShallopError, OSError) as error:
            self._failed(error)
            return
        self._let(Granted())
        if found.home != present.home:
            # The address is another one: the next start of the daemon reads it.
            parts.identities.accept()
            parts.moved()
        self._look()

    def _note(self) -> None:
        state = self._state
        note = IdentityNote(
            phase=state.phase, ends_at=text_of(state.not_after_s), due_at=text_of(state.due_s),
            failures=state.failures, why=state.why,
        )  # fmt: skip
        self._parts.board.identity(note)


def place(public: str) -> float:
    """A key's own place in the spread, [0, 1).

    >>> place("80" + "00" * 31)
    0.5
    """
    return int(public[:12], 16) / 16**12


def checked(certificate: Certificate, seed: bytes, public: str, present: Identity, home: Home) -> Identity:
    """The identity that a believed certificate gives, if it may follow the present one.

    Raises:
        TrustError: `wrong_device`, `wrong_key`, `certificate_malformed`; `certificate_shorter`: it ends
        before
            the present one does.
    """
    if certificate.device != present.device:
        raise TrustError(
            "wrong_device", f"the certificate is for {certificate.device}, this is {present.device}"
        )
    found = identity.of_certificate(certificate, seed, public, home, present.signed_s)
    if found.not_after_s < present.not_after_s:
        raise TrustError(
            "certificate_shorter",
            f"the new certificate ends {certificate.not_after}, this one {text_of(present.not_after_s)}",
        )
    return found
