"""What the device says keeps its channel's limits."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec.structs import replace

from agent.deployment import Deployment
from agent.install import Install
from agent.uplink import Self, Uplink
from tests.agent.rig import MACHINE
from tests.agent.twins import TOPICS, MemoryBroker, TestClock
from tests.agent.world import VARIANTS, summary
from wire.messages import MODELS_MAX, Reported, TrialSummary
from wire.topics import REPORTED


def uplink(tmp_path: Path, broker: MemoryBroker) -> Uplink:
    me = Self(device="roof-17", agent_version="1", hardware=MACHINE.hardware)
    return Uplink(broker, TOPICS, me, Install(tmp_path), TestClock())


def said(broker: MemoryBroker) -> Reported:
    payload = broker.heard("reported")[-1]
    assert len(payload) <= REPORTED.size_bytes_max
    return msgspec.json.decode(payload, type=Reported)


def test_a_reported_state_that_is_too_large_leaves_the_trials_out(tmp_path: Path) -> None:
    broker = MemoryBroker()
    small = summary(VARIANTS[0])
    large = TrialSummary(result=replace(small.result, notes=("n" * 2000,) * 10), verdict=small.verdict)
    for trial, kept in ((small, True), (large, False)):
        models = {f"m{n}": Deployment(model=f"m{n}", order=n, trial=trial) for n in range(MODELS_MAX)}
        assert uplink(tmp_path, broker).send_reported(models)
        states = said(broker).models
        assert len(states) == MODELS_MAX
        assert all((state.trial is not None) is kept for state in states.values())


def test_nothing_is_said_into_a_broken_connection(tmp_path: Path) -> None:
    broker = MemoryBroker()
    broker.up = False
    assert not uplink(tmp_path, broker).send_reported({})
    assert broker.said == []
