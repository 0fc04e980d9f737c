"""The tables of enrolment, as data: tokens, devices' certificates, and devices that were shut out.

For: what `fleet.adapters.tables` is for, of these three; one description for queries and migrations.
Not for: queries (`fleet.adapters.sql_enrolment`). They outlive a device that is forgotten: what was revoked
stays revoked.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Index, String, Table, Text

from fleet.adapters.tables import metadata

enrolments = Table(
    "enrolments",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("device", String(63), nullable=False),
    Column("secret_sha256", String(64), nullable=False, unique=True),
    Column("root_number", BigInteger, nullable=False),
    Column("issued_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("state", String(16), nullable=False),
    Column("public", String(64), nullable=True),
    Column("serial", String(40), nullable=True),
    Column("ended_at", Float, nullable=True),
    Column("why", String(2000), nullable=False),
    Index("enrolments_by_device", "device"),
)

certificates = Table(
    "certificates",
    metadata,
    Column("serial", String(40), primary_key=True),
    Column("device", String(63), nullable=False),
    Column("public", String(64), nullable=False),
    Column("issued_at", Float, nullable=False),
    Column("not_before", Float, nullable=False),
    Column("not_after", Float, nullable=False),
    Column("pem", Text, nullable=False),
    Column("enrolment", String(32), nullable=True),
    Column("revoked_at", Float, nullable=True),
    Column("why", String(2000), nullable=False),
    Column("cut_at", Float, nullable=True),
    Index("certificates_by_device", "device"),
)

revocations = Table(
    "revocations",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("at", Float, nullable=False),
    Column("why", String(2000), nullable=False),
    Column("cut_at", Float, nullable=True),
    Column("lifted_at", Float, nullable=True),
)
