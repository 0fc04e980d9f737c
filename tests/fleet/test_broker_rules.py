"""The access list is the contract's channels and nothing else; systemd/mosquitto holds what is made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.home_assistant import discovery_topic, state_topic
from fleet import broker_rules
from fleet.broker_rules import REGISTRY, Setup, access_list, mosquitto_config
from wire.topics import CHANNELS, COMMAND_GROUP, STATUS, Channel, Topics

ROOT = Path(__file__).parent.parent.parent
SETUP = Setup(hosts=("broker",))

Rule = tuple[str, str]


def rules(text: str, user: str) -> list[Rule]:
    """What a user may do, by Mosquitto's rules: its own section, then the patterns with its name."""
    found: list[Rule] = []
    section = ""
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "user":
            section = rest
        access, _, topic = rest.partition(" ")
        if kind == "pattern":
            found.append((access, topic.replace("%u", user)))
        elif kind == "topic" and section == user:
            found.append((access, topic))
    return found


def may(text: str, user: str, what: str, topic: str) -> bool:
    named = [access for access, pattern in rules(text, user) if matches(pattern, topic)]
    return "deny" not in named and any(access in {what, "readwrite"} for access in named)


def matches(pattern: str, topic: str) -> bool:
    """MQTT 3.1.1, section 4.7."""
    if topic.startswith("$") != pattern.startswith("$"):
        return False
    regex = re.escape(pattern).replace(r"\#", ".*").replace("\\+", "[^/]*").replace("/.*", "(/.*)?")
    return re.fullmatch(regex, topic) is not None


WORDS = {"device": "roof-17", "group": "north", "digest": "a" * 64, "number": "7", "id": "r1"}


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda channel: channel.name)
@pytest.mark.parametrize("root", ["shallop/v1", "a/b/c"])
def test_each_channel_is_open_to_its_sender_and_its_readers(channel: Channel, root: str) -> None:
    text = access_list(replace(SETUP, root=root))
    topic = Topics(root).topic(channel, **{k: v for k, v in WORDS.items() if f"{{{k}}}" in channel.pattern})
    assert may(text, "roof-17", "read", topic)
    assert may(text, "roof-17", "write", topic) is (channel.sender == "agent")
    assert may(text, REGISTRY, "read", topic)
    assert may(text, REGISTRY, "write", topic)
    if "{device}" in channel.pattern:
        for what in ("read", "write"):
            assert not may(text, "roof-18", what, topic)
    for what in ("read", "write"):
        assert not may(text, "roof-17", what, topic + "/more")
        assert not may(text, "roof-17", what, "x/" + topic)
        assert not may(text, "fleet.watch", "write", topic)


def test_a_device_writes_below_its_own_name_only() -> None:
    written = [topic for access, topic in rules(access_list(SETUP), "roof-17") if access != "read"]
    assert written
    assert all(topic.startswith("shallop/v1/device/roof-17/up/") for topic in written)


PARTS = [
    *("shallop", "v1", "device", "roof-17", "roof-18", "up", "down", "status", "reply", "x", "desired"),
    *("system", "seed", "root", "1", "blob", "release", "all", "group", "$SYS"),
]


@given(topic=st.lists(st.sampled_from(PARTS), min_size=1, max_size=7).map("/".join))
def test_what_a_device_may_do_is_in_the_contract(topic: str) -> None:
    text = access_list(SETUP)
    if may(text, "roof-17", "write", topic):
        assert topic.startswith("shallop/v1/device/roof-17/up/")
    if may(text, "roof-17", "read", topic):
        assert "roof-18" not in topic.split("/")[:4] or topic.split("/")[2] == "group"
        assert topic.startswith("shallop/v1/")


def test_a_denied_device_may_do_nothing_and_its_neighbours_all() -> None:
    text = access_list(SETUP, ["roof-17", "roof-3", "roof-17"])
    status = Topics().topic(STATUS, device="roof-17")
    assert not may(text, "roof-17", "write", status)
    assert not may(text, "roof-17", "read", "shallop/v1/system/seed")
    assert may(text, "roof-18", "write", status.replace("17", "18"))
    assert text.count("user roof-17") == 1


def test_home_assistant_has_access_only_where_it_was_asked_for() -> None:
    own = [make("homeassistant", "roof-17") for make in (discovery_topic, state_topic)]
    other = discovery_topic("homeassistant", "roof-18")
    assert "homeassistant" not in access_list(SETUP)
    assert "fleet.home" not in access_list(SETUP)
    text = access_list(replace(SETUP, home_assistant="homeassistant"))
    assert all(may(text, "roof-17", "write", topic) for topic in own)
    assert not may(text, "roof-17", "write", other)
    assert may(text, broker_rules.HOME, "read", other)
    assert may(text, broker_rules.HOME, "read", "shallop/v1/device/roof-17/up/status")
    assert not may(text, broker_rules.HOME, "write", "shallop/v1/device/roof-17/up/status")


def test_a_channel_on_which_anybody_could_write_as_another_makes_no_list(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for pattern in ("group/{group}/up/x", "device/+/up/x", "device/{device}/down/x", "device/{device}/upx"):
        loose = replace(COMMAND_GROUP, sender="agent", pattern=pattern)
        monkeypatch.setattr(broker_rules, "CHANNELS", (*CHANNELS, loose))
        with pytest.raises(ValueError, match="not below"):
            access_list(SETUP)


def test_a_root_with_a_wildcard_makes_no_list() -> None:
    with pytest.raises(ValueError, match="broker root"):
        access_list(replace(SETUP, root="shallop/#"))


def test_the_largest_message_of_the_contract_fits_a_packet() -> None:
    assert max(channel.size_bytes_max for channel in CHANNELS) + 1024 < broker_rules.PACKET_BYTES_MAX


def test_the_file_that_people_read_is_the_one_that_is_made() -> None:
    kept = ROOT / "systemd" / "mosquitto" / "shallop-tls.conf"
    assert kept.read_text() == mosquitto_config(SETUP)
    assert "listener 8884 192.0.2.7\n" in mosquitto_config(replace(SETUP, port=8884, bind="192.0.2.7"))
