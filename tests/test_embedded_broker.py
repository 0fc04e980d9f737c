"""The embedded broker, both kinds, and production's Mosquitto: what Shallop needs of a broker, for real."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Self

import pytest
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from examples.demo.house import House
from fleet.adapters import broker_process, embedded_broker
from fleet.adapters.broker_process import BrokerProcess, BrokerStartError, answers, free_port
from fleet.adapters.embedded_broker import BrokerKind, EmbeddedBroker, find_broker
from tests import brokers
from tests.brokers import Mosquitto, production_config, require_mosquitto

pytestmark = pytest.mark.broker

CAME_S_MAX = 30.0
BLOB_BYTES = 65_536


class Client:
    """An MQTT 3.1.1 client whose messages wait in a queue."""

    def __init__(self, port: int, name: str = "", *, clean: bool = True) -> None:
        self._came: queue.Queue[tuple[str, bytes, bool]] = queue.Queue()
        self._answered: queue.Queue[int] = queue.Queue()
        connected: queue.Queue[bool] = queue.Queue()
        self._paho = mqtt.Client(
            CallbackAPIVersion.VERSION2, name, clean_session=clean, protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )  # fmt: skip
        self._paho.on_connect = lambda *_: connected.put(True)
        self._paho.on_subscribe = lambda _c, _u, mid, _r, _p: self._answered.put(mid)
        self._paho.on_unsubscribe = lambda _c, _u, mid, _r, _p: self._answered.put(mid)
        self._paho.on_message = lambda _c, _u, m: self._came.put((m.topic, bytes(m.payload), m.retain))
        self._paho.connect("127.0.0.1", port)
        self._paho.loop_start()
        connected.get(timeout=CAME_S_MAX)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._paho.disconnect()
        self._paho.loop_stop()

    def publish(self, topic: str, payload: bytes, *, retain: bool = True) -> None:
        info = self._paho.publish(topic, payload, qos=1, retain=retain)
        info.wait_for_publish(CAME_S_MAX)
        assert info.is_published()

    def subscribe(self, *topics: str, qos: int = 0) -> None:
        self._paho.subscribe([(topic, qos) for topic in topics])
        self._answered.get(timeout=CAME_S_MAX)

    def next(self) -> tuple[str, bytes, bool]:
        return self._came.get(timeout=CAME_S_MAX)

    def retained(self, expected: dict[str, bytes | None]) -> dict[str, bytes | None]:
        """What is retained under these topics, asked again until it is as expected or the time is up.

        Asked again because NATS may give nothing to a subscription made at once after a PUBACK (ADR 0002).
        """
        deadline = time.monotonic() + CAME_S_MAX
        found = self.retained_now(list(expected))
        while found != expected and time.monotonic() < deadline:
            found = self.retained_now(list(expected))
        return found

    def retained_now(self, topics: list[str]) -> dict[str, bytes | None]:
        end = f"end/{os.urandom(8).hex()}"
        # At QoS 1: Mosquitto drops what comes at QoS 0 while a large message is still on its way.
        self.subscribe(end, qos=1)
        self.subscribe(*topics)
        self.publish(end, b"all before this was delivered", retain=False)
        found: dict[str, bytes | None] = dict.fromkeys(topics)
        while (message := self.next())[0] != end:
            assert message[2], f"{message[0]} came without the retain flag"
            found[message[0]] = message[1]
        self._paho.unsubscribe([*topics, end])
        self._answered.get(timeout=CAME_S_MAX)
        return found


def require(kind: BrokerKind) -> None:
    if kind is BrokerKind.MOSQUITTO:
        require_mosquitto()
    elif find_broker(kind) is None:
        pytest.skip("nats-server is not installed: pip install 'shallop[broker]'")


@pytest.fixture(params=list(BrokerKind))
def kind(request: pytest.FixtureRequest) -> BrokerKind:
    kind: BrokerKind = request.param
    require(kind)
    return kind


@pytest.fixture
def broker(tmp_path: Path, kind: BrokerKind) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(tmp_path / "a folder", kind=kind) as running:
        yield running


def test_it_says_what_and_where_it_is(broker: EmbeddedBroker, kind: BrokerKind) -> None:
    assert broker.kind is kind
    assert broker.host == "127.0.0.1"
    assert answers(broker.port)
    process = Path(f"/proc/{broker.pid}")
    assert process.exists()
    broker.stop()
    assert not process.exists()
    assert broker.pid is None
    assert not answers(broker.port)
    broker.stop()


def test_it_listens_on_loopback_only(broker: EmbeddedBroker) -> None:
    inodes = {str(link.readlink()) for link in Path(f"/proc/{broker.pid}/fd").iterdir()}
    listening = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                address, port = fields[1].split(":")
                listening[int(port, 16)] = address
    assert listening.pop(broker.port) == "0100007F"
    assert set(listening.values()) <= {"0100007F"}


def test_nobody_enters_by_nats_own_port(tmp_path: Path) -> None:
    require(BrokerKind.NATS)
    with EmbeddedBroker(tmp_path, kind=BrokerKind.NATS) as broker:
        log = (broker.data / "broker.log").read_text()
        port = int(log.split("Listening for client connections on 127.0.0.1:")[1].split()[0])
        with socket.create_connection(("127.0.0.1", port), CAME_S_MAX) as link, link.makefile("rb") as said:
            said.readline()
            link.sendall(b'CONNECT {"verbose":true}\r\n')
            assert b"Authorization Violation" in said.readline()


def test_retained_blobs_come_whole_by_exact_topic(broker: EmbeddedBroker) -> None:
    blobs: dict[str, bytes | None] = {
        f"shallop/v1/blob/{number:064x}": os.urandom(BLOB_BYTES) for number in range(32)
    }
    with Client(broker.port) as publisher:
        for topic, blob in blobs.items():
            publisher.publish(topic, blob or b"")
    with Client(broker.port) as reader:
        assert reader.retained(blobs) == blobs
        assert reader.retained(blobs) == blobs


def test_subscribing_again_delivers_again(broker: EmbeddedBroker) -> None:
    with Client(broker.port) as client:
        client.publish("a/b", b"kept")
        assert client.retained({"a/b": b"kept"}) == {"a/b": b"kept"}
        for _ in range(3):
            client.subscribe("a/b")
            assert client.next() == ("a/b", b"kept", True)


def test_retained_is_overwritten_and_cleared(broker: EmbeddedBroker) -> None:
    with Client(broker.port) as publisher, Client(broker.port) as reader:
        publisher.publish("a/b", b"first")
        publisher.publish("a/b", b"second")
        assert reader.retained({"a/b": b"second"}) == {"a/b": b"second"}
        publisher.publish("a/b", b"")
        assert reader.retained({"a/b": None}) == {"a/b": None}


def test_a_wildcard_brings_all_that_devices_retained(broker: EmbeddedBroker) -> None:
    topics = [f"r/device/d{number}/up/{leaf}" for number in range(100) for leaf in ("status", "reported")]
    with Client(broker.port) as publisher, Client(broker.port) as reader:
        for topic in topics:
            publisher.publish(topic, b"{}")
        assert reader.retained({topics[-1]: b"{}"}) == {topics[-1]: b"{}"}
        reader.subscribe("r/device/+/up/#", qos=1)
        assert {reader.next()[0] for _ in topics} == set(topics)


def test_the_largest_message_of_the_contract(broker: EmbeddedBroker) -> None:
    payload = os.urandom(embedded_broker.PAYLOAD_BYTES_MAX - embedded_broker.TOPIC_BYTES_MAX)
    with Client(broker.port) as client:
        client.publish("shallop/v1/release/x", payload)
        assert client.retained({"shallop/v1/release/x": payload}) == {"shallop/v1/release/x": payload}


DYING = """
import sys
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
client = mqtt.Client(CallbackAPIVersion.VERSION2, "dying")
client.will_set("d/up/status", b"offline", qos=1, retain=True)
client.on_connect = lambda *_: client.publish("d/up/status", b"online", qos=1, retain=True)
client.connect("127.0.0.1", int(sys.argv[1]))
client.loop_forever()
"""


def test_last_will_of_a_killed_client(broker: EmbeddedBroker) -> None:
    with Client(broker.port) as watcher:
        watcher.subscribe("d/up/status", qos=1)
        with subprocess.Popen([sys.executable, "-c", DYING, str(broker.port)]) as dying:
            try:
                assert watcher.next()[:2] == ("d/up/status", b"online")
            finally:
                dying.kill()
        assert watcher.next()[:2] == ("d/up/status", b"offline")
    with Client(broker.port) as late:
        assert late.retained({"d/up/status": b"offline"}) == {"d/up/status": b"offline"}


def test_a_session_keeps_messages_for_who_is_away(broker: EmbeddedBroker) -> None:
    with Client(broker.port, "sleeper", clean=False) as sleeper:
        sleeper.subscribe("all/down/command", qos=1)
    with Client(broker.port) as publisher:
        for number in range(20):
            publisher.publish("all/down/command", b"%d" % number, retain=False)
    with Client(broker.port, "sleeper", clean=False) as sleeper:
        assert [int(sleeper.next()[1]) for _ in range(20)] == list(range(20))


def test_stopped_and_started_again_it_remembers(broker: EmbeddedBroker) -> None:
    port = broker.port
    with Client(port) as client:
        client.publish("kept", b"first")
        client.publish("kept", b"second")
        client.publish("cleared", b"here")
        client.publish("cleared", b"")
    broker.stop()
    broker.start()
    assert broker.port == port
    with Client(port) as client:
        expected: dict[str, bytes | None] = {"kept": b"second", "cleared": None}
        assert client.retained(expected) == expected


def test_nats_killed_remembers_all_but_a_clearing(tmp_path: Path) -> None:
    """A clearing made shortly before kill -9 may be forgotten (ADR 0002); nothing else may."""
    require(BrokerKind.NATS)
    with EmbeddedBroker(tmp_path, kind=BrokerKind.NATS) as broker:
        with Client(broker.port) as client:
            client.publish("kept", b"first")
            client.publish("kept", b"second")
            client.publish("cleared", b"old")
            client.publish("cleared", b"")
        broker.kill()
        broker.start()
        with Client(broker.port) as client:
            assert client.retained({"kept": b"second"}) == {"kept": b"second"}
            assert client.retained_now(["cleared"])["cleared"] in {None, b"old"}


def test_a_held_port_is_refused_even_if_its_holder_speaks_mqtt(
    tmp_path: Path, broker: EmbeddedBroker, kind: BrokerKind
) -> None:
    second = EmbeddedBroker(tmp_path / "second", port=broker.port, kind=kind)
    with pytest.raises(BrokerStartError, match=rf"127\.0\.0\.1:{broker.port} cannot be listened on .*in use"):
        second.start()
    assert second.pid is None
    assert answers(broker.port)


def test_one_folder_has_one_broker(broker: EmbeddedBroker, kind: BrokerKind) -> None:
    second = EmbeddedBroker(broker.data, kind=kind)
    with pytest.raises(BrokerStartError, match=r"another one runs in .*pgrep"):
        second.start()
    assert answers(broker.port)
    broker.kill()
    with second:
        assert answers(second.port)


def test_starting_twice_is_our_own_bug(broker: EmbeddedBroker) -> None:
    with pytest.raises(RuntimeError, match="runs already") as caught:
        broker.start()
    assert not isinstance(caught.value, BrokerStartError)
    assert answers(broker.port)


def test_a_broker_that_ends_is_reported_with_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("said by an earlier one\n")
    process = BrokerProcess(["sh", "-c", "echo no such option; exit 3"], free_port(), log)
    with pytest.raises(BrokerStartError, match="ended at once with status 3") as caught:
        process.start(10)
    assert "no such option" in str(caught.value)
    assert "earlier" not in str(caught.value)


def test_a_broker_that_never_answers_is_killed(tmp_path: Path) -> None:
    process = BrokerProcess(["sleep", "600"], free_port(), tmp_path / "log")
    with pytest.raises(BrokerStartError, match=r"within 0\.1 s and is killed"):
        process.start(0.1)
    assert process.pid is None


def test_an_interrupted_start_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = BrokerProcess(["sleep", "600"], free_port(), tmp_path / "log")
    pids: list[int | None] = []

    def interrupted(_port: int) -> bool:
        pids.append(process.pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(broker_process, "answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        process.start(10)
    assert not Path(f"/proc/{pids[0]}").exists()


def test_a_program_that_cannot_run(tmp_path: Path) -> None:
    process = BrokerProcess(["/no/such/broker"], free_port(), tmp_path / "log")
    with pytest.raises(BrokerStartError, match="/no/such/broker cannot be run"):
        process.start(1)


def test_a_large_log_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_process, "LOG_BYTES_MAX", 10)
    log = tmp_path / "log"
    log.write_text("more than ten bytes")
    with pytest.raises(BrokerStartError):
        BrokerProcess(["echo", "short"], free_port(), log).start(10)
    assert log.read_text() == "short\n"


def test_a_folder_that_cannot_be_made(tmp_path: Path, kind: BrokerKind) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(BrokerStartError, match="cannot be written"):
        EmbeddedBroker(tmp_path / "file" / "data", kind=kind).start()


def test_without_any_broker_it_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_broker, "find_broker", lambda _kind: None)
    with pytest.raises(BrokerStartError, match=r"apt-get install mosquitto.*pip install 'shallop\[broker\]'"):
        EmbeddedBroker(tmp_path)


def test_mosquitto_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_broker, "find_broker", lambda kind: Path(f"/bin/{kind}"))
    assert EmbeddedBroker(tmp_path).kind is BrokerKind.MOSQUITTO
    only_nats: Callable[[BrokerKind], Path | None] = {BrokerKind.NATS: Path("/bin/nats")}.get
    monkeypatch.setattr(embedded_broker, "find_broker", only_nats)
    assert EmbeddedBroker(tmp_path).kind is BrokerKind.NATS


def run_main(data: Path, kind: BrokerKind, port: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fleet.adapters.embedded_broker", "--data", str(data), "--kind", kind]
    return subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def address_of(stdout: IO[str] | None) -> tuple[str, int]:
    assert stdout is not None
    kind, _, address = stdout.readline().strip().partition(" on mqtt://127.0.0.1:")
    return kind, int(address)


def test_as_a_program_it_runs_until_sigterm(tmp_path: Path, kind: BrokerKind) -> None:
    with run_main(tmp_path, kind) as program:
        try:
            said, port = address_of(program.stdout)
            assert (said, answers(port)) == (kind, True)
            # Terminals and `timeout` signal a program and its group: it may get many, at any moment.
            deadline = time.monotonic() + CAME_S_MAX
            while program.poll() is None and time.monotonic() < deadline:
                program.send_signal(signal.SIGTERM)
            assert program.wait(CAME_S_MAX) == 0
            assert not answers(port)
            assert program.stderr is not None
            assert "for trying out" in program.stderr.read()
        finally:
            program.kill()


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv: apt-get install util-linux")
def test_as_a_program_its_broker_dies_with_it(tmp_path: Path, kind: BrokerKind) -> None:
    with run_main(tmp_path, kind) as program:
        _, port = address_of(program.stdout)
        program.kill()
        program.wait(CAME_S_MAX)
    with EmbeddedBroker(tmp_path, kind=kind, port=port) as next_one:
        assert answers(next_one.port)


def test_as_a_program_it_says_why_it_cannot_start(tmp_path: Path, broker: EmbeddedBroker) -> None:
    with run_main(tmp_path / "second", broker.kind, broker.port) as program:
        said, complained = program.communicate(timeout=CAME_S_MAX)
    assert (program.returncode, said) == (1, "")
    assert complained.startswith(f"no broker was started: 127.0.0.1:{broker.port}")


def test_production_configuration_starts_and_remembers(tmp_path: Path) -> None:
    with Mosquitto(tmp_path / "m") as mosquitto:
        with Client(mosquitto.port) as client:
            client.publish("kept", b"yes")
        mosquitto.restart()
        with Client(mosquitto.port) as client:
            assert client.retained({"kept": b"yes"}) == {"kept": b"yes"}
        # Killed before the next save it remembers the last one only, which the seed marker is for.
        with Client(mosquitto.port) as client:
            client.publish("late", b"lost")
        mosquitto.kill()
        mosquitto.start()
        with Client(mosquitto.port) as client:
            expected: dict[str, bytes | None] = {"kept": b"yes", "late": None}
            assert client.retained(expected) == expected


def test_production_carries_the_largest_message_of_the_contract(tmp_path: Path) -> None:
    require_mosquitto()
    limit = production_config(1, tmp_path).split("\nmax_packet_size ")[1].split()[0]
    assert int(limit) >= embedded_broker.PAYLOAD_BYTES_MAX


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_mosquitto_skips_but_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setattr(brokers, "MOSQUITTO", None)
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="apt-get install mosquitto"):
        require_mosquitto()


def test_a_house_tells_which_broker_it_has(tmp_path: Path) -> None:
    """The line above it, that it is for trying out, was once shown in its place."""
    with House(tmp_path) as house:
        house.start_broker()
        assert house.broker_kind().endswith(f" on mqtt://127.0.0.1:{house.broker_port}")
