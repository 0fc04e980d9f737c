"""Queries about tokens, devices' certificates, and devices that were shut out.

For: rows in and out (`fleet.enrolment_ports`).
Not for: deciding anything (`fleet.enrolments`). Secrets are not here: only their hashes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
from sqlalchemy import Row, bindparam, delete, func, select, update

from fleet.adapters import tables_enrolment as t
from fleet.adapters.sql_base import SqlPart, batches
from fleet.enrolments import Enrolment, Held, Revocation, TokenState

# Built once, since every batch of messages asks for it.
_R = t.revocations.c
_REVOCATIONS = select(_R.device, _R.at, _R.why, _R.cut_at).where(_R.lifted_at.is_(None))
_REVOCATION_OF = _REVOCATIONS.where(_R.device == bindparam("of"))
_C = t.certificates.c
_NEWEST_FIRST = (_C.issued_at.desc(), _C.not_after.desc(), _C.serial)
_HEADS = select(*(column for column in _C if column.name != "pem")).order_by(*_NEWEST_FIRST)
_RANKED = (
    _HEADS.order_by(None)
    .add_columns(func.row_number().over(partition_by=_C.device, order_by=_NEWEST_FIRST).label("rank"))
    .subquery()
)
_NEWEST = select(*(column for column in _RANKED.c if column.name != "rank")).where(_RANKED.c.rank == 1)


class SqlEnrolment(SqlPart):
    """The tables of enrolment in one transaction."""

    # --- tokens ---------------------------------------------------------------------------------------

    def enrolment(self, enrolment_id: str) -> Enrolment | None:
        """One token by its id."""
        return self._enrolment(t.enrolments.c.id == enrolment_id)

    def enrolment_of_secret(self, secret_sha256: str) -> Enrolment | None:
        """The token whose secret has that hash."""
        return self._enrolment(t.enrolments.c.secret_sha256 == secret_sha256)

    def _enrolment(self, condition: Any) -> Enrolment | None:  # noqa: ANN401 - SQLAlchemy's own
        row = self.connection.execute(select(t.enrolments).where(condition)).first()
        return None if row is None else _read_enrolment(row)

    def enrolments(self, device: str | None = None) -> list[Enrolment]:
        """Tokens, of one device or all, oldest first."""
        query = select(t.enrolments).order_by(t.enrolments.c.issued_at, t.enrolments.c.id)
        if device is not None:
            query = query.where(t.enrolments.c.device == device)
        return [_read_enrolment(row) for row in self.connection.execute(query)]

    def save_enrolment(self, enrolment: Enrolment) -> None:
        """Writes a token."""
        self.put(t.enrolments, {**_values(enrolment), "state": enrolment.state.value})

    def prune_enrolments(self, expired_before: float) -> int:
        """Deletes tokens whose time ended before that; how many."""
        old = t.enrolments.c.expires_at < expired_before
        return self.connection.execute(delete(t.enrolments).where(old)).rowcount

    # --- certificates ---------------------------------------------------------------------------------

    def certificates(self, device: str) -> list[Held]:
        """Certificates of one device, newest first."""
        query = select(t.certificates).where(_C.device == device).order_by(*_NEWEST_FIRST)
        return [Held(**row._asdict()) for row in self.connection.execute(query)]

    def certificate_heads(self) -> list[Held]:
        """Certificates of all devices without their text, newest first."""
        return [Held(**row._asdict(), pem="") for row in self.connection.execute(_HEADS)]

    def newest_certificates(self, late: tuple[float, float] | None = None) -> dict[str, Held]:
        """The newest of each device, without its text; with `late` only those that end soon."""
        query = _NEWEST
        if late is not None:
            now, share = late
            life_s = _NEWEST.selected_columns.not_after - _NEWEST.selected_columns.not_before
            query = query.where(_NEWEST.selected_columns.not_after - now < share * life_s)
        rows = self.connection.execute(query)
        return {row.device: Held(**row._asdict(), pem="") for row in rows}

    def devices_with_certificate(self, now: float) -> int:
        """How many have a living one."""
        living = (_C.revoked_at.is_(None), _C.not_after > now)
        return self.connection.execute(select(func.count(_C.device.distinct())).where(*living)).scalar_one()

    def revoked_certificates(self) -> list[Held]:
        """Those of all devices that were revoked, without their text."""
        revoked = _HEADS.where(_C.revoked_at.is_not(None))
        return [Held(**row._asdict(), pem="") for row in self.connection.execute(revoked)]

    def save_certificate(self, held: Held) -> None:
        """Writes a certificate."""
        self.put(t.certificates, _values(held))

    def drop_certificates(self, serials: Collection[str]) -> None:
        """Deletes them."""
        for group in batches(serials):
            self.connection.execute(delete(t.certificates).where(_C.serial.in_(group)))

    def revoke_certificates(self, device: str, now: float, why: str, keep: str = "") -> int:
        """Ends all certificates of a device that count, but the one of serial `keep`; how many."""
        these = (_C.device == device, _C.revoked_at.is_(None), _C.serial != keep)
        ended = update(t.certificates).where(*these).values(revoked_at=now, why=why)
        return self.connection.execute(ended).rowcount

    def revoke_serials(self, serials: Collection[str], now: float, why: str) -> int:
        """Ends these certificates where they count; how many."""
        count = 0
        for group in batches(serials):
            these = (_C.serial.in_(group), _C.revoked_at.is_(None))
            ended = update(t.certificates).where(*these).values(revoked_at=now, why=why)
            count += self.connection.execute(ended).rowcount
        return count

    def uncut(self, serials: Collection[str], devices: Collection[str]) -> None:
        """The broker is not known any more to refuse these; it is to be told again."""
        for group in batches(serials):
            self.connection.execute(update(t.certificates).where(_C.serial.in_(group)).values(cut_at=None))
        for group in batches(devices):
            self.connection.execute(update(t.revocations).where(_R.device.in_(group)).values(cut_at=None))

    def cut(self, serials: Collection[str], device: str, now: float) -> None:
        """Notes that these certificates, and this device's revocation, are in force at the broker."""
        for group in batches(serials):
            self.connection.execute(update(t.certificates).where(_C.serial.in_(group)).values(cut_at=now))
        self.connection.execute(update(t.revocations).where(_R.device == device).values(cut_at=now))

    # --- devices that were shut out -------------------------------------------------------------------

    def revocation(self, device: str) -> Revocation | None:
        """That of a device; None where it may speak."""
        row = self.connection.execute(_REVOCATION_OF, {"of": device}).first()
        return None if row is None else Revocation(**row._asdict())

    def revocations(self) -> dict[str, Revocation]:
        """All that hold, by device."""
        return {row.device: Revocation(**row._asdict()) for row in self.connection.execute(_REVOCATIONS)}

    def lifted(self) -> set[str]:
        """Devices whose revocation was lifted, which the broker is not known to let in yet."""
        return set(self.connection.execute(select(_R.device).where(_R.lifted_at.is_not(None))).scalars())

    def save_revocation(self, revocation: Revocation) -> None:
        """Writes one."""
        self.put(t.revocations, {**_values(revocation), "lifted_at": None})

    def lift_revocation(self, device: str, now: float) -> bool:
        """Lifts one; whether there was one that held."""
        holds = (_R.device == device, _R.lifted_at.is_(None))
        return self.connection.execute(update(t.revocations).where(*holds).values(lifted_at=now)).rowcount > 0

    def drop_lifted(self, device: str) -> None:
        """Deletes a lifted one: the broker lets the device in. One that holds stays."""
        over = (_R.device == device, _R.lifted_at.is_not(None))
        self.connection.execute(delete(t.revocations).where(*over))


def _values(row: Enrolment | Held | Revocation) -> dict[str, Any]:
    return msgspec.structs.asdict(row)


def _read_enrolment(row: Row[Any]) -> Enrolment:
    values = row._asdict()
    return Enrolment(**{**values, "state": TokenState(values["state"])})
