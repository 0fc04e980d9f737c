"""PURE. Enrolment as people ask for it and see it: one typed shape for each question and each table.

For: JSON and tables alike (`fleet.api`, `fleet.adapters.console_enrolment`).
Not for: printing, or deciding anything. A token's text stands in the one answer that makes it alone.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from fleet.enrolments import Ending, Enrolment, Held, Revocation, overdue, state_at
from wire.types import DeviceId, Text

DEVICES_MAX = 1000
"""Tokens that one request makes."""
VALID_S_MIN, VALID_S_MAX = 60.0, 30 * 86400.0
VALID_S = 86400.0


class EnrolAsk(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens for these devices.

    Attributes:
        valid_s: how long they are good for.
    """

    devices: Annotated[tuple[DeviceId, ...], Meta(min_length=1, max_length=DEVICES_MAX)]
    valid_s: Annotated[float, Meta(ge=VALID_S_MIN, le=VALID_S_MAX)] = VALID_S


class TokenShow(Struct, frozen=True, kw_only=True):
    """A new token; its text is shown this once.

    Attributes:
        reinstates: why the device was revoked, if it is: using the token lets it in again.
        replaces: the device has a living certificate, which ends when the token is used.
    """

    id: str
    device: str
    token: str
    url: str
    expires_at: float
    reinstates: str | None = None
    replaces: bool = False


class EnrolmentView(Struct, frozen=True, kw_only=True):
    """A token as it stands."""

    id: str
    device: str
    state: str
    issued_at: float
    expires_at: float
    ended_at: float | None
    serial: str | None
    why: str


def enrolment_view(row: Enrolment, now: float) -> EnrolmentView:
    """A token for people."""
    return EnrolmentView(
        id=row.id, device=row.device, state=state_at(row, now).value, issued_at=row.issued_at,
        expires_at=row.expires_at, ended_at=row.ended_at, serial=row.serial, why=row.why,
    )  # fmt: skip


class RevokedView(Struct, frozen=True, kw_only=True):
    """A device that was shut out.

    Attributes:
        certificates: that ended with it just now.
        in_force: the broker refuses it; else that is tried on and on, and /api/health names it.
        detail: what was seen at the broker.
    """

    device: str
    at: float
    why: Text
    certificates: int
    in_force: bool
    detail: str


class CertificateView(Struct, frozen=True, kw_only=True):
    """A device's newest certificate.

    Attributes:
        overdue: it should have been renewed by now; the device is off, or cannot.
    """

    serial: str
    issued_at: float
    not_after: float
    state: Literal["living", "ended", "revoked"]
    overdue: bool


class DeviceTrust(Struct, frozen=True, kw_only=True):
    """What the fleet thinks of a device.

    Attributes:
        certificate: its newest; None: it never enrolled.
        revoked_at: None: it is welcome.
    """

    certificate: CertificateView | None = None
    revoked_at: float | None = None
    revoked_why: str = ""


def device_trust(newest: Held | None, revocation: Revocation | None, now: float) -> DeviceTrust:
    """The same from rows."""
    shown = None
    if newest is not None:
        ended: Literal["ended", "revoked"] = "ended" if newest.revoked_at is None else "revoked"
        shown = CertificateView(
            serial=newest.serial, issued_at=newest.issued_at, not_after=newest.not_after,
            state="living" if newest.living(now) else ended, overdue=overdue(newest, now),
        )  # fmt: skip
    return DeviceTrust(
        certificate=shown,
        revoked_at=None if revocation is None else revocation.at,
        revoked_why="" if revocation is None else revocation.why,
    )


class TrustHealth(Struct, frozen=True, kw_only=True):
    """State of enrolment, for /api/health.

    Attributes:
        enrolment: where devices enrol; None: nowhere.
        certificates: devices with a living one.
        overdue: devices that should have renewed; they are off, or cannot.
        revoked: devices that are shut out.
        not_in_force: devices of which the broker does not know yet that they, or old certificates of theirs,
            are shut out, or that they may come again.
        refused: devices' requests, by reason.
    """

    enrolment: str | None
    certificates: int
    overdue: tuple[Ending, ...]
    revoked: int
    not_in_force: tuple[str, ...]
    refused: dict[str, int]
