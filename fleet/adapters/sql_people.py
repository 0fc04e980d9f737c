"""Queries about tokens and barred releases.

For: the tables of who may do what.
Not for: what a token may do (`fleet.scopes`), or the audit log (`sql_audit`).
"""

from __future__ import annotations

import msgspec
from sqlalchemy import delete, select, update

from fleet.adapters import tables as t
from fleet.adapters.sql_base import SqlPart
from fleet.ports_people import BarredRow, TokenRow


class SqlPeople(SqlPart):
    """Those tables of one transaction."""

    def any_token(self) -> bool:
        """Whether a token was ever made, revoked or not."""
        return self.connection.execute(select(t.tokens.c.id).limit(1)).first() is not None

    def token(self, token_id: str) -> TokenRow | None:
        """One token."""
        query = select(t.tokens).where(t.tokens.c.id == token_id)
        row = self.connection.execute(query).mappings().first()
        return None if row is None else TokenRow(**row)

    def tokens(self) -> list[TokenRow]:
        """All tokens, oldest first."""
        query = select(t.tokens).order_by(t.tokens.c.created_at, t.tokens.c.id)
        return [TokenRow(**row) for row in self.connection.execute(query).mappings()]

    def save_token(self, row: TokenRow) -> None:
        """Writes one."""
        self.put(t.tokens, msgspec.structs.asdict(row))

    def barred(self) -> list[BarredRow]:
        """Barred releases, by digest."""
        rows = self.connection.execute(select(t.barred).order_by(t.barred.c.digest))
        return [BarredRow(**row) for row in rows.mappings()]

    def bar(self, row: BarredRow) -> None:
        """Puts a release on the list."""
        self.put(t.barred, msgspec.structs.asdict(row))

    def unbar(self, digest: str) -> None:
        """Takes a release off the list."""
        self.connection.execute(delete(t.barred).where(t.barred.c.digest == digest))

    def bars_envelope(self) -> bytes | None:
        """The list as it was signed last; None before the first."""
        found: bytes | None = self.connection.execute(select(t.registry.c.bars_envelope)).scalar_one()
        return found

    def save_bars(self, number: int, envelope: bytes) -> None:
        """Writes the list's number and its signed form."""
        self.connection.execute(update(t.registry).values(bars=number, bars_envelope=envelope))
