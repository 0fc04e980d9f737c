"""Queries about the audit log.

For: an entry written in the transaction of the change that it records, and reading the log.
Not for: its form or its check (`fleet.audit`). That nothing of it is changed or deleted is the database's
own rule (triggers, migration 0003), not these queries'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import Row, insert, select

from fleet.adapters import tables as t
from fleet.adapters.sql_base import SqlPart, json_text
from fleet.audit import AuditEntry, follow, genesis


class SqlAudit(SqlPart):
    """The audit log of one transaction."""

    def audit(
        self,
        *,
        at: float,
        who: str,
        what: str,
        subject: str = "",
        why: str = "",
        details: Mapping[str, object] | None = None,
    ) -> AuditEntry:
        """Writes the next entry; it is kept if and only if this transaction is."""
        number, previous = self._last()
        entry = follow(
            number, previous, at=at, who=who, what=what, subject=subject, why=why, details=dict(details or {})
        )
        values = {**msgspec.structs.asdict(entry), "details": json_text(entry.details)}
        self.connection.execute(insert(t.audit).values(**values))
        return entry

    def _last(self) -> tuple[int, str]:
        """Number and hash of the last entry; transactions follow one another, so it stays the last."""
        query = select(t.audit.c.number, t.audit.c.sha256).order_by(t.audit.c.number.desc()).limit(1)
        row = self.connection.execute(query).first()
        if row is not None:
            return row.number, row.sha256
        return 0, genesis(self.connection.execute(select(t.registry.c.registry_id)).scalar_one())

    def audit_last(self) -> AuditEntry | None:
        """The newest entry."""
        row = self.connection.execute(select(t.audit).order_by(t.audit.c.number.desc()).limit(1)).first()
        return None if row is None else _entry(row)

    def audit_entries(self, after: int, limit: int) -> list[AuditEntry]:
        """At most `limit` entries above number `after`, oldest first."""
        query = select(t.audit).where(t.audit.c.number > after).order_by(t.audit.c.number).limit(limit)
        return [_entry(row) for row in self.connection.execute(query)]

    def audit_newest(self, limit: int, who: str | None, subject: str | None) -> list[AuditEntry]:
        """The newest entries by someone or about something, oldest first; None: whoever, whatever."""
        query = select(t.audit).order_by(t.audit.c.number.desc()).limit(limit)
        if who is not None:
            query = query.where(t.audit.c.who == who)
        if subject is not None:
            query = query.where(t.audit.c.subject == subject)
        return [_entry(row) for row in self.connection.execute(query)][::-1]


def _entry(row: Row[Any]) -> AuditEntry:
    return AuditEntry(
        number=row.number,
        at_ms=row.at_ms,
        who=row.who,
        what=row.what,
        subject=row.subject,
        why=row.why,
        details=msgspec.json.decode(row.details, type=dict[str, object]),
        previous=row.previous,
        sha256=row.sha256,
    )
