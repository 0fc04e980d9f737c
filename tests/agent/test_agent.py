"""The whole agent in memory: the main job, rollbacks, trouble on the way, restarts."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from unittest import mock

import msgspec
import pytest

from agent.errors import FinalError
from tests.agent.rig import DEVICE, ONE, TWO, Rig, answers, command, deploy, running
from tests.agent.twins import (
    SECOND,
    TOPICS,
    VARIANT,
    MemoryBroker,
    Release,
    release,
    until,
)
from wire import codec, trust
from wire.messages import (
    Ack,
    Evaluate,
    Identity,
    OrderOutcome,
    Phase,
    Rollback,
    Status,
)
from wire.topics import ACK, BLOB, DESIRED, RELEASE


def test_a_release_is_fetched_proven_activated_and_reported(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        deploy(rig)
        assert rig.running == ONE.digest
        assert (rig.current / "model.onnx").is_file()
        state = rig.reported()
        assert state is not None
        assert state.active is not None
        assert (state.active.digest, state.active.variant, state.phase) == (ONE.digest, VARIANT, Phase.IDLE)
        assert state.trial is not None
        kinds = [type(report.event).__name__ for report in rig.reports()]
        assert kinds[-1] == "OrderEnded"
        assert "TrialEnded" in kinds
        numbers = [report.number for report in rig.reports()]
        assert numbers == sorted(numbers)
        assert rig.hooks.activated == [ONE.digest]


def test_what_is_said_on_connecting(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        until(lambda: rig.broker.heard("reported"), "the greeting")
        status = msgspec.json.decode(rig.broker.heard("status")[-1], type=Status)
        identity = msgspec.json.decode(rig.broker.heard("identity")[-1], type=Identity)
        assert (status.online, status.number) == (True, 1)
        assert identity.hardware.arch == "aarch64"
        assert identity.disk_free_bytes == rig.disk.free


def test_a_disk_that_cannot_be_asked_is_unknown_and_keeps_nothing_else_back(tmp_path: Path) -> None:
    def broken(rig: Rig) -> None:
        rig.disk.broken = True

    with running(tmp_path, prepare=broken) as rig:
        until(lambda: rig.broker.heard("reported"), "the greeting")
        identity = msgspec.json.decode(rig.broker.heard("identity")[-1], type=Identity)
        assert identity.disk_free_bytes is None


def test_an_update_fetches_only_what_no_disk_of_ours_holds(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        deploy(rig)
        rig.broker.fetched.clear()
        deploy(rig, TWO, 2)
        first = TWO.manifest.variants[0].files[0].chunks[0].sha256
        shard = {chunk.sha256 for chunk in TWO.manifest.validation[0].file.chunks}
        assert set(rig.broker.fetched) == {first} | shard
        state = rig.reported()
        assert state is not None
        assert state.previous is not None
        assert state.previous.digest == ONE.digest
        incumbent = rig.trials.jobs[-1].incumbent
        assert incumbent is not None
        assert incumbent.digest == ONE.digest


def test_a_rollback_needs_no_download_and_blocks_the_release(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        deploy(rig)
        deploy(rig, TWO, 2)
        rig.broker.retained.clear()
        rig.broker.fetched.clear()
        rollback = Rollback(model="digits", from_=TWO.digest, order=3)
        command(rig, rollback, reply_to=f"device/{DEVICE}/up/reply/c1")
        state = rig.wait(2, OrderOutcome.ROLLED_BACK)
        assert rig.running == ONE.digest
        assert state.blocked == (TWO.digest,)
        assert answers(rig)[-1].result == "accepted"
        command(rig, rollback, reply_to=f"device/{DEVICE}/up/reply/c2")
        until(lambda: len(answers(rig)) == 2, "the second answer")
        assert answers(rig)[-1].result == "not_applicable"
        assert rig.running == ONE.digest
        rig.broker.desire(DEVICE, {"digits": TWO.order(2)})
        assert rig.broker.fetched == []
        rig.broker.hold(TWO)
        rig.broker.desire(DEVICE, {"digits": TWO.order(4)})
        assert rig.wait(4, OrderOutcome.ACTIVE).blocked == ()


def test_a_local_rollback_needs_no_order_number(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        deploy(rig)
        deploy(rig, TWO, 2)
        rig.runner.post(lambda: rig.connection.rollback_locally("digits"))
        rig.wait(2, OrderOutcome.ROLLED_BACK)
        assert rig.running == ONE.digest


def test_a_release_that_misses_its_limits_is_refused_and_the_incumbent_stays(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        deploy(rig)
        rig.trials.accuracy[VARIANT] = 0.5
        rig.broker.hold(TWO)
        rig.broker.desire(DEVICE, {"digits": TWO.order(2)})
        state = rig.wait(2, OrderOutcome.FAILED)
        assert state.reason is not None
        assert state.reason.code == "accuracy_below_limit"
        assert rig.running == ONE.digest
        assert rig.hooks.activated == [ONE.digest]


def test_the_next_variant_is_tried_and_the_device_says_degraded(tmp_path: Path) -> None:
    both = release("3", variants=(VARIANT, SECOND))
    with running(tmp_path) as rig:
        rig.trials.errors[VARIANT] = FinalError("model_load_failed", "no such kernel")
        rig.broker.hold(both)
        rig.broker.desire(DEVICE, {"digits": both.order(1)})
        state = rig.wait(1, OrderOutcome.ACTIVE)
        assert state.degraded
        assert state.active is not None
        assert state.active.variant == SECOND
        assert "model_load_failed" in rig.refusals()


def test_an_evaluation_reports_and_activates_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        deploy(rig)
        rig.broker.hold(TWO)
        command(rig, Evaluate(model="digits", desired=TWO.order(5)))
        state = rig.wait(5, OrderOutcome.EVALUATED)
        assert state.trial is not None
        assert rig.running == ONE.digest


def test_an_ill_application_takes_the_device_back(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        deploy(rig)
        rig.hooks.ill = "it does not answer"
        rig.broker.hold(TWO)
        rig.broker.desire(DEVICE, {"digits": TWO.order(2, soak_s=30.0)})
        state = rig.wait(2, OrderOutcome.FELL_BACK)
        assert state.reason is not None
        assert state.reason.code == "health_failed"
        assert rig.running == ONE.digest
        assert rig.hooks.activated == [ONE.digest, TWO.digest, ONE.digest]


def test_a_hook_that_refuses_takes_the_device_back(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        deploy(rig)
        rig.hooks.refuses = True
        rig.broker.hold(TWO)
        rig.broker.desire(DEVICE, {"digits": TWO.order(2)})
        rig.wait(2, OrderOutcome.FELL_BACK)
        assert rig.running == ONE.digest


def test_an_application_that_was_not_told_of_the_way_back_is_reported(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        deploy(rig)
        deploy(rig, TWO, 2)
        rig.hooks.refuses = True
        command(rig, Rollback(model="digits", from_=TWO.digest, order=3))
        state = rig.wait(2, OrderOutcome.ROLLED_BACK)
        assert rig.running == ONE.digest
        assert state.reason is not None
        assert state.reason.code == "rolled_back"
        assert "not told of the way back: the application says no" in state.reason.detail


def test_a_first_install_that_fails_leaves_the_slot_empty(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        rig.hooks.refuses = True
        rig.broker.hold(ONE)
        rig.broker.desire(DEVICE, {"digits": ONE.order(1)})
        state = rig.wait(1, OrderOutcome.FELL_BACK)
        assert state.reason is not None
        assert state.reason.code == "no_previous"
        assert not rig.current.is_symlink()


def test_a_corrupted_chunk_is_refused_by_name_after_a_few_tries(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        deploy(rig)
        rig.broker.hold(TWO)
        spoilt = TWO.manifest.variants[0].files[0].chunks[0].sha256
        rig.broker.retained[TOPICS.topic(BLOB, digest=spoilt)] = b"?" * 1000
        rig.broker.desire(DEVICE, {"digits": TWO.order(2)})

        def hurry() -> bool:
            rig.clock.ahead_s += 0.5
            state = rig.reported()
            return state is not None and state.order == 2 and state.outcome is not None

        until(hurry, "the refusal")
        state = rig.wait(2, OrderOutcome.FAILED)
        assert state.reason is not None
        assert state.reason.code == "hash_mismatch"
        assert rig.running == ONE.digest


def test_a_missing_chunk_is_told_and_fetched_once_it_is_there(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        rig.broker.hold(ONE)
        lost = ONE.manifest.variants[0].files[0].chunks[3].sha256
        kept = rig.broker.retained.pop(TOPICS.topic(BLOB, digest=lost))
        rig.broker.desire(DEVICE, {"digits": ONE.order(1, deadline_s=10_000.0)})

        def told() -> bool:
            rig.clock.ahead_s += 0.2
            state = rig.reported()
            return state is not None and lost in state.missing

        until(told, "the missing chunk in the reported state")
        fetched = list(rig.broker.fetched)
        rig.broker.tell(TOPICS.topic(BLOB, digest=lost), kept, retain=True)
        rig.wait(1, OrderOutcome.ACTIVE)
        assert len(set(fetched)) == len(fetched)


def test_a_full_disk_is_waited_for_and_named_at_the_deadline(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        rig.disk.free = 5000
        rig.broker.hold(ONE)
        rig.broker.desire(DEVICE, {"digits": ONE.order(1, deadline_s=30.0)})
        until(lambda: (s := rig.reported()) and s.reason and s.reason.code == "disk_full", "the reason")
        assert rig.broker.fetched == [], "disk space is checked before a download, not during"
        rig.clock.ahead_s += 31
        state = rig.wait(1, OrderOutcome.FAILED)
        assert state.reason is not None
        assert state.reason.code == "disk_full"


def test_a_manifest_for_another_model_is_refused(tmp_path: Path) -> None:
    other = release("1", model="letters")
    with running(tmp_path) as rig:
        rig.broker.hold(other)
        rig.broker.desire(DEVICE, {"digits": other.order(1)})
        state = rig.wait(1, OrderOutcome.FAILED)
        assert state.reason is not None
        assert state.reason.code == "wrong_model"


def test_another_manifest_under_the_releases_name_is_refused(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        rig.broker.hold(ONE)
        rig.broker.retained[TOPICS.topic(RELEASE, digest=ONE.digest)] = trust.seal("release", TWO.data)
        rig.broker.desire(DEVICE, {"digits": ONE.order(1)})
        state = rig.wait(1, OrderOutcome.FAILED)
        assert state.reason is not None
        assert state.reason.code == "hash_mismatch"


@pytest.mark.parametrize(
    ("variants", "code"), [(("onnxruntime/unheard_of",), "no_variant"), ((VARIANT,), "no_shard")]
)
def test_an_order_for_what_the_release_lacks_is_refused(
    tmp_path: Path, variants: tuple[str, ...], code: str
) -> None:
    shards = (7,) if code == "no_shard" else ()
    with running(tmp_path) as rig:
        rig.broker.hold(ONE)
        rig.broker.desire(DEVICE, {"digits": ONE.order(1, variants=variants, shards=shards)})
        state = rig.wait(1, OrderOutcome.FAILED)
        assert state.reason is not None
        assert state.reason.code == code


def test_a_superseded_order_leaves_nothing_behind(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        rig.trials.hangs = True
        rig.broker.hold(ONE, TWO)
        rig.broker.desire(DEVICE, {"digits": ONE.order(1)})
        until(lambda: rig.trials.jobs, "the trial of the first")
        rig.trials.hangs = False
        rig.broker.desire(DEVICE, {"digits": TWO.order(2)})
        rig.wait(2, OrderOutcome.ACTIVE)
        assert rig.running == TWO.digest
        releases = rig.root / "models" / "digits" / "releases"
        until(lambda: [p.name[:64] for p in releases.iterdir()] == [TWO.digest], "the tidying")
        until(lambda: not list((rig.root / "shards").iterdir()), "the shards' removal")


def test_a_cleared_document_cancels_what_is_in_flight(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        rig.trials.hangs = True
        rig.broker.hold(ONE)
        rig.broker.desire(DEVICE, {"digits": ONE.order(1)})
        until(lambda: rig.trials.jobs, "the trial")
        rig.broker.tell(TOPICS.topic(DESIRED, device=DEVICE), b"", retain=True)
        state = rig.wait(1, OrderOutcome.SUPERSEDED)
        assert state.reason is not None
        assert state.reason.code == "cancelled"


# --- restarts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["trialing", "soaking"])
def test_a_restart_takes_the_saved_phase_up_again_and_fetches_nothing_twice(
    tmp_path: Path, phase: str
) -> None:
    broker = MemoryBroker()
    rig = Rig(tmp_path, broker)
    rig.trials.hangs = phase == "trialing"
    rig.start()
    broker.hold(ONE)
    broker.desire(DEVICE, {"digits": ONE.order(1, soak_s=3600.0)})
    until(lambda: (s := rig.reported()) and s.phase == phase, phase)
    rig.stop()
    fetched = list(broker.fetched)
    broker.said.clear()
    again = Rig(tmp_path, broker)
    again.start()
    try:
        until(lambda: (s := again.reported()) and s.phase == "soaking", "the soak")
        until(lambda: again.hooks.looks, "the first look at the application's health")
        again.clock.ahead_s += 3600
        again.wait(1, OrderOutcome.ACTIVE)
        assert again.running == ONE.digest
        assert broker.fetched == fetched
    finally:
        again.stop()


def test_a_restart_puts_current_back_where_the_journal_says(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        deploy(rig)
        broker = rig.broker
    rig.current.unlink()
    again = Rig(tmp_path, broker)
    again.start()
    try:
        until(lambda: again.running == ONE.digest, "the symlink")
    finally:
        again.stop()


def test_reports_survive_until_they_are_acknowledged(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        deploy(rig)
        told = {report.number for report in rig.reports()}
        install_id = rig.reports()[0].install_id
    broker = MemoryBroker()
    again = Rig(tmp_path, broker)
    again.start()
    try:
        until(lambda: broker.heard("status"), "the greeting")
        until(lambda: {report.number for report in again.reports()} >= told, "the reports again")
        topic = TOPICS.topic(ACK, device=DEVICE)
        broker.tell(topic, codec.encode(Ack(install_id="f" * 32, number=max(told))))
        handled = threading.Event()
        again.runner.post(handled.set)
        until(handled.is_set, "the acknowledgement of another installation's reports")
        assert list((tmp_path / "reports").glob("*.json")), "reports went that nobody has"
        broker.tell(topic, codec.encode(Ack(install_id=install_id, number=max(told))))
        until(lambda: not list((tmp_path / "reports").glob("*.json")), "the acknowledged reports' removal")
    finally:
        again.stop()


def test_a_journal_that_cannot_be_written_holds_the_work_up_and_nothing_else(tmp_path: Path) -> None:
    real = os.fsync
    broken = True

    def fsync(fd: int) -> None:
        if broken and "journal" in str(Path(f"/proc/self/fd/{fd}").readlink()):
            raise OSError(errno.EIO, "broken disk")
        real(fd)

    with running(tmp_path) as rig:
        rig.broker.hold(ONE)
        with mock.patch.object(os, "fsync", fsync):
            rig.broker.desire(DEVICE, {"digits": ONE.order(1)})
            until(lambda: rig.runner.models == {} and rig.broker.heard("status"), "nothing")
            assert rig.broker.fetched == [], "work began before its state was saved"
            broken = False
            rig.wait(1, OrderOutcome.ACTIVE)


# --- runtimes


def bent(which: Release, **changes: object) -> Release:
    """The release with its first variant changed."""
    first, *others = which.manifest.variants
    variants = (msgspec.structs.replace(first, **changes), *others)
    return Release(msgspec.structs.replace(which.manifest, variants=variants), which.blobs)


def test_a_variants_axes_reach_its_trials_and_the_application(tmp_path: Path) -> None:
    turned = {"x": (1, 0)}
    with running(tmp_path) as rig:
        deploy(rig, bent(ONE, axes=turned))
        assert rig.trials.jobs[-1].candidate.axes == turned
        told = msgspec.json.decode((rig.current / "release.json").read_bytes())
        assert told["axes"] == {"x": [1, 0]}
        deploy(rig, TWO, 2)
        job = rig.trials.jobs[-1]
        assert job.incumbent is not None
        assert (job.candidate.axes, job.incumbent.axes) == ({}, turned)


@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        ("tflite-runtime", "pip install 'shallop[tflite-runtime]'"),
        ("ai-edge-litert", "pip install 'shallop[tflite]'"),
        ("abacus", "abacus is not installed here"),
    ],
)
def test_a_variant_of_a_runtime_that_is_not_here_is_refused_with_what_brings_it(
    tmp_path: Path, runtime: str, words: str
) -> None:
    with running(tmp_path) as rig:
        release_ = bent(ONE, runtime=runtime)
        rig.broker.hold(release_)
        rig.broker.desire(DEVICE, {"digits": release_.order(1)})
        state = rig.wait(1, OrderOutcome.FAILED)
        assert state.reason is not None
        assert words in state.reason.detail
        assert rig.trials.jobs == []
