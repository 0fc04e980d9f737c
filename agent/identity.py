"""PURE. Who this device is to its fleet: the key, its certificate and where they are good, as one text.

For: one file that OpenSSL reads as it stands (a private key by RFC 8410 and certificates in PEM) and that
holds in a block of its own, which OpenSSL passes over, all else that belongs to them, under one checksum.
Being one file, it is replaced in one step: no crash leaves a key beside another key's certificate or
authorities.
Not for: the files (`agent.identities`), cryptography, or X.509, which only OpenSSL reads here.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from agent.errors import UNREADABLE, StateError
from agent.signed_time import seconds_of
from wire.certificates import Certificate, PemText
from wire.chunks import digest as sha256
from wire.errors import TrustError
from wire.types import DeviceId, Digest, Text

VERSION = 1
FILE_BYTES_MAX = 128 * 1024
_LABEL = "SHALLOP IDENTITY"
_PKCS8 = bytes.fromhex("302e020100300506032b657004220420")
"""What stands before the 32 bytes of an Ed25519 key in its PrivateKeyInfo (RFC 8410, section 7)."""
_BLOCK = re.compile(rf"-----BEGIN {_LABEL}-----\n([A-Za-z0-9+/=\n]+)-----END {_LABEL}-----\n")


class Home(Struct, frozen=True, kw_only=True):
    """Where the fleet is.

    Attributes:
        url: of the enrolment, for a certificate that ended.
        host: of the broker.
        port: of it, TLS.
        root: first levels of every topic.
    """

    url: Annotated[str, Meta(max_length=300)]
    host: Annotated[str, Meta(min_length=1, max_length=253)]
    port: Annotated[int, Meta(ge=1, le=65535)]
    root: Annotated[str, Meta(max_length=200)]


class Identity(Struct, frozen=True, kw_only=True):
    """One key with its certificate.

    Attributes:
        device: whose.
        seed: the private key, 32 bytes; it leaves the device in no message.
        public: its public key.
        pem: the certificate, then any between it and an authority.
        authorities_pem: who may have signed the certificates of broker and registry.
        not_before_s: start of its life, seconds since 1970.
        not_after_s: end of it.
        issued_at: when the fleet signed it.
        signed_s: highest time that came with it signed, or with the token.
        home: where it is good.
    """

    device: DeviceId
    seed: Annotated[bytes, Meta(min_length=32, max_length=32)]
    public: Digest
    pem: PemText
    authorities_pem: PemText
    not_before_s: float
    not_after_s: float
    issued_at: Text = ""
    signed_s: float = 0.0
    home: Home

    def __repr__(self) -> str:
        """Without the key, which must stand in no log."""
        return f"Identity({self.device}, {self.public[:12]}...)"


class _Header(Struct, frozen=True, kw_only=True, tag_field="kind", tag="agent-identity"):
    version: int
    sha256: Digest


class _Kept(Struct, frozen=True, kw_only=True):
    """What of an identity stands in our own block; the rest is read from the blocks of OpenSSL."""

    device: DeviceId
    public: Digest
    authorities_pem: PemText
    not_before_s: float
    not_after_s: float
    issued_at: Text
    signed_s: float
    home: Home


# Made by the thread that imports this, as in `wire.codec`.
_HEADER = msgspec.json.Decoder(_Header)
_KEPT = msgspec.json.Decoder(_Kept)


def of_certificate(
    certificate: Certificate, seed: bytes, public: str, home: Home, signed_s: float
) -> Identity:
    """The identity that a believed certificate gives to a key.

    Raises:
        TrustError: `wrong_key`: it is for another one; `certificate_malformed`: its dates are none.
    """
    if certificate.public != public:
        raise TrustError("wrong_key", "the certificate is for another key than the one that was asked for")
    begins_s, ends_s = seconds_of(certificate.not_before), seconds_of(certificate.not_after)
    if begins_s is None or ends_s is None or begins_s >= ends_s:
        life = f"{certificate.not_before!r} to {certificate.not_after!r}"
        raise TrustError("certificate_malformed", f"the certificate's life is said to be {life}")
    return Identity(
        device=certificate.device, seed=seed, public=public, pem=certificate.pem,
        authorities_pem=certificate.authorities_pem, not_before_s=begins_s, not_after_s=ends_s,
        issued_at=certificate.issued_at, signed_s=max(signed_s, seconds_of(certificate.issued_at) or 0.0),
        home=home,
    )  # fmt: skip


def encode(identity: Identity) -> bytes:
    """The identity as it stands on disk."""
    rest = _block("PRIVATE KEY", _PKCS8 + identity.seed) + identity.pem
    kept = msgspec.json.encode(msgspec.convert(identity, _Kept, from_attributes=True))
    header = msgspec.json.encode(_Header(version=VERSION, sha256=sha256(kept + rest.encode())))
    return (_block(_LABEL, header + b"\n" + kept) + rest).encode()


def decode(data: bytes, name: str) -> Identity:
    """An identity from disk; `name` is what its file is called in an error.

    Raises:
        StateError: `identity_damaged`, or `identity_version` where a newer program wrote it.
    """
    try:
        text = data.decode("ascii")
        found = _BLOCK.match(text)
        if found is None:
            raise StateError("identity_damaged", f"{name} does not begin as an identity does")
        head, _, body = base64.b64decode(found[1]).partition(b"\n")
        rest = text[found.end() :]
        header = _HEADER.decode(head)
        if header.version > VERSION:
            raise StateError("identity_version", f"{name} was written by a newer program; install that one")
        if header.sha256 != sha256(body + rest.encode()):
            raise StateError("identity_damaged", f"the checksum of {name} does not match its content")
        kept = _KEPT.decode(body)
        seed, pem = _key_and_rest(rest)
    except (*UNREADABLE, binascii.Error) as error:
        raise StateError("identity_damaged", f"{name} cannot be read: {error}") from None
    return Identity(seed=seed, pem=pem, **{f: getattr(kept, f) for f in _Kept.__struct_fields__})


def _block(label: str, data: bytes) -> str:
    """A PEM block, lines of 64 characters (RFC 7468, section 2)."""
    coded = base64.b64encode(data).decode()
    lines = [coded[i : i + 64] for i in range(0, len(coded), 64)]
    return "\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""))


def _key_and_rest(text: str) -> tuple[bytes, str]:
    end = "-----END PRIVATE KEY-----\n"
    block, _, pem = text.partition(end)
    coded = block.removeprefix("-----BEGIN PRIVATE KEY-----\n")
    return base64.b64decode(coded).removeprefix(_PKCS8), pem
