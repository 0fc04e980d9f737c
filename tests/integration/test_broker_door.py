"""A revoked device is thrown out of a real Mosquitto at once, and does not come back.

The broker is read anew by a watcher that stands for systemd's path unit, or by the test's own hand where the
moment between takeover and reload is looked at.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from fleet.adapters.broker_tls import Answer, Knock, client_context, knock
from fleet.adapters.gate import BrokerGate
from tests.brokers import TlsMosquitto

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


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S_MAX
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def gate_of(broker: TlsMosquitto, clock: SystemClock | None = None) -> BrokerGate:
    return BrokerGate(broker.files, broker.authority, (broker.host, broker.port), clock or SystemClock())


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


def visit(broker: TlsMosquitto, files: tuple[Path, Path]) -> Knock:
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
        time.sleep(1.8)
        assert (device.sessions, device.connected) == (sessions, False)
        assert (neighbour.sessions, neighbour.connected) == (1, True)
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
        time.sleep(1.6)
        assert device.sessions == sessions
    finally:
        device.close()
        thread.join()


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
    gate.look()
    assert "does not refuse what was revoked" in str(gate.trouble)
    listed.write_bytes(kept[0])
    access.unlink()
    broker.reload()
    until(lambda: knock((broker.host, broker.port), canary, listen_s=0.3).answer is Answer.REVOKED)
    gate.look()
    assert "anybody may write everywhere" in str(gate.trouble)
    access.write_bytes(kept[1])
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


def test_a_certificate_that_ends_soon_is_trouble(unwatched: TlsMosquitto) -> None:
    clock = SystemClock()
    clock.shift_s = 395 * 86400.0
    gate = gate_of(unwatched, clock)
    # The programs' certificates, renewed by that clock, are not yet valid by the broker's.
    gate.look()
    assert gate.trouble is not None
