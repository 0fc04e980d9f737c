"""Damage to what is installed: found at the start and daily, mended from chunks, or left for the last good.

Real journal, slots, store and loop on real files (`tests.agent.rig`); broker and trial are twins.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.installed import damage
from agent.slots import ReleaseInfo, Slots, directory_name
from tests.agent.rig import DEVICE, ONE, TWO, Rig, deploy
from tests.agent.twins import VARIANT, MemoryBroker, Release, until
from tests.crash.checks import incomplete
from wire.chunks import digest
from wire.messages import OrderOutcome, Phase, ReleaseDamaged, Slot

Harm = Callable[[Path], None]


def _flip(name: str) -> Harm:
    """One bit in the middle of a file."""

    def harm(release: Path) -> None:
        data = bytearray((release / name).read_bytes())
        data[len(data) // 2] ^= 4
        (release / name).write_bytes(data)

    return harm


def _own(release: Path) -> None:
    """A byte of the chunk that no other release here has."""
    model = release / "model.onnx"
    model.write_bytes(b"?" + model.read_bytes()[1:])


def _cut(release: Path) -> None:
    os.truncate(release / "model.onnx", 100)


def _lose(name: str) -> Harm:
    return lambda release: (release / name).unlink()


def _zero(release: Path) -> None:
    """What a file system may leave of a file whose blocks it lost."""
    (release / "model.onnx").write_bytes(bytes((release / "model.onnx").stat().st_size))


def _instead(release: Path) -> None:
    (release / "model.onnx").unlink()
    (release / "model.onnx").mkdir()


HARMS: dict[str, Harm] = {
    "bit in the model": _flip("model.onnx"),
    "byte of its own": _own,
    "model cut short": _cut,
    "model gone": _lose("model.onnx"),
    "model zero-filled": _zero,
    "folder for a file": _instead,
    "bit in the manifest": _flip("manifest.json"),
    "description gone": _lose("release.json"),
    "bit in the labels": _flip("labels.json"),
    "preprocessing gone": _lose("preprocessing.json"),
    "everything gone": shutil.rmtree,
}


class Roof:
    """A device that is switched off, harmed, and switched on again."""

    def __init__(self, root: Path) -> None:
        self.broker = MemoryBroker()
        self.root = root
        self.rig = self._new()

    def _new(self) -> Rig:
        rig = Rig(self.root, self.broker)
        rig.start()
        return rig

    def off(self) -> None:
        self.rig.stop()

    def on(self) -> Rig:
        self.broker.said.clear()
        self.broker.fetched.clear()
        self.rig = self._new()
        return self.rig

    def release(self, which: Release) -> Path:
        return self.root / "models" / "digits" / "releases" / directory_name(slot_of(which))

    def told(self, *, repaired: bool) -> list[str]:
        """Digests of the releases that were told damaged."""
        events = {report.number: report.event for report in self.rig.reports()}.values()
        return [e.slot.digest for e in events if isinstance(e, ReleaseDamaged) and e.repaired == repaired]

    def until_told(self, digests: list[str]) -> None:
        """Waits, on a clock that runs, until these could not be mended."""

        def told() -> bool:
            self.rig.clock.ahead_s += 1
            return self.told(repaired=False) == digests

        until(told, "the report")

    def at_rest(self) -> bool:
        known = self.rig.runner.models.get("digits")
        return known is not None and known.phase is Phase.IDLE


def slot_of(which: Release, order: int = 1) -> Slot:
    return Slot(digest=which.digest, release=which.manifest.release, variant=VARIANT, order=order)


@pytest.fixture
def roof(tmp_path: Path) -> Iterator[Roof]:
    made = Roof(tmp_path)
    deploy(made.rig)
    try:
        yield made
    finally:
        made.off()


@pytest.mark.parametrize("name", HARMS)
def test_the_only_release_is_mended_in_place_from_the_broker(roof: Roof, name: str) -> None:
    roof.off()
    HARMS[name](roof.release(ONE))
    assert incomplete(roof.release(ONE)) or damage(roof.release(ONE), slot_of(ONE))
    rig = roof.on()
    until(lambda: roof.told(repaired=True) == [ONE.digest], "the mending")
    assert rig.running == ONE.digest
    assert incomplete(rig.current.resolve()) is None
    assert rig.hooks.activated == [ONE.digest], "the application may hold what was damaged"
    assert rig.trials.jobs == [], "what is bit for bit what passed its trial needs no other"
    roof.off()
    assert sorted(p.name for p in rig.current.resolve().parent.iterdir()) == [directory_name(slot_of(ONE))]


def test_descriptions_that_say_something_else_are_damage(roof: Roof) -> None:
    release = roof.release(ONE)
    roof.off()
    told = (release / "release.json").read_text()
    (release / "release.json").write_text(told.replace('"release": "1"', '"release": "2"'))
    assert damage(release, slot_of(ONE)) == "release.json is not that of the release"
    (release / "release.json").write_text(told)
    (release / "preprocessing.json").write_text('{"x": {}}')
    assert damage(release, slot_of(ONE)) == "preprocessing.json is damaged"
    roof.on()
    until(lambda: damage(release, slot_of(ONE)) is None, "the mending")


def test_only_the_damaged_chunk_is_fetched(roof: Roof) -> None:
    roof.off()
    first = ONE.manifest.variants[0].files[0].chunks[0].sha256
    HARMS["byte of its own"](roof.release(ONE))
    roof.on()
    until(lambda: roof.told(repaired=True), "the mending")
    assert roof.broker.fetched == [first]


def test_what_the_agent_wrote_itself_is_mended_without_a_broker(roof: Roof) -> None:
    roof.off()
    (roof.release(ONE) / "labels.json").write_bytes(b"[]")
    assert damage(roof.release(ONE), slot_of(ONE)) == "labels.json is damaged"
    roof.broker.up = False
    rig = roof.on()
    until(lambda: damage(roof.release(ONE), slot_of(ONE)) is None, "the mending")
    assert rig.running == ONE.digest


@pytest.mark.parametrize("name", ["byte of its own", "everything gone"])
def test_a_lost_release_is_left_for_the_one_before_and_comes_again(roof: Roof, name: str) -> None:
    deploy(roof.rig, TWO, 2)
    roof.off()
    HARMS[name](roof.release(TWO))
    rig = roof.on()
    until(lambda: ONE.digest in rig.hooks.activated, "the way back")
    until(
        lambda: (s := rig.reported()) and s.phase is Phase.SOAKING, "the soak of the release that came again"
    )
    until(lambda: rig.hooks.looks, "the first look at the application's health")
    rig.clock.ahead_s += 60
    state = rig.wait(2, OrderOutcome.ACTIVE)
    assert state.active is not None
    assert state.previous is not None
    assert (state.active.digest, state.previous.digest) == (TWO.digest, ONE.digest)
    assert len(rig.trials.jobs) == 1
    assert roof.told(repaired=False) == [TWO.digest]
    assert incomplete(rig.current.resolve()) is None


def test_a_release_that_nobody_holds_any_more_leaves_the_one_before(roof: Roof) -> None:
    deploy(roof.rig, TWO, 2)
    roof.off()
    HARMS["byte of its own"](roof.release(TWO))
    roof.broker.retained = {t: p for t, p in roof.broker.retained.items() if "/blob/" not in t}
    rig = roof.on()
    until(lambda: (s := rig.reported()) and s.active and s.active.digest == ONE.digest, "the way back")
    assert rig.running == ONE.digest
    assert incomplete(rig.current.resolve()) is None

    def waits() -> bool:
        rig.clock.ahead_s += 1
        return (
            (s := rig.reported()) is not None and s.reason is not None and s.reason.code == "chunks_missing"
        )

    until(waits, "the reason of the wait")
    rig.clock.ahead_s += 2 * 86400
    state = rig.wait(2, OrderOutcome.FAILED)
    assert state.reason is not None
    assert state.reason.code == "chunks_missing"
    assert rig.running == ONE.digest


def test_damage_that_cannot_be_mended_is_told_and_mended_once_it_can(roof: Roof) -> None:
    roof.off()
    HARMS["bit in the model"](roof.release(ONE))
    kept = dict(roof.broker.retained)
    roof.broker.retained = {t: p for t, p in kept.items() if "/blob/" not in t}
    rig = roof.on()

    roof.until_told([ONE.digest])
    state = rig.reported()
    assert state is not None
    assert state.reason is not None
    assert (state.reason.code, rig.running) == ("release_damaged", ONE.digest)
    roof.broker.retained = kept
    rig.clock.ahead_s += 3700
    until(lambda: roof.told(repaired=True) == [ONE.digest], "the mending")
    until(lambda: (s := rig.reported()) and s.reason is None, "the reason's end")
    assert incomplete(rig.current.resolve()) is None


def test_a_release_whose_chunks_the_other_has_is_mended_from_it(roof: Roof) -> None:
    deploy(roof.rig, TWO, 2)
    roof.off()
    HARMS["bit in the model"](roof.release(TWO))
    roof.broker.retained.clear()
    rig = roof.on()
    until(lambda: roof.told(repaired=True) == [TWO.digest], "the mending")
    assert rig.running == TWO.digest
    assert roof.broker.fetched == []


def test_the_release_before_is_mended_from_the_broker(roof: Roof) -> None:
    deploy(roof.rig, TWO, 2)
    roof.off()
    HARMS["model gone"](roof.release(ONE))
    rig = roof.on()
    until(lambda: roof.told(repaired=True) == [ONE.digest], "the mending")
    assert incomplete(roof.release(ONE)) is None
    assert rig.running == TWO.digest
    assert rig.hooks.activated == []


def test_a_lost_release_before_is_nobodys_way_back(roof: Roof) -> None:
    deploy(roof.rig, TWO, 2)
    roof.off()
    HARMS["byte of its own"](roof.release(ONE))
    roof.broker.retained = {t: p for t, p in roof.broker.retained.items() if "/blob/" not in t}
    rig = roof.on()

    roof.until_told([ONE.digest])
    state = rig.reported()
    assert state is not None
    assert state.previous is None
    assert rig.running == TWO.digest


def test_damage_while_it_runs_is_found_by_the_daily_look(roof: Roof) -> None:
    HARMS["bit in the model"](roof.release(ONE))
    (roof.root / "models" / "digits" / "current").unlink()
    roof.rig.clock.ahead_s += 86401
    until(lambda: roof.told(repaired=True) == [ONE.digest], "the mending")
    until(lambda: roof.rig.running == ONE.digest, "the link")
    assert incomplete(roof.rig.current.resolve()) is None


@pytest.mark.parametrize("link", ["gone", "elsewhere", "dangling", "a file", "a folder"])
def test_a_damaged_link_is_set_right_at_the_start(roof: Roof, link: str) -> None:
    roof.off()
    current = roof.root / "models" / "digits" / "current"
    current.unlink()
    if link == "elsewhere":
        current.symlink_to("/")
    elif link == "dangling":
        current.symlink_to("releases/" + "0" * 64)
    elif link == "a file":
        current.write_bytes(b"what?")
    elif link == "a folder":
        current.mkdir()
        (current / "mine.txt").write_text("keep")
    rig = roof.on()
    until(lambda: rig.running == ONE.digest, "the link")
    if link == "a folder":
        kept = roof.root / "models" / "digits" / "current.displaced"
        assert (kept / "mine.txt").read_text() == "keep", "what a person put there is not thrown away"


def test_a_release_in_flight_that_did_not_last_is_fetched_again(tmp_path: Path) -> None:
    broker = MemoryBroker()
    rig = Rig(tmp_path, broker)
    rig.trials.hangs = True
    rig.start()
    broker.hold(ONE)
    broker.desire(DEVICE, {"digits": ONE.order(1)})
    until(lambda: rig.trials.jobs, "the trial")
    rig.stop()
    model = next((tmp_path / "models").rglob("model.onnx"))
    model.write_bytes(model.read_bytes()[::-1])
    for shard in (tmp_path / "shards").iterdir():
        shard.write_bytes(b"no")
    for blob in list((tmp_path / "blobs").rglob("*")):
        if blob.is_file():
            blob.write_bytes(b"\0" * blob.stat().st_size)
    again = Rig(tmp_path, broker)
    again.start()
    try:
        again.wait(1, OrderOutcome.ACTIVE)
        assert incomplete(again.current.resolve()) is None
    finally:
        again.stop()


def test_what_was_damaged_before_the_switch_is_not_switched_to(
    roof: Roof, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = roof.rig.trials.run

    def spoilt(job: object, cancel: object) -> object:
        result = run(job, cancel)  # type: ignore[arg-type]
        HARMS["bit in the model"](roof.release(TWO))
        return result

    monkeypatch.setattr(roof.rig.trials, "run", spoilt)
    roof.broker.hold(TWO)
    roof.broker.desire(DEVICE, {"digits": TWO.order(2)})
    state = roof.rig.wait(2, OrderOutcome.FELL_BACK)
    assert state.reason is not None
    assert state.reason.code == "release_damaged"
    assert roof.rig.running == ONE.digest
    assert TWO.digest not in roof.rig.hooks.activated


def test_a_file_that_nobody_may_read_is_damage() -> None:
    with tempfile.TemporaryDirectory() as folder:
        if os.geteuid() == 0:
            os.chown(folder, 65534, 65534)
        child = os.fork()
        if child == 0:
            os._exit(_as_nobody(Path(folder)))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _as_nobody(root: Path) -> int:
    """In a process of its own: root may read everything."""
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    os.chdir("/")
    slots = Slots(root / "models")
    read = lambda chunk: ONE.blobs[chunk.sha256]  # noqa: E731
    slots.assemble("digits", slot_of(ONE), (ONE.data, ONE.manifest), read)
    directory = slots.directory("digits", slot_of(ONE))
    (directory / "model.onnx").chmod(0)
    words = damage(directory, slot_of(ONE))
    slots.assemble("digits", slot_of(ONE), (ONE.data, ONE.manifest), read)
    mended = damage(directory, slot_of(ONE))
    return 0 if words == "model.onnx cannot be read: Permission denied" and mended is None else 1


def test_an_adopted_file_is_looked_at_too(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "models")
    source = tmp_path / "mine.onnx"
    source.write_bytes(b"model")
    info = ReleaseInfo(
        model="digits", digest=digest(b"model"), release="mine", variant="onnxruntime/adopted", adopted=True,
        model_file="model.onnx", model_sha256=digest(b"model"),
    )  # fmt: skip
    slots.adopt(info, source)
    directory = slots.directory("digits", info.slot)
    assert damage(directory, info.slot) is None
    (directory / "model.onnx").write_bytes(b"MODEL")
    assert damage(directory, info.slot) == "model.onnx is not what was adopted"


def test_an_order_that_names_what_runs_damages_nothing(roof: Roof) -> None:
    deploy(roof.rig, ONE, 7)
    assert damage(roof.release(ONE), slot_of(ONE, order=7)) is None
