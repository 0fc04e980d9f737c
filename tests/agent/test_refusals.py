"""The whole agent in memory: what it refuses at its edge, by name, while it lives on."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from agent.connection import INBOUND_MAX
from tests.agent.rig import DEVICE, ME, ONE, TWO, Rig, answers, command, deploy, running
from tests.agent.twins import (
    TOPICS,
    MemoryBroker,
    sealed_command,
    sealed_desired,
    until,
)
from wire import codec, trust
from wire.messages import (
    Diagnose,
    OrderOutcome,
    Rollback,
    Status,
    ToAll,
    ToDevice,
    ToGroup,
)
from wire.topics import ACK, COMMAND, COMMAND_ALL, COMMAND_GROUP, DESIRED, STATUS

JUNK = (b"\x00\xff", b"{}", b"[" * 100_000, b'{"kind":"desired","version":1}', b"x" * 600_000)


@pytest.mark.parametrize("payload", [*JUNK, sealed_desired(DEVICE, {"digits": ONE.order(1)})[:-20]])
@pytest.mark.parametrize("channel", [DESIRED, COMMAND, COMMAND_ALL, ACK, STATUS], ids=lambda c: c.name)
def test_junk_on_any_topic_is_refused_by_name_and_the_daemon_lives_on(
    tmp_path: Path, channel: object, payload: bytes
) -> None:
    assert channel in (DESIRED, COMMAND, COMMAND_ALL, ACK, STATUS)
    with running(tmp_path) as rig:
        until(lambda: rig.broker.heard("status"), "the greeting")
        topic = TOPICS.topic(channel, **({} if channel is COMMAND_ALL else {"device": DEVICE}))
        rig.broker.tell(topic, payload)
        until(rig.refusals, "the refusal")
        assert set(rig.refusals()) <= {
            "malformed",
            "oversized",
            "wrong_type",
            "invalid_field",
            "unknown_kind",
        }
        deploy(rig)


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (sealed_desired("attic-1", {}), "wrong_device"),
        (sealed_command(ME, Diagnose()), "wrong_type"),
        (trust.seal("desired", b'{"kind":"desired","version":2}'), "unsupported_version"),
        (trust.seal("desired", b'{"kind":"ack","version":1}'), "unknown_kind"),
        (trust.seal("desired", b'{"kind":"desired","version":1,"device":7}'), "invalid_field"),
    ],
)
def test_a_document_that_is_not_ours_is_refused_by_name(tmp_path: Path, payload: bytes, code: str) -> None:
    with running(tmp_path) as rig:
        until(lambda: rig.broker.heard("status"), "the greeting")
        rig.broker.tell(TOPICS.topic(DESIRED, device=DEVICE), payload)
        until(lambda: rig.refusals() == [code], code)


def test_an_unsigned_order_is_refused_unless_the_configuration_says_otherwise(tmp_path: Path) -> None:
    rig = Rig(tmp_path, MemoryBroker(), unsigned=False)
    rig.start()
    try:
        until(lambda: rig.broker.heard("status"), "the greeting")
        rig.broker.hold(ONE)
        rig.broker.desire(DEVICE, {"digits": ONE.order(1)})
        until(lambda: rig.refusals() == ["unsigned"], "the refusal")
        assert rig.runner.models == {}
    finally:
        rig.stop()


@pytest.mark.parametrize(
    ("topic", "to", "reply_to", "code"),
    [
        (TOPICS.topic(COMMAND, device=DEVICE), ToDevice(device="attic-1"), None, "wrong_target"),
        (TOPICS.topic(COMMAND, device=DEVICE), ToAll(), None, "wrong_target"),
        (TOPICS.topic(COMMAND_ALL), ToDevice(device=DEVICE), None, "wrong_target"),
        (TOPICS.topic(COMMAND_GROUP, group="roofs"), ToGroup(group="cellars"), None, "wrong_target"),
        (TOPICS.topic(COMMAND, device=DEVICE), ME, "device/attic-1/up/reply/x", "wrong_reply_topic"),
        (TOPICS.topic(COMMAND, device=DEVICE), ME, f"device/{DEVICE}/up/status", "wrong_reply_topic"),
    ],
)
def test_a_command_must_match_the_topic_it_came_on(
    tmp_path: Path, topic: str, to: ToDevice | ToGroup | ToAll, reply_to: str | None, code: str
) -> None:
    with running(tmp_path) as rig:
        until(lambda: rig.broker.heard("status"), "the greeting")
        rig.broker.desire(DEVICE, {}, groups=("roofs",))
        group = TOPICS.topic(COMMAND_GROUP, group="roofs")
        until(lambda: group in rig.broker._subscribed, "the group")
        rig.broker.tell(topic, sealed_command(to, Diagnose(), reply_to=reply_to))
        until(lambda: rig.refusals() == [code], code)
        assert answers(rig) == []


def test_only_groups_that_the_desired_document_names_are_obeyed(tmp_path: Path) -> None:
    topic = TOPICS.topic(COMMAND_GROUP, group="roofs")
    asked = sealed_command(ToGroup(group="roofs"), Diagnose(), reply_to="device/{device}/up/reply/g")
    with running(tmp_path) as rig:
        until(lambda: rig.broker.heard("status"), "the greeting")
        rig.broker.tell(topic, asked)
        rig.broker.desire(DEVICE, {}, groups=("roofs",))
        until(lambda: topic in rig.broker._subscribed, "the group")
        rig.broker.tell(topic, asked)
        until(lambda: len(answers(rig)) == 1, "the answer")
        rig.broker.desire(DEVICE, {}, groups=())
        until(lambda: rig.runner.groups == (), "leaving the group")
        rig.broker.tell(topic, asked)
        command(rig, Diagnose(), reply_to=f"device/{DEVICE}/up/reply/d")
        until(lambda: len(answers(rig)) == 2, "the answer to the last")


def test_a_stale_order_is_answered_once_with_the_highest_seen(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        deploy(rig, ONE, 9)
        for _ in range(3):
            rig.broker.desire(DEVICE, {"digits": TWO.order(4)})
        until(lambda: rig.refusals() == ["stale_order"], "the refusal")
        assert rig.deployment.order_highest == 9


def test_a_rollback_of_an_unknown_model_is_not_applicable(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        until(lambda: rig.broker.heard("status"), "the greeting")
        command(
            rig, Rollback(model="letters", from_=ONE.digest, order=1), reply_to=f"device/{DEVICE}/up/reply/c"
        )
        until(lambda: answers(rig), "the answer")
        assert answers(rig)[0].result == "not_applicable"
        assert rig.runner.models == {}


def test_a_flood_is_bounded_and_the_retained_truth_is_asked_for_again(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        until(lambda: rig.broker.heard("status"), "the greeting")
        rig.broker.hold(ONE)
        hold = threading.Event()
        rig.runner.post(hold.wait)
        for _ in range(1000):
            rig.broker.tell(TOPICS.topic(COMMAND, device=DEVICE), b"junk")
        waiting = rig.runner._queue.qsize()
        rig.broker.desire(DEVICE, {"digits": ONE.order(1)})
        hold.set()
        assert waiting < INBOUND_MAX + 20, "a flood fills the memory"
        rig.wait(1, OrderOutcome.ACTIVE)
        assert rig.refusals() == ["malformed"], "a thousand refusals are not a thousand reports"


def test_a_late_will_of_an_older_connection_is_answered_with_the_truth(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        until(lambda: rig.broker.heard("status"), "the greeting")
        said = msgspec.json.decode(rig.broker.heard("status")[-1], type=Status)
        late = msgspec.structs.replace(said, online=False, number=0)
        rig.broker.tell(TOPICS.topic(STATUS, device=DEVICE), codec.encode(late), retain=True)
        until(lambda: len(rig.broker.heard("status")) == 2, "the status again")
        assert msgspec.json.decode(rig.broker.heard("status")[-1], type=Status).online
