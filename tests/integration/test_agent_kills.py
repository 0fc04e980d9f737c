"""kill -9 of the agent in a fetch, a trial and a switch; of the broker in a fetch: it ends as if nothing was.

Real Mosquitto, the real agent as a process, a real ONNX model in a real trial.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from examples.demo.house import House, wait_for
from tests.brokers import Mosquitto
from tests.integration.bundles import digest_of, make_bundle
from tests.integration.hand import Hand
from wire.messages import ModelState, OrderOutcome, Phase
from wire.topics import BLOB

pytestmark = [pytest.mark.broker, pytest.mark.slow]
MODEL = "tiny"
DEVICE = "roof-1"
BALLAST = 6_000_000


@pytest.fixture
def house(bare_house: House) -> House:
    return bare_house


def stored_blobs(house: House) -> set[str]:
    # `os.walk` passes over what the agent removes meanwhile.
    folders = os.walk(house.state(DEVICE) / "blobs")
    return {name for _, _, names in folders for name in names if len(name) == 64}


def chunk_count(folder: Path) -> int:
    return (folder / "variants/float_wf32_af32/model.onnx").stat().st_size // 65536


def first_release(house: House, hand: Hand, tmp_path: Path) -> str:
    """Installs release 1 and gives its digest."""
    make_bundle(tmp_path / "one", release="1", seed=1)
    digest = hand.publish_bundle(tmp_path / "one")
    hand.desire(DEVICE, MODEL, digest, order=1)
    house.agent(DEVICE)
    assert hand.wait_ended(DEVICE, MODEL, 1).outcome is OrderOutcome.ACTIVE
    return digest


def half_fetched(house: House, hand: Hand, tmp_path: Path) -> str:
    """Release 1 active, release 2 ordered and most of it stored; gives release 2's digest.

    The last chunks are kept back, so that the fetch is sure to be under way.
    """
    first_release(house, hand, tmp_path)
    make_bundle(tmp_path / "two", release="2", seed=2, ballast_bytes=BALLAST)
    digest = hand.publish_bundle(tmp_path / "two", leave_out=20)
    hand.desire(DEVICE, MODEL, digest, order=2, release="2")
    expected = chunk_count(tmp_path / "two") - 30
    wait_for("most chunks to arrive", lambda: len(stored_blobs(house)) >= expected, 90)
    return digest


def test_killed_in_a_fetch_it_goes_on_and_fetches_no_chunk_twice(
    house: House, hand: Hand, tmp_path: Path
) -> None:
    digest = half_fetched(house, hand, tmp_path)
    house.agents[DEVICE].kill()
    before = stored_blobs(house)
    times = {p.name: p.stat().st_mtime_ns for p in (house.state(DEVICE) / "blobs").rglob("*") if p.is_file()}
    hand.publish_bundle(tmp_path / "two")
    house.agents[DEVICE].start()
    kept: set[str] = set()

    def fetched_again() -> bool:
        for folder, _, names in os.walk(house.state(DEVICE) / "blobs"):
            for name in times.keys() & set(names):
                with contextlib.suppress(FileNotFoundError):
                    if (Path(folder) / name).stat().st_mtime_ns == times[name]:
                        kept.add(name)
        state = hand.state(DEVICE, MODEL)
        return state is not None and state.order == 2 and state.outcome is not None

    wait_for("order 2 to end", fetched_again, 90)
    state = hand.state(DEVICE, MODEL)
    assert state is not None
    assert state.outcome is OrderOutcome.ACTIVE
    assert state.active is not None
    assert state.active.digest == digest
    assert kept >= before


def test_the_broker_killed_in_a_fetch_changes_nothing(
    house: House, hand: Hand, broker: Mosquitto, tmp_path: Path
) -> None:
    digest = half_fetched(house, hand, tmp_path)
    broker.kill()
    broker.start()
    with Hand(broker.port) as again:
        again.publish_bundle(tmp_path / "two")
        again.desire(DEVICE, MODEL, digest, order=2, release="2")
        assert again.wait_ended(DEVICE, MODEL, 2, 90).outcome is OrderOutcome.ACTIVE


@pytest.mark.parametrize("phase", [Phase.TRIALING, Phase.SWITCHING, Phase.SOAKING])
def test_killed_in_a_phase_it_ends_as_if_nothing_had_happened(
    house: House, hand: Hand, tmp_path: Path, phase: Phase
) -> None:
    first = first_release(house, hand, tmp_path)
    make_bundle(tmp_path / "two", release="2", seed=2)
    digest = hand.publish_bundle(tmp_path / "two")
    hand.desire(DEVICE, MODEL, digest, order=2, release="2", soak_s=1.0)

    def reached(state: ModelState) -> bool:
        return state.phase is phase or (state.order == 2 and state.outcome is not None)

    hand.wait_state(DEVICE, MODEL, reached)
    house.agents[DEVICE].kill()
    current = house.current(DEVICE, MODEL)
    assert current is not None
    assert (current / "release.json").exists()
    house.agents[DEVICE].start()
    state = hand.wait_ended(DEVICE, MODEL, 2, 90)
    assert state.outcome is OrderOutcome.ACTIVE
    assert state.active is not None
    assert state.previous is not None
    assert (state.active.digest, state.previous.digest) == (digest, first)
    house.agents[DEVICE].stop()
    assert house.current(DEVICE, MODEL) is not None


def test_a_worker_dies_with_its_daemon(house: House, hand: Hand, tmp_path: Path) -> None:
    first_release(house, hand, tmp_path)
    make_bundle(tmp_path / "two", release="2", seed=2, harm="hang")
    digest = hand.publish_bundle(tmp_path / "two")
    hand.desire(DEVICE, MODEL, digest, order=2, release="2")
    hand.wait_state(DEVICE, MODEL, lambda s: s.phase is Phase.TRIALING)
    workers = wait_for("a worker", workers_of, 30)
    house.agents[DEVICE].kill()
    wait_for("the worker to die", lambda: not (workers & workers_of()), 30)
    assert workers.isdisjoint(workers_of())


def workers_of() -> set[int]:
    """Process ids of trial workers on this machine."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"agent.worker.trial" in words and os.getpgid(0) != int(folder.name):
                found.add(int(folder.name))
    return found


def test_a_second_rollback_of_the_same_release_changes_nothing(
    house: House, hand: Hand, tmp_path: Path
) -> None:
    first = first_release(house, hand, tmp_path)
    make_bundle(tmp_path / "two", release="2", seed=2)
    second = hand.publish_bundle(tmp_path / "two")
    hand.desire(DEVICE, MODEL, second, order=2, release="2")
    hand.wait_ended(DEVICE, MODEL, 2)
    before = house.current(DEVICE, MODEL)
    for ident in ("rb-1", "rb-2"):
        hand.rollback(DEVICE, MODEL, second, order=3, ident=ident)
        wait_for(f"the reply to {ident}", lambda i=ident: [r for r in hand.replies if r.command == i], 30)  # type: ignore[misc]
    results = {reply.command: reply.result for reply in hand.replies}
    assert results == {"rb-1": "accepted", "rb-2": "not_applicable"}
    state = hand.wait_state(
        DEVICE, MODEL, lambda s: s.active is not None and s.active.digest == first and s.phase is Phase.IDLE
    )
    assert second in state.blocked
    assert house.current(DEVICE, MODEL) != before


def test_a_rollback_needs_neither_registry_nor_blobs(
    house: House, hand: Hand, broker: Mosquitto, tmp_path: Path
) -> None:
    first = first_release(house, hand, tmp_path)
    make_bundle(tmp_path / "two", release="2", seed=2)
    second = hand.publish_bundle(tmp_path / "two")
    hand.desire(DEVICE, MODEL, second, order=2, release="2")
    hand.wait_ended(DEVICE, MODEL, 2)
    for file in (tmp_path / "two").rglob("*.onnx"):
        for chunk in range(2):
            hand.raw(hand.topics.topic(BLOB, digest=f"{chunk:064x}"), b"", retain=True)
        file.unlink()
    hand.rollback(DEVICE, MODEL, second, order=3)
    state = hand.wait_state(DEVICE, MODEL, lambda s: s.active is not None and s.active.digest == first)
    assert state.active is not None
    assert broker.port == house.broker_port


def test_sigterm_says_goodbye(house: House, hand: Hand, tmp_path: Path) -> None:
    first_release(house, hand, tmp_path)
    os.kill(house.agents[DEVICE].pid, signal.SIGTERM)
    wait_for("status offline", lambda: not hand.status[DEVICE].online, 20)
    assert hand.status[DEVICE].number >= 1


def test_kill_9_is_told_by_the_last_will(house: House, hand: Hand, tmp_path: Path) -> None:
    first_release(house, hand, tmp_path)
    session = hand.status[DEVICE].number
    house.agents[DEVICE].kill()
    wait_for("the last will", lambda: not hand.status[DEVICE].online, 60)
    assert hand.status[DEVICE].number == session
    house.agents[DEVICE].start()
    wait_for("to be online again", lambda: hand.status[DEVICE].online, 30)
    assert hand.status[DEVICE].number > session


def test_a_release_keeps_its_digest_from_bundle_to_slot(house: House, hand: Hand, tmp_path: Path) -> None:
    digest = first_release(house, hand, tmp_path)
    assert digest == digest_of(tmp_path / "one")
    current = house.current(DEVICE, MODEL)
    assert current is not None
    assert digest in (current / "release.json").read_text(encoding="utf-8")
