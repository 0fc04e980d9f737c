"""The topic tree maps both ways."""

from __future__ import annotations

import doctest
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import topics

DEVICE = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
PARAMS = {"number": "12", "device": "roof-17", "group": "north", "digest": "ab" * 32, "id": "c_1"}


@given(st.sampled_from(topics.CHANNELS), DEVICE)
def test_a_topic_parses_to_its_channel_and_parameters(channel: topics.Channel, device: str) -> None:
    tree = topics.Topics("site/a")
    names = [name for name in PARAMS if "{" + name + "}" in channel.pattern]
    params = {name: device if name in {"device", "group"} else PARAMS[name] for name in names}
    assert tree.parse(tree.topic(channel, **params)) == (channel, params)


@pytest.mark.parametrize("channel", topics.CHANNELS, ids=lambda c: c.name)
def test_no_two_channels_share_a_topic(channel: topics.Channel) -> None:
    tree = topics.Topics()
    topic = tree.topic(channel, **{k: v for k, v in PARAMS.items() if "{" + k + "}" in channel.pattern})
    parsed = tree.parse(topic)
    assert parsed is not None
    assert parsed[0] is channel


@pytest.mark.parametrize("channel", topics.CHANNELS, ids=lambda c: c.name)
def test_up_is_the_agents_and_everything_else_the_fleets(channel: topics.Channel) -> None:
    assert (channel.sender == "agent") == ("/up/" in channel.pattern)


@given(st.text(max_size=80))
def test_a_strange_topic_is_nobodys(topic: str) -> None:
    assert topics.Topics().parse(topic) is None


@pytest.mark.parametrize("device", ["", "+", "#", "a/b", "A", "-a", "a" * 64, "a\n", "a\0"])
def test_a_parameter_that_is_no_word_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="is no device"):
        topics.Topics().topic(topics.STATUS, device=device)


@pytest.mark.parametrize("root", ["", "/a", "a/", "a/+", "#", "a b", "a//b"])
def test_a_root_that_is_no_root_is_refused(root: str) -> None:
    with pytest.raises(ValueError, match="broker root"):
        topics.Topics(root)


def test_a_parameter_left_out_of_a_filter_matches_anything() -> None:
    tree = topics.Topics()
    assert tree.filter(topics.REPLY, device="a") == "shallop/v1/device/a/up/reply/+"
    assert tree.filter(topics.STATUS) == "shallop/v1/device/+/up/status"


def test_only_state_is_retained() -> None:
    retained = {c.name for c in topics.CHANNELS if c.retain}
    assert retained == {
        "status",
        "identity",
        "reported",
        "desired",
        "release",
        "blob",
        "seed",
        "root",
        "bars",
    }


def test_a_blob_is_fetched_at_qos_0_and_published_at_1() -> None:
    assert (topics.BLOB.qos, topics.BLOB.qos_subscribe) == (1, 0)


def test_the_examples_in_the_docstring_hold() -> None:
    outcome = doctest.testmod(topics)
    assert outcome.attempted >= 5
    assert outcome.failed == 0


def test_the_words_hold_no_wildcard() -> None:
    tree = topics.Topics()
    for letter in set(string.printable) - set(string.ascii_lowercase + string.digits):
        with pytest.raises(ValueError, match="is no device"):
            tree.topic(topics.STATUS, device=letter)
