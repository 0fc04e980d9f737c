"""What could not be saved is tried again: the same thing once, and not what it no longer is."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from agent.connection import SAVE_RETRY_S, Connection
from agent.deployment import Cancelled, Damaged, DeadlinePassed, Deployment, Failed, Hurt, Ordered
from agent.journal import JournalFile
from agent.lanes import Lane
from tests.agent.rig import DEVICE, ONE, PACE, TWO, Rig, deploy, running
from tests.agent.twins import MemoryBroker, release, until
from wire.messages import OrderOutcome, Phase, Reason, Slot
from wire.topics import DESIRED

FULL = OSError(errno.ENOSPC, "no space left on device")
THREE = release("3", changes=b"three")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """An agent whose loop does not run: the test is the loop."""
    rig = Rig(tmp_path, MemoryBroker())
    rig.build()
    yield rig
    rig.runner._close()


def test_a_deadline_that_could_not_be_saved_ends_no_later_order(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        deploy(rig)
        for one in (TWO, THREE):
            rig.broker.hold(one)
        rig.trials.hangs = True
        rig.broker.desire(DEVICE, {"digits": TWO.order(2)})
        until(lambda: len(rig.trials.jobs) > 1, "the trial")
        with mock.patch.object(JournalFile, "save", side_effect=FULL) as save:
            rig.clock.ahead_s += 10**6
            until(lambda: save.call_count > 20, "a deadline that cannot be saved")
            rig.trials.hangs = False
            rig.broker.desire(DEVICE, {"digits": THREE.order(3)})
            until(lambda: save.call_count > 60, "an order that cannot be saved")
            assert len(rig.runner._timers) < 10, "what cannot be saved piles up"
        rig.wait(3, OrderOutcome.ACTIVE)
        assert rig.running == THREE.digest


def test_a_cancellation_that_could_not_be_saved_calls_no_later_order_off(rig: Rig) -> None:
    rig.runner.apply("digits", Ordered(desired=ONE.order(1)))
    with mock.patch.object(JournalFile, "save", side_effect=FULL):
        rig.runner.apply("digits", Cancelled())
    rig.runner.apply("digits", Ordered(desired=TWO.order(2)))
    rig.clock.ahead_s += PACE.save_retry_s + 1
    rig.runner._due()
    assert rig.deployment.desired is not None, "an order was called off by an older document"
    assert (rig.deployment.order, rig.deployment.phase) == (2, Phase.ADMITTING)


def test_a_cancellation_that_could_not_be_saved_is_not_forgotten(rig: Rig) -> None:
    rig.runner.apply("digits", Ordered(desired=ONE.order(1)))
    with mock.patch.object(JournalFile, "save", side_effect=FULL):
        rig.runner.apply("digits", Cancelled())
    rig.clock.ahead_s += PACE.save_retry_s + 1
    rig.runner._due()
    assert rig.deployment.outcome is OrderOutcome.SUPERSEDED


def test_a_deadline_is_tried_again_at_the_pace_of_saves(rig: Rig) -> None:
    rig.runner.apply("digits", Ordered(desired=ONE.order(1)))
    with mock.patch.object(JournalFile, "save", side_effect=FULL):
        for _ in range(3):
            rig.runner.apply("digits", DeadlinePassed())
    rig.clock.ahead_s += ONE.order(1).deadline_s + 1
    rig.runner._due()
    assert rig.deployment.outcome is OrderOutcome.FAILED


def test_a_full_disk_is_a_line_in_the_log_and_a_mistake_of_ours_its_whole_story(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    with mock.patch("agent.outbox.write_file", side_effect=FULL):
        rig.runner.apply("digits", Ordered(desired=ONE.order(1)))
    assert "no space left on device" in caplog.text
    assert "Traceback" not in caplog.text
    with mock.patch("agent.outbox.write_file", side_effect=RuntimeError("ours")):
        rig.runner.apply("digits", Cancelled())
    assert "Traceback" in caplog.text


def test_a_retry_of_work_that_was_dropped_meanwhile_disturbs_nothing(rig: Rig) -> None:
    with mock.patch.object(Lane, "submit") as submit:
        rig.runner.apply("digits", Ordered(desired=ONE.order(1)))
        busy = Reason(code="network", lasting="retry")
        rig.runner.apply("digits", Failed(serial=rig.deployment.serial, reason=busy, jitter=0.9))
        rig.runner.apply("digits", Ordered(desired=TWO.order(2)))
        begun = submit.call_count
        rig.clock.ahead_s += 60.0
        rig.runner._due()
        assert submit.call_count == begun, "the newer order's work was called off for older work"


def test_damage_that_cannot_be_mended_is_looked_at_hourly_however_many_days_it_lasts(rig: Rig) -> None:
    """Each daily look finds it anew; a chain of its own for each would in the end hash without a pause."""
    slot = Slot(digest=ONE.digest, release="1", variant="onnxruntime/one")
    rig.runner.models["digits"] = Deployment(model="digits", active=slot)
    found = Damaged(hurts=(Hurt(slot=slot, detail="a bit"),))
    with mock.patch.object(Lane, "submit") as submit:
        for looks in range(1, 4):
            for _ in range(3):
                rig.runner._looked("digits", found)
            rig.clock.ahead_s += PACE.mend_s + 1
            rig.runner._due()
            assert submit.call_count == looks


def test_messages_that_could_not_be_saved_are_asked_for_once_for_all(rig: Rig) -> None:
    """Asking brings all that is retained: asked for by itself, each would double their number every time."""
    asked = mock.Mock()
    rig.broker.subscribe = asked  # type: ignore[method-assign]
    with mock.patch.object(Connection, "_desired", side_effect=FULL):
        for times in range(1, 4):
            for _ in range(2):
                rig.connection._take(DESIRED, {"device": DEVICE}, b"")
            rig.clock.ahead_s += SAVE_RETRY_S + 1
            rig.runner._due()
            assert asked.call_count == times
