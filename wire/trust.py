"""PURE. Envelope and roles: what a device may believe.

For: wrapping and opening the DSSE envelope in which releases, desired documents and commands travel.
Verification comes before parsing of what is inside.
Not for: cryptography itself, which stands behind the `Signer` and `Verifier` ports, or for keys; nor for
order numbers, whose rules each side has in its own table.

Format: DSSE 1.0 (github.com/secure-systems-lab/dsse, protocol.md): a JSON object with `payload` (base64),
`payloadType` and `signatures`; what is signed is the pre-authentication encoding `pae()`.
An envelope without a signature is believed only where the configuration says `insecure_unsigned: true`;
a missing trust state never means unsigned.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta, Struct

from wire.errors import TrustError, WireError


class Role(StrEnum):
    """Who may say what: a release is content, an order is authority, the root says who signs them."""

    ROOT = "root"
    RELEASE = "release"
    ORDER = "order"


PAYLOAD_TYPES: dict[str, Role] = {
    "application/vnd.shallop.root.v1+json": Role.ROOT,
    "application/vnd.shallop.release.v1+json": Role.RELEASE,
    "application/vnd.shallop.bars.v1+json": Role.RELEASE,
    "application/vnd.shallop.desired.v1+json": Role.ORDER,
    "application/vnd.shallop.command.v1+json": Role.ORDER,
    "application/vnd.shallop.certificate.v1+json": Role.ORDER,
    "application/vnd.shallop.audit_head.v1+json": Role.ORDER,
}


def payload_type(kind: str) -> str:
    """The envelope's type for a message of that kind."""
    return f"application/vnd.shallop.{kind}.v1+json"


class Signature(Struct, frozen=True, kw_only=True):
    """One signature, base64."""

    keyid: Annotated[str, Meta(max_length=200)]
    sig: Annotated[str, Meta(max_length=8192)]


class Envelope(Struct, frozen=True, kw_only=True, rename="camel"):
    """The envelope as it travels."""

    payload_type: Annotated[str, Meta(max_length=200)]
    payload: str
    signatures: Annotated[tuple[Signature, ...], Meta(max_length=16)]


# Made by the thread that imports this, as in `wire.codec`.
_ENVELOPE = msgspec.json.Decoder(Envelope)


class Signer(Protocol):
    """Holds a private key."""

    @property
    def keyid(self) -> str:
        """Name of the key."""

    def sign(self, message: bytes) -> bytes:
        """The raw signature over `message`."""


class SignatureCheck(Protocol):
    """Ed25519 (RFC 8032): whether `signature` is the key's over `message`; never raises."""

    def __call__(self, public: bytes, message: bytes, signature: bytes) -> bool:
        """Whether it is."""


class Verifier(Protocol):
    """Holds the trusted public keys of each role, and their thresholds."""

    def verify(self, role: Role, message: bytes, signatures: Sequence[tuple[str, bytes]]) -> None:
        """Returns if enough keys of `role` signed `message`.

        Raises:
            TrustError: they did not.
        """


class Policy(Struct, frozen=True, kw_only=True):
    """What this program believes.

    Attributes:
        insecure_unsigned: believe envelopes without a signature; written in the configuration by hand.
        verifier: the trusted keys; None where no trust state is there.
    """

    insecure_unsigned: bool = False
    verifier: Verifier | None = None


def pae(kind: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding of a type and a payload."""
    name = payload_type(kind).encode()
    return b"DSSEv1 %d %s %d %s" % (len(name), name, len(payload), payload)


def seal(kind: str, payload: bytes, signers: Sequence[Signer] = ()) -> bytes:
    """The envelope of `payload` with one signature by each signer; none is allowed."""
    message = pae(kind, payload)
    signatures = tuple(
        Signature(keyid=s.keyid, sig=base64.b64encode(s.sign(message)).decode()) for s in signers
    )
    envelope = Envelope(
        payload_type=payload_type(kind),
        payload=base64.b64encode(payload).decode(),
        signatures=signatures,
    )
    return msgspec.json.encode(envelope)


def unwrap(data: bytes, kind: str, size_bytes_max: int) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Payload and signatures of an envelope of the expected kind, none of it believed yet.

    Raises:
        WireError: `oversized` or `malformed`: not an envelope.
        TrustError: `wrong_type` (another kind's envelope).
    """
    if len(data) > size_bytes_max:
        raise WireError("oversized", f"{len(data)} bytes, at most {size_bytes_max} are read")
    try:
        envelope = _ENVELOPE.decode(data)
        payload = base64.b64decode(envelope.payload, validate=True)
        signatures = [(s.keyid, base64.b64decode(s.sig, validate=True)) for s in envelope.signatures]
    except (msgspec.DecodeError, binascii.Error, ValueError, RecursionError) as error:
        raise WireError("malformed", f"not a signed envelope: {error}") from None
    if envelope.payload_type != payload_type(kind):
        raise TrustError("wrong_type", f"an envelope of {envelope.payload_type!r} where {kind!r} is expected")
    return payload, signatures


def open_envelope(data: bytes, kind: str, policy: Policy, size_bytes_max: int) -> bytes:
    """The payload of an envelope of the expected kind, once its sender is shown to have authority.

    Raises:
        WireError: `oversized` or `malformed`: not an envelope.
        TrustError: `wrong_type` (another kind's envelope), `unsigned`, `no_trust_state`, or what the
            verifier says.
    """
    payload, signatures = unwrap(data, kind, size_bytes_max)
    _believe(kind, payload, signatures, policy)
    return payload


def _believe(kind: str, payload: bytes, signatures: Sequence[tuple[str, bytes]], policy: Policy) -> None:
    if policy.verifier is not None and signatures:
        policy.verifier.verify(PAYLOAD_TYPES[payload_type(kind)], pae(kind, payload), signatures)
        return
    if policy.insecure_unsigned:
        return
    if not signatures:
        raise TrustError(
            "unsigned",
            f"the {kind} carries no signature; for a trial without keys set `insecure_unsigned: true`",
        )
    raise TrustError("no_trust_state", f"the {kind} is signed, but no trusted keys are known here")
