"""PURE. The words by which a device's certificate for the broker is renewed over MQTT.

For: `Renewal` from the device, `Certificate` or `CertificateRefused` as the answer.
Not for: a device that has no certificate, or none that lives (`wire.enrolment`, over HTTPS).
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from wire.types import Code, DeviceId, Digest, InstallId, Positive, Text

VERSION = 1

SignatureHex = Annotated[str, Meta(pattern=r"^[0-9a-f]{128}(?!\n)$")]
"""An Ed25519 signature (RFC 8032), 64 bytes in hexadecimal."""

PemText = Annotated[str, Meta(min_length=1, max_length=16 * 1024)]
"""Certificates in PEM (RFC 7468)."""


class Renewal(Struct, frozen=True, kw_only=True, tag_field="kind", tag="renewal"):
    """A device asks for the next certificate, for a new key that it has made; see `wire.enrolment`.

    Attributes:
        device: the sender, equal to the topic's.
        install_id: as in every message from a device.
        public: the new key, 32 bytes of Ed25519 in hexadecimal. Asked again with the same key, the registry
            answers with the same certificate.
        proof: by the new key over `wire.enrolment.renewal_statement`.
        proof_before: the same by the key of the certificate that this one follows.
        root_number: of the root that the device trusts, so that an answer by HTTPS brings the ones after it.
    """

    version: int = VERSION
    device: DeviceId
    install_id: InstallId
    public: Digest
    proof: SignatureHex
    proof_before: SignatureHex
    root_number: Positive


class Certificate(Struct, frozen=True, kw_only=True, tag_field="kind", tag="certificate"):
    """A device's certificate for the broker, signed by the order role.

    So the device needs no X.509 of its own to know that its fleet issued it; OpenSSL checks that it belongs
    to the key.

    Attributes:
        public: the key that it is for, as it was asked for.
        pem: the certificate, then any between it and an authority.
        authorities_pem: whose certificates the device accepts of broker and registry from now on; several
            while one follows another.
        not_before: start of its life, RFC 3339 in UTC with seconds, as in the certificate.
        not_after: end of its life.
    """

    version: int = VERSION
    device: DeviceId
    public: Digest
    pem: PemText
    authorities_pem: PemText
    not_before: Text
    not_after: Text
    issued_at: Text = ""


class CertificateRefused(Struct, frozen=True, kw_only=True, tag_field="kind", tag="certificate_refused"):
    """Why a device gets no certificate. Not signed: it changes nothing but what the device tells a person.

    Attributes:
        code: `revoked`, `unknown_device`, `bad_proof`, `too_many`, `token_unknown`, `token_used`,
            `token_expired`, `token_cancelled`, `wrong_device`, `expired_too_long`.
    """

    version: int = VERSION
    code: Code
    detail: Text
