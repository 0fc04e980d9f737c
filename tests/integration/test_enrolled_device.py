"""The real agent, enrolled, at a real Mosquitto with TLS: connecting, renewing, cut off and back."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import paho.mqtt.client as paho
import pytest
from cryptography.x509 import load_pem_x509_certificate
from msgspec.structs import replace
from paho.mqtt.enums import CallbackAPIVersion

from agent.identities import CURRENT, NEXT, Identities
from agent.identity import Identity
from fleet.adapters.authority import Authority
from tests.agent.registry import DAY_S, DEVICE, Registry, refusal
from tests.agent.twins import TOPICS, until
from tests.brokers import TlsMosquitto
from tests.integration.test_broker_door import gate_of
from wire import codec
from wire.certificates import Certificate, CertificateRefused, Renewal
from wire.messages import Status
from wire.topics import CERTIFICATE, CERTIFICATE_REFUSED, RENEWAL, STATUS

pytestmark = pytest.mark.broker
ROOT = Path(__file__).parents[2]
SHORT_S = 600.0
"""A life of which, with the hour by which it is backdated, more than three quarters are over at once."""


class Office:
    """The registry's client at the broker: hears renewals, answers as the test's registry does."""

    def __init__(self, broker: TlsMosquitto, registry: Registry) -> None:
        self.status: list[Status] = []
        self.asked: queue.SimpleQueue[Renewal] = queue.SimpleQueue()
        self.answers = True
        self.refuses: CertificateRefused | None = None
        self._registry = registry
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="fleet.registry")
        self._client.tls_set_context(broker.registry())
        self._client.on_message = self._heard
        self._client.connect(broker.host, broker.port)
        self._client.subscribe([(TOPICS.filter(STATUS), 1), (TOPICS.filter(RENEWAL), 1)])
        self._client.loop_start()

    def _heard(self, client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        if message.topic.endswith("/status"):
            self.status.append(msgspec.json.decode(message.payload, type=Status))
            return
        word = msgspec.json.decode(message.payload, type=Renewal)
        self.asked.put(word)
        if self.refuses is not None:
            topic = TOPICS.topic(CERTIFICATE_REFUSED, device=word.device)
            client.publish(topic, codec.encode(self.refuses), 1)
        elif self.answers:
            topic = TOPICS.topic(CERTIFICATE, device=word.device)
            client.publish(topic, self._registry.certificate(word.device, word.public), 1)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class House:
    """A broker, a registry, and one device's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, folder / "state"
        self.broker = TlsMosquitto(folder / "broker")
        self.registry = Registry(folder, ca=self.broker.authority, broker_port=self.broker.port)
        self.config = folder / "agent.yaml"
        self.config.write_text(
            f"state_dir: {self.state}\ntransfer: {{reconnect_spread_s: 0}}\nbroker: {{reconnect_s_max: 1}}\n"
        )

    def __enter__(self) -> Self:
        self.broker.start()
        self.registry.__enter__()
        self.office = Office(self.broker, self.registry)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.office.close()
        self.registry.__exit__(kind, error, trace)
        self.broker.stop()

    def command(self, *arguments: str, code: int = 0, stdin: str = "") -> str:
        """One command of the agent."""
        done = subprocess.run(
            [sys.executable, "-m", "agent", *arguments, "--config", str(self.config)],
            cwd=ROOT, input=stdin, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done.stderr + done.stdout
        return done.stdout + done.stderr

    @contextlib.contextmanager
    def daemon(self) -> Iterator[subprocess.Popen[bytes]]:
        """The agent on its own."""
        command = [sys.executable, "-m", "agent", "run", "--config", str(self.config)]
        with (
            (self.folder / "log").open("ab") as log,
            subprocess.Popen(command, cwd=ROOT, stderr=log) as process,
        ):
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                    process.wait(20)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def identity(self) -> Identity:
        found = Identities(self.state).read()
        assert found is not None
        return found

    def shown(self) -> dict[str, Any]:
        """What `status` shows."""
        return dict(json.loads(self.command("status", "--json")))

    def online(self, number: int) -> None:
        """Waits for a connection of at least that number."""
        self.until(
            lambda: (s := self.office.status) and s[-1].online and s[-1].number >= number,
            f"connection {number}",
        )

    def until(self, holds: Callable[[], object], what: str) -> None:
        try:
            until(holds, what, 30)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}\n{self.broker.log[-2000:]}") from None


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with House(tmp_path) as made:
        yield made


def test_enrolled_it_connects_by_its_certificate_alone(house: House) -> None:
    said = house.command("enrol", "-", stdin=house.registry.token())
    assert "systemctl restart shallop-agent" in said
    with house.daemon():
        house.online(1)
        shown = house.shown()
        assert (shown["device"], shown["broker"]) == (DEVICE, f"localhost:{house.broker.port}")
        assert shown["connected"]
        assert shown["identity"]["device"] == DEVICE
        assert "ends 20" in house.command("status")
        doctor = json.loads(house.command("doctor", "--json"))
        found = {finding["name"]: finding["status"] for finding in doctor}
        assert (found["broker"], found["tls"], found["identity"]) == ("ok", "ok", "ok")
        assert len(house.office.status) == 1, "doctor must not throw the agent off"


def test_a_running_agent_takes_an_enrolment_up_by_itself(house: House) -> None:
    with house.daemon() as process:
        house.until(lambda: "state in" in house.log, "the start")
        said = house.command("enrol", house.registry.token())
        assert "the running agent took it up" in said
        house.online(1)
        assert process.poll() is None
        assert house.shown()["pid"] == process.pid


def test_a_certificate_is_renewed_over_the_connection(house: House) -> None:
    house.registry.life_s = SHORT_S
    house.command("enrol", house.registry.token())
    before = house.identity
    house.registry.life_s = 90 * DAY_S
    with house.daemon():
        house.online(2)
        house.until(lambda: house.identity.public != before.public, "the new identity")
        word = house.office.asked.get(timeout=1)
        assert word.public == house.identity.public
        assert all(status.online for status in house.office.status), "it went in order"
        assert house.office.asked.empty()
        note = house.shown()["identity"]
        assert (note["why"], note["failures"]) == (None, 0)
    assert {path.name for path in (house.state / "identity").iterdir()} == {CURRENT, "lock"}


def test_a_certificate_that_the_broker_refuses_is_put_away(house: House, tmp_path: Path) -> None:
    """Signed by another authority: the order key vouches for it, the broker does not."""
    house.registry.life_s = SHORT_S
    house.command("enrol", house.registry.token())
    before = house.identity
    house.registry.life_s = 90 * DAY_S
    other = Authority.create(tmp_path / "other", "other", None, house.registry.now_s)

    def change(certificate: Certificate) -> Certificate:
        issued = other.issue_device(
            DEVICE, bytes.fromhex(certificate.public), house.registry.now_s, 90 * DAY_S
        )
        return replace(certificate, pem=issued.pem)

    house.registry.changes = change
    with house.daemon():
        house.until(lambda: "certificate_rejected" in house.log, "the rejection")
        assert house.identity == before
        assert not (house.state / "identity" / NEXT).exists()
        assert house.shown()["connected"]
        assert house.shown()["identity"]["why"]["code"] == "certificate_rejected"


def test_a_refused_renewal_is_told_and_the_connection_stays(house: House) -> None:
    house.registry.life_s = SHORT_S
    house.command("enrol", house.registry.token())
    house.office.refuses = refusal("unknown_device", "who is that")
    with house.daemon():
        house.until(lambda: "unknown_device" in house.log, "the refusal")
        shown = house.shown()
        assert shown["connected"]
        assert shown["identity"]["why"] == {
            "code": "unknown_device",
            "detail": "who is that",
            "lasting": "final",
        }
        assert "who is that" in house.command("status")


def test_an_ended_certificate_is_renewed_over_https(house: House) -> None:
    house.registry.life_s = 1.0
    house.command("enrol", house.registry.token())
    before = house.identity
    house.registry.life_s = 90 * DAY_S
    until(lambda: time.time() > before.not_after_s + 1, "the end of the certificate")
    with house.daemon():
        house.online(1)
        house.until(lambda: house.identity.public != before.public, "the new identity")
        assert [type(word).__name__ for word in house.registry.asked] == ["Enrol", "Renewal"]


def test_a_revoked_device_says_so_and_keeps_what_it_has(house: House) -> None:
    house.command("enrol", house.registry.token())
    slot = house.state / "models" / "kept"
    with house.daemon():
        house.online(1)
        slot.mkdir(parents=True)
        serial = load_pem_x509_certificate(house.identity.pem.encode()).serial_number
        house.registry.refuses = refusal("revoked", "stolen on 2026-11-21")
        gate_of(house.broker).cut_off(DEVICE, {serial: house.identity.not_after_s})
        house.until(lambda: "stolen on 2026-11-21" in house.log, "the registry's reason")
        shown = house.shown()
        assert not shown["connected"]
        assert shown["identity"]["why"]["code"] == "revoked"
        assert len(house.registry.asked) == 2
    assert slot.is_dir()
    assert house.identity.device == DEVICE
