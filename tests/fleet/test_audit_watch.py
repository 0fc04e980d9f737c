"""The head beside the database: whoever changes the database alone is found out at the next start."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from fleet.adapters.broker_process import free_port
from fleet.adapters.durable import DurableFile
from fleet.adapters.sql_store import SqlStore
from fleet.audit import REGISTRY, AuditEntry, follow, genesis
from fleet.audit_heads import HEAD_BYTES_MAX
from fleet.audit_log import AuditLog
from fleet.audit_watch import AuditWatch
from fleet.cli import main
from fleet.current import Current
from fleet.orders import Desk
from tests.fleet.processes import RegistryProcess
from tests.fleet.twins import TOPICS, FakeClock

ID = "a" * 32


class Registry:
    """A database, and the file beside it."""

    def __init__(self, folder: Path, registry_id: str = ID) -> None:
        self.folder = folder
        self.database = folder / "fleet.db"
        self.store = SqlStore(f"sqlite:///{self.database}", registry_id)
        clock = self.clock = FakeClock()
        self.file = DurableFile(folder / "audit-head.json", HEAD_BYTES_MAX)
        self.watch = AuditWatch(
            self.store, clock, AuditLog(self.store, clock, Current(Desk(TOPICS))), self.file
        )

    def write(self, count: int) -> None:
        for n in range(count):
            with self.store.begin() as tx:
                tx.audit(at=float(n), who="ada", what="device.label", subject=f"d{n}")

    def newest(self) -> AuditEntry:
        with self.store.begin() as tx:
            last = tx.audit_last()
        assert last is not None
        return last

    def again(self) -> Registry:
        self.store.close()
        return Registry(self.folder)


def tamper(database: Path, *statements: str) -> None:
    """As an administrator of the database alone can: without the triggers."""
    connection = sqlite3.connect(database)
    for trigger in ("audit_keeps", "audit_stays", "audit_follows"):
        connection.execute(f"DROP TRIGGER {trigger}")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_a_log_that_went_on_is_as_it_was(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    assert registry.watch.look() == "", "nothing was ever kept"
    registry.watch.keep()
    assert registry.file.read() is None, "an empty log has no head"
    registry.write(2)
    registry.watch.keep()
    first = registry.file.read()
    registry.clock.time += 60.0
    registry.watch.keep()
    assert registry.file.read() == first
    registry.write(1)
    again = registry.again()
    assert again.watch.look() == ""
    again.watch.keep()
    assert again.file.read() != first
    assert again.newest().number == 3, "a look that finds nothing leaves nothing"


@pytest.mark.parametrize("count", [1, 3])
def test_a_log_that_was_cut_is_noticed(tmp_path: Path, count: int) -> None:
    registry = Registry(tmp_path)
    registry.write(5)
    registry.watch.keep()
    registry.store.close()
    tamper(registry.database, f"DELETE FROM audit WHERE number > {5 - count}")
    again = registry.again()
    assert again.watch.look() == "the log was cut: it went on to entry 5"
    entry = again.newest()
    assert (entry.number, entry.who, entry.what, entry.details["number"]) == (
        6 - count,
        REGISTRY,
        "audit.gap",
        5,
    )
    again.watch.keep()
    assert again.again().watch.look() == "", "said once"


def test_a_log_that_was_written_anew_is_noticed(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.write(3)
    registry.watch.keep()
    registry.store.close()
    forged, previous = [], genesis(ID)
    for n in range(3):
        entry = follow(n, previous, at=0.0, who="eve", what="x", subject="", why="", details={})
        previous = entry.sha256
        values = f"{n + 1}, 0, 'eve', 'x', '', '', '{{}}', '{entry.previous}', '{previous}'"
        forged.append(f"INSERT INTO audit VALUES({values})")
    tamper(registry.database, "DELETE FROM audit", *forged)
    assert "written anew" in registry.again().watch.look()


def test_another_database_in_its_place_is_noticed(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.write(1)
    registry.watch.keep()
    registry.store.close()
    registry.database.unlink()
    other = Registry(tmp_path, "b" * 32)
    other.write(1)
    assert "another database" in other.watch.look()


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff" * 100, b"x" * (HEAD_BYTES_MAX + 9)])
def test_a_damaged_file_is_noticed(tmp_path: Path, data: bytes) -> None:
    registry = Registry(tmp_path)
    registry.write(1)
    registry.file.write(data)
    assert "cannot be read" in registry.watch.look()
    registry.watch.keep()
    assert registry.again().watch.look() == ""


def test_a_real_registry_says_that_its_database_went_back(tmp_path: Path) -> None:
    """The backup of yesterday in the place of today's database."""
    data, runner = tmp_path / "data", CliRunner()
    data.mkdir()
    registry = RegistryProcess(data, free_port(), "--insecure-unsigned")
    runner.invoke(main, ["tokens", "create", "ada", "--data", str(data)])
    shutil.copy(data / "fleet.db", tmp_path / "yesterday.db")
    made = runner.invoke(main, ["tokens", "create", "bob", "--data", str(data), "--json"])
    registry.start()
    registry.stop()
    assert json.loads(made.stdout)["view"]["name"] == "bob"
    assert "audit:" not in registry.log.read_text()
    shutil.copy(tmp_path / "yesterday.db", data / "fleet.db")
    registry.start()
    registry.stop()
    assert "audit: the log was cut: it went on to entry 2" in registry.log.read_text()
