"""Time that passed is on the disk: a device that loses its power begins neither soak nor deadline anew."""

from __future__ import annotations

import errno
from pathlib import Path
from unittest import mock

from agent.journal import JournalFile
from tests.agent.rig import DEVICE, ONE, TWO, Rig, deploy, running
from tests.agent.twins import until
from wire.messages import OrderOutcome, Phase


def cut_off(rig: Rig, passed_s: float) -> None:
    """Lets time pass and the power go: the agent ends without another save."""
    before = rig.deployment.left_s
    rig.clock.ahead_s += passed_s

    def saved() -> bool:
        journal = JournalFile(rig.root).load()
        return journal is not None and journal.models["digits"].left_s <= before - passed_s

    until(saved, "the time that passed to be on the disk")
    with mock.patch.object(JournalFile, "save", side_effect=OSError(errno.EIO, "no power")):
        rig.trials.hangs = False
        rig.stop()


def test_a_soak_goes_on_where_the_power_went(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        deploy(rig)
        rig.broker.hold(TWO)
        rig.broker.desire(DEVICE, {"digits": TWO.order(2, soak_s=1000.0)})
        until(lambda: rig.deployment.phase is Phase.SOAKING, "the soak")
        cut_off(rig, 600.0)
    with running(tmp_path) as rig:
        until(lambda: rig.deployment.phase is Phase.SOAKING and rig.hooks.looks > 2, "the soak")
        rig.clock.ahead_s += 300.0
        looks = rig.hooks.looks
        until(lambda: rig.hooks.looks > looks + 3, "looks")
        assert rig.deployment.phase is Phase.SOAKING, "a soak ended early"
        rig.clock.ahead_s += 150.0
        rig.wait(2, OrderOutcome.ACTIVE)


def test_a_deadline_goes_on_where_the_power_went(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        rig.trials.hangs = True
        rig.broker.hold(ONE)
        rig.broker.desire(DEVICE, {"digits": ONE.order(1, deadline_s=1000.0)})
        until(lambda: rig.trials.jobs, "the trial")
        cut_off(rig, 600.0)

    def hanging(again: Rig) -> None:
        again.trials.hangs = True

    with running(tmp_path, prepare=hanging) as rig:
        until(lambda: rig.trials.jobs, "the trial again")
        rig.clock.ahead_s += 450.0
        rig.wait(1, OrderOutcome.FAILED)
