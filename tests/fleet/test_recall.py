"""A registry on an older database, on twins: what it takes up, what it does not, what it says."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.adapters.signing_desk import Keyring
from fleet.audit import REGISTRY, AuditEntry, By
from fleet.bars import Bars, BarsAsk, sealed_bars
from fleet.current import Current
from fleet.enrolments import Revocation
from fleet.orders import Desk
from fleet.people import RolloutAsk
from fleet.ports import ConflictError, Delivery
from fleet.publish.content import blob_sizes, manifest_of
from fleet.recall import RESTORED
from fleet.recalled import PAUSED_WHY, SETTLE_S, RestoredHealth
from fleet.restored import GENERATION_JUMP_MAX, ORDERS_JUMP_MAX
from fleet.rollout import FailureAction
from tests.fleet.bundles import write_bundle
from tests.fleet.scripted import ScriptedDevice
from tests.fleet.twins import TOPICS, Harness
from tests.keys import ORDER, ORDER_2, RELEASE, ROOT_2, Key, root_of, sealed_root
from wire import topics as wt
from wire import trust
from wire.codec import decode, encode
from wire.errors import TrustError
from wire.messages import Bars as BarsMessage
from wire.messages import (
    Desired,
    DesiredModel,
    MessageRefused,
    OrderRefused,
    Reason,
    Report,
    ReportEvent,
    Seed,
)
from wire.roots import Root

ROOT = root_of()
ADA = By(who="ada", why="a test")
ONE, TWO, THREE = "1" * 64, "2" * 64, "3" * 64
LIST = TOPICS.topic(wt.BARS)


def desk(root: Root = ROOT, *release: Key) -> Desk:
    return Desk(
        TOPICS, signers=(ORDER,), release_signers=release, policy=trust.Policy(verifier=Keyring(root)),
        roots=(sealed_root(root),), root=root,
    )  # fmt: skip


class House:
    """A registry that signs, whose database can be put back."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now = folder, Harness(f"sqlite:///{folder / 'fleet.db'}", desk(ROOT, RELEASE))
        self.devices = [self.now.device(f"dev-{n}") for n in range(3)]
        self.config: dict[str, object] = {}
        self._lives = [self.now]

    def publish(self, *names: str) -> None:
        for name in names:
            place = self.folder / name
            if not place.exists():
                write_bundle(place, name, seed=int(name[1:]), size_bytes=9000, shared_bytes=3000)
            self.now.publish(place)

    def start(self, name: str, waves: str = "100%") -> str:
        ask = RolloutAsk(model="camera", release=name, waves=waves, soak_s=0.0)
        made = self.now.people.start(ask).id
        self.now.settle()
        return made

    def state(self, rollout: str) -> str:
        return self.now.people.rollout(rollout).rollout.state

    def bars(self, *bar: str, unbar: Sequence[str] = (), above: int = 0, signs: bool = True) -> None:
        signing = Current(desk(ROOT, *([RELEASE] if signs else [])))
        made = Bars(self.now.store, self.now.clock, signing, False)
        made.change(BarsAsk(bar=bar, unbar=tuple(unbar), above=above), ADA)
        self.now.settle()

    @property
    def barred(self) -> tuple[int, set[str]]:
        with self.now.store.begin() as tx:
            return tx.mark().bars, {row.digest for row in tx.barred()}

    @property
    def listed(self) -> BarsMessage:
        """What lies on the broker, which devices believe."""
        inner = trust.open_envelope(self.now.broker.retained[LIST], "bars", desk().policy, 10**6)
        return decode(inner, BarsMessage, 10**6)

    def backup(self) -> None:
        with sqlite3.connect(self.folder / "fleet.db") as source:
            with sqlite3.connect(self.folder / "backup.db") as target:
                source.backup(target)
            target.close()
        source.close()

    def put_back(self, made: Desk | None = None, *, settle: bool = True) -> None:
        """The backup in the place of the database; broker and devices are as they were."""
        self.now.store.close()
        (self.folder / "fleet.db").write_bytes((self.folder / "backup.db").read_bytes())
        before, self.now = (
            self.now,
            Harness(f"sqlite:///{self.folder / 'fleet.db'}", made or desk(ROOT, RELEASE)),
        )
        self._lives.append(self.now)
        self.now.broker, self.now.blobs, self.now.clock.time = before.broker, before.blobs, before.clock.time
        self.now.config = replace(self.now.config, **self.config)
        self.now.restart()
        if settle:
            self.now.settle()

    def retain(self, topic: str, payload: bytes) -> None:
        """What somebody puts on the broker, found with the next connection."""
        self.now.broker.retained[topic] = payload
        self.now.restart()
        self.now.settle()

    def entries(self, *what: str) -> list[AuditEntry]:
        with self.now.store.begin() as tx:
            return [entry for entry in tx.audit_entries(0, 1000) if entry.what in what]

    @property
    def health(self) -> RestoredHealth | None:
        return self.now.recall.health(self.now.store, self.now.clock.now())

    @property
    def left(self) -> str:
        found = self.health
        return "" if found is None else "\n".join(found.left)

    @property
    def orders(self) -> int:
        with self.now.store.begin() as tx:
            return tx.mark().orders

    def document(self, device: str = "dev-0") -> Desired:
        payload = self.now.broker.retained[TOPICS.topic(wt.DESIRED, device=device)]
        return decode(trust.open_envelope(payload, "desired", desk().policy, 10**6), Desired, 10**6)

    def close(self) -> None:
        for life in self._lives:
            assert not life.conductor.failures
            life.store.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.close()


def running(devices: Sequence[ScriptedDevice]) -> list[str]:
    return ["" if d.states["camera"].active is None else d.states["camera"].active.release for d in devices]


def tell(device: ScriptedDevice, event: ReportEvent) -> None:
    report = Report(
        device=device.device, install_id=device.install_id, number=device._number("report"), event=event
    )
    device._up(wt.REPORT, report)


def test_what_was_ordered_since_is_what_this_registry_orders(house: House) -> None:
    house.publish("v1", "v2", "v3")
    house.start("v1")
    house.backup()
    house.start("v2")
    house.now.people.group("dev-0", ("roofs",))
    house.now.settle()
    before, highest = house.document(), house.orders
    house.put_back()
    assert house.orders >= highest
    assert house.document() == before, "nothing was given out anew"
    with house.now.store.begin() as tx:
        assert tx.desired("dev-0")["camera"].entry == before.models["camera"]
        view = tx.device("dev-0")
    assert view is not None
    assert view.groups == ("roofs",)
    (entry,) = house.entries(RESTORED)
    assert "signed by us; our numbers ended at" in entry.why
    assert running(house.devices) == ["v2"] * 3
    assert house.state(house.start("v3")) == "completed"
    assert running(house.devices) == ["v3"] * 3
    house.now.restart()
    house.now.settle()
    assert len(house.entries(RESTORED)) == 1, "said once, and what was given out since is remembered"
    found = house.health
    assert found is not None
    assert (found.entry, found.left) == (entry.number, ())


def test_an_open_rollout_waits_for_a_person(house: House) -> None:
    house.publish("v1", "v2")
    house.start("v1")
    for device in house.devices:
        device.holds_back = True
    made = house.start("v2", "1,100%")
    assert house.state(made) == "running"
    house.backup()
    reached = [len(device.received) for device in house.devices]
    for device in house.devices:
        device.wake()
    house.now.people.abort(made, FailureAction.ROLLBACK_ALL, By(who="ada", why="it is bad"))
    house.now.settle()
    assert running(house.devices) == ["v1"] * 3
    house.put_back()
    house.now.settle(30)
    assert house.state(made) == "paused"
    assert house.now.people.rollout(made).rollout.reason == PAUSED_WHY
    assert [entry.subject for entry in house.entries("rollout.pause")] == [made]
    assert made in house.left
    assert running(house.devices) == ["v1"] * 3
    assert (
        sum(n > before for n, before in zip((len(d.received) for d in house.devices), reached, strict=True))
        <= 1
    )
    house.now.people.abort(made, FailureAction.HALT, ADA)
    house.now.settle()
    assert made not in house.left


def test_nothing_is_said_where_nothing_went_back(house: House) -> None:
    house.publish("v1")
    house.start("v1")
    house.bars(ONE)
    old = dict(house.now.broker.retained)
    house.publish("v2")
    house.start("v2")
    house.bars(TWO, unbar=[ONE])
    kept, list_kept = house.orders, house.listed
    for topic, payload in old.items():
        house.now.broker.retained[topic] = payload
    house.now.restart()
    house.now.settle()
    assert house.health is None, "old documents and lists, replayed"
    assert house.orders == kept
    assert house.barred == (2, {TWO})
    house.bars(THREE)
    assert house.listed.number == list_kept.number + 1
    assert not house.entries(RESTORED, "registry.marker-ahead")


def forged(number: int, key: Key = ORDER, device: str = "dev-0", order: int = 1) -> bytes:
    entry = DesiredModel(order=order, digest=ONE, release="evil")
    return trust.seal(
        "desired", encode(Desired(device=device, number=number, models={"camera": entry})), [key]
    )


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (forged(50, ORDER_2), "bad_signature"),
        (forged(50, RELEASE), "bad_signature"),
        (forged(50, device="dev-1"), "wrong_device"),
        (forged(100 + ORDERS_JUMP_MAX), "order_unbelievable"),
        (forged(5, order=100 + ORDERS_JUMP_MAX), "order_unbelievable"),
        (forged(2**40), "future_epoch"),
        (forged(5, order=2**40), "future_epoch"),
        (b"{}", "malformed"),
        (b"x" * 600_000, "oversized"),
        (trust.seal("desired", encode(Desired(device="dev-0", number=50, models={}))), "unsigned"),
    ],
)
def test_a_hostile_broker_moves_no_number(house: House, payload: bytes, code: str) -> None:
    house.publish("v1")
    house.start("v1")
    before = house.orders
    house.retain(TOPICS.topic(wt.DESIRED, device="dev-0"), payload)
    assert house.now.ingest.refused[code] == 1
    assert house.orders == before
    assert house.health is None


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (sealed_bars(9, (), 1.0, [ORDER]), "bad_signature"),
        (sealed_bars(9, (), 1.0, ()), "unsigned"),
        (sealed_bars(10**6, (TWO,), 1.0, [RELEASE]), "bars_unbelievable"),
        (sealed_bars(2**53 - 1, (TWO,), 1.0, [RELEASE]), "bars_unbelievable"),
        (b"\xff", "malformed"),
        (b"x" * 200_000, "oversized"),
    ],
)
def test_a_hostile_broker_unbars_nothing(house: House, payload: bytes, code: str) -> None:
    house.bars(ONE)
    house.retain(LIST, payload)
    assert house.now.ingest.refused[code] == 1
    assert house.barred == (1, {ONE})
    assert house.health is None
    house.bars(TWO)
    assert (house.listed.number, set(house.listed.digests)) == (2, {ONE, TWO})


def test_lists_become_their_union(house: House) -> None:
    house.bars(ONE)
    house.backup()
    house.bars(TWO, unbar=[ONE])
    house.bars(THREE)
    house.put_back()
    assert house.barred == (4, {ONE, TWO, THREE})
    assert (house.listed.number, set(house.listed.digests)) == (4, {ONE, TWO, THREE})
    (entry,) = house.entries("release.bars-taken-up")
    assert (entry.who, entry.details) == (REGISTRY, {"found": 3, "list": 4, "barred": [TWO, THREE]})
    assert len(house.entries(RESTORED)) == 1
    house.now.restart()
    house.now.settle()
    assert house.barred[0] == 4, "found again, it is our own"


def test_a_list_that_holds_ours_is_taken_as_it_is_signed(house: House) -> None:
    house.bars(ONE)
    house.backup()
    house.bars(TWO)
    signed = house.now.broker.retained[LIST]
    house.put_back(desk(ROOT))
    assert house.barred == (2, {ONE, TWO})
    assert house.now.broker.retained[LIST] == signed
    assert house.left == ""


def test_a_union_waits_for_whoever_signs(house: House) -> None:
    house.bars(ONE)
    house.backup()
    house.bars(TWO, unbar=[ONE])
    signed = house.now.broker.retained[LIST]
    house.put_back(desk(ROOT))
    assert house.barred == (2, {ONE, TWO}), "this registry orders neither"
    assert house.now.broker.retained[LIST] == signed, "what devices believe is not unsaid"
    assert "lacks a signature" in house.left
    house.now.restart()
    house.now.settle()
    assert len(house.entries("release.bars-taken-up")) == 1
    house.bars(THREE)
    assert (house.listed.number, set(house.listed.digests)) == (3, {ONE, TWO, THREE})
    assert house.left == ""


def test_a_newer_root_holds_everything_back(house: House) -> None:
    house.publish("v1", "v2")
    house.start("v1")
    following = root_of(2, order=(ORDER_2,), epoch=1)
    topic = TOPICS.topic(wt.ROOT, number="2")
    for signers in ((ROOT_2,), (ORDER,)):
        house.retain(topic, sealed_root(following, *signers))
    house.retain(topic, sealed_root(root_of(3, order=(ORDER_2,), epoch=1)))
    assert house.health is None
    before = house.document()
    house.retain(topic, sealed_root(following))
    assert "root-2.json" in house.left
    assert house.entries(RESTORED)[0].why.startswith("the broker holds root 2")
    house.start("v2")
    house.now.settle(20)
    assert house.document() == before, "nothing that devices would refuse takes its place"


def test_a_marker_is_only_a_hint(house: House) -> None:
    house.publish("v1")
    for device in house.devices:
        device.holds_back = True
    made = house.start("v1")
    with house.now.store.begin() as tx:
        mark = tx.mark()
    topic = TOPICS.topic(wt.SEED)
    ahead = Seed(registry_id=mark.registry_id, generation=mark.generation + 5)
    house.retain(topic, encode(ahead))
    assert house.state(made) == "running"
    assert len(house.entries("registry.marker-ahead")) == 1
    assert house.health is not None
    assert "somebody else writes to the broker" in house.health.found
    far = replace(ahead, generation=mark.generation + 6 + GENERATION_JUMP_MAX)
    house.retain(topic, encode(far))
    with house.now.store.begin() as tx:
        assert tx.mark().generation < mark.generation + 100, "nobody signs a marker"


def test_a_device_that_refuses_its_document_as_old_gets_another(house: House) -> None:
    house.publish("v1")
    house.start("v1")
    reason = Reason(code="stale_document", detail="4000 was believed already")
    tell(house.devices[0], OrderRefused(reason=reason, order_highest=4000))
    house.now.settle()
    first = house.document()
    assert first.number > 4000
    assert first.models == replace(first, number=1).models
    tell(house.devices[0], OrderRefused(reason=reason, order_highest=4000))
    house.now.settle()
    assert house.document() == first, "once in a while: an old document may be put back again and again"
    house.now.clock.time += house.now.config.republish_s
    tell(house.devices[0], OrderRefused(reason=reason, order_highest=5000))
    house.now.settle()
    assert house.document().number > 5000
    stranger = house.now.device("dev-9")
    tell(stranger, OrderRefused(reason=reason, order_highest=1))
    house.now.settle()
    assert TOPICS.topic(wt.DESIRED, device="dev-9") not in house.now.broker.retained


def test_devices_that_know_a_newer_list_are_named_until_it_is_passed(house: House) -> None:
    house.bars(ONE)
    detail = "the list of barred releases has number 1, 5 was believed"
    tell(house.devices[1], MessageRefused(channel="bars", reason=Reason(code="stale_bars", detail=detail)))
    tell(house.devices[2], MessageRefused(channel="bars", reason=Reason(code="malformed", detail="x")))
    house.now.settle()
    assert house.barred == (1, {ONE}), "a device's word unbars nothing"
    assert "dev-1 refuse our list 1" in house.left
    assert "dev-2" not in house.left
    house.bars(above=5)
    assert (house.listed.number, house.listed.digests) == (6, (ONE,))
    assert house.left == ""


def test_numbers_used_up_by_a_thief_still_leave_a_way(house: House) -> None:
    house.bars(ONE, above=2**53 - 2)
    house.bars(TWO)
    assert house.listed.number == 2**53 - 1
    house.bars(above=2**53 - 1)
    assert (house.listed.number, house.listed.digests) == (2**53 - 1, (ONE, TWO))


def test_who_left_nothing_on_the_broker_is_named(house: House) -> None:
    house.publish("v1", "v2")
    house.start("v1")
    house.backup()
    house.publish("v3")
    house.start("v3")
    for channel in (wt.STATUS, wt.IDENTITY, wt.REPORTED, wt.DESIRED):
        house.now.broker.retained.pop(TOPICS.topic(channel, device="dev-2"), None)
    house.now.broker.devices.remove(house.devices[2])
    house.put_back()
    assert "dev-2" not in house.left, "it may still come"
    house.now.settle(SETTLE_S)
    assert "dev-2: known here, and the broker holds nothing of it" in house.left
    assert "publish their bundles again" in house.left
    assert "dev-0" not in house.left
    with house.now.store.begin() as tx:
        tx.forget_device("dev-2")
    assert "dev-2" not in house.left


def test_without_keys_nothing_is_taken_up() -> None:
    harness = Harness()
    harness.broker.retained[LIST] = sealed_bars(7, (ONE,), 1.0, ())
    harness.settle()
    with harness.store.begin() as tx:
        assert (tx.mark().bars, tx.barred()) == (0, [])
    assert not harness.recall.signs
    harness.store.close()


def test_a_step_that_is_undone_is_noticed_again(house: House) -> None:
    recall = house.now.recall

    def undone() -> None:
        with house.now.store.begin() as tx:
            recall.older(tx, "one", 1.0)
            raise TrustError("x", "y")

    with pytest.raises(TrustError):
        undone()
    with house.now.store.begin() as tx:
        recall.older(tx, "two", 1.0)
        recall.older(tx, "three", 1.0)
    assert [entry.why for entry in house.entries(RESTORED)] == ["two"]


@pytest.mark.parametrize("batch", [500, 1])
def test_no_rollout_goes_on_before_the_broker_was_asked(house: House, batch: int) -> None:
    """A restored registry starts while its broker is away: it cannot know yet what was halted since."""
    house.publish("v1", "v2")
    house.start("v1")
    made = house.now.people.start(RolloutAsk(model="camera", release="v2", waves="1,100%", soak_s=0.0)).id
    house.backup()
    for device in house.devices:
        device.holds_back = True
    house.now.settle()
    house.now.people.abort(made, FailureAction.ROLLBACK_ALL, ADA)
    house.now.settle()
    given = dict(house.now.broker.retained)
    house.config = {"ingest_batch_max": batch, "seed_wait_s": 3.0}
    house.put_back(settle=False)
    broker, session = house.now.broker, house.now.broker.session
    broker.session, broker.connected = 0, False
    house.now.settle(100)
    with house.now.store.begin() as tx:
        assert [row.post.topic for row in tx.pending(100)] == []
    broker.session, broker.connected = session, True
    house.now.settle(10)
    assert house.state(made) == "paused"
    topics = [TOPICS.topic(wt.DESIRED, device=device.device) for device in house.devices]
    assert [broker.retained[topic] for topic in topics] == [given[topic] for topic in topics]


def test_a_reconnection_finds_what_this_registry_gave(house: House) -> None:
    house.publish("v1")
    house.start("v1")
    house.bars(ONE)
    house.now.broker.session += 1
    house.now.settle()
    assert house.health is None, "its numbers are above those of its start, and they are its own"


def test_what_was_taken_off_since_is_no_order_any_more(house: House) -> None:
    house.publish("v1")
    house.start("v1")
    empty = Desired(device="dev-0", number=house.orders + 5, models={})
    house.retain(TOPICS.topic(wt.DESIRED, device="dev-0"), trust.seal("desired", encode(empty), [ORDER]))
    assert house.entries(RESTORED)
    with house.now.store.begin() as tx:
        assert tx.desired("dev-0") == {}
        assert set(tx.desired("dev-1")) == {"camera"}


def test_a_second_restore_is_noticed_too(house: House) -> None:
    house.publish("v1", "v2", "v3")
    house.start("v1")
    house.backup()
    house.start("v2")
    house.put_back()
    house.backup()
    house.start("v3")
    house.put_back()
    assert len(house.entries(RESTORED)) == 2


def test_a_revoked_device_gets_nothing_back(house: House) -> None:
    house.publish("v1")
    house.start("v1")
    with house.now.store.begin() as tx:
        tx.save_revocation(Revocation(device="dev-0", at=1.0, why="stolen"))
        before = tx.desired("dev-0")
    house.retain(TOPICS.topic(wt.DESIRED, device="dev-0"), forged(house.orders + 9, order=house.orders + 9))
    assert house.entries(RESTORED), "it is ours, and newer than what is known"
    with house.now.store.begin() as tx:
        assert tx.desired("dev-0") == before


def claims(house: House, number: int, *names: str) -> None:
    """Devices that say to have seen that order."""
    for device in house.devices:
        if device.device in names:
            device._change("camera", lambda s: replace(s, order_highest=number))
    house.now.settle()


def test_two_devices_that_saw_higher_orders_are_believed_that_far(house: House) -> None:
    """The broker lost its memory too: nothing of ours is left but what devices say."""
    house.publish("v1", "v2")
    house.start("v1")
    for device in house.devices:
        device.holds_back = True
    made = house.start("v2", "1,100%")
    claims(house, 700, "dev-0")
    assert house.state(made) == "running", "one of them may lie"
    assert house.health is not None
    assert "dev-0 saw orders up to 700" in house.health.found
    assert house.health.found.endswith("nobody signed that")
    claims(house, 650, "dev-1")
    assert house.state(made) == "paused"
    (entry,) = house.entries(RESTORED)
    assert entry.why.startswith("dev-0, dev-1 saw orders up to 700, which this database never gave")
    assert house.orders >= 700
    assert "what was barred since is not known here" in house.left
    house.now.restart()
    house.now.settle()
    with pytest.raises(ConflictError, match="bars_unknown"):
        house.bars(ONE)
    house.bars(ONE, above=4)
    assert house.listed.number == 5
    assert "what was barred since" not in house.left
    house.bars(TWO)
    assert house.listed.number == 6


def test_orders_that_this_registry_gave_outrun_nobody(house: House) -> None:
    house.publish("v1", "v2")
    claims(house, 500, "dev-0")
    house.start("v1")
    house.start("v2")
    assert not house.entries(RESTORED), "what was given above the gap is our own"


def test_a_list_that_the_broker_held_is_known(house: House) -> None:
    house.publish("v1")
    house.bars(ONE)
    house.now.restart()
    house.now.settle()
    claims(house, 700, "dev-0", "dev-1")
    assert house.entries(RESTORED)
    house.bars(TWO)
    assert house.listed.number == 2


def test_words_of_this_life_put_back_are_no_news(house: House) -> None:
    """Above where the counter stood at the start, signed, and not what is retained now: still our own."""
    topic = TOPICS.topic(wt.DESIRED, device="dev-0")
    house.publish("v1", "v2")
    house.start("v1")
    old = house.now.broker.retained[topic]
    house.now.people.group("dev-0", ("roofs",))
    made = house.start("v2")
    newest = house.now.broker.retained[topic]
    house.now.broker._inbox.append(Delivery(topic=topic, payload=old, retain=True))
    house.now.settle()
    house.now.broker.retained[topic] = old
    house.now.broker.session += 1
    house.now.settle()
    assert house.health is None
    with house.now.store.begin() as tx:
        assert tx.retained_payload(topic) == newest
        assert tx.desired("dev-0")["camera"].rollout == made
        view = tx.device("dev-0")
    assert view is not None
    assert view.groups == ("roofs",)


def test_nothing_is_cleared_before_the_broker_was_asked(house: House) -> None:
    """What nobody needed at the backup may be what everybody runs now."""
    house.publish("v1", "v2", "v3")
    for name in ("v1", "v2", "v3"):
        house.start(name)
    house.backup()
    house.start("v1")
    assert running(house.devices) == ["v1"] * 3
    with house.now.store.begin() as tx:
        row = tx.release_named("camera", "v1")
    assert row is not None
    blobs = blob_sizes(manifest_of(row.manifest))
    held = {TOPICS.topic(wt.RELEASE, digest=row.digest), *(TOPICS.topic(wt.BLOB, digest=b) for b in blobs)}
    assert held <= house.now.broker.retained.keys()
    house.put_back(settle=False)
    broker, session = house.now.broker, house.now.broker.session
    broker.session, broker.connected = 0, False
    house.now.settle(100)
    broker.session, broker.connected = session, True
    house.now.settle(100)
    assert held <= broker.retained.keys()
