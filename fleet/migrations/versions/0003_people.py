"""Who may do what, and the record of it: tokens, barred releases, and an audit log that only grows.

The log's rules are the database's: an entry is neither changed nor deleted, and a new one has the next
number and names the hash of the last. On SQLite the rule about numbers also stops INSERT OR REPLACE,
which deletes a row without asking a trigger for deletions.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_NEXT = (
    "NEW.number <> (SELECT COALESCE(MAX(number), 0) + 1 FROM audit) "
    "OR NEW.previous <> COALESCE((SELECT sha256 FROM audit ORDER BY number DESC LIMIT 1), NEW.previous)"
)

_SQLITE = (
    "CREATE TRIGGER audit_keeps BEFORE UPDATE ON audit "
    "BEGIN SELECT RAISE(ABORT, 'the audit log is never changed'); END",
    "CREATE TRIGGER audit_stays BEFORE DELETE ON audit "
    "BEGIN SELECT RAISE(ABORT, 'the audit log is never deleted'); END",
    f"CREATE TRIGGER audit_follows BEFORE INSERT ON audit WHEN {_NEXT} "
    "BEGIN SELECT RAISE(ABORT, 'the audit log only grows at its end'); END",
)

_POSTGRESQL = (
    "CREATE OR REPLACE FUNCTION audit_keeps() RETURNS trigger LANGUAGE plpgsql AS "
    "$$BEGIN RAISE EXCEPTION 'the audit log is never changed and never deleted'; END$$",
    "CREATE OR REPLACE FUNCTION audit_follows() RETURNS trigger LANGUAGE plpgsql AS "
    f"$$BEGIN IF {_NEXT} THEN RAISE EXCEPTION 'the audit log only grows at its end'; END IF; "
    "RETURN NEW; END$$",
    "CREATE TRIGGER audit_keeps BEFORE UPDATE OR DELETE ON audit "
    "FOR EACH ROW EXECUTE FUNCTION audit_keeps()",
    "CREATE TRIGGER audit_stays BEFORE TRUNCATE ON audit "
    "FOR EACH STATEMENT EXECUTE FUNCTION audit_keeps()",
    "CREATE TRIGGER audit_follows BEFORE INSERT ON audit "
    "FOR EACH ROW EXECUTE FUNCTION audit_follows()",
)  # fmt: skip


def upgrade() -> None:
    """Three tables, the number and signature of the list of barred releases, and the log's triggers."""
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("scopes", sa.String(100), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("created_by", sa.String(100), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=True),
        sa.Column("used_at", sa.Float(), nullable=True),
        sa.Column("revoked_at", sa.Float(), nullable=True),
    )
    op.create_table(
        "barred",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("model", sa.String(63), nullable=True),
        sa.Column("name", sa.String(63), nullable=True),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("who", sa.String(100), nullable=False),
        sa.Column("why", sa.String(2000), nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("number", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("who", sa.String(100), nullable=False),
        sa.Column("what", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(200), nullable=False),
        sa.Column("why", sa.String(2000), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
    )
    op.create_index("audit_by_subject", "audit", ["subject"])
    op.add_column("registry", sa.Column("bars", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("registry", sa.Column("bars_envelope", sa.LargeBinary(), nullable=True))
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL:
        op.execute(statement)
