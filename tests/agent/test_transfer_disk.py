"""A disk that fills up at any write, or breaks: what ran goes on running, by name, and heals by itself."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.adapters.locks import StateLock
from agent.admission import require_room
from agent.deployment import Deployment
from agent.durable import point_link
from agent.errors import FinalError, RetryError, StateError, disk_error
from agent.install import RESERVED, Install
from agent.journal import RESERVE_BYTES, Journal, JournalFile
from agent.slots import GONE, PART, Slots, directory_name
from agent.soak import Baseline
from agent.soaking import Soaking
from agent.store import BlobStore
from agent.worker.job import TrialJob
from tests.agent.full_disk import FullDisk, filling
from tests.agent.rig import DEVICE, ONE, TWO, Rig, deploy, running
from tests.agent.test_disk import assemble, slot_of, whole
from tests.agent.twins import TOPICS, VARIANT, MemoryBroker, Release, release, until
from wire.chunks import digest
from wire.measures import TrialResult
from wire.messages import OrderEnded, OrderOutcome, Phase, Slot
from wire.topics import RELEASE

RELEASES = {one.digest: one for one in (ONE, TWO)}


def intact(rig: Rig) -> bool:
    """`current` points to a release with every byte of it."""
    return rig.running is not None and whole(rig.current, RELEASES[rig.running])


# --- full from the nth write on ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory in which the first release is active."""
    root = tmp_path_factory.mktemp("seed") / "state"
    with running(root) as rig:
        deploy(rig)
    return root


def order_two(rig: Rig) -> None:
    rig.broker.hold(TWO)
    rig.broker.desire(DEVICE, {"digits": TWO.order(2)})


def calls_of_an_update(seed: Path, root: Path) -> int:
    """How many calls need room from the order to its end."""
    shutil.copytree(seed, root, symlinks=True)
    with running(root) as rig, filling(FullDisk(root)) as disk:
        disk.fill(after=10**6)
        order_two(rig)
        rig.wait(2, OrderOutcome.ACTIVE)
        return disk.tried


def survive(seed: Path, root: Path, after: int, number: int) -> OrderOutcome | None:
    """The disk is full after so many calls, and later it is not; how the order ended."""
    shutil.copytree(seed, root, symlinks=True)
    with running(root) as rig, filling(FullDisk(root, number)) as disk:
        disk.fill(after)
        order_two(rig)
        if not disk.hit.wait(5.0):
            disk.lift()
            return rig.wait(2, OrderOutcome.ACTIVE).outcome
        for _ in range(10):
            assert intact(rig), "what ran is damaged"
            os.sched_yield()
        with contextlib.suppress(AssertionError):
            until(lambda: rig.deployment.reason is not None, "a reason", 0.3)
        reason = rig.deployment.reason
        if reason is not None:
            assert reason.code == ("disk_full" if number == errno.ENOSPC else "disk_failed")
        disk.lift()
        until(lambda: (s := rig.reported()) and s.order == 2 and s.outcome, "the end of the order")
        state = rig.reported()
        assert state is not None
        assert intact(rig)
        assert rig.running == (TWO if state.outcome is OrderOutcome.ACTIVE else ONE).digest
        return state.outcome


def matrix(seed: Path, tmp_path: Path, sample: int | None) -> None:
    total = calls_of_an_update(seed, tmp_path / "healthy")
    points = [(after, number) for number in (errno.ENOSPC, errno.EIO) for after in range(total)]
    chosen = points if sample is None else random.Random(total).sample(points, sample)
    outcomes = [
        survive(seed, tmp_path / f"{number}-{after}", after, number) for after, number in sorted(chosen)
    ]
    fell_back = sum(outcome is OrderOutcome.FELL_BACK for outcome in outcomes)
    tried = f"full or broken disk: {len(chosen)} of {len(points)} calls"
    sys.stdout.write(f"{tried}, {fell_back} fell back, the others ended active\n")
    assert set(outcomes) <= {OrderOutcome.ACTIVE, OrderOutcome.FELL_BACK}
    # Only the symlink of the switch itself cannot wait; an order falls back for want of that alone.
    assert fell_back <= max(2, len(points) // 6)


def test_a_disk_that_is_full_at_any_write_is_survived(seed: Path, tmp_path: Path) -> None:
    matrix(seed, tmp_path, sample=8)


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_disk_that_is_full_at_every_write_is_survived(seed: Path, tmp_path: Path) -> None:
    matrix(seed, tmp_path, sample=None)


# --- a file system that really is full --------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = os.geteuid() == 0 and not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(place)], check=False, capture_output=True
    ).returncode  # fmt: skip
    if not mounted:
        pytest.skip("no file system can be mounted here: run as root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill_up(disk: Path, leave: int) -> Path:
    """Takes all but so many bytes."""
    ballast = disk / "ballast"
    status = os.statvfs(disk)
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        file.write(bytes(max(0, status.f_bavail * status.f_frsize - leave)))
    return ballast


@pytest.mark.parametrize("leave", [0, 4096, 12_288, 24_576, 40_960, 65_536])
def test_a_really_full_disk_is_waited_for_and_the_device_stays_online(small_disk: Path, leave: int) -> None:
    """The reserve goes to the journal first; admission is deceived, so that writes fail, not sums."""
    broker = MemoryBroker()
    rig = Rig(small_disk / "state", broker)
    rig.start()
    try:
        deploy(rig)
        until(lambda: not any((small_disk / "state" / "blobs").iterdir()), "the store to be tidied")
    finally:
        rig.stop()
    ballast = fill_up(small_disk, leave)
    rig = Rig(small_disk / "state", broker)
    broker.said.clear()
    rig.start()
    try:
        until(lambda: broker.heard("reported"), "the device to say how it is")
        order_two(rig)
        with contextlib.suppress(AssertionError):
            until(lambda: rig.deployment.reason is not None, "a reason", 1.0)
        reason = rig.deployment.reason
        assert reason is None or (reason.code, reason.lasting) == ("disk_full", "retry")
        assert whole(rig.current, ONE) or whole(rig.current, TWO)
        ballast.unlink()
        rig.wait(2, OrderOutcome.ACTIVE)
        assert whole(rig.current, TWO)
    finally:
        rig.stop()


def test_an_agent_starts_on_a_full_disk_whatever_a_power_cut_left_of_its_lock(small_disk: Path) -> None:
    (small_disk / "lock").write_bytes(b"")
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(65536)):
            pass
    lock, other = StateLock(small_disk), StateLock(small_disk)
    lock.acquire()
    with pytest.raises(StateError, match="process unknown"):
        other.acquire()
    (small_disk / "filler").unlink()
    lock.release()
    other.acquire()
    assert lock.holder() == os.getpid()
    other.release()


def test_a_full_disk_is_named_before_the_first_byte(small_disk: Path) -> None:
    big = release("big", content=random.Random(1).randbytes(2_500_000))
    with running(small_disk / "state") as rig:
        deploy(rig)
        rig.broker.fetched.clear()
        rig.disk.free_bytes = lambda path: os.statvfs(path).f_bavail * 4096  # type: ignore[method-assign]
        rig.broker.hold(big)
        rig.broker.desire(DEVICE, {"digits": big.order(2)})
        until(lambda: (r := rig.deployment.reason) and r.code == "disk_full", "the refusal")
        assert rig.broker.fetched == []
        assert intact(rig)
        assert "bytes are needed" in (rig.deployment.reason.detail if rig.deployment.reason else "")


# --- what a superseded order left ---------------------------------------------------------------------


def test_blobs_of_a_superseded_order_make_way_where_room_is_short(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        deploy(rig)
        rig.broker.hold(TWO)
        missing = TWO.manifest.variants[0].files[0].chunks[0].sha256
        topic = next(topic for topic in rig.broker.retained if topic.endswith(missing))
        del rig.broker.retained[topic]
        rig.broker.desire(DEVICE, {"digits": TWO.order(2)})
        last = TWO.manifest.validation[0].file.chunks[-1].sha256
        store = BlobStore(tmp_path / "blobs")
        until(lambda: store.path(last).exists(), "the rest of the second release")
        three = release("3", content=b"3" * 5000)
        used = {"free": 0}

        def free(_: Path) -> int:
            used["free"] += 1
            left = store.path(TWO.digest).exists()
            return 1000 if left else 10**9

        rig.disk.free_bytes = free  # type: ignore[method-assign,assignment]
        rig.broker.hold(three)
        asked: list[str] = []
        subscribe = rig.broker.subscribe

        def listed(topics: list[tuple[str, int]]) -> None:
            asked.extend(topic for topic, _ in topics)
            subscribe(topics)

        rig.broker.subscribe = listed  # type: ignore[method-assign]
        rig.trials.hangs = True
        trials = len(rig.trials.jobs)
        rig.broker.desire(DEVICE, {"digits": three.order(3)})
        until(lambda: len(rig.trials.jobs) > trials, "the trial of the third")
        assert asked.count(TOPICS.topic(RELEASE, digest=three.digest)) == 1, "its manifest had to make way"
        rig.trials.hangs = False
        rig.wait(3, OrderOutcome.ACTIVE)
        assert used["free"] >= 2


def test_a_variant_that_was_refused_makes_way_for_the_next(tmp_path: Path) -> None:
    """Room for one candidate is enough, however many variants an order allows."""
    three = release("3", variants=(VARIANT, "onnxruntime/second"))
    with running(tmp_path) as rig:
        deploy(rig)
        releases = rig.current.resolve().parent
        held: list[set[str]] = []
        real = rig.trials.run

        def run(job: TrialJob, cancel: threading.Event) -> TrialResult:
            held.append({path.name for path in releases.iterdir()})
            return real(job, cancel)

        rig.trials.run = run  # type: ignore[method-assign]
        rig.trials.errors[VARIANT] = FinalError("model_load_failed", "no such kernel")
        rig.broker.hold(three)
        rig.broker.desire(DEVICE, {"digits": three.order(3)})
        rig.wait(3, OrderOutcome.ACTIVE)
        first, second = (
            directory_name(Slot(digest=three.digest, release="3", variant=variant))
            for variant in (VARIANT, "onnxruntime/second")
        )
        before = directory_name(slot_of(ONE))
        assert held == [{before, first}, {before, second}]


# --- the parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, "disk_full"), (errno.EDQUOT, "disk_full"), (errno.EIO, "disk_failed")],
)
def test_a_full_disk_is_not_a_broken_one(tmp_path: Path, number: int, code: str) -> None:
    error = OSError(number, os.strerror(number))
    assert disk_error("it", error).code == code
    store = BlobStore(tmp_path)
    with mock.patch("agent.store.write_file", side_effect=error), pytest.raises(RetryError) as refused:
        store.put(digest(b"x"), b"x")
    assert refused.value.code == code


def test_what_is_to_be_kept_free_is_kept_free() -> None:
    require_room(10, 5, 15, "here")
    with pytest.raises(RetryError, match="5 kept free, 14 are free at here") as refused:
        require_room(10, 5, 14, "here")
    assert refused.value.code == "disk_full"


def test_numbers_rise_on_a_full_disk_and_are_saved_when_it_is_not(tmp_path: Path) -> None:
    install = Install(tmp_path)
    full = OSError(errno.ENOSPC, "no space left on device")
    with mock.patch("agent.install.write_file", side_effect=full):
        given_full = [install.number() for _ in range(3)]
    assert given_full == sorted(set(given_full))
    after = install.number()
    assert after > given_full[-1]
    assert install.reserved >= after + RESERVED - 1
    assert Install(tmp_path).number() > after


def test_the_watchdog_is_fed_while_the_journal_cannot_be_saved(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        rig.trials.hangs = True
        rig.broker.hold(ONE)
        rig.broker.desire(DEVICE, {"digits": ONE.order(1)})
        until(lambda: rig.trials.jobs, "the trial")
        fed = []
        rig.supervisor.alive = lambda: fed.append(1)  # type: ignore[method-assign]
        full = OSError(errno.ENOSPC, "no space left on device")
        with mock.patch.object(JournalFile, "save", side_effect=full):
            until(lambda: rig.clock.boot_s() - rig.runner._saved_s < 0.05, "a save that fails")
            before = len(fed)
            until(lambda: len(fed) > before + 20, "the watchdog to be fed")
        rig.trials.hangs = False
        rig.wait(1, OrderOutcome.ACTIVE)


def test_what_could_not_be_told_on_a_full_disk_is_told_later(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        deploy(rig)
        full = OSError(errno.ENOSPC, "no space left on device")
        with mock.patch("agent.outbox.write_file", side_effect=full):
            order_two(rig)
            rig.wait(2, OrderOutcome.ACTIVE)
            assert not [report for report in rig.reports() if report.order == 2]
        rig.clock.ahead_s += 4000.0
        until(
            lambda: [r for r in rig.reports() if isinstance(r.event, OrderEnded) and r.order == 2], "the end"
        )


def _no_link(times: int) -> Callable[[Path, str], None]:
    """A disk that has no block for a symlink for so many tries."""
    left = iter(range(times))

    def point(link: Path, target: str) -> None:
        if link.name == "current" and next(left, None) is not None:
            raise OSError(errno.ENOSPC, "no space left on device")
        point_link(link, target)

    return point


def test_a_switch_waits_for_room(tmp_path: Path) -> None:
    """Each try asks twice, before and after the candidate's blobs made way."""
    with running(tmp_path) as rig:
        deploy(rig)
        with mock.patch("agent.slots.point_link", side_effect=_no_link(5)):
            order_two(rig)
            rig.wait(2, OrderOutcome.ACTIVE)
        assert rig.running == TWO.digest
        assert len(rig.trials.jobs) == 2


def test_a_switch_that_is_tried_again_begins_with_what_ran_before(tmp_path: Path) -> None:
    """What the soak compares with is seen before the switch, also where a first try had got half way."""
    seen: list[str | None] = []
    left = iter(range(2))

    def point(link: Path, target: str) -> None:
        if link.name == "previous" and next(left, None) is not None:
            raise OSError(errno.ENOSPC, "no space left on device")
        point_link(link, target)

    with running(tmp_path) as rig:
        deploy(rig)
        real = Soaking.baseline

        def baseline(soaking: Soaking, model: str) -> Baseline:
            seen.append(rig.running)
            return real(soaking, model)

        with (
            mock.patch("agent.slots.point_link", side_effect=point),
            mock.patch.object(Soaking, "baseline", baseline),
        ):
            order_two(rig)
            rig.wait(2, OrderOutcome.ACTIVE)
    assert seen == [ONE.digest, ONE.digest, TWO.digest]


def test_a_switch_does_not_wait_for_ever(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        deploy(rig)
        with mock.patch("agent.slots.point_link", side_effect=_no_link(10**6)):
            order_two(rig)
            until(
                lambda: (s := rig.reported()) and s.phase is Phase.SWITCHING and s.reason is not None,
                "a switch that waits, and says why",
            )
            assert rig.running == ONE.digest
            rig.clock.ahead_s += 400.0
            state = rig.wait(2, OrderOutcome.FELL_BACK)
        assert rig.running == ONE.digest
        assert state.reason is not None
        assert state.reason.code == "switch_timeout"
        assert "disk_full" in state.reason.detail


def test_no_half_reserve_takes_the_last_blocks(tmp_path: Path) -> None:
    file = JournalFile(tmp_path)
    journal = Journal(models={"digits": Deployment(model="digits")})
    tight = os.statvfs_result((4096, 4096, 1000, 10, 10, 1000, 10, 10, 0, 255))
    with mock.patch.object(os, "statvfs", return_value=tight):
        file.save(journal)
    assert not (tmp_path / "reserve").exists()
    file.save(journal)
    assert (tmp_path / "reserve").stat().st_size == RESERVE_BYTES


# --- pruning ----------------------------------------------------------------------------------------

POOL: list[Release] = [release(str(n), content=bytes([n]) * 50) for n in range(6)]
NUMBERS = st.sets(st.integers(0, 5))


@settings(max_examples=40)
@given(installed=NUMBERS, keep=NUMBERS, current=st.none() | st.integers(0, 5), halves=NUMBERS, gone=NUMBERS)
def test_pruning_leaves_exactly_what_is_kept_and_what_runs(
    tmp_path_factory: pytest.TempPathFactory,
    installed: set[int],
    keep: set[int],
    current: int | None,
    halves: set[int],
    gone: set[int],
) -> None:
    slots = Slots(tmp_path_factory.mktemp("prune"))
    with mock.patch("agent.slots.sync_filesystem"):
        for n in installed | ({current} if current is not None else set()):
            assemble(slots, POOL[n])
    if current is not None:
        slots.activate("digits", slot_of(POOL[current]), None)
    releases = slots.directory("digits", slot_of(POOL[0])).parent
    for n, ending in [*((n, PART) for n in halves), *((n, GONE) for n in gone)]:
        (releases / (directory_name(slot_of(POOL[n])) + ending)).mkdir(parents=True)
    slots.prune("digits", [slot_of(POOL[n]) for n in keep])
    kept = {n for n in installed | {current} if n is not None and (n in keep or n == current)}
    left = {path.name for path in releases.iterdir()} if releases.is_dir() else set()
    assert left == {directory_name(slot_of(POOL[n])) for n in kept}
    for n in kept:
        assert whole(slots.directory("digits", slot_of(POOL[n])), POOL[n])


@given(st.lists(st.sampled_from("abcd"), min_size=5, max_size=5), st.booleans(), st.booleans())
def test_active_previous_what_a_way_back_needs_and_the_candidate_are_kept(
    names: list[str], reverting: bool, flying: bool
) -> None:
    from agent.deployment import Standing  # noqa: PLC0415 - beside what it is for

    slots = [Slot(digest=name * 64, release=name, variant="onnxruntime/one") for name in names]
    wanted = TWO.order(2, variants=("onnxruntime/one",))
    d = Deployment(
        model="m", active=slots[0], previous=slots[1], desired=wanted if flying else None,
        variants=wanted.variants, restore=Standing(active=slots[2], previous=slots[3]) if reverting else None,
    )  # fmt: skip
    kept = {(slot.digest, slot.variant) for slot in d.kept}
    needed = [slots[0], slots[1], *(slots[2:4] if reverting else [])]
    assert {(slot.digest, slot.variant) for slot in needed} <= kept
    assert ((wanted.digest, "onnxruntime/one") in kept) >= flying
