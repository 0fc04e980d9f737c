"""Deltas are offered with orders where they pay, made once, cleared with their release, never waited for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fleet.adapters.blob_files import BlobFiles
from fleet.adapters.delta_maker import DeltaProcess
from fleet.config import load
from fleet.inventory import Device, Install
from fleet.people import RolloutAsk
from fleet.ports import DeltaError
from fleet.publish.hints import BASES_MAX, Wanted, lacking_bytes, pays, wanted
from fleet.publish.shelf import DeltaShelf, content_of
from tests.fleet.bundles import VARIANT, write_bundle
from tests.fleet.delta_samples import Weights, applied
from tests.fleet.scripted import UNSIGNED
from tests.fleet.twins import TOPICS, Harness
from wire import topics as wt
from wire.bundle import RAW, Chunk, File, Manifest
from wire.chunks import digest
from wire.codec import decode
from wire.deltas import HINTS_MAX, DeltaHint, DeltaIndex
from wire.encodings import packed
from wire.errors import ContentError
from wire.messages import Desired, ModelState, Phase, Reported, Slot
from wire.trust import open_envelope


class Maker:
    """Makes deltas as told: `content` for every pair, or the error."""

    algorithm = "told"

    def __init__(self, content: bytes | None = b"a small delta") -> None:
        self.content = content
        self.error: Exception | None = None
        self.asked: list[tuple[int, int]] = []

    def make(self, base: bytes, new: bytes) -> bytes | None:
        self.asked.append((len(base), len(new)))
        if self.error is not None:
            raise self.error
        return self.content

    def stop(self) -> None:
        """Nothing runs."""


class House(Harness):
    """A registry with a shelf of deltas, whose thread is not started: tests do its work."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.maker = folder, Maker()
        self.again()

    def again(self) -> None:
        """As after a new start of the registry."""
        self.deltas = DeltaShelf(self.folder, self.store, self.blobs, self.maker, self.desk)
        self.restart()

    @property
    def shelf(self) -> DeltaShelf:
        assert self.deltas is not None
        return self.deltas

    def hints(self, device: str) -> tuple[DeltaHint, ...]:
        """As the device reads them."""
        payload = self.broker.retained[TOPICS.topic(wt.DESIRED, device=device)]
        opened = open_envelope(payload, "desired", UNSIGNED, wt.DESIRED.size_bytes_max)
        return decode(opened, Desired, wt.DESIRED.size_bytes_max).models["camera"].deltas

    def blob(self, digest: str) -> bytes | None:
        return self.broker.retained.get(TOPICS.topic(wt.BLOB, digest=digest))

    def roll_out(self, release: str) -> None:
        ask = RolloutAsk(model="camera", release=release, waves="100%", soak_s=0.0)
        self.people.start(ask)
        self.settle(10)


@pytest.fixture(name="house")
def _house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "deltas")
    yield house
    assert not house.conductor.failures
    house.store.close()


def released(house: House, tmp_path: Path, release: str, seed: int, shared_bytes: int = 0) -> str:
    write_bundle(tmp_path / release, release, seed=seed, size_bytes=60_000, shared_bytes=shared_bytes)
    return house.publish(tmp_path / release)


def with_first_release(house: House, tmp_path: Path) -> None:
    house.device("dev-0")
    released(house, tmp_path, "v1", 1)
    house.roll_out("v1")
    assert house.hints("dev-0") == (), "there was nothing to start from"


def test_a_delta_is_offered_with_its_content_on_the_broker(house: House, tmp_path: Path) -> None:
    with_first_release(house, tmp_path)
    house.maker.content = b"x" * 200_000 + b"y"
    assert house.shelf.work(released(house, tmp_path, "v2", 2)) == 1
    house.roll_out("v2")
    assert house.hints("dev-0") == (), "it was larger than what it should save"
    house.maker.content = bytes(range(256)) * 150
    assert house.shelf.work(released(house, tmp_path, "v3", 3)) == 2, "from active and from previous"
    house.roll_out("v3")
    hint = house.hints("dev-0")[0]
    index_bytes = house.blob(hint.index)
    assert index_bytes is not None
    assert len(index_bytes) == hint.index_bytes
    index = msgspec.json.decode(index_bytes, type=DeltaIndex)
    parts = [house.blob(chunk.sha256) or b"" for chunk in index.chunks]
    assert b"".join(parts) == house.maker.content
    assert hint.size_bytes == index.delta_bytes == len(house.maker.content)
    assert (hint.algorithm, index.algorithm) == ("told", "told")


def test_a_delta_is_made_once_and_outlives_the_registry(house: House, tmp_path: Path) -> None:
    with_first_release(house, tmp_path)
    release = released(house, tmp_path, "v2", 2)
    assert house.shelf.work(release) == 1
    assert house.shelf.work(release) == 0
    house.again()
    assert house.shelf.work(release) == 0
    house.roll_out("v2")
    assert len(house.hints("dev-0")) == 1
    assert len(house.maker.asked) == 1


def test_a_damaged_record_is_made_again(house: House, tmp_path: Path) -> None:
    with_first_release(house, tmp_path)
    release = released(house, tmp_path, "v2", 2)
    house.shelf.work(release)
    (record,) = house.folder.glob("*.json")
    record.write_bytes(b"{")
    house.again()
    assert house.shelf.work(release) == 1


@pytest.mark.parametrize("error", [DeltaError("delta_not_made", "told so"), OSError("no space")])
def test_what_cannot_be_made_blocks_nothing(house: House, tmp_path: Path, error: Exception) -> None:
    with_first_release(house, tmp_path)
    house.maker.error = error
    assert house.shelf.work(released(house, tmp_path, "v2", 2)) == 1
    house.roll_out("v2")
    assert house.hints("dev-0") == ()


def test_orders_do_not_wait_for_deltas(house: House, tmp_path: Path) -> None:
    with_first_release(house, tmp_path)
    released(house, tmp_path, "v2", 2)
    house.roll_out("v2")
    assert house.hints("dev-0") == ()
    assert house.maker.asked == []


def test_the_thread_makes_what_was_asked_for(house: House, tmp_path: Path) -> None:
    with_first_release(house, tmp_path)
    house.shelf.start()
    house.shelf.consider("0" * 64)  # no such release: nothing to do
    house.shelf.consider(released(house, tmp_path, "v2", 2))
    house.shelf.stop()
    house.roll_out("v2")
    assert len(house.hints("dev-0")) == 1


def test_deltas_are_cleared_with_their_release_and_come_back(house: House, tmp_path: Path) -> None:
    with_first_release(house, tmp_path)
    for number in (2, 3, 4, 5):
        house.maker.content = f"the delta to {number}".encode()
        house.shelf.work(released(house, tmp_path, f"v{number}", number))
        house.roll_out(f"v{number}")
    now = house.hints("dev-0")[0]
    house.conductor.tick()
    house.clock.time += 120
    house.settle()
    for_two = {name for name, data in house.blobs.content.items() if data == b"the delta to 2"}
    assert for_two
    assert not any(house.blob(name) for name in for_two), "nobody needs release 2 any more"
    assert house.blob(now.index)
    for_four = [name for name, data in house.blobs.content.items() if data == b"the delta to 4"]
    assert all(house.blob(name) for name in for_four), "the device may go back to release 4"
    release = house.publish(tmp_path / "v2")
    house.maker.content = b"the delta back"
    assert house.shelf.work(release) > 0, "from releases 4 and 5 there was none"
    house.roll_out("v2")
    assert all(house.blob(hint.index) for hint in house.hints("dev-0"))
    assert len(house.hints("dev-0")) > 0


def test_off_is_off(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text("deltas: off\n", encoding="utf-8")
    assert load(path, {}).deltas is False
    assert load(None, {"deltas": None}).deltas is True
    assert load(path, {"deltas": True}).deltas is True


def test_the_real_encoder_s_process(tmp_path: Path) -> None:
    old, new = Weights(channels=12).onnx(), Weights(channels=12).moved(1e-3).onnx()
    maker = DeltaProcess()
    delta = maker.make(old, new)
    assert delta is not None
    assert applied(tmp_path, old, delta, len(new)) == new
    assert maker.make(b"abc", bytes(range(256))) is None
    maker.stop()
    with pytest.raises(DeltaError, match="stops"):
        maker.make(old, new)
    with pytest.raises(DeltaError, match="more than 0 s"):
        DeltaProcess(wall_s_max=0.01).make(old, new)


# --- which deltas ---


def manifest(release: str, *, runtime: str = "onnxruntime", precision: str = "int8") -> Manifest:
    made = write_bundle_manifest(release)
    variant = msgspec.structs.replace(made.variants[0], runtime=runtime, precision=precision)
    return msgspec.structs.replace(made, variants=(variant,))


def write_bundle_manifest(release: str) -> Manifest:
    import tempfile  # noqa: PLC0415 - one use

    with tempfile.TemporaryDirectory() as folder:
        return write_bundle(Path(folder), release, seed=int(release[1:]), size_bytes=5000)


def holder(name: str, active: str, previous: str | None = None) -> Device:
    slots = [
        None if one is None else Slot(digest=one, release="r", variant=VARIANT) for one in (active, previous)
    ]
    state = ModelState(active=slots[0], previous=slots[1], phase=Phase.IDLE)
    install = "f" * 32
    said = Reported(device=name, install_id=install, number=1, models={"camera": state})
    return Device(id=name, install_id=install, installs={install: Install(reported=said, seen_at=0.0)})


def name_of(number: int) -> str:
    return f"{number:064x}"


OLD = {name_of(n): manifest(f"v{n}") for n in range(1, 7)}
NEW = manifest("v9")


@given(st.lists(st.tuples(st.integers(1, 8), st.none() | st.integers(1, 8)), max_size=12))
def test_the_most_held_bases_come_first_and_are_three_at_most(held: list[tuple[int, int | None]]) -> None:
    devices = [
        holder(f"d{i}", name_of(a), None if p is None else name_of(p)) for i, (a, p) in enumerate(held)
    ]
    found = wanted(NEW, devices, OLD)
    counts = {n: sum(n in {a, p} for a, p in held) for n in range(1, 7)}
    by_hash = {OLD[name_of(n)].variants[0].files[0].sha256: counts[n] for n in counts}
    chosen = [by_hash[one.base.sha256] for one in found]
    assert len(chosen) == min(BASES_MAX, sum(count > 0 for count in counts.values())) <= HINTS_MAX
    assert chosen == sorted(counts.values(), reverse=True)[: len(chosen)]
    assert all(one.new == NEW.variants[0].files[0] for one in found)


@pytest.mark.parametrize("other", [{"runtime": "ai_edge_litert"}, {"precision": "float32"}])
def test_another_runtime_or_precision_is_no_base(other: dict[str, str]) -> None:
    assert wanted(NEW, [holder("d", name_of(1))], {name_of(1): manifest("v1", **other)}) == ()
    assert wanted(NEW, [holder("d", name_of(1))], {name_of(1): NEW}) == (), "it is there already"


def test_what_a_device_lacks_is_what_the_base_does_not_share() -> None:
    def file(*names: str) -> File:
        chunks = tuple(Chunk(sha256=name * 64, size_bytes=100) for name in names)
        return File(path="m", size_bytes=100 * len(names), sha256=names[-1] * 64, chunks=chunks)

    one = Wanted(file("a", "b", "c"), file("a", "d", "d", "e"))
    assert lacking_bytes(one) == 200
    assert pays(one, 140)
    assert not pays(one, 141)


def test_a_base_whose_chunks_travel_deflated_is_read_as_the_file_it_is(tmp_path: Path) -> None:
    content = bytes(range(256)) * 300
    chunk, blob = packed(content)
    assert chunk.encoding != RAW
    (tmp_path / "blobs").mkdir()
    blobs = BlobFiles(tmp_path / "blobs")
    blobs.put(chunk.sha256, iter([blob]), len(blob))
    file = File(path="m/model.onnx", size_bytes=len(content), sha256=digest(content), chunks=(chunk,))
    assert content_of(blobs, file) == content
    with pytest.raises(ContentError, match="do not make it up"):
        content_of(blobs, replace(file, sha256="0" * 64))
