"""The authority and the registry's own certificates change under it: real files, real commands, no broker.

With a broker and a process: tests/integration/test_keys_change.py.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from fleet.adapters.authority import DAY_S, Authority
from fleet.adapters.broker_files import BrokerFiles, together
from fleet.adapters.door import DoorHolder, door_files, open_door
from fleet.adapters.following import Following, stamps
from fleet.adapters.gate import BrokerGate
from fleet.adapters.sql_store import SqlStore
from fleet.broker_rules import REGISTRY, Setup
from fleet.cli import main
from fleet.config import Config
from fleet.keys import KeysError
from tests.fleet.processes import wait_for
from tests.fleet.twins import FakeClock


class House:
    """A registry's door, with a broker that does not answer.

    Attributes:
        served: what strangers are shown certificates of, in its order.
    """

    def __init__(self, folder: Path, **config: object) -> None:
        self.files = BrokerFiles(folder / "broker", folder / "keys")
        self.keys, self.out = self.files.keys, self.files.out
        setup = Setup(hosts=("localhost",), port=1, directory=str(self.out))
        self.files.prepare()
        self.files.begin(setup, Authority.create(self.keys, "Test", None, time.time()), time.time())
        ours = {"broker": "mqtts://localhost:1", "keys": str(self.keys), "broker_files": str(self.out)}
        self.config = Config(**{**ours, **config})  # type: ignore[arg-type]
        begun = stamps(door_files(self.config))
        self.clock = FakeClock()
        self.clock.time = time.time()
        self.door = open_door(self.config, self.clock)
        self.store = SqlStore("sqlite://", "a" * 32)
        self.served: list[Authority] = []
        self.serve: Callable[[Authority], None] = self.served.append
        holder = DoorHolder(self.config, self.door, self.store, lambda new: self.serve(new))  # noqa: PLW0108 - it changes
        self.following = Following(holder, begun)

    def command(self, *words: str) -> None:
        where = ["--keys", str(self.keys), "--out", str(self.out)]
        done = CliRunner().invoke(main, ["broker", *words, *where])
        assert done.exit_code == 0, done.output

    def look(self) -> None:
        self.following.look()
        self.following.look()

    @property
    def gate(self) -> BrokerGate:
        assert isinstance(self.door.gate, BrokerGate)
        return self.door.gate

    @property
    def authority(self) -> Authority:
        now = self.door.authority.now
        assert now is not None
        return now

    def trusted(self) -> int:
        """Whose certificates the next connection accepts."""
        assert self.door.tls is not None
        return len(self.door.tls._now.get_ca_certs())

    def state(self) -> tuple[object, ...]:
        """All that a change touches."""
        assert self.door.tls is not None
        return self.authority, self.door.tls._now, self.gate._authority, len(self.served)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.store.close()


def test_each_step_of_a_succession_is_taken_up_by_all_who_hold_the_authority(house: House) -> None:
    first = house.authority
    for step, accepted in (("rotate", 2), ("switch", 2), ("drop", 1)):
        before = house.state()
        house.command("ca", step)
        house.look()
        assert house.following.trouble is None
        assert house.authority.sha256s == Authority.load(house.keys).sha256s
        assert (len(house.authority.sha256s), house.trusted()) == (accepted, accepted)
        assert house.gate._authority is house.served[-1] is house.authority
        assert not set(before[:3]) & set(house.state()[:3])
    assert house.authority.sha256 != first.sha256
    assert len(house.served) == 3


def test_all_steps_at_once_are_one_change(house: House) -> None:
    """As after a theft of the authority's key: at once, and without the waiting."""
    first = house.authority.sha256
    for step in ("rotate", "switch", "drop"):
        house.command("ca", step)
    house.look()
    assert house.following.trouble is None
    assert first not in house.authority.sha256s
    assert (len(house.served), house.trusted()) == (1, 1)


def test_a_certificate_of_our_own_changes_no_authority(house: House) -> None:
    authority, context, _, _ = house.state()
    house.command("renew")
    house.look()
    assert house.following.trouble is None
    after = house.state()
    assert after[0] is authority
    assert after[1] is not context
    assert house.served == []


# --- what is refused ----------------------------------------------------------------------------------


def torn_key(house: House) -> None:
    path = house.keys / "ca-key.pem"
    path.write_bytes(path.read_bytes()[:-60])


def torn_second(house: House) -> None:
    """Cut behind the first authority: what is left is whole, and not what was written."""
    house.command("ca", "rotate")
    path = house.keys / "ca.pem"
    path.write_bytes(path.read_bytes()[:-60])


def gone(house: House) -> None:
    (house.keys / "ca.pem").unlink()


def torn_own(house: House) -> None:
    path = house.keys / "registry.pem"
    path.write_bytes(path.read_bytes()[:-60])


def foreign_own(house: House) -> None:
    theirs = Authority.create(house.keys.parent / "theirs", "Theirs", None, time.time())
    (house.keys / "registry.pem").write_bytes(together(theirs.issue_client(REGISTRY, time.time(), DAY_S)))


def foreign_authority(house: House) -> None:
    """The two files of another fleet, without what it signed."""
    Authority.create(house.keys.parent / "theirs", "Theirs", None, time.time())
    for name in ("ca.pem", "ca-key.pem"):
        shutil.copy(house.keys.parent / "theirs" / name, house.keys / name)


def foreign_server(house: House) -> None:
    theirs = Authority.create(house.keys.parent / "theirs", "Theirs", None, time.time())
    (house.out / "server.pem").write_bytes(together(theirs.issue_server(["localhost"], time.time(), DAY_S)))
    house.command("ca", "rotate")


def no_life(house: House) -> None:
    def refuses(_: Authority) -> None:
        raise KeysError("no_life", "it ended")

    house.serve = refuses
    house.command("ca", "rotate")


REFUSED: dict[str, tuple[Callable[[House], None], str]] = {
    "a torn key": (torn_key, "ca_key_missing"),
    "a torn list": (torn_second, "ca_unreadable"),
    "none": (gone, "ca_gone"),
    "a torn certificate of our own": (torn_own, "broker_tls"),
    "a certificate of our own that is another's": (foreign_own, "certificate_foreign"),
    "another authority alone": (foreign_authority, "certificate_foreign"),
    "a broker's certificate that is another's": (foreign_server, "server.pem was signed by none"),
    "an authority that can sign nothing": (no_life, "no_life"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_named_and_nothing_changes(house: House, name: str) -> None:
    kept = [shutil.copytree(path, path.with_suffix(".kept")) for path in (house.keys, house.out)]
    before = house.state()
    spoil, said = REFUSED[name]
    spoil(house)
    house.look()
    assert said in str(house.following.trouble)
    assert house.state() == before
    house.serve = house.served.append
    for path in kept:
        shutil.copytree(path, path.with_suffix(""), dirs_exist_ok=True)
    house.look()
    assert house.following.trouble is None
    assert house.authority is before[0], "it is the same"


def test_without_a_brokers_tls_the_authority_alone_is_followed(tmp_path: Path) -> None:
    house = House(tmp_path, broker="mqtt://localhost:1")
    assert house.door.tls is None
    house.command("ca", "rotate")
    house.look()
    assert (len(house.authority.sha256s), len(house.served)) == (2, 1)
    torn_second(house)
    house.look()
    assert "ca_unreadable" in str(house.following.trouble)
    house.store.close()


# --- the broker's files -------------------------------------------------------------------------------


def test_what_the_one_before_wrote_into_the_brokers_files_is_mended(house: House) -> None:
    """A revocation between the command and the next look makes the lists by the authority that is held."""
    house.command("ca", "rotate")
    house.gate._refuse("roof-17", {})
    assert (house.out / "ca.pem").read_text() != Authority.load(house.keys).certificates_pem
    house.look()
    house.gate.look()
    assert (house.out / "ca.pem").read_text() == house.authority.certificates_pem
    assert (house.out / "crl.pem").read_text().count("BEGIN X509 CRL") == 2
    assert "roof-17" in (house.out / "access.acl").read_text()


def test_that_is_done_by_the_doors_own_thread_at_once(house: House) -> None:
    house.gate.start()
    try:
        house.command("ca", "rotate")
        house.gate._refuse("roof-17", {})
        house.gate._waiting.clear()
        house.look()
        accepted = house.authority.certificates_pem
        wait_for("the lists to be mended", lambda: (house.out / "ca.pem").read_text() == accepted, 10)
    finally:
        house.gate.stop()


def test_a_look_before_it_is_taken_up_undoes_no_command(house: House) -> None:
    house.command("ca", "rotate")
    house.gate.look()
    assert (house.out / "ca.pem").read_text() == Authority.load(house.keys).certificates_pem


def test_lists_that_a_killed_command_did_not_write_are_written(house: House) -> None:
    """The authority's own files first, then the broker's: a kill in between."""
    house.authority.with_next("Test", time.time()).save(house.keys, None)
    house.look()
    house.gate.look()
    assert (house.out / "ca.pem").read_text() == house.authority.certificates_pem
    assert len(house.authority.sha256s) == 2
    assert not house.files.mend(house.authority, time.time()), "once"
