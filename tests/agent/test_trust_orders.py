"""An enrolled device before a hostile broker: who does not hold the right key moves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.adapters.ed25519 import verify
from agent.trust import Trust
from tests.agent.rig import DEVICE, ME, ONE, TWO, Rig
from tests.agent.twins import TOPICS, MemoryBroker, Release, until
from tests.keys import (
    ORDER,
    ORDER_2,
    RELEASE,
    RELEASE_2,
    ROOT_1,
    ROOT_2,
    Key,
    root_of,
    root_sha256,
    sealed_root,
)
from wire import roots, topics, trust
from wire.codec import encode
from wire.messages import (
    Bars,
    Command,
    Desired,
    DesiredModel,
    Evaluate,
    MessageRefused,
    OrderOutcome,
    OrderRefused,
    Phase,
    Rollback,
)

MODEL = "digits"


class Fleet:
    """Who holds the keys, and the broker with all that it retains."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        self.order_key, self.release_key = ORDER, RELEASE
        self.number = 0

    def publish(self, release: Release, *keys: Key) -> None:
        for topic, payload in release.messages().items():
            self.broker.tell(topic, payload, retain=True)
        envelope = trust.seal("release", release.data, keys or (self.release_key,))
        self.broker.tell(TOPICS.topic(topics.RELEASE, digest=release.digest), envelope, retain=True)

    def document(
        self, entries: dict[str, DesiredModel], *, number: int | None = None, device: str = DEVICE
    ) -> Desired:
        self.number = self.number + 1 if number is None else number
        return Desired(device=device, number=self.number, models=entries)

    def desire(self, document: Desired, *keys: Key) -> bytes:
        payload = trust.seal("desired", encode(document), keys or (self.order_key,))
        self.broker.tell(TOPICS.topic(topics.DESIRED, device=DEVICE), payload, retain=True)
        return payload

    def order(self, release: Release, number: int, *keys: Key, **fields: object) -> bytes:
        return self.desire(self.document({MODEL: release.order(number, **fields)}), *keys)

    def rotate(self, number: int, *signers: Key, **fields: object) -> None:
        root = root_of(number, **fields)  # type: ignore[arg-type]
        self.broker.tell(
            TOPICS.topic(topics.ROOT, number=str(number)), sealed_root(root, *signers), retain=True
        )


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def fleet(broker: MemoryBroker) -> Fleet:
    return Fleet(broker)


@pytest.fixture
def rig(tmp_path: Path, broker: MemoryBroker, fleet: Fleet) -> Iterator[Rig]:
    """An enrolled device on which release 1 runs by order 1; its configuration would believe anything."""
    state = tmp_path / "state"
    state.mkdir()
    Trust(state, verify).pin(sealed_root(root_of()), root_sha256(root_of()))
    made = Rig(state, broker, unsigned=True)
    fleet.publish(ONE)
    fleet.publish(TWO)
    made.start()
    fleet.order(ONE, 1)
    made.wait(1, OrderOutcome.ACTIVE)
    yield made
    made.stop()


def refusals(rig: Rig) -> set[str]:
    return {
        report.event.reason.code
        for report in rig.reports()
        if isinstance(report.event, MessageRefused | OrderRefused)
    }


def refused(rig: Rig, code: str) -> None:
    until(lambda: code in refusals(rig), f"a refusal {code} among {refusals(rig)}")
    assert rig.running == ONE.digest


def test_signed_orders_are_carried_out(rig: Rig, fleet: Fleet) -> None:
    fleet.order(TWO, 2)
    rig.wait(2, OrderOutcome.ACTIVE)
    assert rig.running == TWO.digest


@pytest.mark.parametrize(
    ("keys", "code"),
    [((ORDER_2,), "bad_signature"), ((RELEASE,), "bad_signature"), ((ROOT_1,), "bad_signature")],
)
def test_an_order_signed_by_another_key_is_refused(
    rig: Rig, fleet: Fleet, keys: tuple[Key, ...], code: str
) -> None:
    fleet.order(TWO, 2, *keys)
    refused(rig, code)


def test_an_unsigned_order_is_refused(rig: Rig, fleet: Fleet, broker: MemoryBroker) -> None:
    payload = trust.seal("desired", encode(fleet.document({MODEL: TWO.order(2)})))
    broker.tell(TOPICS.topic(topics.DESIRED, device=DEVICE), payload, retain=True)
    refused(rig, "unsigned")


@pytest.mark.parametrize("key", [ORDER, RELEASE_2, ROOT_1])
def test_a_release_signed_by_another_key_is_refused(rig: Rig, fleet: Fleet, key: Key) -> None:
    fleet.publish(TWO, key)
    fleet.order(TWO, 2)
    state = rig.wait(2, OrderOutcome.FAILED)
    assert state.reason is not None
    assert state.reason.code == "bad_signature"
    assert rig.running == ONE.digest


def test_an_old_document_is_not_obeyed_again(rig: Rig, fleet: Fleet, broker: MemoryBroker) -> None:
    fleet.order(TWO, 2)
    rig.wait(2, OrderOutcome.ACTIVE)
    old = trust.seal("desired", encode(fleet.document({MODEL: ONE.order(1)}, number=1)), [ORDER])
    broker.tell(TOPICS.topic(topics.DESIRED, device=DEVICE), old, retain=True)
    until(lambda: "stale_document" in refusals(rig), "the refusal of an old document")
    assert rig.running == TWO.digest
    told = [r.event for r in rig.reports() if isinstance(r.event, OrderRefused)]
    assert told[-1].order_highest == fleet.number + 1, "a restored registry counts on from here"


def test_a_document_for_another_device_is_refused(rig: Rig, fleet: Fleet) -> None:
    fleet.desire(fleet.document({MODEL: TWO.order(2)}, device="roof-18"))
    refused(rig, "wrong_device")


def test_a_release_of_another_model_is_refused(rig: Rig, fleet: Fleet) -> None:
    fleet.desire(fleet.document({MODEL: ONE.order(1), "other": TWO.order(2)}))
    until(lambda: rig.runner.models.get("other", rig.deployment).model == "other", "the other model")
    until(lambda: rig.runner.models["other"].outcome is not None, "the end of its order")
    reason = rig.runner.models["other"].reason
    assert reason is not None
    assert reason.code == "wrong_model"
    assert rig.running == ONE.digest


def test_a_cleared_document_undoes_nothing(rig: Rig, fleet: Fleet, broker: MemoryBroker) -> None:
    """Anyone at the broker can clear it; without a signature a soak is not called off."""
    fleet.order(TWO, 2, soak_s=0.6)
    until(lambda: rig.deployment.phase is Phase.SOAKING, "the soak")
    broker.tell(TOPICS.topic(topics.DESIRED, device=DEVICE), b"", retain=True)
    rig.wait(2, OrderOutcome.ACTIVE)
    assert rig.running == TWO.digest


def test_a_signed_document_without_the_model_calls_its_order_off(rig: Rig, fleet: Fleet) -> None:
    fleet.order(TWO, 2, soak_s=30.0)
    until(lambda: rig.deployment.phase is Phase.SOAKING, "the soak")
    fleet.desire(fleet.document({}))
    until(lambda: rig.running == ONE.digest, "the way back")


def test_a_barred_release_comes_by_no_order(rig: Rig, fleet: Fleet, broker: MemoryBroker) -> None:
    bars = trust.seal("bars", encode(Bars(number=1, digests=(TWO.digest,))), [RELEASE])
    broker.tell(TOPICS.topic(topics.BARS), bars, retain=True)
    until(lambda: rig.trust.state.barred == (TWO.digest,), "the list")
    fleet.order(TWO, 2)
    refused(rig, "release_barred")
    assert rig.deployment.order_highest == 1


# --- rotation


def test_a_revoked_order_key_moves_nothing(rig: Rig, fleet: Fleet) -> None:
    fleet.rotate(2, ROOT_1, order=(ORDER_2,), epoch=1)
    until(lambda: rig.trust.state.root.number == 2, "the second root")
    fleet.order(TWO, 2, ORDER)
    refused(rig, "bad_signature")
    first = roots.first_order(1)
    fleet.desire(fleet.document({MODEL: TWO.order(first + 1)}, number=first), ORDER_2)
    rig.wait(first + 1, OrderOutcome.ACTIVE)


def test_three_roots_missed_while_it_was_off_are_caught_up(rig: Rig, fleet: Fleet) -> None:
    rig.stop()
    fleet.rotate(2, ROOT_1, ROOT_2, root=(ROOT_2,))
    fleet.rotate(3, ROOT_2, ROOT_1, root=(ROOT_1,), release=(RELEASE_2,))
    fleet.rotate(4, ROOT_1, order=(ORDER_2,), release=(RELEASE_2,), epoch=1)
    fleet.publish(TWO, RELEASE_2)
    first = roots.first_order(1)
    fleet.desire(fleet.document({MODEL: TWO.order(first + 1)}, number=first), ORDER_2)
    rig.start()
    rig.wait(first + 1, OrderOutcome.ACTIVE)
    assert rig.trust.state.root.number == 4
    assert rig.running == TWO.digest


@pytest.mark.parametrize("signer", [ORDER, RELEASE, ROOT_2])
def test_a_root_of_somebody_else_is_refused(rig: Rig, fleet: Fleet, signer: Key) -> None:
    fleet.rotate(2, signer, order=(ORDER_2,))
    refused(rig, "bad_signature")
    assert rig.trust.state.root.number == 1


def test_a_number_of_a_later_epoch_is_refused(rig: Rig, fleet: Fleet) -> None:
    fleet.order(TWO, roots.first_order(1))
    refused(rig, "future_epoch")


# --- commands


def test_a_signed_rollback_is_obeyed_and_a_forged_one_is_not(
    rig: Rig, fleet: Fleet, broker: MemoryBroker
) -> None:
    fleet.order(TWO, 2)
    rig.wait(2, OrderOutcome.ACTIVE)
    action = Rollback(model=MODEL, from_=TWO.digest, order=3)
    command = encode(Command(id="c1", to=ME, action=action))
    topic = TOPICS.topic(topics.COMMAND, device=DEVICE)
    broker.tell(topic, trust.seal("command", command, [ORDER_2]))
    until(lambda: "bad_signature" in refusals(rig), "the refusal of the forged command")
    assert rig.running == TWO.digest
    broker.tell(topic, trust.seal("command", command, [ORDER]))
    rig.wait(2, OrderOutcome.ROLLED_BACK)
    assert rig.running == ONE.digest


@pytest.mark.parametrize("kind", ["rollback", "evaluate"])
def test_a_command_of_a_later_epoch_is_refused(rig: Rig, broker: MemoryBroker, kind: str) -> None:
    late = roots.first_order(1)
    action = (
        Rollback(model=MODEL, from_=ONE.digest, order=late)
        if kind == "rollback"
        else Evaluate(model=MODEL, desired=TWO.order(late, mode="evaluate"))
    )
    payload = trust.seal("command", encode(Command(id="c1", to=ME, action=action)), [ORDER])
    broker.tell(TOPICS.topic(topics.COMMAND, device=DEVICE), payload)
    refused(rig, "future_epoch")
    assert rig.deployment.order_highest == 1


# --- junk


def test_junk_on_every_topic_moves_nothing(rig: Rig, fleet: Fleet, broker: MemoryBroker) -> None:
    for payload in (b"\0" * 200, b"{" * 10_000, b"[]", b'{"payloadType": 1}'):
        for channel in (topics.DESIRED, topics.COMMAND, topics.ACK, topics.STATUS):
            broker.tell(TOPICS.topic(channel, device=DEVICE), payload, retain=channel.retain)
        broker.tell(TOPICS.topic(topics.COMMAND_ALL), payload)
        broker.tell(TOPICS.topic(topics.BARS), payload, retain=True)
        broker.tell(TOPICS.topic(topics.ROOT, number="2"), payload, retain=True)
    refused(rig, "malformed")
    fleet.order(TWO, 2)
    rig.wait(2, OrderOutcome.ACTIVE)


def test_a_damaged_trust_state_believes_nobody_and_goes_on_running(
    rig: Rig, fleet: Fleet, broker: MemoryBroker
) -> None:
    rig.stop()
    (rig.root / "trust.json").write_bytes(b"")
    rig.start()
    fleet.order(TWO, 2)
    refused(rig, "trust_damaged")
    payload = trust.seal("desired", encode(fleet.document({MODEL: TWO.order(3)})))
    broker.tell(TOPICS.topic(topics.DESIRED, device=DEVICE), payload, retain=True)
    refused(rig, "unsigned")
