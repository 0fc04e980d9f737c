"""The environment on disk is whole or made anew, the comparison counts right; nothing is emulated here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.arm import comparison, sysroot


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Each folder that was made, of two files and a link."""
    calls: list[Path] = []

    def make(folder: Path) -> None:
        (folder / "usr/bin").mkdir(parents=True)
        (folder / "usr/bin/python3.11").write_bytes(b"\x7fELF")
        (folder / "usr/empty").touch()
        (folder / "bin").symlink_to("usr/bin")
        calls.append(folder)

    monkeypatch.setattr(sysroot, "ARM", tmp_path / ".arm")
    monkeypatch.setattr(sysroot, "_make", make)
    sysroot.base.cache_clear()
    yield calls
    sysroot.base.cache_clear()


def _again() -> Path:
    sysroot.base.cache_clear()
    return sysroot.base()


def test_a_whole_one_is_kept(made: list[Path]) -> None:
    assert _again() == _again()
    assert len(made) == 1


def _lead_elsewhere(link: Path) -> None:
    link.unlink()
    link.symlink_to("usr")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a changed file": lambda base: (base / "usr/bin/python3.11").write_bytes(b"\x7fELG"),
    "a file that is gone": lambda base: (base / "usr/empty").unlink(),
    "a file too many": lambda base: (base / "usr/more").touch(),
    "a link that leads elsewhere": lambda base: _lead_elsewhere(base / "bin"),
    "no checksum, as of a half-made one": lambda base: base.with_suffix(".sha256").unlink(),
    "nothing but a checksum": lambda base: base.rename(base.with_name("elsewhere")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_one_is_made_anew(made: list[Path], damage: str) -> None:
    base = _again()
    whole = sysroot.checksum(base)
    DAMAGE[damage](base)
    assert sysroot.checksum(_again()) == whole
    assert len(made) == 2


def test_one_that_fails_leaves_nothing(made: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(folder: Path) -> None:
        (folder / "usr").mkdir(parents=True)
        raise RuntimeError("no network")

    good = sysroot._make
    monkeypatch.setattr(sysroot, "_make", break_off)
    with pytest.raises(RuntimeError, match="no network"):
        _again()
    assert [path.name for path in sysroot.ARM.iterdir()] == ["lock"]
    monkeypatch.setattr(sysroot, "_make", good)
    _again()
    assert len(made) == 1


def test_other_versions_are_another_environment(made: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = _again()
    monkeypatch.setattr(sysroot, "requirements", lambda: ["numpy==9"])
    assert _again() != first
    assert len(made) == 2


def test_the_requirements_are_the_agents_and_the_runtimes() -> None:
    found = sysroot.requirements()
    assert any(one.startswith("paho-mqtt") for one in found)
    assert {one.split("==")[0] for one in found if "==" in one} == set(sysroot.RUNTIMES)


def test_the_comparison_counts_numbers_steps_and_classes() -> None:
    host = np.array([[0.0, 1.0], [0.5, 0.25], [2.0, -1.0], [0.0, 3.0]], np.float32)
    board = host.copy()
    board[0, 0] += 0.25
    board[1] = [0.25, 0.75]
    found = comparison.compared(board, host, 0.25)
    assert found == comparison.Compared(
        numbers=8, equal=5 / 8, within_step=7 / 8, worst=0.5, same_class=3 / 4
    )
    assert comparison.compared(host, host, None) == comparison.Compared(
        numbers=8, equal=1.0, within_step=None, worst=0.0, same_class=1.0
    )


def test_zeros_of_two_signs_are_not_one_number() -> None:
    """Bit by bit means that."""
    found = comparison.compared(np.array([[-0.0]], np.float32), np.array([[0.0]], np.float32), None)
    assert (found.equal, found.worst) == (0.0, 0.0)


@pytest.mark.parametrize(
    "other", [np.zeros((2, 1), np.float32), np.zeros((1, 2)), np.zeros((0, 2), np.float32)]
)
def test_what_cannot_be_compared_is_refused(other: np.ndarray) -> None:
    like = np.zeros((0, 2) if other.size == 0 else (1, 2), np.float32)
    with pytest.raises(ValueError, match="there"):
        comparison.compared(other, like, None)
