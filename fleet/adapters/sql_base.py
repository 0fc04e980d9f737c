"""The parts that all SQL of the registry shares: the engine, the upsert and a transaction's connection.

For: one place that knows that there are dialects; SQLite by default, PostgreSQL a URL away.
Not for: any table's queries.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, Table, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import ConnectionPoolEntry, StaticPool
from sqlalchemy.sql.dml import Insert, ReturningInsert

from fleet.ports import StoreError

BUSY_TIMEOUT_S = 30
"""How long another process may hold SQLite's lock before we give up."""

PARAMETERS_MAX = 500
"""Values in one IN; below every database's limit of parameters."""


def json_text(value: object) -> str:
    """A document for a text column."""
    return msgspec.json.encode(value).decode()


@cache
def upsert(dialect: str, table: Table) -> Insert:
    """INSERT of all columns that updates the row of the same primary key; the values are its parameters.

    Built once for each table: building a statement costs more than running it.

    Raises:
        StoreError: `dialect_unsupported`.
    """
    keys = [column.name for column in table.primary_key]
    statement = _dialect_insert(dialect, table)
    changed = {c.name: statement.excluded[c.name] for c in table.columns if c.name not in keys}
    if not changed:
        return statement.on_conflict_do_nothing(index_elements=keys)
    return statement.on_conflict_do_update(index_elements=keys, set_=changed)


@cache
def insert_new(dialect: str, table: Table) -> ReturningInsert[Any]:
    """INSERT that leaves an existing row as it is; it returns the key of a row that was new.

    The returned key is asked for because PostgreSQL's driver does not count rows of such a statement.
    """
    keys = [column.name for column in table.primary_key]
    statement = _dialect_insert(dialect, table).on_conflict_do_nothing(index_elements=keys)
    return statement.returning(*table.primary_key)


def _dialect_insert(dialect: str, table: Table) -> postgresql.Insert | sqlite.Insert:
    if dialect == "postgresql":
        return postgresql.insert(table)
    if dialect == "sqlite":
        return sqlite.insert(table)
    raise StoreError("dialect_unsupported", f"{dialect} is not supported; use sqlite or postgresql")


def batches(values: Collection[Any]) -> Iterator[Sequence[Any]]:
    """The values in groups that one IN can hold."""
    iterator = iter(values)
    while group := list(islice(iterator, PARAMETERS_MAX)):
        yield group


def make_engine(url: str) -> Engine:
    """The engine of a database URL.

    SQLite runs as WAL with synchronous=FULL, so that what was committed outlives a power cut, and takes
    its write lock at the beginning of a transaction, so that none fails half way through.

    Raises:
        StoreError: `database_url`: it cannot be read, or its driver is not installed.
    """
    try:
        engine = _memory_engine() if url == "sqlite://" else create_engine(url)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise StoreError(
            "database_url",
            f"the database URL cannot be used ({error}); examples: sqlite:////var/lib/shallop/fleet.db, "
            "postgresql+psycopg://user@host/shallop (pip install psycopg)",
        ) from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _sqlite_connect)
        event.listen(engine, "begin", _sqlite_begin)
    return engine


def _memory_engine() -> Engine:
    """A database in memory lives as long as its one connection, which all threads share."""
    return create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})


def _sqlite_connect(dbapi_connection: Any, _record: ConnectionPoolEntry) -> None:  # noqa: ANN401 - DBAPI
    # The driver's own idea of when a transaction begins is switched off; `_sqlite_begin` decides.
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_S * 1000}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _sqlite_begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


class SqlPart:
    """What each group of queries is built on.

    Attributes:
        connection: of the transaction.
        dialect: the database's name, for the two statements that differ.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.dialect = connection.dialect.name

    def put(self, table: Table, values: Mapping[str, Any]) -> None:
        """Inserts or updates one row; `values` names every column."""
        self.connection.execute(upsert(self.dialect, table), values)

    def put_new(self, table: Table, values: Mapping[str, Any]) -> bool:
        """Inserts one row; False if it was there. `values` names every column."""
        return self.connection.execute(insert_new(self.dialect, table), values).first() is not None
