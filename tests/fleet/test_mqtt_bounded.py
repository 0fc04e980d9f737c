"""The registry's connection and `verify --broker`, where the broker is the attacker's, or has no limits."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import resource
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from fleet.adapters import broker_tls, mqtt_bounded
from fleet.adapters.client import Client
from fleet.adapters.mqtt_broker import INBOX_BYTES_MAX, MqttBroker
from fleet.adapters.retained import Look, _Ear, retained
from fleet.adapters.sql_store import SqlStore
from fleet.broker_rules import CA, PACKET_BYTES_MAX, PROBE, SERVER
from fleet.ingest import Ingest
from fleet.ports import BrokerError, Delivery
from tests.brokers import Mosquitto, TlsMosquitto
from tests.fleet.processes import RegistryProcess, start_devices, wait_for
from wire import topics as wt
from wire.topics import CHANNELS, Topics
from wire.trust import Policy

Way = Callable[[socket.socket], None]
ACCEPTED = b"\x20\x02\x00\x00"
TOPICS = Topics()


def _length(size: int) -> bytes:
    out = bytearray()
    while True:
        size, low = divmod(size, 128)
        out.append(low | (0x80 if size else 0))
        if not size:
            return bytes(out)


def message(topic: bytes, payload: bytes, kind: int = 0x30, mid: bytes = b"") -> bytes:
    body = len(topic).to_bytes(2, "big") + topic + mid + payload
    return bytes([kind]) + _length(len(body)) + body


MARK = message(b"mark", b"x")


class HostileBroker:
    """Serves whoever comes in one way after the other, as often as they come; the last one over and over."""

    def __init__(self, *ways: Way, port: int = 0, reads: bool = True) -> None:
        self._ways, self._reads = ways, reads
        self.served = 0
        self._peer: socket.socket | None = None
        self._server = socket.create_server(("127.0.0.1", port))
        self.port = int(self._server.getsockname()[1])
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._server.accept()
                self._peer = peer
                with peer, contextlib.suppress(OSError):
                    peer.settimeout(20)
                    if self._reads:
                        peer.recv(4096)
                    self._ways[min(self.served, len(self._ways) - 1)](peer)
                self.served += 1

    def close(self) -> None:
        for one in (self._server, self._peer):
            if one is not None:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(30)


@contextlib.contextmanager
def hostile(*ways: Way, reads: bool = True) -> Iterator[HostileBroker]:
    broker = HostileBroker(*ways, reads=reads)
    try:
        yield broker
    finally:
        broker.close()


@contextlib.contextmanager
def link_to(url: str) -> Iterator[MqttBroker]:
    link = MqttBroker(url, "registry")
    try:
        yield link
    finally:
        link.close()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waits between attempts."""
    for name in ("DELAY_S", "DELAY_S_MAX", "LEFT_DELAY_S_MAX"):
        monkeypatch.setattr(mqtt_bounded, name, 0)


def stays(payload: bytes) -> Way:
    """Says something and waits until the other side leaves."""

    def way(peer: socket.socket) -> None:
        peer.sendall(ACCEPTED + payload)
        while peer.recv(65_536):
            pass

    return way


def largest(peer: socket.socket) -> None:
    """The largest message that MQTT has (3.1.1, section 2.2.3), and one more after it."""
    size = 268_435_455
    peer.sendall(ACCEPTED + b"\x30" + _length(size) + b"\x00\x03big")
    left = size - 5
    while left:
        sent = min(left, 1 << 20)
        peer.sendall(bytes(sent))
        left -= sent
    peer.sendall(MARK)
    while peer.recv(65_536):
        pass


@pytest.mark.usefixtures("at_once")
def test_of_a_message_as_large_as_mqtt_has_them_only_the_beginning_is_kept() -> None:
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with hostile(largest) as broker, link_to(broker.url) as link:
        wait_for("the message after it", lambda: len(link._inbox) == 2)
        got = link.drain(9)
        assert [one.topic for one in got] == ["big", "mark"]
        kept = len(got[0].payload)
        assert max(channel.size_bytes_max for channel in CHANNELS) < kept <= PACKET_BYTES_MAX + 65_536
        assert link.session == 1, "the connection goes on"
        assert link.trouble is not None
        assert link.trouble.startswith("packet_too_large: the broker sends a packet of 268435455 bytes")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) * 1024
    assert grown < 64 * 1024 * 1024


LEFT = {
    "a_suback_without_end": (b"\x90\xff\xff\xff\x7f\x00\x01", "packet_too_large"),
    "a_connack_without_end": (b"\x20\xff\xff\xff\x7f\x00", "packet_too_large"),
    "a_message_with_qos_2": (message(b"t", b"x", 0x34, b"\x00\x07"), "packet_malformed"),
    "a_message_with_qos_3": (message(b"t", b"x", 0x36, b"\x00\x07"), "packet_malformed"),
    "a_message_cut_off": (b"\x30\x01\x00", "packet_malformed"),
    "a_topic_longer_than_its_packet": (b"\x30\x04\xff\xff\x00\x00", "packet_malformed"),
    "a_puback_cut_off": (b"\x40\x01\x00", "packet_malformed"),
    "a_suback_cut_off": (b"\x90\x01\x00", "packet_malformed"),
    "a_suback_of_no_code": (b"\x90\x03\x00\x01\x55", "packet_malformed"),
    "a_connack_cut_off": (b"\x20\x01\x00", "packet_malformed"),
    "the_protocol_refused": (b"\x20\x02\x00\x01", "protocol_refused"),
}


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("case", LEFT)
def test_a_broker_that_breaks_the_protocol_is_left_by_name_and_asked_again(case: str) -> None:
    payload, code = LEFT[case]
    with hostile(stays(payload), stays(MARK)) as broker, link_to(broker.url) as link:
        wait_for("the next connection", lambda: bool(link.drain(1)))
        assert link.trouble is not None
        assert link.trouble.split(":")[0] == code


@pytest.mark.usefixtures("at_once")
def test_a_broker_that_refuses_the_protocol_and_is_gone_leaves_a_client_that_comes_back() -> None:
    """The client went back to MQTT 3.1 at once, inside its own thread, which ended where nobody listened."""
    first = HostileBroker(lambda _: None)
    port = first.port

    def refuse_and_go(peer: socket.socket) -> None:
        first._server.shutdown(socket.SHUT_RDWR)
        first._server.close()
        peer.sendall(b"\x20\x02\x00\x01")
        peer.recv(1)

    first._ways = (refuse_and_go,)
    with link_to(first.url) as link:
        wait_for("the refusal", lambda: link.trouble is not None)
        first._thread.join(20)
        again = HostileBroker(stays(MARK), port=port)
        try:
            wait_for("it to come back", lambda: bool(link.drain(1)))
            assert link._client._protocol == mqtt.MQTTv311
        finally:
            again.close()


@pytest.mark.usefixtures("at_once")
def test_a_broker_that_takes_no_answers_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each message asks for an answer, and none is read: paho keeps the answers without end."""
    monkeypatch.setattr(mqtt_bounded, "UNREAD_MAX", 200)

    def narrow(_client: object, _userdata: object, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    def deaf(peer: socket.socket) -> None:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        peer.sendall(ACCEPTED)
        while True:
            peer.sendall(message(b"t", b"x", 0x32, b"\x00\x07") * 1000)

    monkeypatch.setattr("fleet.adapters.mqtt_broker._no_delay", narrow)
    with hostile(deaf, stays(MARK)) as broker, link_to(broker.url) as link:
        wait_for("the next connection", lambda: any(d.topic == "mark" for d in link.drain(9999)))
        assert link.trouble is not None
        assert link.trouble.startswith("answers_unread")


def test_a_broker_that_stays_hostile_is_asked_ever_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    client = mqtt_bounded.BoundedClient("registry")
    now = [1000.0]
    monkeypatch.setattr("fleet.adapters.mqtt_bounded.time.monotonic", lambda: now[0])
    delays = []
    for _ in range(8):
        client._leave("packet_malformed", "no MQTT")
        delays.append(client._reconnect_min_delay)
        now[0] += mqtt_bounded.CALM_S - 1
    assert delays == [2, 4, 8, 16, 32, 60, 60, 60]
    assert (client.trouble or "").startswith("packet_malformed")
    now[0] += 1
    assert not client.trouble
    client._leave("packet_malformed", "no MQTT")
    assert client._reconnect_min_delay == 2, "a calm stretch is forgiven"


def test_after_a_good_connection_an_ordinary_loss_is_waited_for_as_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mqtt_bounded, "LEFT_DELAY_S_MAX", 0)
    with hostile(stays(LEFT["a_message_cut_off"][0]), stays(MARK)) as broker, link_to(broker.url) as link:
        wait_for("the next connection", lambda: bool(link.drain(1)))
        assert link._client._reconnect_min_delay == mqtt_bounded.DELAY_S
        assert link._client._reconnect_max_delay == mqtt_bounded.DELAY_S_MAX


def test_long_topics_count_as_bytes_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """They came with empty payloads, fifty thousand of 64 KiB each, and nothing was counted."""
    count, topic = 200, b"t" * 65_535
    monkeypatch.setattr("fleet.adapters.mqtt_broker.INBOX_BYTES_MAX", 20 * 65_535)
    with hostile(stays(message(topic, b"") * count + MARK)) as broker, link_to(broker.url) as link:
        wait_for("all of them", lambda: len(link._inbox) + link._overflow >= count)
        assert len(link._inbox) <= 21
        kept = link.drain(count)
        assert link.take_overflow() >= count - len(kept)
        assert link._inbox_bytes == sum(len(d.topic) + len(d.payload) for d in link._inbox)
    assert INBOX_BYTES_MAX == 256 * 1024 * 1024


def test_a_topic_cannot_write_lines_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ingest = Ingest(TOPICS, Policy, 10)
    topic = "x\n2026-01-01 ERROR the registry was opened" + "y" * 60_000
    store = SqlStore(f"sqlite:///{tmp_path}/fleet.db", "registry")
    with store.begin() as tx:
        ingest.take(tx, [Delivery(topic=topic, payload=b"", retain=False)], 0.0)
    store.close()
    (said,) = [record.getMessage() for record in caplog.records]
    assert "\n" not in said
    assert len(said) < 1000
    assert ingest.refused["unknown_topic"] == 1


# --- verify --broker ----------------------------------------------------------------------------------


def test_what_nobody_asked_for_is_not_kept_and_a_broken_protocol_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ears: list[_Ear] = []

    class Ear(_Ear):
        def __init__(self) -> None:
            super().__init__()
            ears.append(self)

    monkeypatch.setattr("fleet.adapters.retained._Ear", Ear)
    with hostile(stays(b"\x90\xff\xff\xff\x7f\x00\x01")) as broker:
        with pytest.raises(BrokerError) as refused:
            retained(Look(url=broker.url), ["wanted"])
        assert refused.value.code == "broker_lost"
        assert "packet_too_large" in str(refused.value)
    retain = 0x31
    unasked = b"".join(message(b"other/%d" % n, b"x", retain) for n in range(50))

    def asked(peer: socket.socket) -> None:
        peer.sendall(ACCEPTED)
        peer.recv(4096)
        stays(unasked + message(b"wanted", b"x", retain))(peer)

    with hostile(asked) as broker:
        found = retained(Look(url=broker.url), ["wanted"])
    assert found == {"wanted": hashlib.sha256(b"x").hexdigest()}
    assert list(ears[-1].heard) == ["wanted"]


# --- visits of the broker's door ----------------------------------------------------------------------


@pytest.mark.broker
def test_a_visit_ends_though_the_broker_goes_on_and_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages in the place of the answer to a ping kept the registry's look at the door for ever."""
    monkeypatch.setattr(broker_tls, "WHOLE_VISIT_S_MAX", 0.3)
    files = TlsMosquitto(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.out / SERVER)

    def on_and_on(plain: socket.socket) -> None:
        with context.wrap_socket(plain, server_side=True) as peer:
            peer.sendall(ACCEPTED)
            while True:
                peer.sendall(MARK * 100)

    with hostile(on_and_on, reads=False) as broker:
        seen = broker_tls.knock(
            ("127.0.0.1", broker.port),
            broker_tls.client_context(files.out / CA, files.files.program(PROBE)),
            "trespass",
        )
    assert seen.answer is broker_tls.Answer.SILENT
    assert "came to no end" in seen.detail


# --- processes ----------------------------------------------------------------------------------------


@pytest.mark.broker
def test_one_device_cannot_shut_the_registry_out_by_a_message_that_is_too_large(tmp_path: Path) -> None:
    """The broker is somebody's without a limit: it would bring the same message each time again."""
    limit = f"max_packet_size {PACKET_BYTES_MAX}\n"
    broker = Mosquitto(tmp_path / "broker")
    assert limit in broker._text
    broker._text = broker._text.replace(limit, "")
    topic = TOPICS.topic(wt.REPORT, device="roof-9")
    with broker:
        registry = RegistryProcess(tmp_path / "data", broker.port, "--insecure-unsigned")
        registry.start()
        device = mqtt.Client(CallbackAPIVersion.VERSION2)
        device.connect("127.0.0.1", broker.port)
        device.loop_start()
        try:
            with Client(registry.url) as client:
                wait_for("the registry's connection", lambda: bool(client.health()["broker_connected"]))
                assert client.health()["broker_trouble"] is None
                device.publish(topic, os.urandom(1024) * 50_000, 1).wait_for_publish(30)
                wait_for("its refusal", lambda: client.health()["refused"].get("oversized") == 1)
                assert "packet_too_large" in client.health()["broker_trouble"]
                (good,) = start_devices(1, broker.port)
                wait_for(
                    "a good device", lambda: [d.device for d in client.devices() if d.online] == ["dev-0"]
                )
                good.close()
        finally:
            device.disconnect()
            device.loop_stop()
            registry.stop()
        said = registry.log.read_text()
        assert "(connection 1)" in said
        assert "(connection 2)" not in said
        assert re.search(rf"refused \d+ bytes on {topic}: .*oversized", said)
