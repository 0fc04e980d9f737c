"""A revoked device is thrown out of a real Mosquitto at once, and does not come back.

The broker is read anew by a watcher that stands for systemd's path unit, or by the test's own hand where the
moment between takeover and reload is looked at.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import paho.mqtt.client as paho
import pytest
from click.testing import CliRunner
from msgspec.structs import replace
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from fleet.adapters.authority import DAY_S
from fleet.adapters.broker_files import together
from fleet.adapters.broker_tls import Answer, Knock, client_context, knock
from fleet.adapters.door import DoorHolder, door_files, open_door
from fleet.adapters.door_check import Finding, check
from fleet.adapters.following import Following, stamps
from fleet.adapters.gate import BrokerGate, trouble_of
from fleet.adapters.sql_store import SqlStore
from fleet.broker_rules import CA, PROBE, REGISTRY
from fleet.cli import main as fleet
from fleet.config import BrokerTls, Config
from fleet.ports import BrokerError
from tests.brokers import TlsMosquitto
from tests.fleet.processes import RegistryProcess, wait_for
from wire.errors import ShallopError

WAIT_S_MAX = 15.0


class SystemClock:
    """This machine's, shifted."""

    shift_s = 0.0

    def now(self) -> float:
        return time.time() + self.shift_s


class Device:
    """One that comes back as often as it is thrown out, as an agent does, only quicker."""

    def __init__(self, broker: TlsMosquitto, name: str, cert_file: Path, key_file: Path) -> None:
        self.name, self.sessions, self.subscribed, self.heard = name, 0, 0, list[str]()
        client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=name, clean_session=False,
            protocol=MQTTProtocolVersion.MQTTv311,
        )  # fmt: skip
        client.tls_set_context(broker.context(cert_file, key_file))
        client.reconnect_delay_set(1, 1)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = lambda _client, _userdata, message: self.heard.append(message.topic)
        self.client = client
        client.connect_async(broker.host, broker.port, keepalive=30)
        client.loop_start()

    def _on_connect(self, *_: object) -> None:
        self.sessions += 1
        self.client.subscribe(f"shallop/v1/device/{self.name}/down/desired", 1)

    def _on_subscribe(self, *_: object) -> None:
        self.subscribed += 1

    @property
    def connected(self) -> bool:
        return self.client.is_connected()

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
        # Paho closes a pair of sockets when it is freed; in a circle of references they may be freed first.
        self.client.on_connect = self.client.on_message = self.client.on_subscribe = None


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S_MAX
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def gate_of(broker: TlsMosquitto, clock: SystemClock | None = None) -> BrokerGate:
    return BrokerGate(broker.files, broker.authority, (broker.host, broker.port), clock or SystemClock())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """On loopback a refusal comes at once."""
    monkeypatch.setattr("fleet.adapters.gate.LISTEN_S", 0.15)
    monkeypatch.setattr("fleet.adapters.door_check.LISTEN_S", 0.3)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[TlsMosquitto]:
    with TlsMosquitto(tmp_path / "broker") as running:
        yield running


@pytest.fixture
def unwatched(tmp_path: Path) -> Iterator[TlsMosquitto]:
    with TlsMosquitto(tmp_path / "broker", watching=False) as running:
        yield running


def come(broker: TlsMosquitto, name: str) -> tuple[Device, dict[int, float], tuple[Path, Path]]:
    issued, key = broker.issue(name)
    cert_file, key_file = broker.folder / f"{name}.pem", broker.folder / f"{name}.key"
    cert_file.write_text(issued.pem)
    key_file.write_bytes(key)
    device = Device(broker, name, cert_file, key_file)
    until(lambda: device.subscribed > 0)
    return device, {issued.serial: issued.not_after}, (cert_file, key_file)


def visit(broker: TlsMosquitto, files: tuple[Path, ...]) -> Knock:
    return knock((broker.host, broker.port), broker.context(*files), listen_s=0.3)


def test_a_revoked_device_is_out_when_cut_off_returns_and_stays_out(broker: TlsMosquitto) -> None:
    device, serials, files = come(broker, "roof-17")
    neighbour, _, _ = come(broker, "roof-18")
    try:
        done = gate_of(broker).cut_off("roof-17", serials)
        assert done.in_force, done.detail
        until(lambda: not device.connected)
        sessions = device.sessions
        assert visit(broker, files).answer is Answer.REVOKED
        # Longer than the device waits between two attempts.
        time.sleep(1.3)
        assert (device.sessions, device.connected) == (sessions, False)
        assert (neighbour.sessions, neighbour.connected) == (1, True)
        # Asked again it looks again, and makes no other list.
        listed = (broker.out / "crl.pem").read_bytes()
        assert gate_of(broker).cut_off("roof-17", serials).in_force
        assert (broker.out / "crl.pem").read_bytes() == listed
    finally:
        device.close()
        neighbour.close()


def test_until_the_broker_has_read_the_list_a_device_is_thrown_out_as_often_as_it_comes(
    unwatched: TlsMosquitto,
) -> None:
    broker, gate = unwatched, gate_of(unwatched)
    device, serials, files = come(broker, "roof-17")
    result: list[bool] = []
    thread = threading.Thread(target=lambda: result.append(gate.cut_off("roof-17", serials).in_force))
    thread.start()
    try:
        # Its certificate still opens the door: that is why one takeover is not enough.
        until(lambda: device.sessions >= 2)
        assert visit(broker, files).answer is Answer.TAKEN_IN
        broker.reload()
        thread.join(WAIT_S_MAX)
        assert result == [True]
        until(lambda: not device.connected)
        sessions = device.sessions
        time.sleep(1.3)
        assert device.sessions == sessions
    finally:
        device.close()
        thread.join()


class Written(BrokerGate):
    """A door that writes down what is done at it; the list is in force at the third look."""

    def __init__(self, broker: TlsMosquitto) -> None:
        super().__init__(broker.files, broker.authority, (broker.host, broker.port), SystemClock())
        self.done: list[str] = []
        self.unreachable_at = self.asked_again_at = -1

    def _throw_out(self, device: str) -> bool:
        self.done.append(device)
        if len(self.done) == self.asked_again_at:
            self._refuse(device, {2: 1e11})
        return len(self.done) != self.unreachable_at

    def _in_force(self) -> bool:
        self.done.append("look")
        return self.done.count("look") >= 3


def test_whoever_came_between_is_thrown_out_once_more_after_the_list_is_in_force(
    unwatched: TlsMosquitto,
) -> None:
    """The one moment that no test with a real device can hold still."""
    gate = Written(unwatched)
    assert gate.cut_off("roof-17", {}).in_force
    assert gate.done == ["roof-17", "look"] * 3 + ["roof-17"]
    # The last one must succeed too.
    gate = Written(unwatched)
    gate.unreachable_at = 7
    assert gate.cut_off("roof-17", {}).in_force
    assert gate.done == ["roof-17", "look"] * 3 + ["roof-17"] + ["roof-17", "look", "roof-17"]


def test_a_second_certificate_revoked_just_then_is_not_forgotten(unwatched: TlsMosquitto) -> None:
    """It may have come back by the second, which the list that is just coming into force does not name."""
    gate = Written(unwatched)
    gate.asked_again_at = 7
    gate.cut_off("roof-17", {1: 1e11})
    assert gate.done == ["roof-17", "look"] * 3 + ["roof-17"]
    assert gate.settle(0.0)
    assert gate.done[7:] == ["roof-17", "look", "roof-17"]
    assert gate.settle(0.0)
    assert gate.done[10:] == ["look"]


def test_a_broker_that_nobody_reloads_is_no_success_and_is_tried_on(
    unwatched: TlsMosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet.adapters.gate.SETTLE_S_MAX", 0.3)
    broker, gate = unwatched, gate_of(unwatched)
    device, serials, files = come(broker, "roof-17")
    gate.start()
    try:
        done = gate.cut_off("roof-17", serials)
        assert not done.in_force
        assert "reload" in done.detail
        assert gate.trouble is not None
        broker.reload()
        until(lambda: gate.trouble is None)
        until(lambda: visit(broker, files).answer is Answer.REVOKED and not device.connected)
    finally:
        gate.stop()
        device.close()


def test_a_registry_that_was_killed_throws_out_when_it_is_back(broker: TlsMosquitto) -> None:
    device, serials, _ = come(broker, "roof-17")
    broker.files.refuse("roof-17", serials, broker.authority, time.time())
    time.sleep(0.5)
    gate = gate_of(broker)
    try:
        assert device.connected, "a reload alone ends no session"
        gate.start()
        until(lambda: not device.connected)
    finally:
        gate.stop()
        device.close()


def test_what_waited_for_a_revoked_device_is_gone(broker: TlsMosquitto) -> None:
    device, serials, _ = come(broker, "roof-17")
    device.close()
    registry = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv311)
    registry.tls_set_context(broker.registry())
    registry.connect(broker.host, broker.port)
    registry.loop_start()
    registry.publish("shallop/v1/device/roof-17/down/desired", b"x", qos=1).wait_for_publish(WAIT_S_MAX)
    gate = gate_of(broker)
    assert gate.cut_off("roof-17", serials).in_force
    assert gate.let_in("roof-17")
    again, _, files = come(broker, "roof-17")
    try:
        registry.publish("shallop/v1/device/roof-17/down/desired", b"y", qos=1).wait_for_publish(WAIT_S_MAX)
        until(lambda: again.heard != [])
        time.sleep(0.3)
        assert len(again.heard) == 1
        assert visit(broker, files).answer is Answer.TAKEN_IN
    finally:
        again.close()
        registry.disconnect()
        registry.loop_stop()


def test_let_in_again_the_old_certificate_stays_out(broker: TlsMosquitto) -> None:
    device, serials, files = come(broker, "roof-17")
    device.close()
    gate = gate_of(broker)
    assert gate.cut_off("roof-17", serials).in_force
    assert gate.let_in("roof-17")
    assert visit(broker, files).answer is Answer.REVOKED
    assert visit(broker, broker.device("roof-17")).answer is Answer.TAKEN_IN


def test_a_broker_that_is_away_is_told_when_it_is_back(
    broker: TlsMosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet.adapters.gate.SETTLE_S_MAX", 0.3)
    issued, _ = broker.issue("roof-17")
    broker.stop()
    gate = gate_of(broker)
    gate.start()
    try:
        done = gate.cut_off("roof-17", {issued.serial: issued.not_after})
        assert not done.in_force
        assert "silent" in done.detail
        broker.start()
        until(lambda: gate.trouble is None)
    finally:
        gate.stop()


# --- the registry looks after the door ----------------------------------------------------------------


def test_the_registry_finds_out_that_a_broker_takes_everybody_in(unwatched: TlsMosquitto) -> None:
    """What Mosquitto 2.0.11 does after a reload without its list, and without its access list."""
    broker, gate = unwatched, gate_of(unwatched)
    gate.look()
    assert gate.trouble is None
    listed, access = broker.out / "crl.pem", broker.out / "access.acl"
    kept = listed.read_bytes(), access.read_bytes()
    canary = client_context(broker.out / "ca.pem", broker.keys / "canary.pem")
    listed.unlink()
    broker.reload()
    until(lambda: knock((broker.host, broker.port), canary, listen_s=0.3).answer is Answer.TAKEN_IN)
    listed.write_bytes(kept[0])
    gate.look()
    assert "does not refuse what was revoked" in str(gate.trouble)
    access.unlink()
    broker.reload()
    until(lambda: knock((broker.host, broker.port), canary, listen_s=0.3).answer is Answer.REVOKED)
    access.write_bytes(kept[1])
    gate.look()
    assert "anybody may write everywhere" in str(gate.trouble)
    broker.reload()

    def well() -> bool:
        gate.look()
        return gate.trouble is None

    until(well)


def test_the_registry_renews_what_is_due_and_the_broker_shows_it(broker: TlsMosquitto) -> None:
    clock = SystemClock()
    gate = gate_of(broker, clock)
    names = [broker.keys / "registry.pem", broker.keys / "probe.pem", broker.out / "server.pem"]
    before = [path.read_bytes() for path in names]
    gate.renew()
    assert [path.read_bytes() for path in names] == before
    clock.shift_s = 300 * 86400.0
    gate.renew()
    assert all(path.read_bytes() != old for path, old in zip(names, before, strict=True))


IN, OUT = Knock(answer=Answer.TAKEN_IN, trespassed=False), Knock(answer=Answer.REVOKED)
ENDED = Knock(answer=Answer.REFUSED, detail="EXPIRED")
ENDS = 1_900_000_000.0


@pytest.mark.parametrize(
    ("canary", "probe", "words"),
    [
        (OUT, IN, None),
        (OUT, replace(IN, server_not_after=ENDS + 70 * DAY_S), None),
        (OUT, replace(IN, server_not_after=ENDS + 60 * DAY_S), "its certificate ends in 60 days"),
        (OUT, replace(IN, server_not_after=ENDS - DAY_S), "its certificate ends in 0 days"),
        (OUT, replace(IN, trespassed=True), "anybody may write everywhere"),
        (IN, replace(IN, trespassed=True), "anybody may write everywhere"),
        (IN, IN, "does not refuse what was revoked (taken_in)"),
        (
            Knock(answer=Answer.REFUSED, detail="EXPIRED"),
            IN,
            "does not refuse what was revoked (refused, EXPIRED)",
        ),
        (
            OUT,
            Knock(answer=Answer.REFUSED, detail="EXPIRED"),
            "does not take in who may come (refused, EXPIRED)",
        ),
    ],
)
def test_what_is_wrong_is_said_the_worst_first(canary: Knock, probe: Knock, words: str | None) -> None:
    said = trouble_of(canary, probe, ENDS)
    assert said is None if words is None else words in str(said)


def test_a_list_that_was_lost_is_made_again_and_read(broker: TlsMosquitto) -> None:
    issued, _ = broker.issue("roof-17")
    gate = gate_of(broker)
    assert gate.cut_off("roof-17", {issued.serial: issued.not_after}).in_force
    (broker.out / "access.acl").unlink()
    gate.look()
    assert gate.settle(WAIT_S_MAX)
    assert "user roof-17" in (broker.out / "access.acl").read_text()
    gate.look()
    assert gate.trouble is None


def test_a_damaged_record_ends_no_thread(broker: TlsMosquitto) -> None:
    gate = gate_of(broker)
    record = broker.out / "revoked.json"
    kept = record.read_bytes()
    record.write_text("{")
    gate.start()
    try:
        until(lambda: "put it back from a backup" in str(gate.trouble))
        with pytest.raises(ShallopError):
            gate.cut_off("roof-17", {})
        record.write_bytes(kept)
        assert gate.cut_off("roof-17", {}).in_force
    finally:
        gate.stop()


def test_the_registrys_own_certificate_is_renewed_while_it_runs(broker: TlsMosquitto) -> None:
    config = Config(broker=broker.url, broker_files=str(broker.out), keys=str(broker.keys))
    door = open_door(config, SystemClock())
    assert door.tls is not None
    assert isinstance(door.gate, BrokerGate)
    own = broker.keys / "registry.pem"
    now = time.time()
    own.write_bytes(together(broker.authority.issue_client(REGISTRY, now - 3 * DAY_S, DAY_S)))
    following = Following(
        DoorHolder(config, door, SqlStore("sqlite://", "a" * 32), lambda _: None), stamps(door_files(config))
    )
    following.ask()
    following.look()
    address = (broker.host, broker.port)
    assert knock(address, door.tls, listen_s=0.3).answer is Answer.REFUSED
    door.gate.renew()
    following.look()
    following.look()
    assert knock(address, door.tls).answer is Answer.TAKEN_IN


def test_a_registry_that_was_off_until_its_certificate_ended_makes_a_new_one(broker: TlsMosquitto) -> None:
    expired = broker.authority.issue_client(REGISTRY, time.time() - 3 * DAY_S, DAY_S)
    (broker.keys / "registry.pem").write_bytes(together(expired))
    config = Config(broker=broker.url, broker_files=str(broker.out), keys=str(broker.keys))
    door = open_door(config, SystemClock())
    assert door.client_id == REGISTRY
    assert door.tls is not None
    assert knock((broker.host, broker.port), door.tls).answer is Answer.TAKEN_IN


def test_without_a_broker_of_its_own_a_registry_cuts_nobody_off_and_says_so(
    broker: TlsMosquitto, tmp_path: Path
) -> None:
    plain = open_door(Config(), SystemClock())
    assert (plain.tls, plain.client_id) == (None, None)
    assert "mqtt://" in plain.gate.cut_off("roof-17", {}).detail
    elsewhere = Config(
        broker=broker.url, keys=str(tmp_path),
        broker_tls=BrokerTls(ca_file=f"{broker.out}/ca.pem", cert_file=f"{broker.keys}/registry.pem"),
    )  # fmt: skip
    door = open_door(elsewhere, SystemClock())
    assert door.tls is not None
    done = door.gate.cut_off("roof-17", {})
    assert not done.in_force
    assert "broker init" in done.detail
    for config in (Config(broker=broker.url, keys=str(tmp_path)), Config(broker="https://x")):
        with pytest.raises(BrokerError):
            open_door(config, SystemClock())


# --- the whole program --------------------------------------------------------------------------------


def test_a_registry_process_speaks_tls_and_finds_its_door_well(broker: TlsMosquitto, tmp_path: Path) -> None:
    config = tmp_path / "fleet.yaml"
    config.write_text(f"broker: {broker.url}\nbroker_files: {broker.out}\nkeys: {broker.keys}\n")
    CliRunner().invoke(
        fleet, ["keys", "init", "--keys", str(broker.keys), "--root-keys", str(tmp_path / "root-keys")]
    )
    registry = RegistryProcess(tmp_path / "data", 0, "--config", str(config), broker=broker.url)
    registry.start()
    try:
        wait_for("the connection", lambda: "as fleet.registry" in broker.log)
        wait_for(
            "the first look at the door", lambda: "as fleet.probe" in broker.log.rpartition("registry")[2]
        )
        health = httpx.get(f"{registry.url}/api/health", trust_env=False).json()
        assert health["broker_connected"] is True
        assert health["broker_trouble"] is None
    finally:
        registry.stop()


def test_a_person_tries_the_door(unwatched: TlsMosquitto) -> None:
    broker = unwatched
    asked = ["broker", "check", "--keys", str(broker.keys), "--out", str(broker.out), "--json"]
    well = CliRunner().invoke(fleet, asked)
    assert well.exit_code == 0, well.output
    assert [one["ok"] for one in json.loads(well.output)] == [True] * 9
    # A list of its own, so that the one in force does not name the canary.
    broker.files.rewrite(broker.authority, time.time())
    bad = CliRunner().invoke(fleet, asked)
    assert bad.exit_code == 3
    assert [one["what"] for one in json.loads(bad.output) if not one["ok"]] == ["refuses what was revoked"]


# --- one authority follows another --------------------------------------------------------------------


def test_nobody_who_renewed_in_time_is_locked_out_when_one_authority_follows_another(
    broker: TlsMosquitto, tmp_path: Path
) -> None:
    address = (broker.host, broker.port)
    before = broker.device("roof-17")
    knows_old = tmp_path / "old.pem"
    knows_old.write_text(broker.authority.certificates_pem)

    def step(verb: str) -> None:
        done = CliRunner().invoke(
            fleet, ["broker", "ca", verb, "--keys", str(broker.keys), "--out", str(broker.out)]
        )
        assert done.exit_code == 0, done.output
        # Each step has a canary of its own, by which the broker is seen to have read it.
        until(lambda: visit(broker, (broker.keys / "canary.pem",)).answer is Answer.REVOKED)

    step("rotate")
    knows_both = tmp_path / "both.pem"
    knows_both.write_text(broker.authority.certificates_pem)
    assert knock(address, client_context(knows_old, *before)).answer is Answer.TAKEN_IN
    step("switch")
    after = broker.device("roof-17")
    assert knock(address, client_context(knows_both, *before)).answer is Answer.TAKEN_IN
    assert knock(address, client_context(knows_both, *after)).answer is Answer.TAKEN_IN
    assert "certificate is not the broker's" in knock(address, client_context(knows_old, *before)).detail
    step("drop")
    knows_new = tmp_path / "new.pem"
    knows_new.write_text(broker.authority.certificates_pem)
    assert knock(address, client_context(knows_new, *after)).answer is Answer.TAKEN_IN
    assert knock(address, client_context(knows_new, *before), listen_s=0.3).answer is Answer.REFUSED
    assert knock(address, broker.registry()).answer is Answer.TAKEN_IN


def test_the_door_is_tried_while_the_registry_looks_at_it_under_the_same_name(broker: TlsMosquitto) -> None:
    """Of two visits under one name the broker ends one, in whatever moment it is."""
    address, found = (broker.host, broker.port), list[Finding]()

    def looks() -> None:
        context = client_context(broker.out / CA, broker.files.program(PROBE))
        # As long as the first of three tries.
        end_s = time.monotonic() + 0.3
        while time.monotonic() < end_s:
            knock(address, context)

    for _ in range(5):
        registry = threading.Thread(target=looks)
        registry.start()
        found += check(broker.files, address, time.time())
        registry.join()
    assert [one for one in found if not one.ok] == []
