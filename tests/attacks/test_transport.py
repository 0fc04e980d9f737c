"""A broker full of junk, floods, and wrong clocks: nothing is believed for it, and nothing is lost."""

from __future__ import annotations

import functools
import struct
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from agent.install import Install
from tests.agent.rig import DEVICE as RIG_DEVICE
from tests.agent.rig import ONE, deploy, running
from tests.agent.twins import TOPICS, until
from tests.attacks.cargo import cargo
from tests.attacks.scene import DEVICE, THIEF, Scene
from tests.crash.native import built
from wire import topics, trust
from wire.codec import encode
from wire.messages import Ack, Diagnose, Status

pytestmark = [pytest.mark.broker, pytest.mark.slow]
YEAR_2040 = 2208988800.0
HEARD = {"desired", "command", "command_all", "ack", "status", "root", "bars"}
"""Channels that a device with no work and no group listens to."""


def params(channel: topics.Channel, scene: Scene) -> dict[str, str]:
    known = {
        "device": DEVICE, "group": "north", "digest": scene.runs.digest, "number": "2", "id": "junk",
    }  # fmt: skip
    return {name: value for name, value in known.items() if f"{{{name}}}" in channel.pattern}


def junk(channel: topics.Channel) -> list[bytes]:
    """What anybody may leave there; the last takes away what was there."""
    other = "command" if channel.kind != "command" else "desired"
    return [
        b"\0\xff" * 300,
        b"[" * 100_000,
        b'{"kind":"x","version":1}',
        trust.seal(other, b"{}", [THIEF]),
        trust.seal(channel.kind or "release", b"{}", [THIEF]),
        b"x" * min(channel.size_bytes_max + 1, 6_000_000),
        b"",
    ]


def litter(scene: Scene, n: int) -> None:
    """Leaves one kind of junk on every topic of the contract."""
    for channel in topics.CHANNELS:
        scene.put(scene.topics.topic(channel, **params(channel, scene)), junk(channel)[n])


def test_retained_junk_on_every_topic(scene: Scene) -> None:
    """Each kind of junk lies on every topic when the device comes back; then everything is cleared."""
    codes: set[str] = set()
    for n in range(len(junk(topics.DESIRED))):
        before, since = scene.standing(), len(scene.hand.reports)
        scene.restart(functools.partial(litter, scene, n))
        scene.publish(scene.one if scene.runs is scene.two else scene.two)
        scene.obeys()
        assert before.answers != scene.standing().answers
        codes |= scene.told(since)
        refused = {getattr(r.event, "channel", None) for r in scene.hand.reports[since:]} - {None}
        assert refused <= HEARD
    for release in (scene.one, scene.two):
        scene.publish(release)
    assert {"malformed", "oversized", "wrong_type", "bad_signature", "unknown_kind"} <= codes


def test_a_flood_of_junk_and_of_commands(scene: Scene) -> None:
    """Forged and captured messages, as fast as the broker takes them, and an honest order in the middle."""
    question = scene.command(Diagnose())
    own = scene.topics.topic(topics.COMMAND, device=DEVICE)
    desired = scene.topics.topic(topics.DESIRED, device=DEVICE)
    forged = trust.seal("desired", encode(scene.document(scene.entry(scene.two))), [THIEF])
    with scene.attack("bad_signature", "malformed"):
        for half in range(2):
            for _ in range(1500):
                for topic, payload in ((own, question), (desired, forged), (desired, b"{"), (own, b"\0")):
                    scene.hand.throw(topic, payload)
            if half == 0:
                scene.order(scene.runs)
        scene.hand.settle()


def test_a_forged_acknowledgement(scene: Scene) -> None:
    """It makes a device forget reports; those that come after still have numbers and are still heard."""
    install = scene.hand.reports[-1].install_id
    number = scene.hand.reports[-1].number
    topic = scene.topics.topic(topics.ACK, device=DEVICE)
    for far in (number + 2**52, number + 10):
        scene.put(topic, encode(Ack(install_id=install, number=far)), retain=False)
    with scene.attack("bad_signature"):
        scene.order(scene.two, THIEF)
    assert number < scene.hand.reports[-1].number < number + 1000


def test_a_forged_status(scene: Scene) -> None:
    """With the highest number there is: a device that counted on from it could not even start again."""
    forged = replace(scene.hand.status[DEVICE], online=False, number=2**53 - 1)
    topic = scene.topics.topic(topics.STATUS, device=DEVICE)
    with scene.attack("number_unbelievable"):
        scene.put(topic, encode(forged))
        scene.stopped(0, "number_unbelievable")
        scene.restart(lambda: scene.put(topic, encode(forged)))
        scene.restart()


def test_a_start_after_a_forged_status(tmp_path: Path) -> None:
    """The broker's twin brings it when nothing keeps the agent from counting on from it."""
    with running(tmp_path) as rig:
        topic = TOPICS.topic(topics.STATUS, device=RIG_DEVICE)
        until(lambda: rig.broker.heard("status"), "its status")
        said = msgspec.json.decode(rig.broker.heard("status")[-1], type=Status)
        rig.broker.tell(topic, encode(replace(said, online=False, number=2**53 - 1)))
        until(lambda: "number_unbelievable" in rig.refusals(), "the refusal")
        rig.stop()
        rig.start()
        deploy(rig, ONE)
    assert Install(tmp_path).connections < 100


class WallClock:
    """The time of day of all that is started from here on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_bytes(struct.pack("=q", 0))

    def set(self, seconds_since_1970: float) -> None:
        with self._path.open("r+b") as file:
            file.write(struct.pack("=q", int(seconds_since_1970 - time.time())))


@pytest.fixture
def wall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WallClock:
    clock = WallClock(tmp_path / "wallclock")
    monkeypatch.setenv("LD_PRELOAD", str(built("wallclock", tmp_path)))
    monkeypatch.setenv("WALLCLOCK", str(tmp_path / "wallclock"))
    return clock


@pytest.mark.parametrize("at", [1.0, YEAR_2040], ids=["1970", "2040"])
def test_a_wrong_clock(new_scene: Callable[..., Scene], wall: WallClock, at: float) -> None:
    """What is old stays refused, what is honest is obeyed, whatever time it seems to be."""
    wall.set(at)
    scene = new_scene()
    old = scene.order(scene.runs)
    scene.obeys()
    with scene.attack("stale_document", "bad_signature"):
        scene.put(scene.topics.topic(topics.DESIRED, device=DEVICE), old)
        scene.desire(scene.document(scene.entry(cargo("3", 3))), THIEF)
