"""Keys that were stolen, and the root that takes them away again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent.adapters.ed25519 import verify
from agent.believing import TrustState
from agent.deployment import Deployment, Ordered
from agent.metering import behind
from agent.trust import Trust
from examples.demo.house import wait_for
from tests.agent.rig import ONE, Rig
from tests.agent.twins import VARIANT, MemoryBroker
from tests.attacks.cargo import cargo
from tests.attacks.scene import DEVICE, THIEF, Scene
from tests.keys import (
    ORDER,
    ORDER_2,
    RELEASE,
    RELEASE_2,
    ROOT_1,
    ROOT_2,
    ROOT_3,
    Key,
    root_of,
    root_sha256,
    sealed_root,
)
from wire import topics, trust
from wire.codec import encode
from wire.messages import MODELS_MAX, Bars, Desired, Evaluate, OrderOutcome, Rollback, Slot
from wire.roots import first_order

pytestmark = [pytest.mark.broker, pytest.mark.slow]
Scenes = Callable[..., Scene]


def trusts(scene: Scene, what: Callable[[TrustState], bool]) -> None:
    wait_for("the device's trust", lambda: what(scene.trusted.state))


def rotate_order_key(scene: Scene, number: int, key: Key, epoch: int) -> None:
    """The fleet's answer to a stolen order key: a new one, and the next epoch of numbers."""
    scene.rotate(root_of(number, order=(key,), epoch=epoch), ROOT_1)
    scene.order_key, scene.number = key, first_order(epoch)
    trusts(scene, lambda state: state.root.number == number)


def bar(scene: Scene, number: int, *digests: str, key: Key = RELEASE) -> None:
    bars = Bars(number=number, digests=digests)
    scene.put(scene.topics.topic(topics.BARS), trust.seal("bars", encode(bars), [key]))


def test_a_root_of_somebody_else(scene: Scene) -> None:
    """Signed by a thief, by online keys, by the old or the new root key alone; one that skips a number."""
    new = root_of(2, root=(ROOT_2,), order=(THIEF,))
    with scene.attack("bad_signature"):
        for signer in (THIEF, ORDER, RELEASE, ROOT_1, ROOT_2):
            scene.rotate(new, signer)
        scene.put(
            scene.topics.topic(topics.ROOT, number="2"), sealed_root(root_of(3, order=(THIEF,)), ROOT_1)
        )
        scene.order(scene.one, THIEF)
    assert scene.trusted.state.root == root_of()
    assert "root_out_of_order" in scene.told()


def test_too_few_of_the_root_keys(new_scene: Scenes) -> None:
    scene = new_scene(root_of(root=(ROOT_1, ROOT_2, ROOT_3), threshold=2))
    new = root_of(2, root=(ROOT_1, ROOT_2, ROOT_3), threshold=2, order=(THIEF,))
    with scene.attack("below_threshold"):
        scene.rotate(new, ROOT_1)
    assert scene.trusted.state.root.number == 1


def test_a_revoked_order_key(new_scene: Scenes) -> None:
    scene = new_scene()
    rotate_order_key(scene, 2, ORDER_2, 1)
    with scene.attack("bad_signature"):
        scene.order(scene.two, ORDER)
        scene.command(Rollback(model="tiny", from_=scene.runs.digest, order=scene.number + 1), ORDER)


def test_a_revoked_release_key(new_scene: Scenes) -> None:
    scene = new_scene()
    scene.rotate(root_of(2, release=(RELEASE_2,)), ROOT_1)
    trusts(scene, lambda state: state.root.number == 2)
    scene.release_key = RELEASE_2
    scene.publish(scene.two)
    stolen = cargo("3", 3)
    scene.publish(stolen, RELEASE)
    with scene.attack("bad_signature", begins=True):
        scene.order(stolen)


def test_three_generations_of_roots_missed(new_scene: Scenes) -> None:
    """The order key was stolen and everything rotated while the device was off; its thief meets it first."""
    scene = new_scene()

    def meanwhile() -> None:
        scene.order(scene.two, ORDER)
        scene.rotate(root_of(2, root=(ROOT_2,)), ROOT_1, ROOT_2)
        scene.rotate(root_of(3, root=(ROOT_3,), release=(RELEASE_2,)), ROOT_2, ROOT_3)
        scene.rotate(root_of(4, root=(ROOT_3,), release=(RELEASE_2,), order=(ORDER_2,), epoch=1), ROOT_3)

    scene.restart(meanwhile)
    trusts(scene, lambda state: state.root.number == 4)
    scene.order_key, scene.release_key, scene.number = ORDER_2, RELEASE_2, first_order(1)
    for release in (scene.one, scene.two):
        scene.publish(release)
    scene.obeys()
    with scene.attack("bad_signature"):
        scene.order(scene.two, ORDER)


def test_numbers_used_up_by_a_thief(new_scene: Scenes) -> None:
    """A stolen order key pushes the numbers to the end of the epoch and no further; a new root frees them."""
    scene = new_scene()
    honest, last = scene.number, first_order(1) - 1
    scene.number = last - 2
    scene.deploy(scene.two)
    assert scene.trusted.state.document == last
    with scene.attack("future_epoch", "stale_document"):
        scene.number = last + 1
        scene.order(scene.one, ORDER)
        scene.number = honest
        scene.order(scene.one)
        rotate_order_key(scene, 2, ORDER_2, 1)


def test_a_table_of_models_filled_by_a_thief(new_scene: Scenes) -> None:
    """A stolen order key names as many models as there may be; the fleet's next new one still finds room."""
    scene = new_scene()
    junk = {f"junk-{n}": scene.entry(scene.one, n + 1, deadline_s=2.0) for n in range(MODELS_MAX - 1)}
    scene.number += MODELS_MAX
    with scene.attack("wrong_model", begins=True):
        scene.desire(replace(scene.document(scene.entry(scene.runs)), models=junk), ORDER)
        wait_for("all the names", lambda: len(scene.hand.reported[DEVICE].models) == MODELS_MAX)
    rotate_order_key(scene, 2, ORDER_2, 1)
    fresh = cargo("1", 7, model="fresh")
    scene.publish(fresh)
    scene.desire(scene.document(scene.entry(fresh), model="fresh"))
    assert scene.hand.wait_ended(DEVICE, "fresh", scene.number - 1).outcome is OrderOutcome.ACTIVE
    scene.obeys()


def test_room_for_a_new_model(tmp_path: Path) -> None:
    """Only a name that nothing was installed of gives way; where there is none, the fleet is told."""
    rig = Rig(tmp_path, MemoryBroker())
    rig.build()
    slot = Slot(digest=ONE.digest, release="1", variant=VARIANT)
    holding = [Deployment(model=f"kept-{n}", active=slot) for n in range(MODELS_MAX - 2)]
    holding += [Deployment(model="kept-back", previous=slot), Deployment(model="empty")]
    rig.runner.models.update({d.model: d for d in holding})
    rig.runner.apply("fresh", Ordered(desired=ONE.order(1)))
    assert set(rig.runner.models) == {d.model for d in holding} - {"empty"} | {"fresh"}
    rig.runner.apply("another", Ordered(desired=ONE.order(2)))
    assert "another" not in rig.runner.models
    assert rig.refusals() == ["too_many_models"]


def test_a_time_signed_by_a_thief(tmp_path: Path) -> None:
    """A stolen order key signs the year 2999, and no clock is believed until the next epoch begins."""
    device, now = Trust(tmp_path, verify), "2026-11-21T18:00:00+00:00"
    device.pin(sealed_root(root_of()), root_sha256(root_of()))
    device.obey(Desired(device="roof-1", number=1, models={}, issued_at="2999-01-01T00:00:00+00:00"))
    assert behind(now, device.state.signed_at)
    same = replace(root_of(2), issued_at=now)
    device.rotate(sealed_root(same))
    assert behind(now, device.state.signed_at), "a rotation of other keys takes no word of the order key back"
    device.rotate(sealed_root(replace(root_of(3, order=(ORDER_2,), epoch=1), issued_at=now)))
    assert device.state.signed_at == now
    assert not behind(now, device.state.signed_at)


def test_a_barred_release(new_scene: Scenes) -> None:
    """A stolen order key leads no fleet back to a release that is known to be bad: by no way of ordering."""
    scene = new_scene()
    scene.deploy(scene.two)
    bar(scene, 1, scene.one.digest)
    trusts(scene, lambda state: bool(state.barred))
    three = cargo("3", 3)
    scene.publish(three)
    with scene.attack("release_barred"):
        scene.order(scene.one, ORDER)
        scene.number += 1
        evaluation = scene.entry(scene.one, mode="evaluate")
        scene.command(Evaluate(model="tiny", desired=evaluation), ORDER)
        scene.number += 1
        scene.command(Rollback(model="tiny", from_=scene.two.digest, order=scene.number), ORDER)
        scene.one = three


def test_an_old_list_of_barred_releases(new_scene: Scenes) -> None:
    """By the fleet, replayed to free a release; by the order key; cleared."""
    scene = new_scene()
    three = cargo("3", 3)
    scene.publish(three)
    bar(scene, 1)
    bar(scene, 2, three.digest)
    trusts(scene, lambda state: bool(state.barred))
    with scene.attack("stale_bars", "bad_signature", "release_barred"):
        bar(scene, 1)
        bar(scene, 3, key=ORDER)
        scene.put(scene.topics.topic(topics.BARS), b"")
        scene.order(three)
    assert scene.trusted.state.barred == (three.digest,)


def test_a_stolen_release_key_that_bars_everything(new_scene: Scenes) -> None:
    """With the highest number there is; a new key takes the list back."""
    scene = new_scene()
    scene.deploy(scene.two)
    bar(scene, 2**53 - 1, scene.one.digest, scene.two.digest)
    trusts(scene, lambda state: bool(state.barred))
    with scene.attack("release_barred"):
        scene.order(scene.one)
        wait_for("the refusal", lambda: "release_barred" in scene.told(), 20)
        scene.rotate(root_of(2, release=(RELEASE_2,)), ROOT_1)
        trusts(scene, lambda state: state.root.number == 2)
        scene.release_key = RELEASE_2
        bar(scene, 2**53 - 1, key=RELEASE_2)
        trusts(scene, lambda state: not state.barred)
        for release in (scene.one, scene.two):
            scene.publish(release)


def test_a_damaged_trust_state(new_scene: Scenes) -> None:
    """What runs goes on, nobody is believed, and only whoever enrols the device again gets it back."""
    scene = new_scene()
    before = scene.standing()
    for content in (b"", b"\0" * 500):
        since = len(scene.hand.reports)
        scene.restart(lambda content=content: (scene.state / "trust.json").write_bytes(content))  # type: ignore[misc]
        scene.order(scene.two)
        scene.put(
            scene.topics.topic(topics.DESIRED, device=DEVICE),
            trust.seal("desired", encode(scene.document(scene.entry(scene.two)))),
        )
        scene.stopped(since, "trust_damaged", "unsigned")
        assert scene.standing() == before
    scene.restart(scene.enrol)
    state = scene.model_state()
    assert state is not None
    assert state.outcome is OrderOutcome.ACTIVE
    scene.obeys()
