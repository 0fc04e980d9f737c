"""Who a device is, through damage: the same id with numbers that were never used, or a new id alone."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import StateError
from agent.install import RESERVED, Install, saved_install_id
from fleet.inventory import Device, fold
from tests.agent.crashing import PowerCut, crash_at, every_crash
from tests.agent.rig import ONE, TWO, Rig, deploy
from tests.agent.twins import MemoryBroker, until
from wire.codec import decode
from wire.messages import Identity, OrderOutcome, Report, Reported, Status
from wire.topics import IDENTITY, REPORT, REPORTED, STATUS, Channel

Said = Status | Identity | Reported | Report
SAID: dict[str, tuple[type[Said], Channel]] = {
    "status": (Status, STATUS), "identity": (Identity, IDENTITY), "reported": (Reported, REPORTED),
    "report": (Report, REPORT),
}  # fmt: skip


def used(folder: Path, messages: int = 5) -> tuple[str, int, int]:
    """An installation that was started twice and said something: its id, its last connection and message."""
    Install(folder).connect()
    install = Install(folder)
    connection = install.connect()
    return install.install_id, connection, [install.number() for _ in range(messages)][-1]


@given(bit=st.integers(0, 8 * 150 - 1), messages=st.sampled_from([1, RESERVED - 1, RESERVED + 2]))
def test_one_flipped_bit_costs_numbers_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, bit: int, messages: int
) -> None:
    folder = tmp_path_factory.mktemp("install")
    name, connection, number = used(folder, messages)
    path = folder / "install.json"
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)
    assert saved_install_id(folder) == name
    mended = Install(folder)
    assert mended.install_id == name
    assert mended.connect() > connection
    assert mended.number() > number
    assert Install(folder).install_id == name


@pytest.mark.parametrize("damage", [b"", b"{", b"\0" * 150])
def test_with_both_copies_lost_it_is_another_installation(tmp_path: Path, damage: bytes) -> None:
    name, _, _ = used(tmp_path)
    for file in ("install.json", "install.1"):
        (tmp_path / file).write_bytes(damage)
    assert saved_install_id(tmp_path) is None
    begun = Install(tmp_path)
    assert begun.install_id != name
    assert Install(tmp_path).install_id == begun.install_id


def test_a_person_who_removes_the_file_gets_another_installation(tmp_path: Path) -> None:
    """As for a copy of a card that goes into another machine; the old id never comes back by the copy."""
    name, _, _ = used(tmp_path)
    (tmp_path / "install.json").unlink()
    begun = Install(tmp_path).install_id
    assert begun != name
    (tmp_path / "install.json").write_bytes(b"")
    assert Install(tmp_path).install_id not in {name, ""}


def test_a_newer_programs_file_is_left_alone(tmp_path: Path) -> None:
    used(tmp_path)
    path = tmp_path / "install.json"
    newer = path.read_bytes().replace(b'"version":2', b'"version":3').replace(b'"sha256":"', b'"sha256":"0')
    newer = msgspec.json.encode({**msgspec.json.decode(newer), "sha256": "0" * 64})
    path.write_bytes(newer)
    with pytest.raises(StateError) as refused:
        Install(tmp_path)
    assert refused.value.code == "install_version"
    assert path.read_bytes() == newer


def test_a_damaged_version_is_no_newer_program(tmp_path: Path) -> None:
    name, _, number = used(tmp_path)
    path = tmp_path / "install.json"
    path.write_bytes(path.read_bytes().replace(b'"version":2', b'"version":3'))
    mended = Install(tmp_path)
    assert mended.install_id == name
    assert mended.number() > number


def test_what_is_no_file_is_no_damage(tmp_path: Path) -> None:
    used(tmp_path)
    (tmp_path / "install.json").unlink()
    (tmp_path / "install.json").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        Install(tmp_path)


@pytest.mark.parametrize("lost", [("install.json",), ("install.json", "install.1")])
def test_a_crash_while_it_is_mended_gives_no_number_twice(tmp_path: Path, lost: tuple[str, ...]) -> None:
    def run(step: int, after: bool) -> bool:
        folder = tmp_path / f"{step}-{after}"
        folder.mkdir()
        name, connection, number = used(folder)
        for file in lost:
            (folder / file).write_bytes(b"torn")
        said: list[tuple[str, int, int]] = [(name, connection, number)]
        with contextlib.suppress(PowerCut), crash_at(step, after=after) as tried:
            install = Install(folder)
            said.append((install.install_id, install.connect(), install.number()))
        install = Install(folder)
        said.append((install.install_id, install.connect(), install.number()))
        for earlier, later in itertools.pairwise(said):
            assert later[0] != earlier[0] or (later[1] > earlier[1] and later[2] > earlier[2])
        if len(lost) == 1:
            assert {one[0] for one in said} == {name}
        return step < len(tried)

    assert every_crash(run) >= 4


# --- a whole device, and what the registry makes of it


def told(rig: Rig) -> list[Said]:
    found: list[Said] = []
    for topic, payload in rig.broker.said:
        form = SAID.get(topic.rpartition("/up/")[2])
        if form is not None:
            found.append(decode(payload, form[0], form[1].size_bytes_max))
    return found


def registry(messages: list[Said]) -> Device:
    device = Device(id=messages[0].device)
    for at, message in enumerate(messages):
        device = fold(device, message, float(at))
    return device


@pytest.mark.parametrize("lost", [("install.json",), ("install.json", "install.1")])
def test_the_registry_takes_a_mended_device_for_no_two(tmp_path: Path, lost: tuple[str, ...]) -> None:
    """Nobody acknowledges: reports of the installation before wait when its file is damaged."""
    rig = Rig(tmp_path, MemoryBroker())
    rig.start()
    deploy(rig, ONE)
    name = told(rig)[0].install_id
    rig.stop()
    before = told(rig)
    assert list((tmp_path / "reports").glob("*.json"))
    for file in lost:
        (tmp_path / file).write_bytes(b"torn")
    rig.broker.said.clear()
    again = Rig(tmp_path, rig.broker)
    again.start()
    try:
        deploy(again, TWO, 2)
        again.clock.ahead_s += 4000.0
        until(lambda: [m for m in told(again) if isinstance(m, Report) and m.order == 2], "its reports")
    finally:
        again.stop()
    after = told(again)
    device = registry([*before, *after])
    assert not device.duplicate_identity
    assert device.models["digits"].outcome is OrderOutcome.ACTIVE
    assert device.models["digits"].active is not None
    assert device.models["digits"].active.digest == TWO.digest
    ids = {message.install_id for message in after}
    assert (ids == {name}) == (len(lost) == 1)
    assert len(ids) == 1
    numbers = [m.number for m in after if isinstance(m, Report)]
    highest = max(m.number for m in before if isinstance(m, Report))
    assert (min(numbers) == 1) if len(lost) == 2 else (set(range(1, highest + 1)) <= set(numbers))
