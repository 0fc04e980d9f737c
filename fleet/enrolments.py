"""PURE. Who gets a certificate: tokens and their states, and the verdict on what a device asks.

For: `judge_enrolment` and `judge_renewal`, which take a device's word, what the registry knows and the time,
and say: issue one, give the same again, or refuse by name; and which certificates a person should look at.
Not for: making tokens or certificates, the database, or TLS (`fleet.enrolling`, `fleet.adapters`).

What is believed of a stranger: nothing but a secret whose hash is known, and signatures. A refusal changes
nothing: a token is spent only where a certificate is issued, so that a wrong try locks no device out.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from enum import StrEnum

from msgspec import Struct

from wire.certificates import Renewal
from wire.enrolment import Enrol, enrolment_statement, renewal_statement
from wire.trust import SignatureCheck

DAY_S = 86400.0
FOLLOWED_MAX = 20
"""Certificates of one device that a proof is tried against, the newest first."""


class TokenState(StrEnum):
    """Where a token stands."""

    UNUSED = "unused"
    USED = "used"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class TokenEvent(StrEnum):
    """What happens to a token."""

    USE = "use"
    EXPIRE = "expire"
    CANCEL = "cancel"


TABLE: dict[tuple[TokenState, TokenEvent], TokenState] = {
    (TokenState.UNUSED, TokenEvent.USE): TokenState.USED,
    (TokenState.UNUSED, TokenEvent.EXPIRE): TokenState.EXPIRED,
    (TokenState.UNUSED, TokenEvent.CANCEL): TokenState.CANCELLED,
}
"""Every other pair changes nothing: a token that ended stays as it ended."""


class Enrolment(Struct, frozen=True, kw_only=True):
    """A token as the registry keeps it.

    Attributes:
        id: names it to people; says nothing about the secret.
        secret_sha256: of the secret, hexadecimal; the secret itself is kept nowhere.
        root_number: of the root that the token pins.
        issued_at: seconds since 1970 by the registry's clock, and so are all times here.
        state: as written down; `state_at` says what time makes of it.
        public: the key that it was used for.
        serial: of the certificate that it brought.
        ended_at: when it was used or cancelled.
        why: it was cancelled.
    """

    id: str
    device: str
    secret_sha256: str
    root_number: int
    issued_at: float
    expires_at: float
    state: TokenState = TokenState.UNUSED
    public: str | None = None
    serial: str | None = None
    ended_at: float | None = None
    why: str = ""


class Held(Struct, frozen=True, kw_only=True):
    """A certificate that was issued to a device.

    Attributes:
        serial: hexadecimal.
        public: the device's key, hexadecimal.
        pem: as the device gets it.
        enrolment: the token that brought it; None for a renewal.
        revoked_at: None while it counts.
        cut_at: when the broker was told; None before.
    """

    serial: str
    device: str
    public: str
    issued_at: float
    not_before: float
    not_after: float
    pem: str
    enrolment: str | None = None
    revoked_at: float | None = None
    why: str = ""
    cut_at: float | None = None

    def living(self, now: float) -> bool:
        """Whether it is neither revoked nor at its end."""
        return self.revoked_at is None and now < self.not_after


class Revocation(Struct, frozen=True, kw_only=True):
    """A device that was shut out; only the use of a newer token brings it back."""

    device: str
    at: float
    why: str
    cut_at: float | None = None


class Bounds(Struct, frozen=True, kw_only=True):
    """How generous renewal is.

    Attributes:
        expired_renew_s: how long after its end a certificate's key still proves who asks.
        renewals_per_day_max: certificates that one device gets by renewal in 24 hours.
    """

    expired_renew_s: float
    renewals_per_day_max: int


class Issue(Struct, frozen=True):
    """A certificate for the key that was asked for."""


class Again(Struct, frozen=True):
    """The certificate that this key has already."""

    serial: str


class Refuse(Struct, frozen=True):
    """None, and why (`wire.certificates.CertificateRefused`); what to do then, the agent says."""

    code: str
    detail: str


Verdict = Issue | Again | Refuse

UNKNOWN_TOKEN = Refuse("token_unknown", "this registry knows no such token")


# --- tokens -------------------------------------------------------------------------------------------


def after(state: TokenState, event: TokenEvent) -> TokenState:
    """The state that follows; the same one where the table knows no other."""
    return TABLE.get((state, event), state)


def state_at(enrolment: Enrolment, now: float) -> TokenState:
    """The state at a time; a token ends at `expires_at`."""
    if now >= enrolment.expires_at:
        return after(enrolment.state, TokenEvent.EXPIRE)
    return enrolment.state


def secret_sha256(secret: bytes) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret).hexdigest()


def judge_enrolment(
    word: Enrol,
    enrolment: Enrolment,
    certificates: Sequence[Held],
    revocation: Revocation | None,
    now: float,
    check: SignatureCheck,
) -> Verdict:
    """What becomes of `word`.

    Args:
        word: from a device that nobody knows yet.
        enrolment: the token that was found by the hash of the secret; without one: UNKNOWN_TOKEN.
        certificates: all of the device that the token is for, newest first.
        revocation: of that device.
        now: seconds.
        check: Ed25519.
    """
    secret = bytes.fromhex(word.secret)
    if not hmac.compare_digest(enrolment.secret_sha256, secret_sha256(secret)):
        return UNKNOWN_TOKEN
    refused = _token_refused(enrolment, word, now)
    if refused is not None:
        return refused
    statement = enrolment_statement(word.device, word.public, secret)
    if not check(bytes.fromhex(word.public), statement, bytes.fromhex(word.proof)):
        return Refuse("bad_proof", "the proof is not by the key that is asked for")
    if revocation is not None and revocation.at > enrolment.issued_at:
        return _revoked(word.device)
    if _revoked_key(word.public, certificates):
        return Refuse("revoked", "this key was revoked; enrol with a new one")
    return Issue() if enrolment.serial is None else Again(enrolment.serial)


def _token_refused(enrolment: Enrolment, word: Enrol, now: float) -> Refuse | None:
    if enrolment.device != word.device:
        return Refuse("wrong_device", "this token is for another device")
    match state_at(enrolment, now):
        case TokenState.CANCELLED:
            return Refuse("token_cancelled", enrolment.why or "this token was cancelled; make a new one")
        case TokenState.EXPIRED:
            return _expired()
        case TokenState.USED if enrolment.public != word.public:
            return Refuse(
                "token_used",
                "this token was used for another key; if that was not this device, somebody else has it",
            )
        case TokenState.USED if now >= enrolment.expires_at:
            return _expired()
        case _:
            return None


def _expired() -> Refuse:
    return Refuse("token_expired", "this token's time is over")


def _revoked_key(public: str, certificates: Sequence[Held]) -> bool:
    return any(held.public == public and held.revoked_at is not None for held in certificates)


def _revoked(device: str) -> Refuse:
    return Refuse("revoked", f"{device} was revoked, and only a new token brings it back")


# --- renewal ------------------------------------------------------------------------------------------


def judge_renewal(
    word: Renewal,
    certificates: Sequence[Held],
    revocation: Revocation | None,
    now: float,
    bounds: Bounds,
    check: SignatureCheck,
) -> Verdict:
    """What becomes of `word`, by whichever way it came.

    The key of a living certificate proves who asks, and so does that of the newest one after its end. A
    device whose answer was lost may hold the newest key only as the one that it asks for: then `proof` is
    by the newest key, and whichever of the device's certificates it follows does not matter.

    Args:
        word: whoever sent it.
        certificates: of the device that it names, newest first.
        revocation: of that device.
        now: seconds.
        bounds: how generous to be.
        check: Ed25519.
    """
    if not certificates:
        return Refuse("unknown_device", f"{word.device} never enrolled here")
    statement = renewal_statement(word.device, word.public)
    before = bytes.fromhex(word.proof_before)
    if not check(bytes.fromhex(word.public), statement, bytes.fromhex(word.proof)):
        return _unproved()
    signed = [c for c in certificates[:FOLLOWED_MAX] if check(bytes.fromhex(c.public), statement, before)]
    if not signed:
        return _unproved()
    if revocation is not None or _revoked_key(word.public, certificates):
        return _revoked(word.device)
    return _followed(word, certificates, [c for c in signed if c.revoked_at is None], now, bounds)


def _unproved() -> Refuse:
    return Refuse("bad_proof", "the proofs are not by the new key and a certificate's key of this device")


def _followed(
    word: Renewal, certificates: Sequence[Held], signed: Sequence[Held], now: float, bounds: Bounds
) -> Verdict:
    """The verdict once both proofs stand, and the device as such is welcome.

    `signed` are those whose key made the proof and that were not revoked.
    """
    if not signed:
        return _revoked(word.device)
    if not any(c.living(now) for c in signed):
        # Of the ended ones only the newest counts: an old key may lie on a card that was thrown away.
        newest = next(c for c in certificates if c.revoked_at is None)
        if newest.public not in {word.public, *(c.public for c in signed)}:
            return Refuse("bad_proof", "the certificate that it follows ended and is not the device's newest")
        if now - newest.not_after > bounds.expired_renew_s:
            days = f"{bounds.expired_renew_s / DAY_S:.0f} days"
            return Refuse("expired_too_long", f"its certificate ended more than {days} ago; it needs a token")
    same = next((c for c in certificates if c.public == word.public and c.living(now)), None)
    if same is not None:
        return Again(same.serial)
    recent = [c for c in certificates if c.enrolment is None and now - c.issued_at < DAY_S]
    if len(recent) >= bounds.renewals_per_day_max:
        return Refuse("too_many", f"{len(recent)} certificates within a day; try again tomorrow")
    return Issue()


# --- what a person should see -------------------------------------------------------------------------


class Ending(Struct, frozen=True, kw_only=True):
    """A device whose newest certificate should have been renewed by now.

    Attributes:
        not_after: its end, seconds; in the past where it ended.
        seen_at: when the device was heard last; None: never.
    """

    device: str
    not_after: float
    seen_at: float | None


OVERDUE_FRACTION = 0.25
"""Devices renew at two thirds of a certificate's life; with a quarter left something is wrong."""


def overdue(held: Held, now: float) -> bool:
    """Whether a device that renews in time would have followed this certificate by another."""
    life_s = held.not_after - held.not_before
    return held.revoked_at is None and held.not_after - now < OVERDUE_FRACTION * life_s


def prunable(held: Held, newest: bool, now: float, keep_s: float) -> bool:
    """Whether a certificate's row may go: ended for `keep_s`, and the device has a newer one.

    A revoked one that was not cut off yet stays, whatever its age.
    """
    if held.revoked_at is not None and held.cut_at is None:
        return False
    return not newest and now - held.not_after > keep_s
