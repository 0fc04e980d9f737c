"""How this device comes to belong to a fleet, by a token that a person carried to it.

For: the conversation of `wire.enrolment` from the device's side, checking all that comes back, and taking it
up so that no power cut leaves half of it (the order is `agent.identities`').
Not for: HTTPS (`agent.adapters.registry_https`), the command line (`agent.cli_enrol`), or renewal.

`ask()` may run beside the daemon: it touches nothing that the daemon uses and ends with the checked answer on
the disk. `finish()` takes it up and belongs to whoever holds the state directory's lock.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from http import HTTPStatus

from msgspec import Struct

from agent import believing, identity, tls
from agent.believing import TrustState
from agent.errors import FinalError, RetryError
from agent.identities import CURRENT, ENROLLING, NEXT, RENEWING, Identities, PendingEnrolment
from agent.identity import Home, Identity
from agent.ports import Keys, Registry
from agent.trust import Trust
from wire import codec, enrolment, roots, trust
from wire.certificates import Certificate, CertificateRefused
from wire.enrolment import Enrolled
from wire.errors import TrustError, WireError
from wire.roots import Root
from wire.topics import CERTIFICATE
from wire.trust import Policy, Role, SignatureCheck

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")

_ANEW = "make a new token at the registry: `shallop-fleet enrol DEVICE`"
REMEDIES = {
    "token_used": _ANEW,
    "token_expired": _ANEW,
    "token_cancelled": _ANEW,
    "token_unknown": _ANEW,
    "expired_too_long": _ANEW,
    "unavailable": "run this again in a while; the token stays good until it ends",
    "revoked": "the registry has cut this device off; whoever runs it decides",
    "unknown_device": "the registry does not know this device: `shallop-fleet enrol DEVICE`",
    "wrong_device": "the token is for another device: make one for this name",
    "too_many": "wait a little and run this again",
    "bad_proof": "run this again; if it stays, update the agent",
}


PASSING = frozenset({"too_many", "unavailable"})
"""Refusals that end by themselves."""


class Complete(Struct, frozen=True, kw_only=True):
    """All that an enrolment leads to."""

    identity: Identity
    state: TrustState


class _ByRoot:
    """Fulfils `wire.trust.Verifier` by a root that is not saved yet."""

    def __init__(self, root: Root, check: SignatureCheck) -> None:
        self._root, self._check = root, check

    def verify(self, role: Role, message: bytes, signatures: Sequence[tuple[str, bytes]]) -> None:
        roots.require_signatures(self._root, role, message, signatures, self._check)


def ask(
    text: str,
    identities: Identities,
    keys: Keys,
    check: SignatureCheck,
    registry: Registry,
    agent_version: str,
) -> Complete:
    """Asks for this device's first certificate; its answer, checked, is on the disk afterwards.

    Args:
        text: the token.
        identities: where the key and the answer are kept.
        keys: makes the key pair.
        check: of signatures.
        registry: over HTTPS.
        agent_version: of this program.

    Raises:
        WireError: `token_malformed`, `token_url`, or an answer that is none.
        TrustError: the answer cannot be believed, by name.
        FinalError: `wrong_ca` and other refusals, by name; the same token will not do.
        RetryError: `registry_unreachable`, `clock_wrong`, `too_many` and the like: run it again.
        StateError: `identity_unusable`.
        OSError: the disk's; the token is still good.
    """
    token = enrolment.read_token(text)
    pending = identities.enrol(keys, "".join(text.split()))
    if pending.answer:
        return complete(pending, None, keys, check)
    authority = authority_of(registry.authorities(token.url), token.ca_sha256)
    public = keys.public_of(pending.seed).hex()
    statement = enrolment.enrolment_statement(token.device, public, token.secret)
    word = enrolment.Enrol(
        device=token.device, secret=token.secret.hex(), public=public,
        proof=keys.sign(pending.seed, statement).hex(), agent_version=agent_version,
    )  # fmt: skip
    status, body = registry.post(token.url, enrolment.ENROL_PATH, enrolment.encode(word), authority)
    try:
        accepted(status, body)
    except FinalError:
        identities.forget(ENROLLING)  # its key will get no certificate any more
        raise
    answered = PendingEnrolment(token=pending.token, seed=pending.seed, answer=body)
    found = complete(answered, None, keys, check)
    identities.answered(pending, body)
    return found


def authority_of(data: bytes, ca_sha256: bytes) -> str:
    """The one certificate, in PEM, whose digest the token carries.

    Raises:
        FinalError: `wrong_ca`: it is not among them.
    """
    for found in _CERTIFICATE.finditer(data):
        try:
            der = base64.b64decode(b"".join(found[1].split()), validate=True)
        except binascii.Error:
            continue
        if hashlib.sha256(der).digest() == ca_sha256:
            return found[0].decode("ascii") + "\n"
    raise FinalError(
        "wrong_ca",
        "who answers at the token's address is not the fleet that made the token: none of its authorities "
        f"has the digest {ca_sha256.hex()[:12]}...; somebody stands between, or the authority was changed "
        "since; nothing was told to it",
    )


def accepted(status: int, body: bytes) -> Enrolled:
    """The registry's answer, if it is no refusal.

    Raises:
        FinalError: refused, by the registry's own name for it.
        RetryError: `too_many`, `unavailable`, `registry_failed`.
    """
    try:
        answer = enrolment.read_answer(body)
    except WireError as error:
        raise RetryError(
            "registry_failed", f"the registry answers {status}, and no word of enrolment: {error}"
        ) from None
    if isinstance(answer, CertificateRefused):
        remedy = REMEDIES.get(answer.code, "")
        passing = answer.code in PASSING or status >= HTTPStatus.INTERNAL_SERVER_ERROR
        kind = RetryError if passing else FinalError
        raise kind(answer.code, f"{answer.detail}{'; ' if remedy else ''}{remedy}")
    return answer


def complete(
    pending: PendingEnrolment, before: TrustState | None, keys: Keys, check: SignatureCheck
) -> Complete:
    """What a registry's answer leads to, all of it checked.

    Raises:
        WireError, TrustError: it cannot be believed.
        StateError: `identity_unusable`, `authorities_unusable`.
    """
    token, answer = enrolment.read_token(pending.token), enrolment.read_answer(pending.answer)
    if isinstance(answer, CertificateRefused):
        raise TrustError("not_enrolled", f"the registry refused it: {answer.code}")
    state = believing.enrolled(before, answer.roots, token.root_sha256.hex(), check)
    certificate = opened(answer.certificate, Policy(verifier=_ByRoot(state.root, check)), token.device)
    public = keys.public_of(pending.seed).hex()
    found = identity.of_certificate(
        certificate, pending.seed, public, home_of(answer), float(token.issued_at)
    )
    tls.require_usable(found)
    return Complete(identity=found, state=state)


def opened(envelope: bytes, policy: Policy, device: str) -> Certificate:
    """A certificate that the fleet signed for this device.

    Raises:
        WireError, TrustError: it cannot be believed; `wrong_device`.
    """
    inner = trust.open_envelope(envelope, "certificate", policy, CERTIFICATE.size_bytes_max)
    certificate = codec.decode(inner, Certificate, CERTIFICATE.size_bytes_max)
    if certificate.device != device:
        raise TrustError("wrong_device", f"the certificate is for {certificate.device}, this is {device}")
    return certificate


def home_of(answer: Enrolled) -> Home:
    """Where the fleet says that it is."""
    broker = answer.broker
    return Home(url=answer.url, host=broker.host, port=broker.port, root=broker.root)


def device_of(identities: Identities) -> str | None:
    """For whom an enrolment waits complete; None where none does.

    Raises:
        WireError: its token is none any more.
    """
    pending = identities.enrolling()
    return enrolment.read_token(pending.token).device if pending is not None and pending.answer else None


def finish(identities: Identities, trusted: Trust, keys: Keys, check: SignatureCheck) -> Complete | None:
    """Takes a complete enrolment up, if one waits; whoever is killed in it has it done by the next one.

    Raises:
        WireError, TrustError, StateError: what waits cannot be used; it is put away.
        OSError: the disk's; it waits on.
    """
    pending = identities.enrolling()
    if pending is None or not pending.answer:
        return None
    try:
        found = complete(pending, trusted.before, keys, check)
    except Exception as error:
        if not isinstance(error, OSError):
            identities.forget(ENROLLING)
        raise
    trusted.enrol(found.state)
    identities.forget(NEXT)
    identities.forget(RENEWING)
    identities.save(found.identity, CURRENT)
    identities.forget(ENROLLING)
    return found
