"""What is told is what became of it: nothing is called done that did not happen, and nothing told is lost."""

from __future__ import annotations

import errno
from pathlib import Path
from unittest import mock

from agent.deployment import Deployment
from agent.journal import JournalFile
from tests.agent.rig import DEVICE, ONE, TWO, answers, command, deploy, running
from tests.agent.twins import until
from wire.messages import MODELS_MAX, Evaluate, OrderOutcome, Rollback, Slot

ANSWER = f"device/{DEVICE}/up/reply/c1"


def test_a_rollback_that_could_not_be_saved_is_not_called_done(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "no space left on device")
    with running(tmp_path) as rig:
        deploy(rig)
        deploy(rig, TWO, 2)
        with mock.patch.object(JournalFile, "save", side_effect=full):
            command(rig, Rollback(model="digits", from_=TWO.digest, order=3), reply_to=ANSWER)
            until(lambda: answers(rig), "an answer")
            assert answers(rig)[0].result == "accepted"
            assert rig.running == TWO.digest
        rig.wait(2, OrderOutcome.ROLLED_BACK)
        assert rig.running == ONE.digest


def test_an_evaluation_for_which_there_is_no_room_is_not_called_done(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        slot = Slot(digest=ONE.digest, release="1", variant="onnxruntime/one")
        until(lambda: rig.broker.heard("reported"), "the agent to listen")
        rig.runner.models.update({m: Deployment(model=m, active=slot) for m in map(str, range(MODELS_MAX))})
        command(rig, Evaluate(model="one-more", desired=TWO.order(5)), reply_to=ANSWER)
        until(lambda: answers(rig), "an answer")
        answer = answers(rig)[0]
        assert answer.result == "refused"
        assert answer.reason is not None
        assert answer.reason.code == "too_many_models"


def test_what_nobody_acknowledged_is_said_again_on_the_next_connection(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        deploy(rig)
        told = [report.number for report in rig.reports()]
        rig.connection.disconnected("gone")
        rig.connection.will()
        rig.connection.connected()
        until(lambda: len(rig.reports()) >= 2 * len(told), "every report a second time")
        assert [report.number for report in rig.reports()] == told + told
