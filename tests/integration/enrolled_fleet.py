"""A fleet over TLS for tests: keys, authority, Mosquitto, a registry of its own, and a device by hand.

For: what only real processes show; the device here is ssl, cryptography and paho, none of the agent's code.
Not for: the verdicts (tests/fleet/test_enrolments.py), or strangers (tests/fleet/test_enrol_server.py).
"""

from __future__ import annotations

import hashlib
import http.client
import json
import queue
import ssl
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import msgspec
import paho.mqtt.client as mqtt
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from fleet.adapters import key_files
from fleet.adapters.broker_process import free_port
from fleet.adapters.key_files import KeyPair
from fleet.adapters.signing_desk import Keyring
from tests.brokers import TlsMosquitto
from tests.fleet.processes import ROOT, RegistryProcess, wait_for
from wire import topics as wt
from wire.certificates import Certificate, CertificateRefused, Renewal
from wire.codec import decode, encode
from wire.enrolment import (
    CA_PATH,
    ENROL_PATH,
    RENEW_PATH,
    Enrol,
    Enrolled,
    Token,
    enrolment_statement,
    read_answer,
    read_token,
    renewal_statement,
)
from wire.enrolment import encode as encode_word
from wire.messages import Status
from wire.roots import Root, checked, require_signatures
from wire.topics import Topics
from wire.trust import Policy, Role, open_envelope, pae, unwrap

INSTALL = "1" * 32
TOPICS = Topics()


class EnrolledFleet:
    """Keys, an authority, a broker and a registry in `folder`; `start` begins.

    Args:
        folder: made if missing.
        extra: more lines of fleet.yaml.
    """

    def __init__(self, folder: Path, extra: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.keys = folder / "keys"
        self.command("keys", "init", "--keys", str(self.keys), "--root-keys", str(folder / "offline"))
        self.broker = TlsMosquitto(folder / "broker", keys=self.keys)
        self.port = free_port()
        config = folder / "fleet.yaml"
        config.write_text(
            f"broker: {self.broker.url}\nkeys: {self.keys}\nbroker_files: {self.broker.out}\n"
            f"enrol_listen: 127.0.0.1:{self.port}\nenrol_hosts: [localhost, 127.0.0.1]\n"
            f"enrol_broker: localhost:{self.broker.port}\n{extra}"
        )
        self.registry = RegistryProcess(folder / "data", 1, "--config", str(config))
        at = self.registry._command.index("--broker")
        del self.registry._command[at : at + 2]

    def start(self) -> None:
        self.broker.start()
        self.registry.start()
        wait_for("the registry to be connected", lambda: bool(self.health()["broker_connected"]))

    def stop(self) -> None:
        self.registry.stop()
        self.broker.stop()

    def command(self, *arguments: str) -> str:
        """`shallop-fleet` with these arguments, that must not fail."""
        done = self.attempt(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @staticmethod
    def attempt(*arguments: str) -> subprocess.CompletedProcess[str]:
        """The same, that may fail."""
        words = [sys.executable, "-m", "fleet.cli", *arguments]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)

    def ask(self, *arguments: str) -> Any:  # noqa: ANN401 - as JSON has it
        """A command at the registry, its JSON."""
        return json.loads(self.command(*arguments, "--server", self.registry.url, "--json"))

    def get(self, path: str) -> dict[str, Any]:
        """The same, without the start of a program."""
        found: dict[str, Any] = httpx.get(f"{self.registry.url}{path}", trust_env=False).json()
        return found

    def health(self) -> dict[str, Any]:
        return self.get("/api/health")

    def token(self, device: str) -> Token:
        """A new token, by the API, which is quicker than a program."""
        answer = httpx.post(
            f"{self.registry.url}/api/enrolments", json={"devices": [device]}, trust_env=False
        )
        return read_token(answer.json()[0]["token"])

    def shown(self, device: str) -> dict[str, Any]:
        return self.get(f"/api/devices/{device}")


class HandDevice:
    """A device that somebody plays by hand.

    Attributes:
        key: its newest key.
        home: what it was told when it enrolled.
        heard: payloads from the broker, by channel.
        online: whether its connection stands.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self._folder = name, folder
        self.key: KeyPair = key_files.generate()
        self.home: Enrolled | None = None
        self.certificate: Certificate | None = None
        self.heard: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._client: mqtt.Client | None = None
        self._number = 0
        self._made = 0
        folder.mkdir(parents=True, exist_ok=True)

    # --- HTTPS ----------------------------------------------------------------------------------------

    def enrol(
        self, token: Token, key: KeyPair | None = None, **changes: str
    ) -> Enrolled | CertificateRefused:
        """The whole conversation of `wire.enrolment`, each step checked."""
        key = key or self.key
        authority = self._authority(token)
        public = key.public.hex()
        proof = key.sign(enrolment_statement(token.device, public, token.secret)).hex()
        word = Enrol(
            device=token.device, secret=token.secret.hex(), public=public, proof=proof, agent_version="hand",
        )  # fmt: skip
        answer = post(token.url, ENROL_PATH, encode_word(msgspec.structs.replace(word, **changes)), authority)
        if isinstance(answer, Enrolled):
            self._take(answer, token, key)
        return answer

    def _authority(self, token: Token) -> str:
        blind = ssl.create_default_context()
        blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
        for found in x509.load_pem_x509_certificates(https(token.url, "GET", CA_PATH, b"", blind)[1]):
            der = found.public_bytes(Encoding.DER)
            if hashlib.sha256(der).digest() == token.ca_sha256:
                return found.public_bytes(Encoding.PEM).decode()
        raise AssertionError("no authority has the token's digest")

    def _take(self, answer: Enrolled, token: Token, key: KeyPair) -> None:
        """Root first: it is the token's; then the certificate, which the root's order key signed."""
        payload, signatures = unwrap(answer.roots[0], "root", wt.ROOT.size_bytes_max)
        assert hashlib.sha256(payload).digest() == token.root_sha256
        root = checked(decode(payload, Root, wt.ROOT.size_bytes_max))
        require_signatures(root, Role.ROOT, pae("root", payload), signatures, key_files.verify)
        self._policy = Policy(verifier=Keyring(root))
        self.home = answer
        self.take_certificate(answer.certificate, key)

    def take_certificate(self, envelope: bytes, key: KeyPair) -> Certificate:
        """A signed certificate for that key, checked and kept."""
        payload = open_envelope(envelope, "certificate", self._policy, 64 * 1024)
        found = decode(payload, Certificate, 64 * 1024)
        assert (found.device, found.public) == (self.name, key.public.hex())
        self.certificate, self.key = found, key
        return found

    def renewal(self, key: KeyPair) -> Renewal:
        """What it says to get a certificate for that key."""
        statement = renewal_statement(self.name, key.public.hex())
        return Renewal(
            device=self.name, install_id=INSTALL, public=key.public.hex(), root_number=1,
            proof=key.sign(statement).hex(), proof_before=self.key.sign(statement).hex(),
        )  # fmt: skip

    def renew_by_https(self, key: KeyPair) -> Enrolled | CertificateRefused:
        assert self.home is not None
        assert self.certificate is not None
        authorities = self.certificate.authorities_pem
        return post(self.home.url, RENEW_PATH, encode_word(self.renewal(key)), authorities)

    # --- MQTT -----------------------------------------------------------------------------------------

    def context(self) -> ssl.SSLContext:
        """TLS with its certificate, the broker checked by the fleet's authorities."""
        assert self.certificate is not None
        self._made += 1
        own = self._folder / f"own-{self._made}.pem"
        own.touch(0o600)
        own.write_text(self.certificate.pem + self.key.pem(None).decode())
        made = ssl.create_default_context(cadata=self.certificate.authorities_pem)
        made.load_cert_chain(own)
        return made

    def renew(self) -> None:
        """A new certificate, over the connection that it has, and a connection by it."""
        key = key_files.generate()
        self.say(wt.RENEWAL, encode(self.renewal(key)))
        envelope = self.hears(wt.CERTIFICATE)
        self.leave()
        self.take_certificate(envelope, key)
        self.connect()
        until(f"{self.name} to be there again", lambda: self.online)

    def connect(self) -> None:
        """Comes, and comes back by itself, until `leave`."""
        assert self.home is not None
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=self.name, clean_session=False,
            protocol=MQTTProtocolVersion.MQTTv311,
        )  # fmt: skip
        client.tls_set_context(self.context())
        client.reconnect_delay_set(1, 1)
        client.on_connect = self._on_connect
        client.on_message = self._on_message
        client.connect_async(self.home.broker.host, self.home.broker.port)
        # First: the network's thread may be connected before this one goes on.
        self._client = client
        client.loop_start()

    def _on_connect(self, client: mqtt.Client, *_rest: object) -> None:
        client.subscribe(f"{TOPICS.root}/device/{self.name}/down/#", 1)
        self._number += 1
        status = Status(
            device=self.name, install_id=INSTALL, number=self._number, online=True, agent_version="hand"
        )
        client.publish(TOPICS.topic(wt.STATUS, device=self.name), encode(status), 1, retain=True)

    def _on_message(self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        parsed = TOPICS.parse(message.topic)
        assert parsed is not None
        self.heard.put((parsed[0].name, bytes(message.payload)))

    def say(self, channel: wt.Channel, payload: bytes, device: str | None = None) -> None:
        assert self._client is not None
        topic = TOPICS.topic(channel, device=device or self.name)
        self._client.publish(topic, payload, channel.qos, channel.retain)

    def subscribe(self, topic: str) -> None:
        assert self._client is not None
        self._client.subscribe(topic, 1)

    def hears(self, channel: wt.Channel, seconds: float = 20.0) -> bytes:
        """The next payload on that channel."""
        while True:
            name, payload = self.heard.get(timeout=seconds)
            if name == channel.name:
                return payload

    @property
    def online(self) -> bool:
        return self._client is not None and self._client.is_connected()

    def leave(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()
            client.loop_stop()
            # Paho closes a pair of sockets when it is freed; in a circle of references they may go first.
            client.on_connect = client.on_message = None


def https(url: str, method: str, path: str, body: bytes, context: ssl.SSLContext) -> tuple[int, bytes]:
    """One request."""
    host, port = url.removeprefix("https://").rsplit(":", 1)
    connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=40)
    with closing(connection):
        connection.request(method, path, body=body)
        answer = connection.getresponse()
        return answer.status, answer.read()


def post(url: str, path: str, body: bytes, authority: str) -> Enrolled | CertificateRefused:
    """A word of enrolment, the server checked by its authority and its name."""
    return read_answer(https(url, "POST", path, body, ssl.create_default_context(cadata=authority))[1])


def until(what: str, condition: Callable[[], bool]) -> None:
    """Waits."""
    wait_for(what, condition, 40)
