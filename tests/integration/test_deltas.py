"""The whole way of a delta: the registry makes it, offers it with an order, and the agent builds the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.slots import file_sha256
from examples.demo.house import House, wait_for
from tests.agent.test_transfer_real_delta import BALLAST, PATH, fine_tuned
from tests.integration.bundles import make_bundle
from tests.integration.hand import Hand
from wire.messages import ContentFetched

pytestmark = [pytest.mark.broker, pytest.mark.slow]
DEVICE, MODEL = "roof-1", "tiny"


def rolled_out(house: House, release: str) -> None:
    options = ["--waves", "100%", "--deadline", "120", "--soak", "0"]
    rollout = str(house.fleet("rollout", "start", f"{MODEL}@{release}", *options)["id"])

    def ended() -> str | None:
        state = house.fleet("rollout", "show", rollout)["rollout"]["state"]
        return None if state in {"pending", "running"} else str(state)

    assert wait_for(f"the rollout of {release}", ended, 120) == "completed"


def test_a_registry_makes_and_an_agent_takes_a_delta(bare_house: House, hand: Hand, tmp_path: Path) -> None:
    house = bare_house
    house.start()
    house.agent(DEVICE)
    wait_for("the device", lambda: [v for v in house.fleet("devices") if v["online"]])
    make_bundle(tmp_path / "1", ballast_bytes=BALLAST)
    house.fleet("publish", str(tmp_path / "1"))
    rolled_out(house, "1")
    fine_tuned(tmp_path / "2")
    house.fleet("publish", str(tmp_path / "2"))
    wait_for("the delta", lambda: "delta" in house.registry.tail(5), 60)
    rolled_out(house, "2")

    current = house.current(DEVICE, MODEL)
    assert current is not None
    assert file_sha256(current / "model.onnx") == file_sha256(tmp_path / "2" / PATH)
    told = [report.event for report in hand.reports if isinstance(report.event, ContentFetched)]
    assert [use.failure for use in told[-1].deltas] == [None], "the file came by the delta"
    assert told[-1].bytes_received < BALLAST // 4
