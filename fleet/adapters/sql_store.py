"""The registry's database: the port `Store` over SQLAlchemy Core.

For: opening a database, bringing its tables up to date, and one transaction after the other.
Not for: the queries themselves (`sql_devices`, `sql_releases`, `sql_outbox`, `sql_audit`, `sql_people`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError

from fleet.adapters import tables as t
from fleet.adapters.sql_audit import SqlAudit
from fleet.adapters.sql_base import make_engine
from fleet.adapters.sql_devices import SqlDevices
from fleet.adapters.sql_enrolment import SqlEnrolment
from fleet.adapters.sql_outbox import SqlOutbox
from fleet.adapters.sql_people import SqlPeople
from fleet.adapters.sql_releases import SqlReleases
from fleet.ports import StoreError

MIGRATIONS = Path(__file__).parent.parent / "migrations"


class SqlTx(SqlDevices, SqlReleases, SqlEnrolment, SqlOutbox, SqlAudit, SqlPeople):
    """One transaction over all tables."""


def migrate(connection: Connection) -> None:
    """Brings the database's tables to this program's version; does nothing if they are."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


class SqlStore:
    """A database by URL.

    Raises:
        StoreError: `database_url` or `database_unusable`.
    """

    def __init__(self, url: str, new_registry_id: str) -> None:
        self._engine = make_engine(url)
        # Within this process transactions queue here, which is fairer than SQLite's busy polling.
        self._one_at_a_time = threading.Lock()
        try:
            with self._engine.begin() as connection:
                migrate(connection)
                if connection.execute(select(t.registry)).first() is None:
                    first = {"id": 1, "registry_id": new_registry_id, "generation": 0, "orders": 0}
                    connection.execute(t.registry.insert().values(**first))
        except DBAPIError as error:
            self._engine.dispose()
            raise StoreError(
                "database_unusable",
                f"{self._engine.url.render_as_string()} cannot be opened: {error.orig}; is it there, and may "
                "this user read and write it?",
            ) from None

    @contextmanager
    def begin(self) -> Iterator[SqlTx]:
        """A transaction, committed at the end of the block and undone if it raises.

        The registry's row is locked first, so that transactions of several processes on one PostgreSQL
        follow one another as they do on SQLite.

        Raises:
            StoreError: `database_unusable`.
        """
        with self._one_at_a_time:
            try:
                with self._engine.begin() as connection:
                    connection.execute(select(t.registry.c.id).with_for_update())
                    yield SqlTx(connection)
            except DBAPIError as error:
                raise StoreError(
                    "database_unusable", f"the database did not do what was asked: {error.orig}"
                ) from error

    def close(self) -> None:
        """Gives up connections."""
        self._engine.dispose()
