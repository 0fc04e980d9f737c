"""The fleet's certificate authority: who may speak TLS with the fleet's broker and registry.

For: making it, and signing certificates for devices, servers and the registry itself, and lists of revoked
ones; several authorities at once while one follows another.
Not for: who gets a certificate (`fleet.enrolment`), the files of a broker (`fleet.adapters.broker_files`), or
what a device obeys: that is signed by release and order keys (`wire.roots`), which this key is none of.

    KEYS/ca.pem          the authorities whose certificates are accepted; the first one signs
    KEYS/ca-key.pem      their private keys, in any order

X.509 by RFC 5280, as strict as Python 3.13 checks it (VERIFY_X509_STRICT).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID
from msgspec import Struct

from fleet.adapters import x509_parts as parts
from fleet.adapters.durable import owner_in, write_atomically
from fleet.adapters.x509_parts import Signer
from fleet.keys import KeysError

CERTIFICATES, KEYS = "ca.pem", "ca-key.pem"
AUTHORITIES_MAX = 4
DAY_S = 86_400.0
AUTHORITY_LIFE_S = 20 * 365 * DAY_S
"""A device that was off for years must find its fleet again; following one on by another is
`shallop-fleet broker ca`."""
BACKDATE_S = 3600.0
"""How much earlier a life begins than now: the broker's clock may be a little behind the registry's."""

Public = ec.EllipticCurvePublicKey | Ed25519PublicKey

_END = b"-----END CERTIFICATE-----"
_DEVICE = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_PROGRAM = re.compile(r"fleet\.[a-z0-9-]{1,50}")
_KEY_BLOCK = re.compile(
    rb"-----BEGIN (?:ENCRYPTED )?PRIVATE KEY-----.+?-----END (?:ENCRYPTED )?PRIVATE KEY-----", re.DOTALL
)


class Issued(Struct, frozen=True, kw_only=True):
    """A certificate that was signed.

    Attributes:
        serial: random, 159 bits.
        pem: the certificate.
        not_before: start of its life, whole seconds since 1970.
        not_after: its end.
    """

    serial: int
    pem: str
    not_before: float
    not_after: float


class Identity(Struct, frozen=True, kw_only=True):
    """A certificate with the private key that was made for it (PKCS#8 PEM, not encrypted)."""

    issued: Issued
    key_pem: bytes


class Authority:
    """The authorities of one fleet; the first one signs certificates, all of them lists of revoked ones."""

    def __init__(self, signers: Sequence[Signer]) -> None:
        self._signers = tuple(signers)

    # --- making and keeping ---------------------------------------------------------------------------

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether an authority lies there."""
        return (folder / CERTIFICATES).exists()

    @classmethod
    def create(cls, folder: Path, name: str, passphrase: str | None, now: float) -> Self:
        """A fleet's first authority, on disk before it returns.

        Raises:
            KeysError: `ca_exists` or `key_unwritable`.
        """
        if cls.exists(folder):
            raise KeysError("ca_exists", f"{folder / CERTIFICATES} is there already and is not replaced")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = cls([_new_signer(name, now - BACKDATE_S)])
        # A key without its certificate is what a crash between the two leaves: nobody was told of it.
        made.save(folder, passphrase)
        return made

    @classmethod
    def load(cls, folder: Path, passphrase: str | None = None) -> Self:
        """The authorities that lie there.

        Raises:
            KeysError: `no_ca`, `ca_unreadable`, `passphrase_needed`, `passphrase_wrong`, or `ca_key_missing`:
                a certificate without its private key.
        """
        if not cls.exists(folder):
            raise KeysError(
                "no_ca", f"there is no {folder / CERTIFICATES}; begin with `shallop-fleet broker init`"
            )
        data = parts.read(folder / CERTIFICATES)
        try:
            certificates = x509.load_pem_x509_certificates(data)
        except ValueError as error:
            raise KeysError("ca_unreadable", f"{folder / CERTIFICATES} cannot be read: {error}") from None
        # A certificate that is cut off is passed over in silence there, and would be one that was dropped.
        if data.count(b"-----BEGIN") != len(certificates) or data.rpartition(_END)[2].strip():
            raise KeysError(
                "ca_unreadable", f"{folder / CERTIFICATES} is torn: not all of it is certificates"
            )
        keys = {_spki(key.public_key()): key for key in _keys(folder / KEYS, passphrase)}
        signers = []
        for certificate in certificates[:AUTHORITIES_MAX]:
            key = keys.get(_spki_of(certificate))
            if key is None:
                raise KeysError(
                    "ca_key_missing",
                    f"{folder / KEYS} holds no key for {certificate.subject.rfc4514_string()} of "
                    f"{folder / CERTIFICATES}; put both files back from one backup",
                )
            signers.append(Signer(certificate, key))
        return cls(signers)

    def save(self, folder: Path, passphrase: str | None) -> None:
        """Replaces the files, keys first: a crash between leaves keys that nothing uses.

        Raises:
            KeysError: `key_unwritable`.
        """
        try:
            owner = owner_in(folder)
            write_atomically(folder / KEYS, self.keys_pem(passphrase), 0o600, owner)
            write_atomically(folder / CERTIFICATES, self.certificates_pem.encode(), 0o644, owner)
        except OSError as error:
            raise KeysError("key_unwritable", f"{folder} cannot be written: {error}") from None

    def keys_pem(self, passphrase: str | None) -> bytes:
        """The private keys as PKCS#8, encrypted where a passphrase is given."""
        how = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
        return b"".join(
            signer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how) for signer in self._signers
        )

    # --- one follows another --------------------------------------------------------------------------

    def with_next(self, name: str, now: float) -> Self:
        """With one more authority, accepted and not yet signing.

        Raises:
            KeysError: `too_many_cas`.
        """
        if len(self._signers) >= AUTHORITIES_MAX:
            raise KeysError("too_many_cas", f"{AUTHORITIES_MAX} authorities are accepted; drop one first")
        # The newest one is known by its start.
        starts = max(now - BACKDATE_S, *(self._starts(at) + 1.0 for at in range(len(self._signers))))
        return type(self)([*self._signers, _new_signer(name, starts)])

    def switched(self) -> Self:
        """With the newest one signing.

        Raises:
            KeysError: `no_next_ca`: it signs already.
        """
        newest = max(range(len(self._signers)), key=self._starts)
        if newest == 0:
            raise KeysError("no_next_ca", "the newest authority signs already; begin with `broker ca rotate`")
        others = [signer for at, signer in enumerate(self._signers) if at != newest]
        return type(self)([self._signers[newest], *others])

    def dropped(self) -> Self:
        """With the signing one alone.

        Raises:
            KeysError: `no_old_ca`, or `ca_not_switched`: the newest one does not sign yet.
        """
        if len(self._signers) == 1:
            raise KeysError("no_old_ca", "one authority is accepted; there is none to drop")
        if any(self._starts(at) > self._starts(0) for at in range(1, len(self._signers))):
            raise KeysError(
                "ca_not_switched", "the newest authority does not sign yet; first `broker ca switch`"
            )
        return type(self)(self._signers[:1])

    def _starts(self, at: int) -> float:
        return parts.since_1970(self._signers[at].certificate.not_valid_before_utc)

    # --- what others need to know ---------------------------------------------------------------------

    @property
    def certificates_pem(self) -> str:
        """All accepted authorities, the signing one first."""
        return "".join(s.certificate.public_bytes(Encoding.PEM).decode() for s in self._signers)

    @property
    def sha256(self) -> str:
        """SHA-256 of the signing authority's certificate (DER), hexadecimal: what a token pins."""
        return self.sha256s[0]

    @property
    def sha256s(self) -> tuple[str, ...]:
        """The same of all accepted ones."""
        return tuple(
            hashlib.sha256(s.certificate.public_bytes(Encoding.DER)).hexdigest() for s in self._signers
        )

    @property
    def not_after(self) -> float:
        """When the signing authority ends, seconds since 1970; nothing that it signs lives longer."""
        return parts.since_1970(self._signers[0].certificate.not_valid_after_utc)

    def signed(self, path: Path) -> bool:
        """Whether an accepted authority signed the first certificate of a PEM file.

        Raises:
            KeysError: `certificate_unreadable`.
        """
        certificate = _first_certificate(path)
        return any(_is_issuer(signer.certificate, certificate) for signer in self._signers)

    # --- signing --------------------------------------------------------------------------------------

    def issue_device(self, device: str, public: bytes, not_before: float, lifetime_s: float) -> Issued:
        """A certificate by which a device may connect, and nothing else.

        Args:
            device: its id, the certificate's common name.
            public: its key, 32 bytes of Ed25519 (RFC 8410).
            not_before: seconds since 1970; the life begins BACKDATE_S earlier.
            lifetime_s: from `not_before` on; cut where the authority ends.

        Raises:
            KeysError: `device_key`: these are no such 32 bytes; `bad_name`: no device may be called that;
                `no_life`: it would end before it begins.
        """
        if not _DEVICE.fullmatch(device):
            raise KeysError("bad_name", f"{device!r} is no device id, and gets no device's certificate")
        try:
            key = Ed25519PublicKey.from_public_bytes(public)
        except ValueError:
            raise KeysError(
                "device_key", f"a device's key is 32 bytes of Ed25519, not {len(public)}"
            ) from None
        return self._issue(device, key, not_before, lifetime_s, ExtendedKeyUsageOID.CLIENT_AUTH)

    def issue_client(self, name: str, not_before: float, lifetime_s: float) -> Identity:
        """A certificate and a new key (EC P-256) for a program of the fleet itself.

        Args:
            name: such as `fleet.registry`; the dot keeps it out of reach of a device id.
            not_before: as in `issue_device`.
            lifetime_s: likewise.

        Raises:
            KeysError: `bad_name`: not `fleet.` and a word; `no_life`.
        """
        if not _PROGRAM.fullmatch(name):
            raise KeysError("bad_name", f"{name!r} is no name of a program of the fleet")
        key = ec.generate_private_key(ec.SECP256R1())
        issued = self._issue(name, key.public_key(), not_before, lifetime_s, ExtendedKeyUsageOID.CLIENT_AUTH)
        return Identity(issued=issued, key_pem=parts.key_pem(key))

    def issue_server(self, hosts: Sequence[str], not_before: float, lifetime_s: float) -> Identity:
        """A certificate and a new key (EC P-256) for a server that devices know by these names and addresses.

        Its life begins with the authority's: a device judges by the later of its clock and the highest
        signed time that it saw, and where both stand before the renewal of this certificate, it would
        find it "not yet valid" and be lost. What bounds the certificate is its end.

        Raises:
            KeysError: `bad_host`: none, or one that is neither a name nor an address; `no_life`.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names = [parts.general_name(host) for host in hosts]
        if not names:
            raise KeysError("bad_host", "a server's certificate needs a name or an address; give --host")
        issued = self._issue(
            hosts[0][:64], key.public_key(), not_before, lifetime_s, ExtendedKeyUsageOID.SERVER_AUTH, names
        )
        return Identity(issued=issued, key_pem=parts.key_pem(key))

    def _issue(
        self, name: str, public: Public, not_before: float, lifetime_s: float, use: x509.ObjectIdentifier,
        names: Iterable[x509.GeneralName] = (),
    ) -> Issued:  # fmt: skip
        signer, names = self._signers[0], tuple(names)
        first = signer.certificate.not_valid_before_utc
        starts = max(first, parts.moment(not_before - BACKDATE_S))
        ends = min(parts.moment(not_before + lifetime_s), signer.certificate.not_valid_after_utc)
        if ends <= starts:
            raise KeysError(
                "no_life",
                f"a certificate from {starts:%Y-%m-%d} to {ends:%Y-%m-%d} has no life: this machine's clock "
                "is wrong, or the authority ended (`shallop-fleet broker ca show`)",
            )
        serial = x509.random_serial_number()
        built = (
            x509.CertificateBuilder()
            .subject_name(parts.name(name))
            .issuer_name(signer.certificate.subject)
            .public_key(public)
            .serial_number(serial)
            .not_valid_before(first if names else starts)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(parts.usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(parts.issuer_key(signer), critical=False)
        )
        if names:
            built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = built.sign(signer.key, hashes.SHA256())
        return Issued(
            serial=serial,
            pem=certificate.public_bytes(Encoding.PEM).decode(),
            not_before=parts.since_1970(certificate.not_valid_before_utc),
            not_after=parts.since_1970(certificate.not_valid_after_utc),
        )

    def revocation_list(self, revoked: Mapping[int, float], now: float, next_update: float) -> bytes:
        """The revoked certificates, as one list of each accepted authority, one after the other in PEM.

        Serial numbers are random, so each list may name all of them.

        Args:
            revoked: when each serial number was revoked, seconds since 1970.
            now: the list's own time, whole seconds; of two lists OpenSSL believes the later one.
            next_update: after it OpenSSL takes nobody in any more; cut where the authority ends.
        """
        return b"".join(parts.revocations(signer, revoked, now, next_update) for signer in self._signers)


def read_certificate(path: Path) -> Issued:
    """The first certificate of a PEM file.

    Raises:
        KeysError: `certificate_unreadable`.
    """
    certificate = _first_certificate(path)
    return Issued(
        serial=certificate.serial_number,
        pem=certificate.public_bytes(Encoding.PEM).decode(),
        not_before=parts.since_1970(certificate.not_valid_before_utc),
        not_after=parts.since_1970(certificate.not_valid_after_utc),
    )


def _first_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(parts.read(path))
    except ValueError as error:
        raise KeysError("certificate_unreadable", f"{path} cannot be read: {error}") from None


def _is_issuer(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


# --- keys, names and times ----------------------------------------------------------------------------


def _new_signer(name: str, not_before: float) -> Signer:
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    # Two authorities of one name would be told apart by some programs only.
    called = parts.name(f"{name[:50]} {_spki(public).hex()[:8]}")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(called)
        .issuer_name(called)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(parts.moment(not_before))
        .not_valid_after(parts.moment(not_before + AUTHORITY_LIFE_S))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(parts.usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Signer(certificate, key)


def _keys(path: Path, passphrase: str | None) -> list[ec.EllipticCurvePrivateKey]:
    found = []
    for block in _KEY_BLOCK.findall(parts.read(path)):
        encrypted = b"BEGIN ENCRYPTED" in block
        if encrypted and not passphrase:
            raise KeysError("passphrase_needed", f"the key {path} is encrypted; give SHALLOP_PASSPHRASE")
        try:
            key = load_pem_private_key(block, passphrase.encode() if encrypted and passphrase else None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            code = "passphrase_wrong" if encrypted else "ca_unreadable"
            raise KeysError(code, f"the key {path} cannot be opened: {error}") from None
        if isinstance(key, ec.EllipticCurvePrivateKey):
            found.append(key)
    return found


def _spki(public: ec.EllipticCurvePublicKey) -> bytes:
    return x509.SubjectKeyIdentifier.from_public_key(public).digest


def _spki_of(certificate: x509.Certificate) -> bytes:
    public = certificate.public_key()
    return _spki(public) if isinstance(public, ec.EllipticCurvePublicKey) else b""
