"""The wall clock may be anything, and a daemon that starts over and over gives up to the last good release.

Real Mosquitto, the real agent as a process, a real model in a real trial; a preload library moves the agent's
time of day (`native/wallclock.c`).
"""

from __future__ import annotations

import itertools
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.demo.house import House, wait_for
from tests.brokers import Mosquitto
from tests.crash.native import built
from tests.integration.bundles import make_bundle
from tests.integration.hand import Hand
from wire.messages import OrderOutcome, OrderRefused, Phase

pytestmark = [pytest.mark.broker, pytest.mark.slow]
DEVICE, MODEL = "roof-1", "tiny"
YEAR_2040 = 2208988800 + 86400


class WallClock:
    """The agent's time of day, which a test sets."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.path = str(path)
        path.write_bytes(struct.pack("=q", 0))

    def set(self, seconds_since_1970: float) -> None:
        """To any time; it runs on from there."""
        with self._path.open("r+b") as file:
            file.write(struct.pack("=q", int(seconds_since_1970 - time.time())))


@pytest.fixture
def wall(tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> WallClock:
    """Whatever is started from here on has this clock; the broker runs already."""
    assert broker.port
    clock = WallClock(tmp_path / "wallclock")
    monkeypatch.setenv("LD_PRELOAD", str(built("wallclock", tmp_path)))
    monkeypatch.setenv("WALLCLOCK", clock.path)
    return clock


@pytest.fixture
def restless(wall: WallClock) -> Iterator[WallClock]:
    """A clock that jumps from one end of time to the other and back."""
    stop = threading.Event()

    def jump() -> None:
        for at in itertools.cycle((1.0, YEAR_2040, 86400.0, 1_700_000_000.0)):
            wall.set(at)
            if stop.wait(0.05):
                return

    thread = threading.Thread(target=jump)
    thread.start()
    yield wall
    stop.set()
    thread.join()


def published(hand: Hand, tmp_path: Path) -> tuple[str, str]:
    digests = []
    for name, seed in (("one", 1), ("two", 2)):
        make_bundle(tmp_path / name, release=str(seed), seed=seed)
        digests.append(hand.publish_bundle(tmp_path / name))
    return digests[0], digests[1]


def whole_job(house: House, hand: Hand, tmp_path: Path) -> None:
    """Install, update with a soak, refuse what is old, roll back by message."""
    one, two = published(hand, tmp_path)
    hand.desire(DEVICE, MODEL, one, order=5)
    house.agent(DEVICE)
    assert hand.wait_ended(DEVICE, MODEL, 5).outcome is OrderOutcome.ACTIVE
    hand.desire(DEVICE, MODEL, two, order=6, release="2", soak_s=1.0)
    assert hand.wait_ended(DEVICE, MODEL, 6).outcome is OrderOutcome.ACTIVE
    hand.desire(DEVICE, MODEL, one, order=4)
    wait_for("the refusal of an old order", lambda: [r for r in hand.reports if _stale(r.event)], 30)
    hand.rollback(DEVICE, MODEL, two, order=7)
    state = hand.wait_state(DEVICE, MODEL, lambda s: s.outcome is OrderOutcome.ROLLED_BACK)
    assert state.active is not None
    assert state.active.digest == one
    assert state.blocked == (two,)


def _stale(event: object) -> bool:
    return isinstance(event, OrderRefused) and event.reason.code == "stale_order"


@pytest.mark.parametrize(("at", "year"), [(1.0, "1970"), (YEAR_2040, "2040")])
def test_a_wrong_clock_neither_blocks_nor_admits(
    bare_house: House, hand: Hand, tmp_path: Path, wall: WallClock, at: float, year: str
) -> None:
    wall.set(at)
    whole_job(bare_house, hand, tmp_path)
    assert {report.at[:4] for report in hand.reports} == {year}, "the clock was not that of the test"


def test_a_clock_that_jumps_neither_blocks_nor_admits(
    bare_house: House, hand: Hand, tmp_path: Path, restless: WallClock
) -> None:
    assert restless.path
    whole_job(bare_house, hand, tmp_path)
    assert len({report.at[:4] for report in hand.reports}) > 1, "the clock did not jump"


def test_a_jump_of_seventy_years_ends_no_soak_and_passes_no_deadline(
    bare_house: House, hand: Hand, tmp_path: Path, wall: WallClock
) -> None:
    wall.set(1.0)
    one, _ = published(hand, tmp_path)
    hand.desire(DEVICE, MODEL, one, order=1, soak_s=3600.0, deadline_s=3600.0)
    bare_house.agent(DEVICE)
    hand.wait_state(DEVICE, MODEL, lambda s: s.phase is Phase.SOAKING)
    wall.set(YEAR_2040)
    sessions = hand.status[DEVICE].number
    bare_house.agents[DEVICE].kill()
    bare_house.agents[DEVICE].start()
    wait_for("the agent", lambda: hand.status[DEVICE].online and hand.status[DEVICE].number > sessions, 60)
    state = hand.state(DEVICE, MODEL)
    assert state is not None
    assert (state.phase, state.outcome) == (Phase.SOAKING, None)


def test_a_daemon_that_is_killed_over_and_over_gives_up_to_the_last_good_release(
    bare_house: House, hand: Hand, tmp_path: Path
) -> None:
    one, two = published(hand, tmp_path)
    hand.desire(DEVICE, MODEL, one, order=1)
    agent = bare_house.agent(DEVICE)
    hand.wait_ended(DEVICE, MODEL, 1)
    hand.desire(DEVICE, MODEL, two, order=2, release="2", soak_s=3600.0)
    hand.wait_state(DEVICE, MODEL, lambda s: s.phase is Phase.SOAKING)
    starts = 0
    while starts < 8:
        starts += 1
        before = hand.status[DEVICE].number
        agent.kill()
        agent.start()
        wait_for("a connection", lambda n=before: hand.status[DEVICE].number > n, 60)  # type: ignore[misc]
        state = hand.state(DEVICE, MODEL)
        assert state is not None
        if state.phase is not Phase.SOAKING:
            break
    assert starts == 4, "boots_max is 3"
    state = hand.wait_ended(DEVICE, MODEL, 2)
    assert state.outcome is OrderOutcome.FELL_BACK
    assert state.reason is not None
    assert state.active is not None
    assert (state.reason.code, state.active.digest) == ("boot_loop", one)
