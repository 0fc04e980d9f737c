"""The registry's tables, as data.

For: the one description from which queries are built and against which the migrations are compared.
Not for: queries (`fleet.adapters.sql_store`) or changing an old database (`fleet.migrations`).

JSON documents are text, so that a person with `sqlite3` or `psql` can read them; bytes that are signed or
hashed are kept exactly. Times are seconds since 1970 by this machine's clock.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

# A big integer that SQLite still numbers by itself.
_ROW_ID = BigInteger().with_variant(Integer, "sqlite")

registry = Table(
    "registry",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("registry_id", String(32), nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("orders", BigInteger, nullable=False),
    Column("signed_root", BigInteger, nullable=False, server_default="0"),
    Column("bars", BigInteger, nullable=False, server_default="0"),
    Column("bars_envelope", LargeBinary, nullable=True),
)

devices = Table(
    "devices",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("online", Boolean, nullable=False),
    Column("seen_at", Float, nullable=False),
    Column("install_id", String(32), nullable=True),
    Column("view", Text, nullable=False),
)

labels = Table(
    "labels",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("key", String(63), primary_key=True),
    Column("value", String(200), nullable=False),
)

groups = Table(
    "groups",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("name", String(63), primary_key=True),
)

reports = Table(
    "reports",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("install_id", String(32), primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("order", BigInteger, nullable=False),
    Column("received_at", Float, nullable=False),
    Column("doc", Text, nullable=False),
    Index("reports_by_order", "order"),
)

report_marks = Table(
    "report_marks",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("install_id", String(32), primary_key=True),
    Column("contiguous", BigInteger, nullable=False),
    Column("gap_since", Float, nullable=True),
)

releases = Table(
    "releases",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("model", String(63), nullable=False),
    Column("name", String(63), nullable=False),
    Column("state", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("manifest", LargeBinary, nullable=False),
    Column("envelope", LargeBinary, nullable=True),
    Index("releases_by_name", "model", "name", unique=True),
)

blobs = Table(
    "blobs",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("path", String(200), nullable=False),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("model", String(63), nullable=False),
    Column("release", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("doc", Text, nullable=False),
    Column("rollback_order", BigInteger, nullable=False),
    Column("rollback_payload", LargeBinary, nullable=False),
    Column("cleared", Boolean, nullable=False),
    Index("rollouts_by_state", "state"),
)

desired = Table(
    "desired",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("model", String(63), primary_key=True),
    Column("order", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("rollout", String(64), nullable=True),
    Column("doc", Text, nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", _ROW_ID, primary_key=True, autoincrement=True),
    Column("topic", String(400), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("retain", Boolean, nullable=False),
    Column("qos", Integer, nullable=False),
    Column("payload", LargeBinary, nullable=True),
    Column("blob", String(64), nullable=True),
    Column("generation", BigInteger, nullable=False),
    Column("published_at", Float, nullable=True),
    Index("outbox_by_topic", "topic"),
    Index("outbox_pending", "published_at", "rank", "id"),
)

rollbacks = Table(
    "rollbacks",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("device", String(63), primary_key=True),
    Column("model", String(63), nullable=False),
    Column("from_digest", String(64), nullable=False),
    Column("order", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("asked_at", Float, nullable=False),
    Column("detail", String(2000), nullable=False),
    Index("rollbacks_by_state", "state"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("name", String(63), nullable=False),
    Column("scopes", String(100), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("created_by", String(100), nullable=False),
    Column("expires_at", Float, nullable=True),
    Column("used_at", Float, nullable=True),
    Column("revoked_at", Float, nullable=True),
)

barred = Table(
    "barred",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("model", String(63), nullable=True),
    Column("name", String(63), nullable=True),
    Column("at", Float, nullable=False),
    Column("who", String(100), nullable=False),
    Column("why", String(2000), nullable=False),
)

# Only grows: triggers of migration 0003 refuse every change and deletion.
audit = Table(
    "audit",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("who", String(100), nullable=False),
    Column("what", String(64), nullable=False),
    Column("subject", String(200), nullable=False),
    Column("why", String(2000), nullable=False),
    Column("details", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("sha256", String(64), nullable=False),
    Index("audit_by_subject", "subject"),
)
