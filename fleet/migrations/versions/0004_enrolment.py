"""Enrolment tokens, the certificates of devices, and devices that were shut out."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Three tables; whoever was known before has no certificate and is not revoked."""
    op.create_table(
        "enrolments",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("secret_sha256", sa.String(64), nullable=False, unique=True),
        sa.Column("root_number", sa.BigInteger(), nullable=False),
        sa.Column("issued_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("public", sa.String(64), nullable=True),
        sa.Column("serial", sa.String(40), nullable=True),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("why", sa.String(2000), nullable=False),
    )
    op.create_index("enrolments_by_device", "enrolments", ["device"])
    op.create_table(
        "certificates",
        sa.Column("serial", sa.String(40), primary_key=True),
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("public", sa.String(64), nullable=False),
        sa.Column("issued_at", sa.Float(), nullable=False),
        sa.Column("not_before", sa.Float(), nullable=False),
        sa.Column("not_after", sa.Float(), nullable=False),
        sa.Column("pem", sa.Text(), nullable=False),
        sa.Column("enrolment", sa.String(32), nullable=True),
        sa.Column("revoked_at", sa.Float(), nullable=True),
        sa.Column("why", sa.String(2000), nullable=False),
        sa.Column("cut_at", sa.Float(), nullable=True),
    )
    op.create_index("certificates_by_device", "certificates", ["device"])
    op.create_table(
        "revocations",
        sa.Column("device", sa.String(63), primary_key=True),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("why", sa.String(2000), nullable=False),
        sa.Column("cut_at", sa.Float(), nullable=True),
        sa.Column("lifted_at", sa.Float(), nullable=True),
    )
