"""The production broker, line by line: real Mosquitto and certificates, who may come and what they may do.

One broker for the whole file; each test has names of its own. Revocation and the door: test_broker_door.py.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from fleet.adapters.authority import DAY_S, Authority
from fleet.adapters.broker_files import together
from fleet.adapters.broker_tls import Answer, client_context, knock
from fleet.adapters.mqtt_broker import MqttBroker
from fleet.broker_rules import HOME, PACKET_BYTES_MAX, PROBE, REGISTRY, WATCH
from fleet.ports import Outgoing
from tests.brokers import TlsMosquitto
from wire.topics import BLOB, CHANNELS, DESIRED, STATUS, Channel, Topics

WAIT_S_MAX = 10.0
QUIET_S = 0.25
TOPICS = Topics()
WORDS = {"group": "north", "digest": "ab" * 32, "number": "7", "id": "r1"}


class Client:
    """One connection; it hears what the broker lets it hear."""

    def __init__(self, broker: TlsMosquitto, context: ssl.SSLContext, client_id: str = "anything") -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.refused = ""
        self._changed = threading.Condition()
        self._granted = 0
        self.up = threading.Event()
        self.down = threading.Event()
        client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )  # fmt: skip
        client.tls_set_context(context)
        client.on_connect = lambda *_: self.up.set()
        client.on_disconnect = lambda *_: self.down.set()
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        self.client = client
        client.connect(broker.host, broker.port, keepalive=30)
        client.loop_start()
        assert self.up.wait(WAIT_S_MAX)

    def _on_message(self, _client: object, _userdata: object, message: paho.MQTTMessage) -> None:
        with self._changed:
            self.heard.append((message.topic, bytes(message.payload)))
            self._changed.notify_all()

    def _on_subscribe(self, *_: object) -> None:
        with self._changed:
            self._granted += 1
            self._changed.notify_all()

    def subscribe(self, *filters: str) -> None:
        with self._changed:
            wanted = self._granted + 1
            self.client.subscribe([(name, 1) for name in filters])
            assert self._changed.wait_for(lambda: self._granted >= wanted, WAIT_S_MAX)

    def publish(self, topic: str, payload: bytes = b"x", *, retain: bool = False) -> None:
        """Returns when it is acknowledged, as in MQTT 3.1.1 a message is that the access list refuses."""
        info = self.client.publish(topic, payload, qos=1, retain=retain)
        info.wait_for_publish(WAIT_S_MAX)

    def hears(self, topic: str, payload: bytes) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: (topic, payload) in self.heard, WAIT_S_MAX)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
        # Paho closes a pair of sockets when it is freed; in a circle of references they may be freed first.
        self.client.on_connect = self.client.on_disconnect = None
        self.client.on_message = self.client.on_subscribe = None


Connect = Callable[[ssl.SSLContext], Client]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsMosquitto]:
    with TlsMosquitto(tmp_path_factory.mktemp("tls"), home_assistant="homeassistant") as running:
        yield running


@pytest.fixture
def connect(broker: TlsMosquitto) -> Iterator[Connect]:
    made: list[Client] = []

    def one(context: ssl.SSLContext, client_id: str = "anything") -> Client:
        made.append(Client(broker, context, client_id))
        return made[-1]

    yield one
    for client in made:
        client.close()


@pytest.fixture
def registry(broker: TlsMosquitto, connect: Connect) -> Client:
    return connect(broker.registry())


def as_device(broker: TlsMosquitto, name: str) -> ssl.SSLContext:
    return broker.context(*broker.device(name))


def as_program(broker: TlsMosquitto, name: str) -> ssl.SSLContext:
    return broker.context(broker.files.program(name))


def topic_of(channel: Channel, device: str) -> str:
    words = {**WORDS, "device": device}
    return TOPICS.topic(channel, **{k: v for k, v in words.items() if f"{{{k}}}" in channel.pattern})


# --- who may connect ----------------------------------------------------------------------------------


def answer(broker: TlsMosquitto, context: ssl.SSLContext) -> tuple[Answer, str]:
    seen = knock((broker.host, broker.port), context, listen_s=0.3)
    return seen.answer, seen.detail


def test_a_device_of_the_fleet_is_taken_in(broker: TlsMosquitto) -> None:
    assert answer(broker, as_device(broker, "roof-1")) == (Answer.TAKEN_IN, "")


def test_nobody_comes_without_a_certificate(broker: TlsMosquitto) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(broker.out / "ca.pem")
    assert answer(broker, context) == (Answer.REFUSED, "TLSV13_ALERT_CERTIFICATE_REQUIRED")


def test_another_authoritys_certificate_is_refused(broker: TlsMosquitto, tmp_path: Path) -> None:
    theirs = Authority.create(tmp_path, "Test fleet", None, time.time())
    own = tmp_path / "own.pem"
    own.write_bytes(together(theirs.issue_client(REGISTRY, time.time(), DAY_S)))
    assert answer(broker, broker.context(own)) == (Answer.REFUSED, "TLSV1_ALERT_UNKNOWN_CA")


def test_a_servers_certificate_is_no_clients(broker: TlsMosquitto) -> None:
    assert answer(broker, broker.context(broker.out / "server.pem"))[0] is Answer.REFUSED


def test_an_expired_certificate_is_refused(broker: TlsMosquitto) -> None:
    expired = broker.device("roof-1", life_s=DAY_S, not_before=time.time() - 2 * DAY_S)
    assert answer(broker, broker.context(*expired)) == (Answer.REFUSED, "SSLV3_ALERT_CERTIFICATE_EXPIRED")


def visited_again(broker: TlsMosquitto, context: ssl.SSLContext, ticket: ssl.SSLSession | None) -> object:
    """One visit, by the ticket of an earlier one: CONNACK and the next ticket, or what was refused."""
    plain = socket.create_connection((broker.host, broker.port), WAIT_S_MAX)
    with context.wrap_socket(plain, server_hostname=broker.host, session=ticket) as link:
        try:
            link.sendall(b"\x10\x12\x00\x04MQTT\x04\x02\x00\x3c\x00\x06roof-1")
            came = link.recv(4)
        except OSError as error:
            return type(error)
        return came, link.session


def test_no_ticket_lets_one_come_whose_certificate_ended(broker: TlsMosquitto) -> None:
    """OpenSSL asks for no certificate where a ticket is shown, so for neither its end nor the list."""
    now = time.time()
    context = broker.context(*broker.device("roof-1", life_s=4.0))
    first = visited_again(broker, context, None)
    assert isinstance(first, tuple)
    assert first[0] == b"\x20\x02\x00\x00"
    time.sleep(max(0.0, now + 5.1 - time.time()))
    assert not isinstance(visited_again(broker, context, first[1]), tuple)


def test_a_broker_that_gives_tickets_is_found_out(broker: TlsMosquitto) -> None:
    probe = broker.files.program(PROBE)
    assert knock((broker.host, broker.port), broker.context(probe)).ticket is False
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(broker.out / "server.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        served = threading.Thread(target=_takes_in, args=(listener, context))
        served.start()
        assert knock(listener.getsockname(), broker.context(probe)).ticket is True
        served.join()


def _takes_in(listener: socket.socket, context: ssl.SSLContext) -> None:
    """A broker as OpenSSL has it by itself, for one visit."""
    with context.wrap_socket(listener.accept()[0], server_side=True) as link:
        link.recv(100)
        link.sendall(b"\x20\x02\x00\x00")


def test_a_certificate_of_tomorrow_is_refused(broker: TlsMosquitto) -> None:
    early = broker.device("roof-1", not_before=time.time() + DAY_S)
    assert answer(broker, broker.context(*early))[0] is Answer.REFUSED


def test_the_canary_is_refused_as_revoked(broker: TlsMosquitto) -> None:
    canary = broker.context(broker.keys / "canary.pem")
    assert answer(broker, canary)[0] is Answer.REVOKED


def test_tls_1_2_is_not_spoken(broker: TlsMosquitto) -> None:
    context = as_device(broker, "roof-1")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert answer(broker, context) == (Answer.REFUSED, "TLSV1_ALERT_PROTOCOL_VERSION")


def test_mqtt_without_tls_is_not_spoken(broker: TlsMosquitto) -> None:
    with socket.create_connection((broker.host, broker.port), WAIT_S_MAX) as link:
        link.sendall(b"\x10\x12\x00\x04MQTT\x04\x02\x00\x3c\x00\x06roof-1")
        try:
            came = link.recv(100)
        except ConnectionResetError:
            came = b""
    assert b"\x20\x02\x00\x00" not in came


def test_a_broker_of_another_authority_is_not_spoken_to(broker: TlsMosquitto, tmp_path: Path) -> None:
    theirs = Authority.create(tmp_path, "Test fleet", None, time.time())
    (tmp_path / "only.pem").write_text(theirs.certificates_pem)
    context = client_context(tmp_path / "only.pem", *broker.device("roof-1"))
    assert answer(broker, context)[0] is Answer.SILENT


def test_a_broker_of_another_name_is_not_spoken_to(broker: TlsMosquitto) -> None:
    seen = knock(("127.0.0.2", broker.port), as_device(broker, "roof-1"))
    assert seen.answer is Answer.SILENT


def test_a_broker_that_speaks_tls_1_2_only_is_not_spoken_to(broker: TlsMosquitto) -> None:
    """With the broker's own certificate, as one would who stole it and an old library."""
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.load_cert_chain(broker.out / "server.pem")
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    came: list[str] = []

    def serve(listening: socket.socket) -> None:
        link, _ = listening.accept()
        try:
            old.wrap_socket(link, server_side=True).close()
        except (ssl.SSLError, OSError) as error:
            came.append(str(error))
        finally:
            link.close()

    with socket.create_server((broker.host, 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        seen = knock((broker.host, listening.getsockname()[1]), as_device(broker, "roof-1"))
        thread.join(WAIT_S_MAX)
    assert seen.answer is Answer.REFUSED
    assert seen.detail in {"UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION"}
    assert len(came) == 1


# --- the name is the certificate's --------------------------------------------------------------------


def test_another_devices_client_id_takes_nobodys_place(broker: TlsMosquitto, connect: Connect) -> None:
    victim = connect(as_device(broker, "roof-2"))
    thief = Client(broker, as_device(broker, "roof-3"), client_id="roof-2")
    try:
        assert not victim.down.wait(QUIET_S)
        assert not thief.down.is_set()
    finally:
        thief.close()


def test_a_second_session_of_one_name_ends_the_first(broker: TlsMosquitto, connect: Connect) -> None:
    first = connect(as_device(broker, "roof-4"))
    connect(as_device(broker, "roof-4"))
    assert first.down.wait(WAIT_S_MAX)


# --- who may read and write what ----------------------------------------------------------------------


def test_each_channel_works_in_its_direction_and_in_no_other(
    broker: TlsMosquitto, connect: Connect, registry: Client
) -> None:
    device, other = connect(as_device(broker, "roof-5")), connect(as_device(broker, "roof-6"))
    device.subscribe("shallop/v1/#")
    registry.subscribe("shallop/v1/#")
    for channel in CHANNELS:
        own = topic_of(channel, "roof-5")
        device.publish(own, b"by roof-5")
        other.publish(own, b"by roof-6")
        registry.publish(own, b"by registry")
        assert registry.hears(own, b"by registry")
        assert device.hears(own, b"by registry")
        if "{device}" in channel.pattern:
            registry.publish(topic_of(channel, "roof-6"), b"for roof-6")
    time.sleep(QUIET_S)
    for channel in CHANNELS:
        own = topic_of(channel, "roof-5")
        assert ((own, b"by roof-5") in registry.heard) is (channel.sender == "agent"), channel.name
        assert (own, b"by roof-6") not in registry.heard, channel.name
    assert [topic for topic, payload in device.heard if payload == b"for roof-6"] == []


@pytest.mark.parametrize(
    "topic",
    [
        "shallop/v1/device/roof-9/up/status",
        "shallop/v1/device/roof-9/down/desired",
        "shallop/v1/device/fleet.registry/up/status",
        "shallop/v1/root/2",
        "shallop/v1/system/seed",
        "shallop/v1/system/bars",
        "shallop/v1/system/other",
        "shallop/v1/release/" + "ab" * 32,
        "shallop/v1/blob/" + "ab" * 32,
        "shallop/v1/all/down/command",
        "shallop/v1/group/north/down/command",
        "shallop/v1/device/roof-7/down/command",
        "shallop/v1/device/roof-7/up/status/more",
        "shallop/v1/device/roof-7/up/other",
        "shallop/v1/device/roof-7/up/reply/a/b",
        "shallop/v1",
        "shallop/v2/device/roof-7/up/status",
        "homeassistant/device/shallop-roof-9/config",
        "homeassistant/status",
        "anything",
    ],
)
def test_a_device_writes_nothing_there(
    broker: TlsMosquitto, connect: Connect, registry: Client, topic: str
) -> None:
    """The registry would hear it, and Home Assistant; retained it would lie there for whoever comes."""
    device, home = connect(as_device(broker, "roof-7")), connect(as_program(broker, HOME))
    registry.subscribe("#")
    home.subscribe("#")
    device.publish(topic, b"forged", retain=True)
    device.publish("shallop/v1/device/roof-7/up/report", b"after it")
    assert registry.hears("shallop/v1/device/roof-7/up/report", b"after it")
    assert home.hears("shallop/v1/device/roof-7/up/report", b"after it")
    assert [t for t, payload in registry.heard + home.heard if payload == b"forged"] == []


def test_a_wildcard_shows_a_device_what_it_may_read_and_no_more(
    broker: TlsMosquitto, connect: Connect, registry: Client
) -> None:
    """Mosquitto grants the subscription itself: its access list judges messages."""
    registry.publish(TOPICS.topic(DESIRED, device="roof-10"), b"for roof-10", retain=True)
    registry.publish(TOPICS.topic(DESIRED, device="roof-11"), b"for roof-11", retain=True)
    registry.publish(TOPICS.topic(STATUS, device="roof-11"), b"of roof-11", retain=True)
    registry.publish(TOPICS.topic(BLOB, digest="cd" * 32), b"content", retain=True)
    device = connect(as_device(broker, "roof-10"))
    device.subscribe("#", "$SYS/#", "shallop/v1/blob/+", "shallop/v1/device/+/down/desired")
    device.subscribe("$share/g/#", "$share/g/shallop/v1/device/roof-11/down/desired", "$CONTROL/#")
    registry.publish(TOPICS.topic(DESIRED, device="roof-11"), b"for roof-11 again", retain=True)
    assert device.hears(TOPICS.topic(DESIRED, device="roof-10"), b"for roof-10")
    assert device.hears(TOPICS.topic(BLOB, digest="cd" * 32), b"content")
    time.sleep(QUIET_S)
    heard = {topic for topic, _ in device.heard}
    assert not [topic for topic in heard if "roof-11" in topic or topic.startswith("$SYS")]


def test_a_last_will_in_anothers_name_is_not_published(
    broker: TlsMosquitto, connect: Connect, registry: Client
) -> None:
    registry.subscribe("shallop/v1/device/+/up/status")
    context = as_device(broker, "roof-12")
    for topic in ("shallop/v1/device/roof-13/up/status", "shallop/v1/device/roof-12/up/status"):
        dying = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv311)
        dying.tls_set_context(context)
        dying.will_set(topic, b"offline", qos=1)
        dying.connect(broker.host, broker.port)
        dying.loop_start()
        while not dying.is_connected():
            time.sleep(0.01)
        # The next one, and at the end this connection, ends the session without a DISCONNECT.
        dying.reconnect_delay_set(60, 60)
        connect(context)
        dying.loop_stop()
    assert registry.hears("shallop/v1/device/roof-12/up/status", b"offline")
    assert ("shallop/v1/device/roof-13/up/status", b"offline") not in registry.heard


def test_home_assistant_reads_reports_and_commands_nobody(
    broker: TlsMosquitto, connect: Connect, registry: Client
) -> None:
    home, device = connect(as_program(broker, HOME)), connect(as_device(broker, "roof-14"))
    home.subscribe("homeassistant/#", "shallop/v1/device/+/up/status")
    registry.subscribe("shallop/v1/#")
    device.publish("homeassistant/device/shallop-roof-14/config", b"discovery")
    device.publish("shallop/v1/device/roof-14/up/status", b"online")
    home.publish("shallop/v1/all/down/command", b"forged")
    assert home.hears("homeassistant/device/shallop-roof-14/config", b"discovery")
    assert home.hears("shallop/v1/device/roof-14/up/status", b"online")
    home.publish("homeassistant/status", b"online")
    assert home.hears("homeassistant/status", b"online")
    assert b"forged" not in [payload for _, payload in registry.heard]


def test_the_watcher_reads_the_brokers_figures_and_nothing_else(
    broker: TlsMosquitto, connect: Connect, registry: Client
) -> None:
    watcher = connect(as_program(broker, WATCH))
    watcher.subscribe("$SYS/broker/#", "#")
    registry.publish("shallop/v1/system/seed", b"x", retain=True)
    registry.publish("shallop/v1/device/roof-15/up/status", b"x")
    watcher.publish("shallop/v1/device/roof-15/up/status", b"y")
    time.sleep(QUIET_S)
    assert {topic.partition("/")[0] for topic, _ in watcher.heard} == {"$SYS"}


def test_the_probe_may_do_nothing(broker: TlsMosquitto) -> None:
    seen = knock((broker.host, broker.port), as_program(broker, PROBE), "shallop/v1/probe/x")
    assert (seen.answer, seen.trespassed) == (Answer.TAKEN_IN, False)


# --- how much -----------------------------------------------------------------------------------------


def test_a_packet_that_is_too_large_ends_the_connection(
    broker: TlsMosquitto, connect: Connect, registry: Client
) -> None:
    topic = TOPICS.topic(STATUS, device="roof-16")
    registry.subscribe(topic)
    device = connect(as_device(broker, "roof-16"))
    device.publish(topic, b"small")
    assert registry.hears(topic, b"small")
    device.client.publish(topic, bytes(PACKET_BYTES_MAX), qos=1)
    assert device.down.wait(WAIT_S_MAX)
    assert len(registry.heard) == 1
    assert "oversize packet" in broker.log


def test_the_largest_message_of_the_contract_passes(broker: TlsMosquitto, connect: Connect) -> None:
    largest = max(CHANNELS, key=lambda channel: channel.size_bytes_max)
    topic, payload = topic_of(largest, "roof-16"), bytes(largest.size_bytes_max)
    registry, device = connect(broker.registry()), connect(as_device(broker, "roof-16"))
    device.subscribe(topic)
    registry.publish(topic, payload)
    assert device.hears(topic, payload)


# --- the registry's own connection --------------------------------------------------------------------


def test_the_registry_speaks_tls_under_its_own_name(broker: TlsMosquitto) -> None:
    link = MqttBroker(broker.url, REGISTRY, broker.registry())
    try:
        deadline = time.monotonic() + WAIT_S_MAX
        while not link.connected:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        message = Outgoing(key=1, topic="shallop/v1/system/seed", payload=b"x", retain=False, qos=1)
        assert link.publish([message], WAIT_S_MAX) == {1}
        assert "as fleet.registry" in broker.log
    finally:
        link.close()
