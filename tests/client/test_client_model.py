"""The client's view of a model: one whole release, and a word for every change, however it comes."""

from __future__ import annotations

import ctypes
import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agent.slots import Slots
from shallop_client import Model, NoModelError, Release, inotify
from tests.agent.test_disk import ONE, TWO, assemble
from tests.agent.twins import until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    return Slots(tmp_path / "models")


@pytest.fixture
def model(tmp_path: Path, slots: Slots) -> Model:
    """A model whose release 1 runs and which has release 2 on the disk."""
    one = assemble(slots, ONE)
    assemble(slots, TWO)
    slots.activate("digits", one, None)
    return Model("digits", tmp_path / "models")


def switch(slots: Slots, number: int) -> None:
    """Release 1 or 2 becomes the current one, as the agent does it."""
    one, two = assemble(slots, ONE), assemble(slots, TWO)
    slots.activate("digits", *((one, two) if number == 1 else (two, one)))


def test_what_runs_now(model: Model) -> None:
    release = model.current()
    assert (release.name, release.runtime, release.labels) == ("1", "onnxruntime", ("no", "yes"))
    assert release.variant == ONE.manifest.variants[0].id
    assert release.path.name == "model.onnx"
    assert release.path.read_bytes()
    assert release.info["digest"] == ONE.digest
    assert release.preprocessing == json.loads((release.directory / "preprocessing.json").read_text())
    assert not release.directory.is_symlink()
    assert (model.path, model.directory, model.info) == (release.path, release.directory, release.info)


def test_nothing_runs_yet(tmp_path: Path) -> None:
    with pytest.raises(NoModelError, match="no release"):
        Model("digits", tmp_path).current()
    assert Model("digits", tmp_path).wait_for_change(timeout=0.05) is None


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a/b"])
def test_what_is_no_models_name(name: str) -> None:
    with pytest.raises(ValueError, match="no model's name"):
        Model(name)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"release": 1}', '{"release": "1", "variant": "a/b"}'])
def test_a_damaged_directory_is_named(tmp_path: Path, content: str) -> None:
    broken = tmp_path / "digits" / "releases" / "x"
    broken.mkdir(parents=True)
    (broken / "release.json").write_text(content)
    (tmp_path / "digits" / "current").symlink_to("releases/x")
    with pytest.raises(NoModelError, match=r"release\.json"):
        Model("digits", tmp_path).current()


def test_an_adopted_file_has_neither_labels_nor_preprocessing(model: Model) -> None:
    release = model.current()
    (release.directory / "labels.json").unlink()
    (release.directory / "preprocessing.json").unlink()
    assert (release.labels, release.preprocessing) == ((), {})


def test_a_release_that_was_removed_says_so(model: Model, slots: Slots) -> None:
    release = model.current()
    switch(slots, 2)
    shutil.rmtree(release.directory)
    with pytest.raises(FileNotFoundError, match="was removed"):
        _ = release.labels
    with pytest.raises(FileNotFoundError):
        release.path.read_bytes()
    assert model.current().name == "2"


@pytest.fixture(params=["inotify", "polling"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the client waits; polling as on a kernel without inotify."""
    if request.param == "polling":
        monkeypatch.setattr(inotify, "_listen", lambda _directory: None)
        monkeypatch.setattr(inotify, "POLL_S", 0.02)
    else:
        # Were it to poll all the same, these tests would wait for longer than they may.
        monkeypatch.setattr(inotify, "POLL_S", 600.0)
        monkeypatch.setattr(inotify, "LOOK_S_MAX", 600.0)
    return str(request.param)


@pytest.mark.usefixtures("way")
def test_a_change_wakes_whoever_waits(model: Model, slots: Slots) -> None:
    before = model.current()
    helper = threading.Timer(0.2, switch, (slots, 2))
    helper.start()
    following = model.wait_for_change(timeout=20, than=before)
    helper.join()
    assert following is not None
    assert following.name == "2"
    assert model.wait_for_change(timeout=0, than=following) is None
    switch(slots, 1)
    back = model.wait_for_change(timeout=0, than=following)
    assert back == before


@pytest.mark.usefixtures("way")
def test_a_change_before_the_wait_is_not_missed(model: Model, slots: Slots) -> None:
    before = model.current()
    switch(slots, 2)
    following = model.wait_for_change(timeout=20, than=before)
    assert following is not None
    assert following.name == "2"


@pytest.mark.usefixtures("way")
def test_what_else_happens_in_the_directory_is_no_change(model: Model, slots: Slots) -> None:
    before = model.current()
    folder = before.directory.parents[1]
    (folder / "noise").write_text("x")
    (folder / "noise").rename(folder / "other")
    slots.activate("digits", assemble(slots, ONE), None)
    assert model.wait_for_change(timeout=0.15, than=before) is None


def test_the_first_release_of_all_is_waited_for(tmp_path: Path) -> None:
    found: list[Release | None] = []
    model = Model("digits", tmp_path / "models")
    waiting = threading.Thread(target=lambda: found.append(model.wait_for_change(timeout=20)))
    waiting.start()
    slots = Slots(tmp_path / "models")
    slots.activate("digits", assemble(slots, ONE), None)
    waiting.join(20)
    assert [release and release.name for release in found] == ["1"]


def test_a_directory_that_is_replaced_is_followed(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole state directory was moved away and another one put there, while the program waited."""
    monkeypatch.setattr(inotify, "LOOK_S_MAX", 600.0)
    before = model.current()
    found: list[Release | None] = []
    waiting = threading.Thread(target=lambda: found.append(model.wait_for_change(timeout=20, than=before)))
    waiting.start()
    time.sleep(0.2)
    (tmp_path / "models" / "digits").rename(tmp_path / "gone")
    slots = Slots(tmp_path / "models")
    two = assemble(slots, TWO)
    slots.activate("digits", two, None)
    waiting.join(20)
    assert [release and release.name for release in found] == ["2"]


def test_the_loop_over_changes_begins_with_what_runs(model: Model, slots: Slots) -> None:
    changes = model.changes()
    assert next(changes).name == "1"
    switch(slots, 2)
    assert next(changes).name == "2"
    switch(slots, 1)
    switch(slots, 2)
    switch(slots, 1)
    assert next(changes).name == "1"


@pytest.mark.usefixtures("way")
def test_a_callback_is_told_and_may_fail(
    model: Model, slots: Slots, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    def callback(release: Release) -> None:
        told.append(release.name)
        if release.name == "2":
            raise RuntimeError("out of memory")

    with model.on_change(callback, than=model.current()):
        switch(slots, 2)
        until(lambda: told == ["2"], "the callback")
        switch(slots, 1)
        until(lambda: told == ["2", "1"], "the callback after one that failed")
    assert "out of memory" in caplog.text
    switch(slots, 2)
    time.sleep(0.1)
    assert told == ["2", "1"], "it was told after it was closed"


def test_a_callback_may_end_its_own_thread(model: Model, slots: Slots) -> None:
    ended = threading.Event()

    def callback(_release: Release) -> None:
        watcher.close()
        ended.set()

    watcher = model.on_change(callback, than=model.current())
    switch(slots, 2)
    assert ended.wait(20)
    watcher.close()
    watcher.close()


def test_no_descriptor_is_left_open(model: Model) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    for _ in range(20):
        model.wait_for_change(timeout=0.001, than=model.current())
        model.on_change(lambda _release: None, than=model.current()).close()
    assert count() == before


def test_many_open_files_do_no_harm(model: Model, slots: Slots, tmp_path: Path) -> None:
    """`select` would fail above descriptor 1023."""
    holes = [(tmp_path / "hole").open("w") for _ in range(1100)]
    try:
        before = model.current()
        helper = threading.Timer(0.1, switch, (slots, 2))
        helper.start()
        following = model.wait_for_change(timeout=20, than=before)
        helper.join()
    finally:
        for hole in holes:
            hole.close()
    assert following is not None


def test_whoever_reads_while_releases_come_and_go_has_one_whole(model: Model, slots: Slots) -> None:
    """Switches and pruning as fast as they go: every file read belongs to the release that was named."""
    stop, failures, seen = threading.Event(), [], set()

    def read() -> None:
        while not stop.is_set():
            release = model.current()
            try:
                data = release.path.read_bytes()
                labels = release.labels
            except FileNotFoundError:
                continue  # removed meanwhile, as documented
            if hashlib.sha256(data).hexdigest() != release.info["model_sha256"] or labels != ("no", "yes"):
                failures.append(release)
            seen.add(release.name)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    end_s = time.monotonic() + 20
    rounds = 0
    while (rounds < 60 or len(seen) < 2) and time.monotonic() < end_s:
        switch(slots, 1 + rounds % 2)
        current = assemble(slots, ONE if rounds % 2 == 0 else TWO)
        slots.activate("digits", current, None)
        slots.prune("digits", [current])
        rounds += 1
    stop.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert seen == {"1", "2"}


def test_inotify_is_really_used() -> None:
    assert hasattr(ctypes.CDLL(None), "inotify_init1"), "this kernel should have it"
    fd = inotify._listen(ROOT)
    assert fd is not None
    watch = inotify.DirectoryWatch(ROOT)
    watch._fd = fd
    watch.close()


def test_it_needs_nothing_else_of_shallop(tmp_path: Path) -> None:
    """Copied alone into an empty folder, with an `agent` of the application's own beside it."""
    shutil.copytree(ROOT / "shallop_client", tmp_path / "shallop_client")
    (tmp_path / "agent.py").write_text("MINE = True\n")
    program = (
        "import sys, agent, shallop_client\n"
        "assert agent.MINE\n"
        "foreign = [m for m in sys.modules if m.split('.')[0] in {'wire', 'msgspec', 'paho', 'numpy'}]\n"
        "print(shallop_client.__file__.startswith(sys.argv[1]), foreign)\n"
    )
    beginning = "import sys; sys.path.insert(0, sys.argv[1])\n"
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", beginning + program, str(tmp_path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout.strip() == "True []"
