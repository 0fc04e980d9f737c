"""Pieces of X.509 that the fleet's authority puts together: names, times, usages, lists, PEM.

For: the words of RFC 5280 in which `fleet.adapters.authority` speaks.
Not for: deciding what is signed, or keeping keys.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from msgspec import Struct

from fleet.adapters.key_files import FILE_BYTES_MAX
from fleet.keys import KeysError

LIST_BYTES_MAX = 256 * 1024 * 1024

_LIST_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----\n?", re.DOTALL)


class Signer(Struct, frozen=True):
    """An authority's certificate with its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def revoked_serials(path: Path) -> set[int]:
    """The serial numbers that every list of a PEM file names.

    Raises:
        KeysError: `list_unreadable`: there is none, or one that is damaged.
    """
    blocks = _LIST_BLOCK.findall(read(path, LIST_BYTES_MAX))
    try:
        lists = [{one.serial_number for one in x509.load_pem_x509_crl(block)} for block in blocks]
    except ValueError as error:
        raise KeysError("list_unreadable", f"{path} cannot be read: {error}") from None
    if not lists:
        raise KeysError("list_unreadable", f"{path} holds no list of revoked certificates")
    return set.intersection(*lists)


def revocations(signer: Signer, revoked: Mapping[int, float], now: float, next_update: float) -> bytes:
    """One authority's list of revoked certificates, in PEM; see `Authority.revocation_list`."""
    built = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(signer.certificate.subject)
        .last_update(moment(now))
        .next_update(min(moment(next_update), signer.certificate.not_valid_after_utc))
        .add_extension(x509.CRLNumber(int(now)), critical=False)
        .add_extension(issuer_key(signer), critical=False)
    )
    for serial in sorted(revoked):
        entry = x509.RevokedCertificateBuilder().serial_number(serial)
        built = built.add_revoked_certificate(entry.revocation_date(moment(revoked[serial])).build())
    return built.sign(signer.key, hashes.SHA256()).public_bytes(Encoding.PEM)


def read(path: Path, size_bytes_max: int = FILE_BYTES_MAX) -> bytes:
    """A file of PEM.

    Raises:
        KeysError: `ca_unreadable`.
    """
    try:
        with path.open("rb") as file:
            return file.read(size_bytes_max)
    except OSError as error:
        raise KeysError("ca_unreadable", f"{path} cannot be read: {error}") from None


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS#8 without encryption, as servers want it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def name(common: str) -> x509.Name:
    """A subject that is a common name alone."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def general_name(host: str) -> x509.GeneralName:
    """The name or address of a machine, as a certificate has it.

    Raises:
        KeysError: `bad_host`.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    if not re.fullmatch(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_-]+)*", host):
        raise KeysError("bad_host", f"{host!r} is neither the name of a machine nor an address")
    return x509.DNSName(host)


def usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """What a key may be used for: signing certificates and lists, or shaking hands."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def issuer_key(signer: Signer) -> x509.AuthorityKeyIdentifier:
    """By which key it was signed, where authorities are told apart."""
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key())


def moment(seconds: float) -> datetime:
    """Whole seconds: X.509 has no fractions."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=int(seconds))


def since_1970(when: datetime) -> float:
    """Seconds since 1970."""
    return when.timestamp()
