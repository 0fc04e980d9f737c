"""The whole house on a real Mosquitto: registry and broker are killed in the middle of a rollout.

Each time the rollout ends as if nothing had happened: every device active on the release, one order each, no
device beyond the open wave.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from examples.demo.house import House, wait_for
from tests.brokers import Mosquitto
from tests.integration.bundles import Harm, make_bundle
from tests.integration.hand import Hand
from wire.messages import OrderEnded, OrderOutcome

pytestmark = [pytest.mark.broker, pytest.mark.slow]
DEVICES = ("roof-1", "roof-2", "roof-3")


@pytest.fixture
def house(bare_house: House) -> House:
    bare_house.start()
    for device in DEVICES:
        bare_house.agent(device)
    wait_for("three devices", lambda: len(online(bare_house)) == len(DEVICES), 60)
    return bare_house


def online(house: House) -> set[str]:
    return {view["device"] for view in house.fleet("devices") if view["online"]}


def publish(house: House, folder: Path, release: str, harm: Harm = "none") -> None:
    make_bundle(folder / release, release=release, seed=int(release), harm=harm)
    house.fleet("publish", str(folder / release))


def start(house: House, release: str, *more: str) -> str:
    begun = house.fleet(
        "rollout", "start", f"tiny@{release}", "--waves", "1,50%,100%", "--deadline", "200", *more
    )
    return str(begun["id"])


def show(house: House, rollout: str) -> dict[str, Any]:
    shown: dict[str, Any] = house.fleet("rollout", "show", rollout)
    return shown


def completed(house: House, rollout: str) -> dict[str, Any]:
    """Waits for the end of a rollout that must complete."""

    def look() -> dict[str, Any] | None:
        shown = show(house, rollout)
        return shown if shown["rollout"]["state"] not in {"pending", "running"} else None

    shown = wait_for(f"rollout {rollout}", look, 150)
    assert shown["rollout"]["state"] == "completed", shown["rollout"]
    assert {line["device"] for line in shown["devices"]} == set(DEVICES)
    assert all(line["outcome"] == "active" for line in shown["devices"]), shown["devices"]
    return shown


def wave(house: House, rollout: str) -> int:
    """The highest wave in which a device has an order; -1 before the first."""
    return max((line["wave"] for line in show(house, rollout)["devices"]), default=-1)


def successes(hand: Hand) -> dict[tuple[str, int], int]:
    """How often each device's order was reported to have ended active, redeliveries left out."""
    numbers = {
        (report.device, report.order, report.number)
        for report in hand.reports
        if isinstance(report.event, OrderEnded) and report.event.outcome is OrderOutcome.ACTIVE
    }
    found: dict[tuple[str, int], int] = {}
    for device, order, _ in numbers:
        found[device, order] = found.get((device, order), 0) + 1
    return found


def test_the_registry_killed_in_every_wave_repeats_nothing(
    house: House, broker: Mosquitto, tmp_path: Path
) -> None:
    with Hand(broker.port) as hand:
        publish(house, tmp_path, "1")
        rollout = start(house, "1", "--soak", "2")
        for number in range(3):
            wait_for(f"wave {number}", lambda n=number: wave(house, rollout) >= n, 100)  # type: ignore[misc]
            house.registry.kill()
            time.sleep(0.3)
            house.start_registry()
        completed(house, rollout)
        wait_for("three successes", lambda: len(successes(hand)) == len(DEVICES), 20)
        assert set(successes(hand).values()) == {1}
        assert {order for _, order in successes(hand)} == {min(order for _, order in successes(hand))}


@pytest.mark.parametrize("remembers", [True, False])
def test_the_broker_killed_in_a_rollout_strands_nobody(
    house: House, broker: Mosquitto, tmp_path: Path, remembers: bool
) -> None:
    publish(house, tmp_path, "1")
    rollout = start(house, "1", "--soak", "2")
    wait_for("the first wave", lambda: wave(house, rollout) >= 0, 60)
    broker.kill()
    if not remembers:
        broker.forget()
    broker.start()
    completed(house, rollout)
    for device in DEVICES:
        assert house.current(device, "tiny") is not None


def test_a_registry_that_sleeps_through_the_trial_reads_what_was_retained(
    house: House, broker: Mosquitto, tmp_path: Path
) -> None:
    with Hand(broker.port) as hand:
        publish(house, tmp_path, "1")
        rollout = start(house, "1", "--soak", "4")
        wait_for("the first wave", lambda: wave(house, rollout) >= 0, 60)
        # On a slow day the next wave is there by now.
        (canary,) = [line["device"] for line in show(house, rollout)["devices"] if line["wave"] == 0]
        hand.wait_state(canary, "tiny", lambda s: s.order > 0)
        house.registry.kill()
        hand.wait_state(canary, "tiny", lambda s: s.outcome is OrderOutcome.ACTIVE, 60)
        house.start_registry()
        completed(house, rollout)


def test_a_bad_release_halts_at_its_canary_and_the_rest_never_hears_of_it(
    house: House, broker: Mosquitto, tmp_path: Path
) -> None:
    with Hand(broker.port) as hand:
        publish(house, tmp_path, "1")
        completed(house, start(house, "1", "--soak", "0"))
        before = {device: house.current(device, "tiny") for device in DEVICES}
        publish(house, tmp_path, "2", harm="wrong")
        rollout = start(house, "2", "--soak", "0")
        wait_for("the halt", lambda: show(house, rollout)["rollout"]["state"] == "halted", 90)
        (line,) = show(house, rollout)["devices"]
        assert line["outcome"] == "failed"
        assert {device: house.current(device, "tiny") for device in DEVICES} == before
        told = {r.device for r in hand.reports if r.order > 2 and r.digest is not None}
        assert told <= {line["device"]}


def test_a_rollback_command_reaches_every_device(house: House, tmp_path: Path) -> None:
    for release in ("1", "2"):
        publish(house, tmp_path, release)
        completed(house, start(house, release, "--soak", "0"))
    before = {device: house.current(device, "tiny") for device in DEVICES}
    shown = house.fleet("rollback", "tiny", "--all", "--wait")
    assert {line["state"] for line in shown["devices"]} == {"done"}
    for device in DEVICES:
        assert house.current(device, "tiny") not in {None, before[device]}


def test_a_device_asleep_during_a_rollback_goes_back_when_it_wakes(house: House, tmp_path: Path) -> None:
    for release in ("1", "2"):
        publish(house, tmp_path, release)
        completed(house, start(house, release, "--soak", "0"))
    sleeper = DEVICES[2]
    second = house.current(sleeper, "tiny")
    house.agents[sleeper].kill()
    house.fleet("rollback", "tiny", "--device", sleeper)
    time.sleep(1)
    assert house.current(sleeper, "tiny") == second
    house.agents[sleeper].start()
    wait_for("the sleeper to go back", lambda: house.current(sleeper, "tiny") != second, 60)
