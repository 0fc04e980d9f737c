"""Journals of every past form are read; damaged, newer or foreign ones are refused by name."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import recovery
from agent.deployment import Deployment
from agent.errors import StateError
from agent.install import Install
from agent.journal import Journal, JournalFile, decode, encode
from agent.outbox import Outbox
from agent.slots import Slots, directory_name
from tests.agent.crashing import PowerCut, crash_at, every_crash
from tests.agent.rig import DEVICE, ONE, TWO, Rig, deploy, running
from tests.agent.twins import MemoryBroker, Release, until
from tests.crash.checks import incomplete
from tests.crash.test_repair import slot_of
from wire.chunks import digest
from wire.messages import OrderEnded, OrderOutcome, Phase, Report

FIXTURES = Path(__file__).parent / "journals"
"""Written by the agent of the commit in their name, by its own code; never made anew (`README.md` there)."""

PAST = sorted(FIXTURES.glob("*.journal"))
PHASES = {
    "idle": Phase.IDLE, "rolled-back": Phase.IDLE, "trialing": Phase.TRIALING, "soaking": Phase.SOAKING,
    "fetching": Phase.FETCHING,
}  # fmt: skip


def some(order: int = 5, device: str | None = None) -> Journal:
    return Journal(
        models={"digits": Deployment(model="digits", order=order, order_highest=order)}, device=device
    )


def put(folder: Path, *copies: bytes) -> None:
    for name, data in zip(("journal.json", "journal.1"), copies, strict=False):
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("path", PAST, ids=lambda p: p.stem)
def test_a_journal_of_every_past_form_is_read(path: Path) -> None:
    state = path.stem.partition("-")[2]
    d = decode(path.read_bytes()).models["digits"]
    assert d.phase is PHASES[state]
    assert d.order == 2
    assert d.order_highest == (3 if state == "rolled-back" else 2)
    soaking = state == "soaking"
    assert d.active is not None
    assert d.active.release == ("2" if soaking or state == "idle" else "1")
    assert (d.restore is not None) == soaking
    assert len(d.blocked) == (state == "rolled-back")


def test_there_is_a_journal_of_each_state_of_each_form() -> None:
    assert len(PAST) >= 15
    assert {path.stem.partition("-")[2] for path in PAST} == set(PHASES)


def of_todays_releases(path: Path) -> bytes:
    """The journal with the digests of the tests' releases as they are today, and else byte for byte."""
    body = path.read_bytes().partition(b"\n")[2]
    d = decode(path.read_bytes()).models["digits"]
    assert d.desired is not None
    before = d.restore.active if d.restore else d.active
    assert before is not None
    for old, new in ((before.digest, ONE.digest), (d.desired.digest, TWO.digest)):
        body = body.replace(old.encode(), new.encode())
    head = {"kind": "agent-journal", "version": 1, "sha256": digest(body)}
    return json.dumps(head).encode() + b"\n" + body


@pytest.mark.parametrize("path", [p for p in PAST if "-trialing" in p.stem or "-soaking" in p.stem], ids=str)
def test_a_deployment_that_an_older_agent_began_ends(tmp_path: Path, path: Path) -> None:
    with running(tmp_path) as rig:
        deploy(rig)
        deploy(rig, TWO, 2)
        broker = rig.broker
    link = tmp_path / "models" / "digits" / "current"
    if "trialing" in path.stem:
        link.unlink()
        link.symlink_to(f"releases/{directory_name(slot_of(ONE))}")
    put(tmp_path, *[of_todays_releases(path)] * 2)
    broker.said.clear()
    again = Rig(tmp_path, broker)
    again.start()
    try:
        until(lambda: again.hooks.looks, "the first look at the application's health")
        again.clock.ahead_s += 3600
        assert again.wait(2, OrderOutcome.ACTIVE).active is not None
        assert again.running == TWO.digest
    finally:
        again.stop()


WHOLE = encode(some())


@given(bit=st.integers(0, 8 * len(WHOLE) - 1))
def test_one_flipped_bit_is_never_believed(bit: int) -> None:
    data = bytearray(WHOLE)
    data[bit // 8] ^= 1 << bit % 8
    try:
        found = decode(bytes(data))
    except StateError as error:
        assert error.code in {"journal_damaged", "journal_version"}  # noqa: PT017 - either is named
    else:
        # JSON has a few bytes in its header that mean nothing; what it says is the same then.
        assert found == some()


@given(length=st.integers(0, len(WHOLE) - 1), fill=st.sampled_from([b"", b"\0", b"\xff"]))
def test_a_torn_journal_is_never_believed(length: int, fill: bytes) -> None:
    with pytest.raises(StateError) as refused:
        decode(WHOLE[:length] + fill * (len(WHOLE) - length))
    assert refused.value.code == "journal_damaged"


@given(data=st.binary(max_size=300))
def test_junk_is_never_a_journal(data: bytes) -> None:
    with pytest.raises(StateError) as refused:
        decode(data)
    assert refused.value.code == "journal_damaged"


@given(seed=st.integers(0, 2**32), second=st.sampled_from(["whole", "torn", "gone"]))
def test_two_copies_in_any_condition_are_one_of_three_named_things(
    tmp_path_factory: pytest.TempPathFactory, seed: int, second: str
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    chance = random.Random(seed)
    torn = WHOLE[: chance.randrange(len(WHOLE))]
    put(folder, torn, *{"whole": [encode(some(4))], "torn": [torn], "gone": []}[second])
    file = JournalFile(folder)
    if second == "whole":
        assert file.load() == some(4)
        assert file.notes[0].startswith("journal.json: ")
    else:
        with pytest.raises(StateError) as refused:
            file.load()
        assert refused.value.code == "journal_lost"


def test_a_damaged_journal_never_takes_its_copys_place(tmp_path: Path) -> None:
    """A crash in the first save after damage leaves the copy, which is all there is, or the new journal."""

    def run(step: int, after: bool) -> bool:
        folder = tmp_path / f"{step}-{after}"
        folder.mkdir()
        put(folder, b"torn", WHOLE)
        file = JournalFile(folder)
        assert file.load() == some()
        with contextlib.suppress(PowerCut), crash_at(step, after=after) as tried:
            file.save(some(6))
        assert JournalFile(folder).load() in (some(), some(6))
        return step < len(tried)

    assert every_crash(run) >= 4


def test_counters_of_an_older_agent_go_on(tmp_path: Path) -> None:
    old = {"kind": "agent-install", "version": 1, "install_id": "a" * 32, "connections": 7, "reserved": 2001}
    (tmp_path / "install.json").write_text(json.dumps(old))
    install = Install(tmp_path)
    assert (install.install_id, install.connect(), install.number()) == ("a" * 32, 8, 2002)
    assert Install(tmp_path).connections == 8


def test_a_report_with_a_flipped_bit_is_dropped_and_its_number_is_not_used_again(tmp_path: Path) -> None:
    event = OrderEnded(outcome=OrderOutcome.FAILED)
    Outbox(tmp_path, 10).add(Report(device="d", install_id="0" * 32, number=1, event=event))
    path = tmp_path / f"{1:016d}.json"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"d"', b'"\xe9"'))
    again = Outbox(tmp_path, 10)
    assert (len(again), again.next_number()) == (0, 2)


def test_a_journal_of_another_device_is_not_believed(tmp_path: Path) -> None:
    put(tmp_path, encode(some(9, "other-roof")), encode(some(4, DEVICE)))
    file = JournalFile(tmp_path, DEVICE)
    assert file.load() == some(4, DEVICE)
    assert "journal_foreign" in file.notes[0]
    put(tmp_path, encode(some(9, "other-roof")), encode(some(9, "other-roof")))
    found = recovery.load(JournalFile(tmp_path, DEVICE), Slots(tmp_path / "models"))
    assert found.models == {}


def test_with_another_devices_journal_a_device_keeps_what_it_runs(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        deploy(rig)
        deploy(rig, TWO, 2)
        broker = rig.broker
    theirs = encode(Journal(models={"digits": Deployment(model="digits", order_highest=99)}, device="other"))
    put(tmp_path, theirs, theirs)
    again = Rig(tmp_path, broker)
    broker.said.clear()
    again.start()
    try:
        until(lambda: again.reported() is not None, "the report")
        state = again.reported()
        assert state is not None
        assert state.active is not None
        assert state.previous is not None
        assert (state.active.digest, state.previous.digest) == (TWO.digest, ONE.digest)
        assert state.order_highest == 2
        assert state.reason is not None
        assert "journal_foreign" in state.reason.detail
        assert again.running == TWO.digest
    finally:
        again.stop()


def test_a_journal_without_a_device_becomes_this_devices(tmp_path: Path) -> None:
    put(tmp_path, encode(some()))
    broker = MemoryBroker()
    rig = Rig(tmp_path, broker)
    rig.start()
    rig.stop()
    assert decode((tmp_path / "journal.json").read_bytes()).device == DEVICE


@pytest.mark.parametrize("newer", ["journal.json", "journal.1"])
def test_the_agent_refuses_a_newer_journal_and_leaves_it_as_it_is(tmp_path: Path, newer: str) -> None:
    """The real program: its state must be there unharmed when the newer one is installed again."""
    state = tmp_path / "state"
    state.mkdir()
    data = WHOLE.replace(b'"version":1', b'"version":2')
    (state / newer).write_bytes(data)
    if newer == "journal.1":
        (state / "journal.json").write_bytes(b"torn")
    config = tmp_path / "agent.yaml"
    config.write_text(f"device: {DEVICE}\nstate_dir: {state}\ninsecure_unsigned: true\nbroker: {{port: 1}}\n")
    command = [sys.executable, "-m", "agent", "run", "--config", str(config)]
    before = {p.name: p.read_bytes() for p in state.glob("journal*")}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ}
    )
    assert done.returncode != 0
    assert "journal_version" in done.stderr + done.stdout
    assert {p.name: p.read_bytes() for p in state.glob("journal*")} == before


def harmed(root: Path, which: Release, name: str) -> Path:
    release = root / "models" / "digits" / "releases" / directory_name(slot_of(which))
    (release / name).write_bytes(b"?")
    return release


@pytest.mark.parametrize("name", ["model.onnx", "release.json", "manifest.json"])
def test_a_lost_journal_beside_a_damaged_release_leaves_the_whole_one(tmp_path: Path, name: str) -> None:
    with running(tmp_path) as rig:
        deploy(rig)
        deploy(rig, TWO, 2)
    harmed(tmp_path, TWO, name)
    put(tmp_path, b"", b"")
    rig = Rig(tmp_path, MemoryBroker())
    rig.start()
    try:
        until(lambda: rig.running == ONE.digest, "the release before")
        until(rig.reported, "the reported state")
        state = rig.reported()
        assert state is not None
        assert (state.order_highest, state.previous) == (1 if name == "release.json" else 2, None)
    finally:
        rig.stop()


def test_a_lost_journal_and_a_lost_description_are_mended_together(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        deploy(rig)
        broker = rig.broker
    release = harmed(tmp_path, ONE, "release.json")
    put(tmp_path, b"", b"")
    again = Rig(tmp_path, broker)
    again.start()
    try:
        until(lambda: incomplete(release) is None, "the mending")
        assert again.running == ONE.digest
    finally:
        again.stop()
