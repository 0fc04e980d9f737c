"""The doctor's conversation with a real Mosquitto: every step that can fail does so under its own name."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from agent.adapters.mqtt import Address, MqttTransport
from agent.adapters.probe_broker import Answer, ask
from agent.config import BrokerConfig
from agent.doctor.broker import AgentFacts, broker
from agent.errors import ConfigError
from agent.tls import TlsConfig, context
from tests.agent.certificates import Authority
from tests.agent.test_mqtt import Heard
from tests.agent.twins import TOPICS, FixedRandom, until
from tests.brokers import Mosquitto, require_mosquitto
from wire import codec
from wire.messages import Status
from wire.topics import STATUS

pytestmark = pytest.mark.broker
DEVICE = "roof-17"
TOPIC = TOPICS.topic(STATUS, device=DEVICE)
EXPIRED, FUTURE = ("20200101000000Z", "20210101000000Z"), ("20900101000000Z", "20990101000000Z")


def asked(config: BrokerConfig, *, agent_runs: bool = False, password: str | None = None) -> Answer:
    return ask(config, password, DEVICE, TOPIC, agent_runs=agent_runs)


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path_factory.mktemp("broker")) as one:
        yield one


@contextlib.contextmanager
def client(port: int, client_id: str) -> Iterator[tuple[paho.Client, list[str]]]:
    """A plain client, and how often it was thrown off."""
    losses: list[str] = []
    one = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id)
    one.on_disconnect = lambda *arguments: losses.append(str(arguments[3]))
    one.connect("127.0.0.1", port)
    one.loop_start()
    try:
        until(one.is_connected, "the client's connection")
        yield one, losses
    finally:
        one.disconnect()
        one.loop_stop()


def test_a_broker_that_works_throws_no_running_agent_off(mosquitto: Mosquitto) -> None:
    with client(mosquitto.port, DEVICE) as (agent, losses):
        mine = Status(device=DEVICE, install_id="a" * 32, number=3, online=True, agent_version="1")
        agent.publish(TOPIC, codec.encode(mine), qos=1, retain=True).wait_for_publish(5)
        answer = asked(BrokerConfig(port=mosquitto.port), agent_runs=True)
        assert (answer.facts.failed, answer.facts.client_id) == (None, f"{DEVICE}-doctor")
        assert answer.facts.round_trip_ms is not None
        assert answer.facts.loopback
        assert answer.told == mine
        assert agent.is_connected()
        assert losses == []
        agent.publish(TOPIC, b"not a message", qos=1, retain=True).wait_for_publish(5)
        assert asked(BrokerConfig(port=mosquitto.port)).told is None


def test_no_name_no_broker_no_mqtt(mosquitto: Mosquitto) -> None:
    assert asked(BrokerConfig(host="no-such-host.invalid")).facts.failed == "name"
    assert asked(BrokerConfig(port=1)).facts.failed == "connect"
    tls = BrokerConfig(host="localhost", port=mosquitto.port, tls=TlsConfig())
    assert asked(tls).facts.failed == "tls"
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        assert asked(BrokerConfig(port=port)).facts.failed == "login"
    with answering(b"\x20\x02\x00\x00\xd0\xff\xff\xff\xff") as port:
        assert asked(BrokerConfig(port=port)).facts.failed == "answer"
    with answering(b"\x20\xff\xff\xff\x7f") as port:
        facts = asked(BrokerConfig(port=port)).facts
        assert (facts.failed, facts.connack) == ("login", None)


@contextlib.contextmanager
def answering(data: bytes) -> Iterator[int]:
    """Something that answers every connection with these bytes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = server.accept()
                    with sock:
                        sock.recv(1000)
                        sock.sendall(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
    thread.join(5)


@contextlib.contextmanager
def strict(folder: Path, rules: str) -> Iterator[int]:
    """A Mosquitto that lets few in: not those, either, by whom tests usually find out that it is up."""
    (port,) = free_ports(1)
    (folder / "strict.conf").write_text(f"listener {port} 127.0.0.1\nuser root\n{rules}\n")
    process = subprocess.Popen(
        [require_mosquitto(), "-c", str(folder / "strict.conf")], stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: listens(port), "the strict broker")
        yield port
    finally:
        process.terminate()
        process.wait(10)


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def test_a_client_id_that_is_refused(tmp_path: Path) -> None:
    with strict(tmp_path, f"allow_anonymous true\nclientid_prefixes {DEVICE}-only") as port:
        facts = asked(BrokerConfig(port=port), agent_runs=True).facts
        assert facts.failed == "login"
        assert facts.connack in {2, 5}
        assert facts.client_id == f"{DEVICE}-doctor"
        # Without a running agent its own name is tried, too.
        assert asked(BrokerConfig(port=port)).facts.client_id == DEVICE


def test_a_password_that_is_wrong(tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    passwords.touch(0o600)
    made = subprocess.run(["mosquitto_passwd", "-b", str(passwords), "pi", "right"], check=False)
    assert made.returncode == 0
    with strict(tmp_path, f"allow_anonymous false\npassword_file {passwords}") as port:
        config = BrokerConfig(port=port, username="pi")
        assert asked(config, password="right").facts.failed is None
        wrong = asked(config, password="wrong").facts
        assert (wrong.failed, wrong.connack) == ("login", 5)


def test_a_status_that_the_access_list_keeps_back_is_unknown(tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text("user somebody\ntopic readwrite #\n")
    with strict(tmp_path, f"allow_anonymous true\nacl_file {acl}") as port:
        answer = asked(BrokerConfig(port=port))
        assert (answer.facts.failed, answer.told) == (None, None)


# --- TLS --------------------------------------------------------------------------------------------


class Secure:
    """Mosquitto with listeners of every kind, each on a port of its own."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "pki")
        self.own = self.authority.sign("device")
        kinds = {
            "good": self.authority.sign("good"),
            "expired": self.authority.sign("expired", EXPIRED),
            "future": self.authority.sign("future", FUTURE),
            "other": self.authority.sign("other", subject="DNS:broker.example"),
            "asks": self.authority.sign("asks"),
        }
        self.ports = dict(zip(kinds, free_ports(len(kinds)), strict=True))
        extra = "".join(
            f"\nlistener {self.ports[kind]} 127.0.0.1\ncafile {self.authority.pem}\n"
            f"certfile {pem}\nkeyfile {key}\n" + ("require_certificate true\n" if kind == "asks" else "")
            for kind, (pem, key) in kinds.items()
        )
        self.mosquitto = Mosquitto(folder / "broker", extra=extra)

    def config(self, kind: str, *, own: bool = False, trusted: bool = True) -> BrokerConfig:
        tls = TlsConfig(
            ca_file=str(self.authority.pem) if trusted else None,
            cert_file=str(self.own[0]) if own else None,
            key_file=str(self.own[1]) if own else None,
        )
        return BrokerConfig(host="localhost", port=self.ports[kind], tls=tls)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in socks]


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    one = Secure(tmp_path_factory.mktemp("secure"))
    with one.mosquitto:
        yield one


def test_an_encrypted_connection(secure: Secure) -> None:
    facts = asked(secure.config("good")).facts
    assert facts.failed is None
    assert facts.tls_version.startswith("TLSv1.")
    assert facts.not_after_s == pytest.approx(4070908800.0)
    assert facts.own_not_after_s is None
    assert asked(secure.config("good", own=True)).facts.own_not_after_s == pytest.approx(4070908800.0)


@pytest.mark.parametrize(("kind", "code"), [("expired", 10), ("future", 9), ("other", 62)])
def test_a_certificate_that_is_refused(secure: Secure, kind: str, code: int) -> None:
    facts = asked(secure.config(kind)).facts
    assert (facts.failed, facts.verify_code) == ("tls", code)


def test_an_authority_that_nobody_trusts(secure: Secure) -> None:
    facts = asked(secure.config("good", trusted=False)).facts
    assert facts.failed == "tls"
    assert facts.verify_code in {18, 19, 20, 21}


def test_a_broker_that_asks_for_the_devices_certificate(secure: Secure) -> None:
    facts = asked(secure.config("asks")).facts
    assert facts.failed == "tls"
    encrypted = broker(facts, AgentFacts(running=False))[1]
    assert "cert_file" in encrypted.remedy
    assert asked(secure.config("asks", own=True)).facts.failed is None


def test_a_plain_login_at_a_tls_port(secure: Secure) -> None:
    facts = asked(BrokerConfig(port=secure.ports["good"])).facts
    assert (facts.failed, facts.connack) == ("login", None)


@pytest.mark.parametrize("kind", ["good", "asks"])
def test_the_agent_itself_connects_encrypted(secure: Secure, kind: str) -> None:
    config = secure.config(kind, own=True)
    assert config.tls is not None
    address = Address(
        host="localhost", port=config.port, client_id=DEVICE, tls=context(config.tls, time.time)
    )
    transport, heard = MqttTransport(address, FixedRandom()), Heard()
    transport.start(heard)
    try:
        until(lambda: heard.connections, "the encrypted connection")
        transport.subscribe([("test/tls", 1)])
        until(lambda: transport.publish("test/tls", b"x", qos=1, retain=True), "a message")
        assert heard.messages.get(timeout=5) == ("test/tls", b"x")
    finally:
        transport.stop()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_agent_does_not_connect_to_a_stranger(secure: Secure) -> None:
    """After a refused handshake paho drops its socket without closing it, of which Python warns."""
    config = secure.config("other")
    assert config.tls is not None
    address = Address(
        host="localhost", port=config.port, client_id=DEVICE, tls=context(config.tls, time.time)
    )
    transport, heard = MqttTransport(address, FixedRandom()), Heard()
    transport.start(heard)
    try:
        until(lambda: transport._failures >= 2, "two refusals")
        assert heard.connections == 0
    finally:
        transport.stop()


def test_files_of_tls_that_cannot_be_used(tmp_path: Path) -> None:
    for tls in (
        TlsConfig(ca_file=str(tmp_path / "none.pem")),
        TlsConfig(key_file=str(tmp_path / "key.pem")),
        TlsConfig(cert_file=str(tmp_path / "none.pem")),
    ):
        with pytest.raises(ConfigError) as refused:
            context(tls, time.time)
        assert refused.value.code == "tls_unusable"
    (tmp_path / "junk.pem").write_text("junk")
    with pytest.raises(ConfigError):
        context(TlsConfig(ca_file=str(tmp_path / "junk.pem")), time.time)
