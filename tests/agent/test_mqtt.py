"""The MQTT adapter and the daemon as a process, against a real Mosquitto with production's configuration."""

from __future__ import annotations

import contextlib
import queue
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from agent.adapters.mqtt import Address, MqttTransport
from tests.agent.twins import TOPICS, FixedRandom, sealed_command, sealed_desired, until
from tests.brokers import Mosquitto
from tests.integration import bundles
from wire import trust
from wire.chunks import cut, pieces
from wire.messages import DesiredModel, ModelState, Reported, Rollback, Status, ToDevice
from wire.topics import BLOB, COMMAND, DESIRED, RELEASE, REPORTED, STATUS

pytestmark = pytest.mark.broker
ROOT = Path(__file__).parents[2]
DEVICE = "roof-17"


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


class Heard:
    """A listener that writes down what it hears, and fails where a test wants it to."""

    def __init__(self) -> None:
        self.messages: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self.connections = 0
        self.losses: list[str] = []
        self.fails = False

    def will(self) -> tuple[str, bytes]:
        return "test/will", b"gone %d" % (self.connections + 1)

    def connected(self) -> None:
        self.connections += 1

    def disconnected(self, why: str) -> None:
        self.losses.append(why)

    def received(self, topic: str, payload: bytes) -> None:
        if self.fails:
            self.fails = False
            raise ValueError("a mistake in a callback")
        self.messages.put((topic, payload))


@contextlib.contextmanager
def client(broker: Mosquitto, name: str) -> Iterator[tuple[MqttTransport, Heard]]:
    address = Address(host=broker.host, port=broker.port, client_id=name, reconnect_s_max=1.0)
    transport, heard = MqttTransport(address, FixedRandom()), Heard()
    transport.start(heard)
    try:
        until(lambda: heard.connections, "the connection")
        yield transport, heard
    finally:
        transport.stop()


def test_a_message_goes_there_and_back(mosquitto: Mosquitto) -> None:
    with client(mosquitto, "a") as (transport, heard):
        topics = [(f"test/{n}", 1) for n in range(20)]
        transport.subscribe(topics)
        for topic, _ in topics:
            assert transport.publish(topic, topic.encode(), qos=1, retain=False)
        got = {heard.messages.get(timeout=20) for _ in topics}
        assert got == {(topic, topic.encode()) for topic, _ in topics}


def test_small_packets_do_not_wait_for_one_another(mosquitto: Mosquitto) -> None:
    """Without TCP_NODELAY a transfer of chunks has half the speed (DESIGN.md section 3)."""
    with client(mosquitto, "quick") as (transport, _):
        connection = transport._client.socket()
        assert isinstance(connection, socket.socket)
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_asking_again_brings_what_is_retained_again(mosquitto: Mosquitto) -> None:
    with client(mosquitto, "b") as (transport, heard):
        transport.publish("test/kept", b"x", qos=1, retain=True)
        for _ in range(2):
            transport.subscribe([("test/kept", 0)])
            assert heard.messages.get(timeout=20) == ("test/kept", b"x")
        transport.unsubscribe(["test/kept"])
        transport.publish("test/kept", b"", qos=1, retain=True)


def test_a_mistake_in_a_callback_does_not_end_the_connection(
    mosquitto: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    with client(mosquitto, "c") as (transport, heard):
        transport.subscribe([("test/c", 1)])
        heard.fails = True
        transport.publish("test/c", b"1", qos=1, retain=False)
        transport.publish("test/c", b"2", qos=1, retain=False)
        assert heard.messages.get(timeout=20) == ("test/c", b"2")
        assert transport.connected
    assert "a mistake in a callback" in caplog.text


def test_a_broker_that_comes_back_is_connected_to_again_and_nothing_is_sent_meanwhile(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, client(broker, "d") as (transport, heard):
        broker.kill()
        until(lambda: not transport.connected, "noticing that the broker is gone")
        assert not transport.publish("test/d", b"old news", qos=1, retain=False)
        broker.start()
        until(lambda: heard.connections == 2, "the second connection")
        transport.subscribe([("test/d", 1)])
        until(lambda: transport.publish("test/d", b"news", qos=1, retain=False), "publishing")
        assert heard.messages.get(timeout=20) == ("test/d", b"news")


def test_the_will_is_of_the_connection_that_broke_and_a_stop_needs_none(mosquitto: Mosquitto) -> None:
    with client(mosquitto, "watcher") as (watcher, heard):
        watcher.subscribe([("test/will", 1)])
        with client(mosquitto, "e") as (transport, broken):
            sock = transport._client.socket()
            assert isinstance(sock, socket.socket)
            sock.shutdown(socket.SHUT_RDWR)
            assert heard.messages.get(timeout=20) == ("test/will", b"gone 1")
            until(lambda: broken.connections == 2 and transport.connected, "the second connection")
            transport.stop(("test/will", b"farewell"))
        # Mosquitto may tell the old will twice when the client is back before its end was noticed.
        said = heard.messages.get(timeout=20)
        while said == ("test/will", b"gone 1"):
            said = heard.messages.get(timeout=20)
        assert said == ("test/will", b"farewell")
        assert heard.messages.empty(), "a client that said goodbye left a will"


def test_a_command_reaches_a_device_that_was_offline_for_that_moment(mosquitto: Mosquitto) -> None:
    with client(mosquitto, "f") as (transport, _):
        transport.subscribe([("test/f", 1)])
        transport.publish("test/f", b"mark", qos=1, retain=False)
        until(lambda: not _.messages.empty(), "the subscription")
    with client(mosquitto, "g") as (other, _):
        other.publish("test/f", b"while away", qos=1, retain=False)
    with client(mosquitto, "f") as (_, heard):
        assert heard.messages.get(timeout=20) == ("test/f", b"while away")


# --- the daemon as a process ------------------------------------------------------------------------


class Fleet:
    """The other side, in a few lines."""

    def __init__(self, broker: Mosquitto) -> None:
        self.reported: list[ModelState] = []
        self.status: list[Status] = []
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="fleet")
        self._client.max_inflight_messages_set(64)
        self._client.on_message = self._on_message
        self._client.connect(broker.host, broker.port)
        self._client.loop_start()
        self._client.subscribe(TOPICS.filter(REPORTED), 1)
        self._client.subscribe(TOPICS.filter(STATUS), 1)

    def _on_message(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        if message.topic.endswith("/status"):
            self.status.append(msgspec.json.decode(message.payload, type=Status))
        else:
            self.reported += msgspec.json.decode(message.payload, type=Reported).models.values()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def put(self, topic: str, payload: bytes, *, retain: bool = True) -> None:
        self._client.publish(topic, payload, 1, retain).wait_for_publish(20)

    def publish(self, folder: Path, **options: object) -> str:
        manifest = bundles.make_bundle(folder, **options)  # type: ignore[arg-type]
        for file in manifest.all_files():
            data = (folder / file.path).read_bytes()
            for piece, chunk in zip(pieces(data, cut(len(data))), file.chunks, strict=True):
                self.put(TOPICS.topic(BLOB, digest=chunk.sha256), bytes(piece))
        digest = bundles.digest_of(folder)
        sealed = trust.seal("release", (folder / "manifest.json").read_bytes())
        self.put(TOPICS.topic(RELEASE, digest=digest), sealed)
        return digest

    def order(self, number: int, digest: str) -> None:
        wanted = DesiredModel(order=number, digest=digest, release=str(number), soak_s=0.2)
        self.put(TOPICS.topic(DESIRED, device=DEVICE), sealed_desired(DEVICE, {"tiny": wanted}))

    def wait(self, order: int, outcome: str) -> ModelState:
        wanted = (order, outcome)
        until(lambda: (s := self.reported) and (s[-1].order, s[-1].outcome) == wanted, outcome, 60)
        return self.reported[-1]


@contextlib.contextmanager
def daemon(
    folder: Path, broker: Mosquitto, trial: str = "", more: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """The agent on its own; `trial` begins with a comma and names more settings of trials."""
    config = folder / "agent.yaml"
    config.write_text(
        f"device: {DEVICE}\nstate_dir: {folder}/state\ninsecure_unsigned: true\n"
        f"broker: {{host: {broker.host}, port: {broker.port}}}\n"
        "trial: {latency_runs: 20, warmup: 2, energy_window_s: 0.05, "
        f"lock_file: {folder / 'lock'}{trial}}}\n{more}"
    )
    command = [sys.executable, "-m", "agent", "run", "--config", str(config)]
    with (folder / "log").open("ab") as log, subprocess.Popen(command, cwd=ROOT, stderr=log) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(20)


def test_a_real_daemon_deploys_refuses_restarts_and_rolls_back(mosquitto: Mosquitto, tmp_path: Path) -> None:
    fleet = Fleet(mosquitto)
    try:
        one, two = fleet.publish(tmp_path / "1", seed=1), fleet.publish(tmp_path / "2", seed=2, release="2")
        bad = fleet.publish(tmp_path / "3", seed=3, release="3", harm="garbage")
        with daemon(tmp_path, mosquitto) as process:
            fleet.order(1, one)
            state = fleet.wait(1, "active")
            assert state.trial is not None
            assert state.trial.result.conformance is not None
            assert state.trial.result.conformance.conforms
            fleet.order(2, two)
            fleet.wait(2, "active")
            fleet.order(3, bad)
            refused = fleet.wait(3, "failed").reason
            assert refused is not None
            assert refused.code == "model_malformed"
            process.kill()
            process.wait(20)
            until(lambda: not fleet.status[-1].online, "the last will", 60)
        with daemon(tmp_path, mosquitto) as process:
            until(
                lambda: fleet.status[-1].online and fleet.status[-1].number == 2, "the second connection", 60
            )
            command = sealed_command(ToDevice(device=DEVICE), Rollback(model="tiny", from_=two, order=4))
            fleet.put(TOPICS.topic(COMMAND, device=DEVICE), command, retain=False)
            state = fleet.wait(2, "rolled_back")
            assert state.active is not None
            assert state.active.digest == one
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        until(lambda: not fleet.status[-1].online, "the farewell")
        assert (tmp_path / "state" / "models" / "tiny" / "current" / "model.onnx").is_file()
    finally:
        fleet.close()
