"""Journal, store and slots: a crash at every step that changes the file system, and damage on the disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from unittest import mock

import pytest

from agent import recovery
from agent.deployment import Deployment
from agent.errors import FinalError, RetryError, StateError
from agent.install import RESERVED, Install
from agent.journal import Journal, JournalFile, decode, encode
from agent.outbox import JUMP_MAX, Outbox
from agent.slots import ReleaseInfo, Slots, directory_name
from agent.store import BlobStore
from tests.agent.crashing import PowerCut, crash_at, every_crash
from tests.agent.twins import SECOND, VARIANT, Release, release
from wire.bundle import Chunk
from wire.chunks import digest
from wire.codec import encode as wire_encode
from wire.errors import ContentError
from wire.messages import OrderEnded, OrderOutcome, Phase, PhaseChanged, Report, Slot

ONE, TWO = release("1", changes=b"one"), release("2", changes=b"two")


def slot_of(one: Release, order: int = 1, variant: str = VARIANT) -> Slot:
    return Slot(digest=one.digest, release=one.manifest.release, variant=variant, order=order)


def assemble(slots: Slots, one: Release, variant: str = VARIANT) -> Slot:
    slot = slot_of(one, variant=variant)
    slots.assemble("digits", slot, (one.data, one.manifest), lambda chunk: one.blobs[chunk.sha256])
    return slot


def whole(link: Path, one: Release) -> bool:
    info = (link / "release.json").exists() and (link / "manifest.json").read_bytes() == one.data
    return info and digest((link / "model.onnx").read_bytes()) == one.manifest.variants[0].files[0].sha256


# --- journal ----------------------------------------------------------------------------------------


def journal(order: int) -> Journal:
    return Journal(models={"digits": Deployment(model="digits", order=order, order_highest=order)})


def test_a_crash_at_any_step_of_a_save_leaves_the_old_or_the_new_journal(tmp_path: Path) -> None:
    def run(step: int, after: bool) -> bool:
        folder = tmp_path / f"{step}-{after}"
        folder.mkdir()
        file = JournalFile(folder)
        file.save(journal(1))
        file.save(journal(2))
        try:
            with crash_at(step, after=after):
                file.save(journal(3))
        except PowerCut:
            crashed = True
        else:
            crashed = False
        again = JournalFile(folder)
        found = again.load()
        assert found in ([journal(2), journal(3)] if crashed else [journal(3)])
        again.save(journal(4))
        assert JournalFile(folder).load() == journal(4)
        return crashed

    assert every_crash(run) >= 8


@pytest.mark.parametrize(
    "damage", [b"", b"{}", b"\0" * 100, encode(journal(2))[:-5], encode(journal(2)) + b" "]
)
def test_a_damaged_journal_falls_back_to_the_copy_before(tmp_path: Path, damage: bytes) -> None:
    file = JournalFile(tmp_path)
    file.save(journal(1))
    file.save(journal(2))
    (tmp_path / "journal.json").write_bytes(damage)
    again = JournalFile(tmp_path)
    assert again.load() == journal(1)
    assert again.notes


def test_no_journal_is_a_new_device_and_two_damaged_ones_are_not(tmp_path: Path) -> None:
    assert JournalFile(tmp_path).load() is None
    for name in ("journal.json", "journal.1"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(StateError) as refused:
        JournalFile(tmp_path).load()
    assert refused.value.code == "journal_lost"


def test_a_journal_of_a_newer_program_is_refused_by_name() -> None:
    data = encode(journal(1)).replace(b'"version":1', b'"version":2')
    with pytest.raises(StateError) as refused:
        decode(data)
    assert refused.value.code == "journal_version"


def test_a_lost_journal_is_rebuilt_from_the_slots(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "models")
    one, two = assemble(slots, ONE), assemble(slots, TWO)
    slots.activate("digits", two, one)
    for name in ("journal.json", "journal.1"):
        (tmp_path / name).write_bytes(b"junk")
    found = recovery.load(JournalFile(tmp_path), slots).models["digits"]
    assert (found.active, found.previous) == (two, one)
    assert found.order_highest == 1
    assert found.reason is not None
    assert found.reason.code == "journal_lost"


def test_on_a_full_disk_the_reserve_makes_room_for_the_journal(tmp_path: Path) -> None:
    file = JournalFile(tmp_path)
    file.save(journal(1))
    assert (tmp_path / "reserve").exists()
    real = os.fsync

    def full(fd: int) -> None:
        if (tmp_path / "reserve").exists():
            raise OSError(errno.ENOSPC, "no space left on device")
        real(fd)

    with mock.patch.object(os, "fsync", full):
        file.save(journal(2))
        assert JournalFile(tmp_path).load() == journal(2)
    file.save(journal(3))
    assert (tmp_path / "reserve").exists()


# --- blobs ------------------------------------------------------------------------------------------


def test_a_blob_is_hashed_on_its_way_in_and_out(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    name = digest(b"content")
    with pytest.raises(ContentError) as refused:
        store.put(name, b"other")
    assert refused.value.code == "hash_mismatch"
    store.put(name, b"content")
    assert store.has(name, 7)
    assert not store.has(name, 8)
    store.path(name).write_bytes(b"CONTENT")
    with pytest.raises(RetryError) as damaged:
        store.read(name)
    assert damaged.value.code == "blob_damaged"
    assert not store.path(name).exists(), "a damaged blob would be found again and again"


def test_a_crash_while_storing_costs_at_most_that_blob(tmp_path: Path) -> None:
    name = digest(b"content")

    def run(step: int, after: bool) -> bool:
        store = BlobStore(tmp_path / f"{step}-{after}")
        crashed = False
        try:
            with crash_at(step, after=after):
                store.put(name, b"content")
        except PowerCut:
            crashed = True
        again = BlobStore(tmp_path / f"{step}-{after}")
        again.put(name, b"content")
        assert again.read(name) == b"content"
        return crashed

    assert every_crash(run) >= 4


def test_pruning_blobs_removes_what_is_not_kept(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    names = [digest(data) for data in (b"a", b"b")]
    store.put(names[0], b"a")
    store.put(names[1], b"b")
    (tmp_path / names[0][:2] / "left.tmp").write_bytes(b"half")
    assert store.prune(names[:1]) == 1
    assert list(store.names()) == names[:1]


# --- slots ------------------------------------------------------------------------------------------


def test_a_crash_at_any_step_of_an_install_leaves_a_whole_release_active(tmp_path: Path) -> None:
    def install(slots: Slots) -> None:
        new = assemble(slots, TWO)
        slots.activate("digits", new, slot_of(ONE))
        slots.prune("digits", (new, slot_of(ONE)))

    def run(step: int, after: bool) -> bool:
        root = tmp_path / f"{step}-{after}"
        slots = Slots(root)
        slots.activate("digits", assemble(slots, ONE), None)
        assemble(slots, release("0"))
        link = root / "digits" / "current"
        crashed = False
        try:
            with crash_at(step, after=after):
                install(slots)
        except PowerCut:
            crashed = True
        assert whole(link, ONE) or whole(link, TWO)
        again = Slots(root)
        install(again)
        assert whole(link, TWO)
        left = {p.name for p in (root / "digits" / "releases").iterdir()}
        assert left == {directory_name(slot_of(ONE)), directory_name(slot_of(TWO))}
        return crashed

    assert every_crash(run) >= 20


def test_a_slot_with_a_changed_byte_is_put_together_again(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    slot = assemble(slots, ONE)
    model = slots.directory("digits", slot) / "model.onnx"
    model.write_bytes(b"x" + model.read_bytes()[1:])
    assemble(slots, ONE)
    assert whole(slots.directory("digits", slot), ONE)


def test_chunks_that_are_right_and_a_file_that_is_not_are_refused_for_good(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    wrong = TWO.blobs[TWO.manifest.variants[0].files[0].chunks[0].sha256]

    def read(chunk: Chunk) -> bytes:
        first = ONE.manifest.variants[0].files[0].chunks[0]
        return wrong if chunk == first else ONE.blobs[chunk.sha256]

    with pytest.raises(FinalError) as refused:
        slots.assemble("digits", slot_of(ONE), (ONE.data, ONE.manifest), read)
    assert refused.value.code == "hash_mismatch"
    assert not slots.directory("digits", slot_of(ONE)).exists()


def test_an_application_finds_what_it_needs_in_current(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    slots.activate("digits", assemble(slots, ONE), None)
    current = tmp_path / "digits" / "current"
    assert sorted(p.name for p in current.iterdir()) == [
        "labels.json", "manifest.json", "model.onnx", "preprocessing.json", "release.json",
    ]  # fmt: skip
    info = slots.info("digits", directory_name(slot_of(ONE)))
    assert info is not None
    assert (info.model_file, info.release, info.slot) == ("model.onnx", "1", slot_of(ONE))


def test_pruning_never_touches_what_is_kept_or_current(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    both = release("3", variants=(VARIANT, SECOND))
    one, two, three = assemble(slots, ONE), assemble(slots, TWO), assemble(slots, both, SECOND)
    slots.activate("digits", one, None)
    removed = slots.prune("digits", (two,))
    assert removed == [directory_name(three)]
    assert slots.prune("digits", ()) == [directory_name(two)]
    assert whole(tmp_path / "digits" / "current", ONE)


def test_a_slot_that_is_not_there_is_never_pointed_to(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    slots.activate("digits", assemble(slots, ONE), None)
    with pytest.raises(StateError) as refused:
        slots.activate("digits", slot_of(TWO), None)
    assert refused.value.code == "slot_missing"
    assert slots.pointed("digits") == directory_name(slot_of(ONE))


def test_a_failed_first_install_leaves_no_current(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    slots.activate("digits", assemble(slots, ONE), None)
    slots.activate("digits", None, None)
    assert slots.pointed("digits") is None


def test_an_installed_release_is_a_source_of_chunks(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    assemble(slots, ONE)
    [(path, file)] = list(slots.chunk_sources())
    assert path.name == "model.onnx"
    assert file == ONE.manifest.variants[0].files[0]


def test_an_adopted_file_is_a_slot_like_any_other(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    source = tmp_path / "mine.onnx"
    source.write_bytes(b"model")
    info = ReleaseInfo(
        model="digits", digest=digest(b"model"), release="mine", variant="onnxruntime/adopted", adopted=True,
        model_file="model.onnx", model_sha256=digest(b"model"),
    )  # fmt: skip
    slots.adopt(info, source)
    slots.activate("digits", info.slot, None)
    assert (tmp_path / "digits" / "current" / "model.onnx").read_bytes() == b"model"
    assert slots.manifest_bytes("digits", info.slot) is None


# --- install and outbox -----------------------------------------------------------------------------


def test_numbers_never_go_back(tmp_path: Path) -> None:
    first = Install(tmp_path)
    numbers = [first.number() for _ in range(3)]
    assert first.connect() == 1
    second = Install(tmp_path)
    assert second.install_id == first.install_id
    assert second.number() > numbers[-1]
    assert second.connect() == 2
    assert second.connect(above=10) == 11
    assert len({second.number() for _ in range(RESERVED + 10)}) == RESERVED + 10


def report(number: int, *, phase: bool = False) -> Report:
    event = PhaseChanged(phase=Phase.FETCHING) if phase else OrderEnded(outcome=OrderOutcome.FAILED)
    return Report(device="d", install_id="0" * 32, number=number, event=event)


def test_reports_are_kept_until_they_are_acknowledged(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, 10)
    for number in (3, 5, 9):
        outbox.add(report(number))
    again = Outbox(tmp_path, 10)
    assert [r.number for r in again.pending(2)] == [3, 5]
    assert again.acknowledge(5) == 2
    assert [r.number for r in Outbox(tmp_path, 10).pending(10)] == [9]


def test_a_full_outbox_drops_changes_of_phase_first(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, 3)
    outbox.add(report(1))
    for number in (2, 3, 4):
        outbox.add(report(number, phase=True))
    outbox.add(report(5))
    assert [r.number for r in outbox.pending(10)] == [1, 4, 5]
    outbox.add(report(6))
    outbox.add(report(7))
    assert [r.number for r in outbox.pending(10)] == [5, 6, 7]


def test_a_report_that_cannot_be_read_is_dropped_and_its_number_is_not_used_again(tmp_path: Path) -> None:
    Outbox(tmp_path, 10).add(report(1))
    (tmp_path / "0000000000000002.json").write_bytes(b"")
    again = Outbox(tmp_path, 10)
    assert again.next_number() == 3
    assert [r.number for r in again.pending(10)] == [1]


def test_reports_are_numbered_without_a_gap_through_restarts_and_acknowledgements(tmp_path: Path) -> None:
    given = []
    for step in range(12):
        outbox = Outbox(tmp_path, 10)
        given.append(outbox.next_number())
        outbox.add(report(given[-1]))
        if step % 3 == 2:
            outbox.acknowledge(given[-1])
    assert given == list(range(1, 13))
    assert [p.name for p in tmp_path.iterdir()] == ["0000000000000012.acked"]


def test_the_first_number_is_above_those_of_an_agent_that_counted_otherwise(tmp_path: Path) -> None:
    assert Outbox(tmp_path / "new", 10, used=0).next_number() == 1
    assert Outbox(tmp_path / "new", 10, used=1000).next_number() == 1, "decided once"
    assert Outbox(tmp_path / "emptied", 10, used=2000).next_number() == 2001
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "0000000000001007.json").write_bytes(wire_encode(report(1007)))
    outbox = Outbox(kept, 10, used=2000)
    assert outbox.next_number() == 1008
    assert [r.number for r in outbox.pending(10)] == [1007]


def test_an_acknowledgement_ahead_moves_the_numbers_and_an_absurd_one_does_not(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, 10)
    outbox.add(report(1))
    assert outbox.acknowledge(2 + JUMP_MAX) == 0
    assert (len(outbox), outbox.next_number()) == (1, 2)
    assert outbox.acknowledge(1 + JUMP_MAX) == 1
    assert outbox.next_number() == 2 + JUMP_MAX
    assert outbox.acknowledge(7) == 0
    (tmp_path / "0000000000000007.acked").write_bytes(b"")
    assert Outbox(tmp_path, 10).next_number() == 2 + JUMP_MAX


def test_a_full_disk_still_lets_acknowledged_reports_go(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, 10)
    outbox.add(report(1))
    full = OSError(errno.ENOSPC, "no space left on device")
    with mock.patch.object(Path, "open", side_effect=full):
        with pytest.raises(OSError, match="no space"):
            outbox.add(report(2))
        assert outbox.next_number() == 2
        assert outbox.acknowledge(1) == 1
    assert Outbox(tmp_path, 10).next_number() == 2


def test_a_crash_at_any_step_never_gives_a_number_that_was_sent(tmp_path: Path) -> None:
    """A report counts as sent once `add` returned; an acknowledged one was."""

    def run(step: int, after: bool) -> bool:
        folder = tmp_path / f"{step}-{after}"
        outbox = Outbox(folder, 10)
        for number in (1, 2, 3):
            outbox.add(report(number))
        sent, acknowledged, crashed = 3, 0, False
        try:
            with crash_at(step, after=after):
                acknowledged = 2
                outbox.acknowledge(2)
                outbox.add(report(4))
                sent = 4
                acknowledged = 4
                outbox.acknowledge(4)
                outbox.add(report(5))
                sent = 5
        except PowerCut:
            crashed = True
        again = Outbox(folder, 10)
        assert again.next_number() in {sent + 1, sent + 2}, "a report on the disk keeps its number"
        left = [r.number for r in again.pending(10)]
        assert left == list(range(left[0], again.next_number())) if left else True
        assert set(range(acknowledged + 1, sent + 1)) <= set(left), "not acknowledged, so not lost"
        (mark,) = folder.glob("*.acked")
        assert all(number > int(mark.stem) for number in left), "acknowledged, so never sent again"
        again.acknowledge(again.next_number() - 1)
        assert len(again) == 0
        return crashed

    assert every_crash(run) >= 20


def test_a_report_is_on_the_disk_before_it_may_be_sent(tmp_path: Path) -> None:
    """`add` syncs the file, then its name: the steps that outlast a power cut (`agent.durable`)."""
    outbox = Outbox(tmp_path, 10)
    with crash_at(-1) as steps:
        outbox.add(report(1))
    assert steps == ["fsync", "replace", "fsync"]
    with crash_at(-1) as steps:
        outbox.acknowledge(1)
    assert steps == ["replace", "fsync", "unlink"]
