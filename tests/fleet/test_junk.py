"""Junk on every topic that a device may write, against a real registry process on a real Mosquitto.

The registry stays up, says in its log what it refused and why, and goes on hearing the good devices.
Not for: each way in which a payload can be wrong (`tests/wire/test_codec.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from fleet.adapters.client import Client
from tests.brokers import Mosquitto, require_mosquitto
from tests.fleet.processes import RegistryProcess, start_devices, wait_for
from tests.wire.samples import MESSAGES
from wire import topics as wt
from wire.codec import encode, kind_of
from wire.topics import Topics

pytestmark = pytest.mark.broker
TOPICS = Topics()
UP = (wt.STATUS, wt.IDENTITY, wt.REPORTED, wt.REPORT, wt.REPLY)
VICTIM = "roof-9"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[tuple[RegistryProcess, Mosquitto]]:
    require_mosquitto()
    with Mosquitto(tmp_path / "broker") as broker:
        made = RegistryProcess(tmp_path / "data", broker.port, "--insecure-unsigned")
        made.start()
        yield made, broker
        made.kill()


def junk(channel: wt.Channel) -> dict[str, bytes]:
    """By the code of its refusal; each is whole but for one thing, or not whole at all."""
    good = next(encode(m) for m in MESSAGES if kind_of(type(m)) == channel.kind)
    fields = msgspec.json.decode(good)
    other = next(encode(m) for m in MESSAGES if kind_of(type(m)) == "ack")

    def bent(**changes: object) -> bytes:
        return msgspec.json.encode({**fields, "device": VICTIM, **changes})

    return {
        "malformed": b"\xff\xfe\x00\x01" * 20,
        "oversized": b"x" * (channel.size_bytes_max + 1),
        "unknown_kind": other,
        "unsupported_version": bent(version=9),
        "invalid_field": bent(number=-1),
        "wrong_device": bent(device="somebody-else"),
    }


def refusals(log: Path) -> set[tuple[str, str]]:
    """(topic, code) of what the log says was refused."""
    said = log.read_text(encoding="utf-8", errors="replace")
    return set(re.findall(r"refused \d+ bytes on (\S+): .*?\[(\w+)\]", said))


def test_junk_on_every_topic_of_a_device_is_refused_by_name_and_hurts_nobody(
    registry: tuple[RegistryProcess, Mosquitto],
) -> None:
    process, broker = registry
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    expected = set()
    for channel in UP:
        topic = TOPICS.topic(channel, device=VICTIM, **({"id": "x"} if channel is wt.REPLY else {}))
        client.publish(topic, b"", 1, channel.retain).wait_for_publish(20)
        for code, payload in junk(channel).items():
            client.publish(topic, payload, 1, channel.retain).wait_for_publish(20)
            expected.add((topic, code))
    wait_for("every refusal in the log", lambda: expected <= refusals(process.log), 30)
    (good,) = devices = start_devices(1, broker.port)
    with Client(process.url) as registry_client:
        wait_for(
            "the good device", lambda: [d.device for d in registry_client.devices() if d.online] == ["dev-0"]
        )
        assert [d.device for d in registry_client.devices()] == [good.device.device], "junk makes no device"
        refused = registry_client.health()["refused"]
    for device in devices:
        device.close()
    client.disconnect()
    client.loop_stop()
    assert {code: refused[code] for code in junk(wt.STATUS)} == dict.fromkeys(junk(wt.STATUS), len(UP))
    assert process.stop() == 0
    assert "Traceback" not in process.log.read_text(encoding="utf-8", errors="replace")
