"""The head of the audit log, kept outside of the database: whoever can change only that is found out.

For: writing the head to a file of its own after changes, and, when the registry starts, seeing whether the
log still goes that far and says the same there.
Not for: a check of the whole log (`shallop-fleet audit verify`), or an intruder on the registry's machine,
who can change this file too: keep heads elsewhere for that (`shallop-fleet audit head`).
"""

from __future__ import annotations

import logging
from typing import Protocol

from fleet.audit import REGISTRY, AuditHead
from fleet.audit_heads import read_head
from fleet.audit_log import AuditLog
from fleet.ports import Clock, NotFoundError, Store
from wire.errors import ShallopError

_LOG = logging.getLogger("shallop.fleet.audit")


class HeadFile(Protocol):
    """Where the head lies."""

    def read(self) -> bytes | None:
        """What was written last; None before the first."""

    def write(self, data: bytes) -> None:
        """Keeps it, durable before it returns."""


class AuditWatch:
    """Keeps the head of one registry's log.

    Attributes:
        went_back: whether `look` found a log that is shorter than it was, or another one in its place.
    """

    def __init__(self, store: Store, clock: Clock, log: AuditLog, file: HeadFile) -> None:
        self._store = store
        self._clock = clock
        self._log = log
        self._file = file
        self._kept = 0
        self.went_back = False

    def look(self) -> str:
        """Compares the log with the head that was kept; what is wrong, empty if nothing is.

        What is wrong is written into the log itself, which goes on from where it is.
        """
        data = self._file.read()
        if data is None:
            return ""
        try:
            # Its signature is for readers elsewhere; here a forged file is only a false alarm.
            head = read_head(data)
        except ShallopError as error:
            return self._note(f"the head that was kept cannot be read: {error}", {})
        with self._store.begin() as tx:
            found = tx.audit_entries(head.number - 1, 1)
            registry_id = tx.mark().registry_id
        self._kept = head.number
        if head.registry_id != registry_id:
            return self._note("the head that was kept is another registry's: another database", _said(head))
        self.went_back = not found or found[0].sha256 != head.sha256
        if not found:
            return self._note(f"the log was cut: it went on to entry {head.number}", _said(head))
        if found[0].sha256 != head.sha256:
            return self._note(f"the log was written anew at or before entry {head.number}", _said(head))
        return ""

    def _note(self, how: str, details: dict[str, object]) -> str:
        _LOG.error("audit: %s; a database restored from a backup looks like this too", how)
        with self._store.begin() as tx:
            tx.audit(at=self._clock.now(), who=REGISTRY, what="audit.gap", why=how, details=details)
        self._kept = 0
        return how

    def keep(self) -> None:
        """Writes the head if the log went on since.

        Raises:
            OSError: the disk.
        """
        with self._store.begin() as tx:
            last = tx.audit_last()
        if last is None or last.number == self._kept:
            return
        try:
            self._file.write(self._log.head())
        except NotFoundError:
            return
        self._kept = last.number


def _said(head: AuditHead) -> dict[str, object]:
    return {"number": head.number, "sha256": head.sha256, "at_ms": head.at_ms}
