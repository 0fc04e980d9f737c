"""Reports leave the device once the registry holds them, on a real Mosquitto: promptly, and after kill -9.

Not for: how gaps are given up (`tests/fleet/test_store.py`).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.demo.house import House, wait_for
from tests.brokers import Mosquitto
from tests.integration.bundles import make_bundle
from tests.integration.hand import Hand

pytestmark = [pytest.mark.broker, pytest.mark.slow]
DEVICES = ("roof-1", "roof-2")
PROMPT_S = 20.0
"""Far below the ten minutes after which the registry gives a missing report up."""


@pytest.fixture
def house(bare_house: House) -> House:
    bare_house.start()
    for device in DEVICES:
        bare_house.agent(device)
    wait_for("the devices", lambda: len(bare_house.fleet("devices")) == len(DEVICES), 60)
    return bare_house


def start(house: House, folder: Path) -> str:
    make_bundle(folder, release="1", seed=1)
    house.fleet("publish", str(folder))
    begun = house.fleet("rollout", "start", "tiny@1", "--waves", "1,100%", "--deadline", "200", "--soak", "2")
    return str(begun["id"])


def wait_completed(house: House, rollout: str) -> None:
    def state() -> str:
        return str(house.fleet("rollout", "show", rollout)["rollout"]["state"])

    wait_for("the rollout", lambda: state() not in {"pending", "running"}, 150)
    assert state() == "completed"


def kept(house: House) -> list[Path]:
    """Reports that a device still holds."""
    return [path for device in DEVICES for path in (house.state(device) / "reports").glob("*.json")]


def numbers(watch: Hand, device: str) -> list[int]:
    return sorted({report.number for report in watch.reports if report.device == device})


def test_after_a_rollout_every_report_is_acknowledged(
    house: House, broker: Mosquitto, tmp_path: Path
) -> None:
    with Hand(broker.port, acknowledges=False) as watch:
        wait_completed(house, start(house, tmp_path / "one"))
        wait_for("the reports to be acknowledged", lambda: not kept(house), PROMPT_S)
        for device in DEVICES:
            told = numbers(watch, device)
            assert told == list(range(1, len(told) + 1))
            assert len(told) > 3, "nothing was reported, so nothing was shown"


def test_an_agent_killed_in_a_rollout_leaves_no_gap_in_its_reports(
    house: House, broker: Mosquitto, tmp_path: Path
) -> None:
    with Hand(broker.port, acknowledges=False) as watch:
        rollout = start(house, tmp_path / "one")
        canary = wait_for("the first reports", lambda: {r.device for r in watch.reports}, 60).pop()
        for _ in range(2):
            house.agents[canary].kill()
            house.agents[canary].start()
            before = len(numbers(watch, canary))
            wait_for("another report", lambda n=before: len(numbers(watch, canary)) > n, 60)  # type: ignore[misc]
        wait_completed(house, rollout)
        wait_for("the reports to be acknowledged", lambda: not kept(house), PROMPT_S)
        told = numbers(watch, canary)
        assert told == list(range(1, len(told) + 1))
