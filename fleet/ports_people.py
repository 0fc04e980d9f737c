"""The part of a transaction that is about people: tokens, the audit log, barred releases.

For: the rows and the Protocol that `fleet.ports.Tx` takes in.
Not for: deciding anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct

from fleet.audit import AuditEntry


class TokenRow(Struct, frozen=True, kw_only=True):
    """A token as it is kept.

    Attributes:
        id: the part of the token that names it.
        name: of the person or program.
        scopes: separated by commas.
        sha256: of the whole token; the token itself is nowhere.
        used_at: last use, not finer than `fleet.tokens.USED_EVERY_S`.
    """

    id: str
    name: str
    scopes: str
    sha256: str
    created_at: float
    created_by: str
    expires_at: float | None = None
    used_at: float | None = None
    revoked_at: float | None = None


class BarredRow(Struct, frozen=True, kw_only=True):
    """A barred release; model and name are None where the registry does not know it."""

    digest: str
    model: str | None
    name: str | None
    at: float
    who: str
    why: str


class PeopleTx(Protocol):
    """Those tables of one transaction."""

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
        """Writes the next entry of the audit log; it is kept if and only if this transaction is.

        Every verb that changes something calls it once, in the transaction of the change.

        Args:
            at: seconds since 1970.
            who: a token's name, `local:USER`, or `fleet.audit.REGISTRY` for the registry's own acts.
            what: the verb, such as `rollout.start`.
            subject: an id, or MODEL@RELEASE.
            why: in the words of who did it.
            details: plain JSON values.
        """

    def audit_last(self) -> AuditEntry | None:
        """The newest entry."""

    def audit_entries(self, after: int, limit: int) -> list[AuditEntry]:
        """At most `limit` entries above number `after`, oldest first."""

    def audit_newest(self, limit: int, who: str | None, subject: str | None) -> list[AuditEntry]:
        """The newest entries by someone or about something, oldest first; None: whoever, whatever."""

    def any_token(self) -> bool:
        """Whether a token was ever made, revoked or not."""

    def token(self, token_id: str) -> TokenRow | None:
        """One token."""

    def tokens(self) -> list[TokenRow]:
        """All tokens, oldest first."""

    def save_token(self, row: TokenRow) -> None:
        """Writes one."""

    def barred(self) -> list[BarredRow]:
        """Barred releases, by digest."""

    def bar(self, row: BarredRow) -> None:
        """Puts a release on the list."""

    def unbar(self, digest: str) -> None:
        """Takes a release off the list."""

    def bars_envelope(self) -> bytes | None:
        """The list as it was signed last; None before the first."""

    def save_bars(self, number: int, envelope: bytes) -> None:
        """Writes the list's number and its signed form."""
