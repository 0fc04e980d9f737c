"""What enrolment needs of the world, as small Protocols: rows and an authority.

For: `fleet.enrolling`, and the part of a transaction that it uses. The broker's door is `fleet.ports.Gate`.
Not for: deciding anything (`fleet.enrolments`), or the adapters themselves.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from fleet.enrolments import Enrolment, Held, Revocation


class EnrolmentTx(Protocol):
    """The tables of enrolment in one transaction."""

    def enrolment(self, enrolment_id: str) -> Enrolment | None:
        """One token by its id."""

    def enrolment_of_secret(self, secret_sha256: str) -> Enrolment | None:
        """The token whose secret has that hash."""

    def enrolments(self, device: str | None = None) -> list[Enrolment]:
        """Tokens, of one device or all, oldest first."""

    def save_enrolment(self, enrolment: Enrolment) -> None:
        """Writes a token."""

    def prune_enrolments(self, expired_before: float) -> int:
        """Deletes tokens whose time ended before that; how many."""

    def certificates(self, device: str) -> list[Held]:
        """Certificates of one device, newest first."""

    def certificate_heads(self) -> list[Held]:
        """Certificates of all devices without their text, newest first."""

    def newest_certificates(self, late: tuple[float, float] | None = None) -> dict[str, Held]:
        """The newest of each device, without its text; with `late` only those that end soon.

        Args:
            late: a time, and the share of a life: ended by then, or less than that share of it is left.
        """

    def devices_with_certificate(self, now: float) -> int:
        """How many have a living one."""

    def revoked_certificates(self) -> list[Held]:
        """Those of all devices that were revoked, without their text."""

    def save_certificate(self, held: Held) -> None:
        """Writes a certificate."""

    def drop_certificates(self, serials: Collection[str]) -> None:
        """Deletes them."""

    def revoke_certificates(self, device: str, now: float, why: str, keep: str = "") -> int:
        """Ends all certificates of a device that count, but the one of serial `keep`; how many."""

    def revoke_serials(self, serials: Collection[str], now: float, why: str) -> int:
        """Ends these certificates where they count; how many."""

    def uncut(self, serials: Collection[str], devices: Collection[str]) -> None:
        """The broker is not known any more to refuse these; it is to be told again."""

    def cut(self, serials: Collection[str], device: str, now: float) -> None:
        """Notes that these certificates, and this device's revocation, are in force at the broker."""

    def revocation(self, device: str) -> Revocation | None:
        """That of a device; None where it may speak."""

    def revocations(self) -> dict[str, Revocation]:
        """All that hold, by device."""

    def lifted(self) -> set[str]:
        """Devices whose revocation was lifted, which the broker is not known to let in yet."""

    def save_revocation(self, revocation: Revocation) -> None:
        """Writes one."""

    def lift_revocation(self, device: str, now: float) -> bool:
        """Lifts one; whether there was one that held."""

    def drop_lifted(self, device: str) -> None:
        """Deletes a lifted one: the broker lets the device in. One that holds stays."""


class Issued(Protocol):
    """A certificate that was signed."""

    @property
    def serial(self) -> int:
        """Random, up to 160 bits."""

    @property
    def pem(self) -> str:
        """The certificate."""

    @property
    def not_before(self) -> float:
        """Start of its life, seconds since 1970."""

    @property
    def not_after(self) -> float:
        """Its end."""


class Authority(Protocol):
    """The fleet's certificate authority."""

    @property
    def certificates_pem(self) -> str:
        """All accepted authorities, the signing one first."""

    @property
    def sha256(self) -> str:
        """Of the signing authority's certificate (DER), hexadecimal: what a token pins."""

    def issue_device(self, device: str, public: bytes, not_before: float, lifetime_s: float) -> Issued:
        """A certificate by which a device may connect, and nothing else.

        Raises:
            KeysError: `device_key` or `bad_name`.
        """
