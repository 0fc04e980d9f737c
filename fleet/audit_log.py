"""The audit log as people read it, and its head, signed to be kept elsewhere.

For: pages of entries, and the envelope that says how far the log went: `audit_head`, by the order role.
Not for: writing entries (`tx.audit`), or checking a log (`fleet.audit.checked`), which is done where the
reader is: a registry that was taken over would call its own log whole.
"""

from __future__ import annotations

import msgspec

from fleet.audit import AuditEntry, AuditHead
from fleet.audit_heads import HEAD_KIND
from fleet.current import Current
from fleet.orders import Desk
from fleet.ports import Clock, NotFoundError, Store
from wire.trust import seal

PAGE_MAX = 1000
"""Entries in one answer."""


class AuditLog:
    """The log of one registry."""

    def __init__(self, store: Store, clock: Clock, desk: Current[Desk]) -> None:
        self._store = store
        self._clock = clock
        self._desk = desk

    def page(self, after: int, limit: int) -> list[AuditEntry]:
        """Entries above number `after`, oldest first, at most `limit` and PAGE_MAX."""
        with self._store.begin() as tx:
            return tx.audit_entries(after, min(limit, PAGE_MAX))

    def newest(self, count: int, who: str | None = None, subject: str | None = None) -> list[AuditEntry]:
        """The newest entries by someone or about something, oldest first."""
        with self._store.begin() as tx:
            return tx.audit_newest(min(count, PAGE_MAX), who, subject)

    def head(self) -> bytes:
        """How far the log goes now, signed; unsigned where the registry has no order keys.

        Raises:
            NotFoundError: `audit_empty`.
        """
        with self._store.begin() as tx:
            last, registry_id, desk = tx.audit_last(), tx.mark().registry_id, self._desk.now
        if last is None:
            raise NotFoundError("audit_empty", "the audit log has no entry yet")
        head = AuditHead(
            registry_id=registry_id,
            number=last.number,
            sha256=last.sha256,
            at_ms=round(self._clock.now() * 1000),
            root=0 if desk.root is None else desk.root.number,
        )
        return seal(HEAD_KIND, msgspec.json.encode(head), desk.signers)
