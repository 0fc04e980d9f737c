"""Folding messages into views: duplication, disorder, former lives and two machines under one name."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.inventory import INSTALLS_MAX, Device, UpMessage, cleared_duplicate, fold, labelled
from wire.messages import (
    Hardware,
    Identity,
    ModelState,
    OrderRefused,
    Reason,
    Reply,
    Report,
    Reported,
    Status,
)

A, B = "a" * 32, "b" * 32


def status(number: int, online: bool = True, install: str = A) -> Status:
    return Status(device="d", install_id=install, number=number, online=online, agent_version="1")


def identity(number: int, install: str = A, **labels: str) -> Identity:
    hardware = Hardware(arch="aarch64", memory_bytes=number)
    return Identity(
        device="d", install_id=install, number=number, hardware=hardware, agent_version="1", labels=labels
    )


def reported(number: int, install: str = A, order: int | None = None) -> Reported:
    state = ModelState(order=number if order is None else order, missing=(f"{number:064x}",))
    return Reported(device="d", install_id=install, number=number, models={"cats": state})


def report(number: int, install: str = A, order_highest: int = 0) -> Report:
    event = OrderRefused(reason=Reason(code="stale_order"), order_highest=order_highest)
    return Report(device="d", install_id=install, number=number, order=number, event=event)


def told(messages: list[UpMessage], start: Device | None = None) -> Device:
    device = start or Device(id="d")
    for second, message in enumerate(messages):
        device = fold(device, message, float(second))
    return device


def without_speakers(device: Device) -> Device:
    """The view without its times, which say when and not what, and without what only alternation needs."""
    installs = {k: msgspec.structs.replace(v, seen_at=0.0) for k, v in device.installs.items()}
    return msgspec.structs.replace(device, seen_at=None, speakers={}, installs=dict(sorted(installs.items())))


one_install = st.lists(
    st.one_of(
        st.builds(status, st.integers(0, 5), st.booleans()),
        st.builds(identity, st.integers(0, 5)),
        st.builds(reported, st.integers(0, 5)),
        st.builds(report, st.integers(0, 5), order_highest=st.integers(0, 99)),
    ),
    max_size=12,
)


@settings(max_examples=150)
@given(messages=one_install, seed=st.integers(0, 2**32))
def test_duplicates_and_disorder_give_the_same_view(messages: list[UpMessage], seed: int) -> None:
    shuffled = messages * 2
    random.Random(seed).shuffle(shuffled)
    assert without_speakers(told(shuffled)) == without_speakers(told(messages))


installs = st.sampled_from([A, B])
two_installs = st.lists(
    st.one_of(
        st.builds(status, st.integers(0, 5), st.booleans(), installs),
        st.builds(identity, st.integers(0, 5), installs),
        st.builds(reported, st.integers(0, 5), installs),
        st.builds(report, st.integers(0, 5), installs),
    ),
    max_size=14,
)


@settings(max_examples=150)
@given(messages=two_installs, data=st.data())
def test_a_redelivered_message_changes_nothing(messages: list[UpMessage], data: st.DataObject) -> None:
    device = told(messages)
    for message in data.draw(st.lists(st.sampled_from(messages), max_size=6) if messages else st.just([])):
        assert fold(device, message, 1e6) is device


@settings(max_examples=100)
@given(messages=two_installs, data=st.data())
def test_every_message_delivered_twice_gives_the_same_view(
    messages: list[UpMessage], data: st.DataObject
) -> None:
    doubled = [copy for message in messages for copy in [message] * data.draw(st.integers(1, 3))]
    assert without_speakers(told(doubled)) == without_speakers(told(messages))


@settings(max_examples=150)
@given(messages=two_installs)
def test_numbers_never_fall(messages: list[UpMessage]) -> None:
    device = Device(id="d")
    for message in messages:
        after = fold(device, message, 0.0)
        assert after.order_highest >= device.order_highest
        assert after.duplicate_identity >= device.duplicate_identity
        for key, install in device.installs.items():
            later = after.installs[key]
            assert later.report_number >= install.report_number
            for kind in ("status", "identity", "reported"):
                old, new = getattr(install, kind), getattr(later, kind)
                assert old is None or new.number >= old.number
        device = after


def test_the_last_will_of_an_older_connection_is_ignored() -> None:
    assert told([status(1), status(2), status(1, online=False)]).online
    assert not told([status(1), status(2), status(2, online=False)]).online
    assert not told([status(2, online=False), status(2)]).online
    assert told([status(2, online=False), status(3)]).online


def test_a_new_install_speaks_for_the_device_with_nothing_of_its_former_life() -> None:
    device = told([status(4), identity(9), reported(7), status(1, install=B)])
    assert device.install_id == B
    assert (device.models, device.hardware, device.duplicate_identity) == ({}, None, False)
    device = told([identity(1, B), reported(1, B)], device)
    assert device.models["cats"].order == 1
    assert device.order_highest == 7


def test_a_former_life_read_late_does_not_come_back() -> None:
    device = told([status(1, install=B), reported(7, A), reported(1, B)])
    assert device.install_id == B
    assert device.models["cats"].order == 1
    assert not device.duplicate_identity


def test_ids_that_alternate_are_two_machines() -> None:
    for kind in (status, identity, reported, report):
        device = told([kind(1), kind(1, install=B), kind(2)])
        assert device.duplicate_identity, kind
        assert not cleared_duplicate(device).duplicate_identity
    assert not told([status(1), status(1, install=B), status(1, online=False)]).duplicate_identity
    assert not told([reported(1), reported(1, B), reported(1)]).duplicate_identity


def test_own_labels_override_suggestions() -> None:
    device = told([status(1), identity(1, site="berlin", ring="early")])
    device = labelled(device, {"ring": "canary"}, ["south", "north", "north"])
    assert device.labels == {"site": "berlin", "ring": "canary"}
    assert device.groups == ("north", "south")


def test_highest_order_is_found_wherever_it_stands() -> None:
    state = ModelState(order=3, order_highest=12)
    whole = Reported(device="d", install_id=A, number=1, models={"cats": state})
    assert told([whole]).order_highest == 12
    assert told([report(4, order_highest=40)]).order_highest == 40
    reply = Reply(device="d", install_id=A, number=1, command="rollback", result="refused", order_highest=50)
    assert told([reply, report(4)]).order_highest == 50


def test_missing_digests_are_those_of_the_newest_report() -> None:
    assert told([status(1), reported(2), reported(1)]).missing == (f"{2:064x}",)


def test_seen_means_connected_or_heard_of_lately() -> None:
    device = told([status(1), identity(1)])
    assert device.seen_within(10.0, 1e6)
    gone = told([status(1, online=False)], device)
    assert gone.seen_at == 1.0
    assert gone.seen_within(10.0, 11.0)
    assert not gone.seen_within(10.0, 12.0)
    assert not Device(id="d").seen_within(1e9, 0.0)


def test_installs_are_limited() -> None:
    device = Device(id="d")
    for index in range(3 * INSTALLS_MAX):
        device = fold(device, identity(1, f"{index:032x}"), float(index))
    assert len(device.installs) == INSTALLS_MAX
    assert device.install_id == f"{3 * INSTALLS_MAX - 1:032x}"


def test_views_are_stored_and_read_back() -> None:
    device = told([status(1), identity(1), reported(3), report(2)])
    assert msgspec.json.decode(msgspec.json.encode(device), type=Device) == device


def test_a_message_of_another_device_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="folded into other"):
        fold(Device(id="other"), status(1), 0.0)
