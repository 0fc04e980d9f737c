"""The conductor on twins: whole rollouts, rollbacks, and what brokers and registries forget."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.adapters.sql_store import SqlTx
from fleet.audit import By
from fleet.inventory import Device
from fleet.people import RollbackAsk, RolloutAsk
from fleet.ports import ConflictError, NotFoundError
from fleet.rollout import FailureAction
from tests.fleet.bundles import write_bundle
from tests.fleet.scripted import UNSIGNED, ScriptedDevice
from tests.fleet.twins import TOPICS, Harness
from wire import topics as wt
from wire.codec import decode, encode
from wire.messages import Ack, Desired, OrderOutcome, OrderRefused, Report, Seed
from wire.trust import open_envelope


@pytest.fixture
def harness() -> Iterator[Harness]:
    made = Harness()
    yield made
    assert not made.conductor.failures, "no step may have raised unexpectedly"
    made.store.close()


def ask(release: str, waves: str = "1,50%,100%", **more: object) -> RolloutAsk:
    return RolloutAsk(model="camera", release=release, waves=waves, soak_s=0.0, **more)  # type: ignore[arg-type]


def bundle(harness: Harness, tmp_path: Path, release: str, seed: int) -> str:
    write_bundle(tmp_path / release, release, seed=seed, size_bytes=60_000, shared_bytes=20_000)
    return harness.publish(tmp_path / release)


def fleet(harness: Harness, count: int = 4) -> list[ScriptedDevice]:
    return [harness.device(f"dev-{index}") for index in range(count)]


def state_of(harness: Harness, rollout_id: str) -> str:
    return harness.people.rollout(rollout_id).rollout.state


def desired_on_broker(harness: Harness, device: str) -> Desired:
    payload = harness.broker.retained[TOPICS.topic(wt.DESIRED, device=device)]
    opened = open_envelope(payload, "desired", UNSIGNED, wt.DESIRED.size_bytes_max)
    return decode(opened, Desired, wt.DESIRED.size_bytes_max)


def seed_on_broker(harness: Harness) -> Seed:
    return decode(harness.broker.retained[TOPICS.topic(wt.SEED)], Seed, wt.SEED.size_bytes_max)


def active(devices: list[ScriptedDevice]) -> list[str]:
    slots = [device.states["camera"].active for device in devices if "camera" in device.states]
    return [slot.release if slot is not None else "none" for slot in slots]


def test_a_release_reaches_every_device_in_waves(harness: Harness, tmp_path: Path) -> None:
    devices = fleet(harness)
    bundle(harness, tmp_path, "v1", 1)
    harness.settle()
    begun = harness.people.start(ask("v1"))
    harness.conductor.tick(asked=True)
    assert sum(len(device.received) for device in devices) == 1, "the first wave is one device"
    harness.settle(10)
    assert state_of(harness, begun.id) == "completed"
    assert active(devices) == ["v1"] * 4
    assert all(device.received == [1] for device in devices), "each got the order exactly once"
    assert not any(device.unacknowledged for device in devices), "every report was acknowledged"
    show = harness.people.rollout(begun.id)
    assert [line.outcome for line in show.devices] == ["active"] * 4
    assert {line.latency_ms_p95 for line in show.devices} == {2.5}
    assert {line.power_watts for line in show.devices} == {None}


def test_blobs_go_before_releases_before_desired(harness: Harness, tmp_path: Path) -> None:
    harness.device("dev-0")
    bundle(harness, tmp_path, "v1", 1)
    harness.people.start(ask("v1", "100%"))
    harness.settle()
    kinds = [topic.split("/")[2] for topic, _ in harness.broker.log if "/up/" not in topic]
    order = [kind for kind in dict.fromkeys(kinds) if kind in {"blob", "release"}]
    assert order == ["blob", "release"]
    last_blob = max(i for i, (topic, _) in enumerate(harness.broker.log) if "/blob/" in topic)
    first_desired = min(i for i, (t, _) in enumerate(harness.broker.log) if t.endswith("/down/desired"))
    assert last_blob < first_desired


def test_a_canary_that_refuses_stops_the_rollout_and_the_others_never_hear(
    harness: Harness, tmp_path: Path
) -> None:
    devices = fleet(harness)
    bundle(harness, tmp_path, "v1", 1)
    harness.people.start(ask("v1", "100%"))
    harness.settle()
    for device in devices:
        device.refuses = frozenset({"v2"})
    bundle(harness, tmp_path, "v2", 2)
    begun = harness.people.start(ask("v2"))
    harness.settle(10)
    assert state_of(harness, begun.id) == "halted"
    assert active(devices) == ["v1"] * 4
    assert sum(2 in device.received or len(device.received) > 1 for device in devices) == 1
    commands = [topic for topic, _ in harness.broker.log if topic.endswith("/down/command")]
    assert commands == [], "a device that refused the release need not be told to leave it"
    assert stale_orders(harness, devices) == []
    line = harness.people.rollout(begun.id).devices[0]
    assert "accuracy_below_limit" in line.reason or "0.5" in line.reason


def stale_orders(harness: Harness, devices: list[ScriptedDevice]) -> list[Report]:
    with harness.store.begin() as tx:
        reports = [report for device in devices for report in tx.reports(device.device, 1000)]
    return [report for report in reports if isinstance(report.event, OrderRefused)]


def two_releases(harness: Harness, tmp_path: Path) -> tuple[list[ScriptedDevice], str]:
    devices = fleet(harness)
    for release, seed in (("v1", 1), ("v2", 2)):
        bundle(harness, tmp_path, release, seed)
        begun = harness.people.start(ask(release, "100%"))
        harness.settle()
    assert active(devices) == ["v2"] * 4
    return devices, begun.id


def test_rollback_of_one_device_rewrites_its_desired_document(harness: Harness, tmp_path: Path) -> None:
    devices, _ = two_releases(harness, tmp_path)
    begun = harness.people.roll_back(RollbackAsk(model="camera", devices=("dev-1",)))
    harness.settle()
    assert active(devices) == ["v2", "v1", "v2", "v2"]
    assert harness.people.rollback(begun.id).ended
    assert [line.state for line in harness.people.rollback(begun.id).devices] == ["done"]
    entry = desired_on_broker(harness, "dev-1").models["camera"]
    assert entry.release == "v1"
    assert entry.order > begun.devices[0].order, "a fresh number, above the command's"
    assert devices[1].ran == devices[0].ran, "it did nothing again"
    assert devices[1].states["camera"].order == entry.order
    assert devices[1].states["camera"].outcome is OrderOutcome.ACTIVE


def test_rollback_of_all_uses_one_topic(harness: Harness, tmp_path: Path) -> None:
    devices, _ = two_releases(harness, tmp_path)
    harness.people.roll_back(RollbackAsk(model="camera", all=True))
    harness.settle()
    assert active(devices) == ["v1"] * 4
    commands = [topic for topic, _ in harness.broker.log if topic.endswith("down/command")]
    assert commands == [TOPICS.topic(wt.COMMAND_ALL)]


def test_rollback_of_a_group_reaches_its_members_only(harness: Harness, tmp_path: Path) -> None:
    devices, _ = two_releases(harness, tmp_path)
    harness.people.group("dev-2", ("north",))
    harness.settle()
    assert devices[2].groups == ("north",), "the signed document names the group"
    harness.people.roll_back(RollbackAsk(model="camera", group="north"))
    harness.settle()
    assert active(devices) == ["v2", "v2", "v1", "v2"]


def test_a_device_that_was_offline_is_rolled_back_by_its_desired_document(
    harness: Harness, tmp_path: Path
) -> None:
    devices, _ = two_releases(harness, tmp_path)
    away = devices[3]
    away.leave()
    harness.broker.let_devices_speak()
    harness.broker.devices.remove(away)
    harness.settle()
    begun = harness.people.roll_back(RollbackAsk(model="camera", all=True))
    harness.settle()
    assert not harness.people.rollback(begun.id).ended
    assert {line.state for line in harness.people.rollback(begun.id).devices} == {"done", "by_desired"}
    harness.broker.join(away)
    harness.settle()
    assert active(devices) == ["v1"] * 4
    assert harness.people.rollback(begun.id).ended


def test_a_command_that_is_never_answered_is_followed_by_the_desired_document(tmp_path: Path) -> None:
    harness = Harness(rollback_answer_s=20.0)
    devices, _ = two_releases(harness, tmp_path)
    deaf = devices[0]
    harness.broker.devices.remove(deaf)
    begun = harness.people.roll_back(RollbackAsk(model="camera", devices=("dev-0",)))
    harness.settle(10)
    assert [line.state for line in harness.people.rollback(begun.id).devices] == ["commanded"]
    harness.settle(20)
    assert [line.state for line in harness.people.rollback(begun.id).devices] == ["by_desired"]
    harness.broker.join(deaf)
    harness.settle()
    assert active(devices)[0] == "v1"
    harness.store.close()


def test_the_ready_payload_works_and_the_registry_writes_down_what_happened(
    harness: Harness, tmp_path: Path
) -> None:
    devices, rollout_id = two_releases(harness, tmp_path)
    topic, payload = harness.people.rollback_payload(rollout_id, "dev-0")
    harness.broker._route(topic, payload, retain=False)
    harness.settle()
    assert active(devices) == ["v1", "v2", "v2", "v2"]
    assert desired_on_broker(harness, "dev-0").models["camera"].release == "v1"
    topic, payload = harness.people.rollback_payload(rollout_id, None)
    assert payload == harness.files.files[rollout_id], "the same bytes lie on disk"
    harness.broker._route(topic, payload, retain=False)
    harness.settle()
    assert active(devices) == ["v1"] * 4
    assert {desired_on_broker(harness, d.device).models["camera"].release for d in devices} == {"v1"}


def test_a_failed_gate_takes_the_release_back_everywhere(harness: Harness, tmp_path: Path) -> None:
    devices, _ = two_releases(harness, tmp_path)
    bundle(harness, tmp_path, "v3", 3)
    refusing = harness.people.start(ask("v3", "2,100%", on_failure=FailureAction.ROLLBACK_ALL))
    harness.conductor.tick(asked=True)
    first = [device for device in devices if len(device.received) == 3]
    for device in devices:
        if device not in first:
            device.refuses = frozenset({"v3"})
    harness.settle(10)
    assert state_of(harness, refusing.id) == "halted"
    assert active(devices) == ["v2"] * 4
    assert stale_orders(harness, devices) == []
    assert all(device.ran.count(max(device.ran)) == 1 for device in devices)
    held = {desired_on_broker(harness, d.device).models["camera"].release for d in devices}
    assert held == {"v2"}


def test_a_broker_without_memory_gets_everything_again(harness: Harness, tmp_path: Path) -> None:
    two_releases(harness, tmp_path)
    before = {topic: payload for topic, payload in harness.broker.retained.items() if "/up/" not in topic}
    harness.broker.forget_everything()
    harness.settle()
    after = {topic: payload for topic, payload in harness.broker.retained.items() if "/up/" not in topic}
    assert after == before


def test_a_broker_that_kept_an_old_marker_gets_what_is_newer(harness: Harness, tmp_path: Path) -> None:
    harness.device("dev-0")
    bundle(harness, tmp_path, "v1", 1)
    harness.settle()
    old = dict(harness.broker.retained)
    bundle(harness, tmp_path, "v2", 2)
    harness.settle()
    full = dict(harness.broker.retained)
    harness.broker.retained = dict(old)
    published = len(harness.broker.log)
    harness.broker.session += 1
    harness.settle()
    assert harness.broker.retained == full
    again = [topic for topic, _ in harness.broker.log[published:] if "/blob/" in topic]
    assert again
    assert not {topic for topic in again if topic in old}, "what the broker kept was not sent again"


def test_another_registrys_marker_does_not_count(harness: Harness, tmp_path: Path) -> None:
    harness.device("dev-0")
    bundle(harness, tmp_path, "v1", 1)
    harness.settle()
    full = dict(harness.broker.retained)
    harness.broker.retained.clear()
    other = Seed(registry_id="b" * 32, generation=10**6)
    harness.broker.retained[TOPICS.topic(wt.SEED)] = encode(other)
    harness.broker.session += 1
    harness.settle()
    blobs = {topic for topic in full if "/blob/" in topic}
    assert blobs <= harness.broker.retained.keys()
    assert seed_on_broker(harness).registry_id == "a" * 32


def test_the_marker_moves_only_after_everything_was_published(harness: Harness, tmp_path: Path) -> None:
    harness.settle()
    before = seed_on_broker(harness).generation
    harness.broker.connected = False
    bundle(harness, tmp_path, "v1", 1)
    harness.settle()
    assert seed_on_broker(harness).generation == before
    harness.broker.connected = True
    harness.settle()
    with harness.store.begin() as tx:
        assert seed_on_broker(harness).generation == tx.mark().generation > before


def test_missing_digests_are_published_again_once_in_a_while(harness: Harness, tmp_path: Path) -> None:
    device = harness.device("dev-0")
    bundle(harness, tmp_path, "v1", 1)
    harness.settle()
    topic = next(topic for topic in harness.broker.retained if "/blob/" in topic)
    lost = topic.rsplit("/", 1)[1]
    del harness.broker.retained[topic]
    for _ in range(3):
        device._change("camera", lambda s: replace(s, missing=(lost,)))
        harness.settle(2)
    assert topic in harness.broker.retained
    assert [t for t, _ in harness.broker.log].count(topic) == 2, "first publication and one again"


def test_a_restored_registry_counts_on_above_what_it_gave_out(harness: Harness, tmp_path: Path) -> None:
    two_releases(harness, tmp_path)
    retained = dict(harness.broker.retained)
    restored = Harness()
    restored.broker.retained = retained
    restored.settle()
    with restored.store.begin() as tx:
        assert tx.mark().orders >= 3
    restored.store.close()


def test_a_stale_order_answer_raises_the_counter(harness: Harness, tmp_path: Path) -> None:
    device = harness.device("dev-0")
    device._change("camera", lambda s: replace(s, order=500, order_highest=500))
    harness.settle()
    bundle(harness, tmp_path, "v1", 1)
    harness.people.start(ask("v1", "100%"))
    harness.settle()
    assert device.received == [501]


def test_an_unbelievable_order_number_is_refused_by_name(harness: Harness) -> None:
    device = harness.device("dev-0")
    device._change("camera", lambda s: replace(s, order=2**52, order_highest=2**52))
    harness.settle()
    assert harness.ingest.refused["order_unbelievable"] > 0
    with harness.store.begin() as tx:
        assert tx.mark().orders == 0


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"{", "malformed"),
        (b"\xff\xfe", "malformed"),
        (b"[" * 2000, "malformed"),
        (b'{"kind":"report","version":9}', "unsupported_version"),
        (b'{"kind":"seed","version":1}', "unknown_kind"),
        (b'{"kind":"report","version":1,"device":7}', "invalid_field"),
        (b"x" * 70_000, "oversized"),
    ],
)
def test_junk_is_refused_by_name_and_hurts_nobody(harness: Harness, payload: bytes, code: str) -> None:
    device = harness.device("dev-0")
    harness.settle()
    harness.broker._route(TOPICS.topic(wt.REPORT, device="dev-0"), payload, retain=False)
    harness.broker._route(TOPICS.topic(wt.STATUS, device="other"), b"", retain=True)
    device.connect()
    harness.settle()
    assert harness.ingest.refused[code] == 1
    assert harness.people.device("dev-0").online


def test_a_message_that_the_database_refuses_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = Harness()
    poisoned = SqlTx.save_device

    def refuses(tx: SqlTx, device: Device) -> None:
        if device.id == "poison":
            raise ZeroDivisionError
        poisoned(tx, device)

    monkeypatch.setattr(SqlTx, "save_device", refuses)
    devices = [*fleet(harness, 2), harness.device("poison")]
    bundle(harness, tmp_path, "v1", 1)
    begun = harness.people.start(ask("v1", "100%"))
    harness.settle(10)
    assert state_of(harness, begun.id) == "completed"
    assert active(devices[:2]) == ["v1"] * 2
    assert harness.ingest.refused["unstorable"] == 3
    harness.store.close()


def test_a_device_that_still_misses_the_same_is_helped_again(harness: Harness, tmp_path: Path) -> None:
    device = harness.device("dev-0")
    bundle(harness, tmp_path, "v1", 1)
    harness.settle()
    topic = next(topic for topic in harness.broker.retained if "/blob/" in topic)
    device._change("camera", lambda s: replace(s, missing=(topic.rsplit("/", 1)[1],)))
    harness.settle()
    del harness.broker.retained[topic]
    harness.settle(70)
    assert topic in harness.broker.retained


def test_a_message_of_another_device_is_refused(harness: Harness) -> None:
    device = harness.device("dev-0")
    harness.settle()
    device.connect()
    topic, payload, _ = device.says[0]
    device.says.clear()
    harness.broker._route(topic.replace("dev-0", "dev-1"), payload, retain=False)
    harness.settle()
    assert harness.ingest.refused["wrong_device"] == 1
    assert [view.device for view in harness.people.devices("all")] == ["dev-0"]


def test_two_machines_under_one_id_are_noticed(harness: Harness) -> None:
    first = harness.device("dev-0")
    harness.settle()
    second = ScriptedDevice("dev-0", TOPICS)
    second.install_id = "f" * 32
    harness.broker.join(second)
    harness.settle()
    first.connect()
    harness.settle()
    assert harness.people.device("dev-0").duplicate_identity
    harness.people.clear_duplicate("dev-0")
    assert not harness.people.device("dev-0").duplicate_identity


def test_reports_are_acknowledged_up_to_the_first_gap(harness: Harness, tmp_path: Path) -> None:
    device = harness.device("dev-0")
    bundle(harness, tmp_path, "v1", 1)
    device.holds_back = True
    harness.people.start(ask("v1", "100%"))
    harness.settle()
    assert not device.unacknowledged
    device.wake()
    lost = device.says.pop(next(i for i, s in enumerate(device.says) if s[0].endswith("/report")))
    harness.settle()
    assert min(device.unacknowledged) == 2
    harness.broker._route(*lost)
    harness.settle()
    assert not device.unacknowledged, "the gap was filled"
    acks = [payload for topic, payload in harness.broker.log if topic.endswith("/down/ack")]
    assert [decode(a, Ack, 4096).number for a in acks] == [1, 1, 3]


def test_lost_messages_are_made_good_by_reading_retained_ones(harness: Harness, tmp_path: Path) -> None:
    devices = fleet(harness)
    bundle(harness, tmp_path, "v1", 1)
    begun = harness.people.start(ask("v1", "100%"))
    harness.conductor.tick(asked=True)
    harness.conductor.tick(asked=True)
    harness.broker.let_devices_speak()
    harness.broker.lose_inbox()
    harness.settle(10)
    assert state_of(harness, begun.id) == "completed"
    assert active(devices) == ["v1"] * 4


def test_content_that_nobody_needs_is_cleared_and_can_come_back(harness: Harness, tmp_path: Path) -> None:
    devices, _ = two_releases(harness, tmp_path)
    v1 = harness.people.releases()[0].digest
    bundle(harness, tmp_path, "v3", 3)
    harness.settle(70)
    assert TOPICS.topic(wt.RELEASE, digest=v1) in harness.broker.retained, "still the previous release"
    harness.people.start(ask("v3", "100%"))
    harness.settle(130)
    assert active(devices) == ["v3"] * 4
    topics = harness.broker.retained.keys()
    assert TOPICS.topic(wt.RELEASE, digest=v1) not in topics
    shared = {t for t in topics if "/blob/" in t}
    assert shared, "what v2 and v3 share with v1 stays"
    again = harness.people.start(ask("v1", "100%"))
    harness.settle(10)
    assert TOPICS.topic(wt.RELEASE, digest=v1) in harness.broker.retained
    assert state_of(harness, again.id) == "completed"


def test_a_forgotten_device_leaves_nothing_on_the_broker(harness: Harness, tmp_path: Path) -> None:
    two_releases(harness, tmp_path)
    gone = harness.broker.devices.pop(1)
    harness.people.forget(gone.device)
    harness.settle()
    assert not [topic for topic in harness.broker.retained if f"/{gone.device}/" in topic]
    with pytest.raises(NotFoundError, match="unknown_device"):
        harness.people.device(gone.device)


def test_nothing_is_published_unsigned_unless_configured(tmp_path: Path) -> None:
    harness = Harness()
    harness.people._config = type(harness.config)(insecure_unsigned=False)
    bundle(harness, tmp_path, "v1", 1)
    for verb in (
        lambda: harness.people.start(ask("v1")),
        lambda: harness.people.roll_back(RollbackAsk(model="camera", all=True)),
        lambda: harness.people.group("dev-0", ()),
    ):
        with pytest.raises(ConflictError, match="insecure-unsigned"):
            verb()
    harness.store.close()


def test_a_rollback_of_what_is_still_arriving_leaves_nothing(harness: Harness, tmp_path: Path) -> None:
    device = harness.device("dev-0")
    device.holds_back = True
    bundle(harness, tmp_path, "v1", 1)
    harness.people.start(ask("v1", "100%", on_failure=FailureAction.HALT))
    harness.settle()
    assert device.states["camera"].in_flight is not None
    begun = harness.people.roll_back(RollbackAsk(model="camera", devices=("dev-0",)))
    harness.settle()
    assert device._state("camera").in_flight is None
    assert [line.state for line in harness.people.rollback(begun.id).devices] == ["done"]
    assert desired_on_broker(harness, "dev-0").models == {}, "nothing is left to wish for"


def test_a_rollback_without_an_earlier_release_says_so(harness: Harness, tmp_path: Path) -> None:
    device = harness.device("dev-0")
    bundle(harness, tmp_path, "v1", 1)
    harness.people.start(ask("v1", "100%"))
    harness.settle()
    begun = harness.people.roll_back(RollbackAsk(model="camera", devices=("dev-0",)))
    harness.settle()
    (line,) = harness.people.rollback(begun.id).devices
    assert line.state in {"failed", "not_applicable"}
    assert harness.people.rollback(begun.id).ended
    assert active([device]) == ["v1"]


def test_a_paused_rollout_reaches_no_further_device_until_resumed(harness: Harness, tmp_path: Path) -> None:
    devices = fleet(harness)
    bundle(harness, tmp_path, "v1", 1)
    harness.settle()
    begun = harness.people.start(ask("v1"))
    harness.conductor.tick(asked=True)
    harness.people.pause(begun.id, By(why="lunch"))
    harness.settle(10)
    assert sum(bool(device.received) for device in devices) == 1
    harness.people.resume(begun.id)
    harness.settle(10)
    assert state_of(harness, begun.id) == "completed"


def test_an_aborted_rollout_takes_the_release_back(harness: Harness, tmp_path: Path) -> None:
    devices, _ = two_releases(harness, tmp_path)
    bundle(harness, tmp_path, "v3", 3)
    begun = harness.people.start(ask("v3", "2,100%"))
    harness.conductor.tick(asked=True)
    harness.people.abort(begun.id, FailureAction.ROLLBACK_ALL)
    harness.settle(10)
    assert state_of(harness, begun.id) == "aborted"
    assert active(devices) == ["v2"] * 4
