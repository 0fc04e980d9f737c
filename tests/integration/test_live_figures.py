"""An application's figures on their whole way: counted, read by a real agent, shown by a real registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.demo.house import House, wait_for
from shallop_client import Live, Model
from tests.brokers import Mosquitto
from tests.integration.bundles import make_bundle
from tests.integration.hand import Hand
from wire.messages import OrderOutcome

pytestmark = [pytest.mark.broker, pytest.mark.slow]
DEVICE, MODEL = "roof-1", "tiny"


@pytest.fixture
def quiet_hand(broker: Mosquitto) -> Iterator[Hand]:
    """The registry acknowledges here."""
    with Hand(broker.port, acknowledges=False) as made:
        yield made


def test_drift_that_an_application_counts_is_seen_by_people(
    bare_house: House, quiet_hand: Hand, tmp_path: Path
) -> None:
    folder = tmp_path / "live"
    folder.mkdir()
    bare_house.start()
    bare_house.agent(
        DEVICE, live_dir=str(folder), live={"look_s": 1, "n_min": 50, "report_s": 3, "flip_s": 1}
    )  # fmt: skip
    make_bundle(tmp_path / "one")
    quiet_hand.desire(DEVICE, MODEL, quiet_hand.publish_bundle(tmp_path / "one"), order=1)
    model = Model(MODEL, bare_house.state(DEVICE) / "models")
    release = model.wait_for_change(timeout=60)
    assert release is not None
    assert quiet_hand.wait_ended(DEVICE, MODEL, 1).outcome is OrderOutcome.ACTIVE
    live = Live(MODEL, folder)
    live.use(release)

    def told(latency_ms: float, drift: bool) -> dict[str, Any] | None:
        for _ in range(40):
            live.record(latency_ms=latency_ms, confidence=0.8)
        live.flush()
        shown = bare_house.fleet("devices", "show", DEVICE)["live"].get(MODEL)
        return shown if shown and shown["figures"]["drift"] is drift else None

    calm = wait_for("figures without drift", lambda: told(5.0, drift=False))
    assert calm["digest"] == release.info["digest"]
    assert calm["figures"]["latency_ms_p95"] == pytest.approx(5.0, rel=0.13)
    slow = wait_for("the drift", lambda: told(50.0, drift=True))
    assert slow["figures"]["drifted"] == ["latency"]
    assert slow["number"] > calm["number"]
    assert model.current() == release, "the agent reverted for an application's claim"
