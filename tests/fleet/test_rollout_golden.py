"""Whole rollouts as conversations in text files, to be read by people and reviewed as a diff.

Regenerate with `SHALLOP_GOLDEN=write python -m pytest tests/fleet/test_rollout_golden.py` and read what
changed before committing it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import fleet.rollout as machine
from fleet.rollout_types import FailureAction, Request
from tests.fleet.driving import drive
from tests.fleet.simulator import NEW, Fate, Plan, Scenario

GOLDEN = Path(__file__).parent / "golden"


def asked(on_failure: FailureAction = FailureAction.ROLLBACK_ALL) -> Request:
    return Request(
        model="cats", digest=NEW, release="r2", deadline_s=200.0, soak_s=20.0, on_failure=on_failure
    )


CONVERSATIONS = {
    "three_devices_in_three_waves": Scenario(
        plans={"roof-1": Plan(), "roof-2": Plan(pace=2), "roof-3": Plan()}, request=asked()
    ),
    "canary_refuses": Scenario(
        plans={
            "roof-1": Plan(fate=Fate.REFUSES),
            "roof-2": Plan(fate=Fate.REFUSES),
            "roof-3": Plan(fate=Fate.REFUSES),
        },
        request=asked(FailureAction.HALT),
    ),
    "falls_back_after_success": Scenario(
        plans={"roof-1": Plan(), "roof-2": Plan(), "roof-3": Plan(fate=Fate.FALLS_BACK, falls_back_after=2)},
        request=asked(),
    ),
    "silent_canary_asks_a_person": Scenario(
        plans={"roof-1": Plan(vanishes=1), "roof-2": Plan(vanishes=1), "roof-3": Plan(vanishes=1)},
        request=asked(),
        resumes_max=1,
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversation(name: str) -> None:
    _, world = drive(CONVERSATIONS[name], machine)
    text = "\n".join(world.log) + "\n"
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("SHALLOP_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def test_refused_canary_is_the_only_device_that_got_an_order() -> None:
    rollout, world = drive(CONVERSATIONS["canary_refuses"], machine)
    assert rollout.state.value == "halted"
    assert len(world.deploys) == 1
    assert sum(line.count("-> deploy") for line in world.log) == 1


def test_a_fallback_after_success_takes_back_what_was_promoted() -> None:
    rollout, world = drive(CONVERSATIONS["falls_back_after_success"], machine)
    assert rollout.state.value == "halted"
    assert "fell_back" in rollout.reason
    assert set(world.restores) == set(rollout.assignments)
