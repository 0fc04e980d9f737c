"""The program as it is installed, killed before some of the calls that `test_kills` tries all of.

Real Mosquitto, the real agent as a process, a real ONNX model in a real trial: an update there and back,
killed at one call each time and started again.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from examples.demo.house import House, wait_for
from tests.crash.checks import incomplete
from tests.crash.native import built
from tests.integration.bundles import make_bundle
from tests.integration.hand import Hand
from wire.messages import OrderOutcome

pytestmark = [pytest.mark.broker, pytest.mark.slow]
DEVICE, MODEL = "roof-1", "tiny"


def releases(hand: Hand, tmp_path: Path) -> list[str]:
    digests = []
    for number in (1, 2):
        make_bundle(tmp_path / str(number), release=str(number), seed=number)
        digests.append(hand.publish_bundle(tmp_path / str(number)))
    return digests


def calls_of_an_update(house: House, log: Path) -> int:
    """How many calls the last update made."""
    state = str(house.state(DEVICE).resolve())
    return sum(state in line for line in log.read_text(encoding="utf-8").splitlines())


def killed_updates(
    house: House, hand: Hand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    digests = releases(hand, tmp_path)
    library, log = built("killpoint", tmp_path), tmp_path / "calls"
    root = house.state(DEVICE).resolve()
    hand.desire(DEVICE, MODEL, digests[0], order=1)
    agent = house.agent(DEVICE)
    hand.wait_ended(DEVICE, MODEL, 1)
    agent.stop()
    total, chance, struck = 0, random.Random(1), 0
    for order in range(2, kills + 3):
        wanted = digests[(order + 1) % 2]
        hand.desire(DEVICE, MODEL, wanted, order=order)
        with monkeypatch.context() as armed:
            armed.setenv("LD_PRELOAD", str(library))
            armed.setenv("KILLPOINT_ROOT", str(root))
            if order == 2:
                armed.setenv("KILLPOINT_LOG", str(log))
            else:
                armed.setenv("KILLPOINT_AT", str(chance.randrange(total)))
            agent.start()

        def over(order: int = order) -> bool:
            state = hand.state(DEVICE, MODEL)
            return not agent.alive() or (
                state is not None and state.order == order and state.outcome is not None
            )

        wait_for("the kill, or the end", over, 60)
        if order == 2:
            hand.wait_ended(DEVICE, MODEL, order)
            total = calls_of_an_update(house, log)
        struck += not agent.alive()
        agent.stop()
        current = house.current(DEVICE, MODEL)
        assert current is not None, "a device that had a good release has none"
        assert incomplete(current) is None
        agent.start()
        state = hand.wait_ended(DEVICE, MODEL, order)
        assert state.outcome is OrderOutcome.ACTIVE
        agent.stop()
        current = house.current(DEVICE, MODEL)
        assert current is not None
        assert current.name.startswith(wanted)
        assert incomplete(current) is None
    assert struck >= kills // 2
    sys.stdout.write(f"real agent: killed at {struck} of {total} points, 0 violations\n")


def test_the_real_agent_killed_at_one_call(
    bare_house: House, hand: Hand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_updates(bare_house, hand, tmp_path, monkeypatch, kills=1)


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_the_real_agent_killed_at_many_calls(
    bare_house: House, hand: Hand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_updates(bare_house, hand, tmp_path, monkeypatch, kills=60)
