"""Orders and commands that nobody with authority gave, or not to this device, or not now."""

from __future__ import annotations

import pytest

from tests.attacks.scene import DEVICE, THIEF, Scene
from tests.keys import ORDER_2, RELEASE, ROOT_1
from wire import topics, trust
from wire.codec import encode
from wire.messages import Diagnose, Rollback, ToAll, ToDevice, ToGroup

pytestmark = [pytest.mark.broker, pytest.mark.slow]


def test_an_order_by_another_key(scene: Scene) -> None:
    """A thief's, another fleet's order key, and this fleet's own keys of the other roles."""
    with scene.attack("bad_signature"):
        for key in (THIEF, ORDER_2, RELEASE, ROOT_1):
            scene.order(scene.runs, key)
            scene.command(Rollback(model="tiny", from_=scene.runs.digest, order=scene.number + 1), key)


def test_an_order_without_a_signature(scene: Scene) -> None:
    with scene.attack("unsigned"):
        payload = trust.seal("desired", encode(scene.document(scene.entry(scene.two))))
        scene.put(scene.topics.topic(topics.DESIRED, device=DEVICE), payload)


def test_an_order_with_one_bit_changed(scene: Scene) -> None:
    with scene.attack("bad_signature"):
        payload = trust.seal("desired", encode(scene.document(scene.entry(scene.two))), [scene.order_key])
        at = payload.index(b'"payload":"') + 60
        flipped = payload[:at] + (b"A" if payload[at : at + 1] != b"A" else b"B") + payload[at + 1 :]
        scene.put(scene.topics.topic(topics.DESIRED, device=DEVICE), flipped)


def test_an_old_order_replayed(scene: Scene) -> None:
    old = scene.order(scene.runs)
    scene.obeys()
    with scene.attack("stale_document"):
        scene.put(scene.topics.topic(topics.DESIRED, device=DEVICE), old)


def test_an_old_rollback_replayed(scene: Scene) -> None:
    scene.obeys()
    left, scene.number = scene.runs, scene.number + 1
    command = scene.command(Rollback(model="tiny", from_=left.digest, order=scene.number))
    scene.hand.wait_state(DEVICE, "tiny", lambda s: s.active is not None and s.active.digest != left.digest)
    scene.obeys()
    assert scene.runs is left
    with scene.attack("stale_order"):
        scene.put(scene.topics.topic(topics.COMMAND, device=DEVICE), command, retain=False)


def test_an_order_for_another_device(scene: Scene) -> None:
    with scene.attack("wrong_device"):
        scene.desire(scene.document(scene.entry(scene.two), device="roof-2"))


def test_a_command_for_others(scene: Scene) -> None:
    """Of the fleet, sent on by somebody to those whom it is not for."""
    own, everyone = scene.topics.topic(topics.COMMAND, device=DEVICE), scene.topics.topic(topics.COMMAND_ALL)
    with scene.attack("wrong_target"):
        scene.number += 1
        action = Rollback(model="tiny", from_=scene.runs.digest, order=scene.number)
        for topic in (own, everyone):
            scene.command(action, to=ToDevice(device="roof-2"), on=topic)
            scene.command(action, to=ToGroup(group="north"), on=topic)
        scene.command(action, to=ToDevice(device=DEVICE), on=everyone)
        scene.command(action, to=ToAll(), on=own)


def test_an_order_for_another_model(scene: Scene) -> None:
    """The fleet's own release of one model, ordered for another."""
    with scene.attack("wrong_model", begins=True):
        scene.desire(scene.document(scene.entry(scene.two), model="other"))


def test_a_downgrade_of_the_contract(scene: Scene) -> None:
    """Signed by the fleet: a version with weaker rules must not come back, nor a later one be guessed at."""
    with scene.attack("unsupported_version"):
        for version in (0, 2, 99):
            scene.desire(scene.document(scene.entry(scene.two), version=version))


def test_an_envelope_of_another_kind(scene: Scene) -> None:
    """A command, signed by the fleet, where the desired document lies."""
    with scene.attack("wrong_type"):
        command = scene.command(Diagnose())
        scene.put(scene.topics.topic(topics.DESIRED, device=DEVICE), command)
