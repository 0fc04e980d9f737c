"""Planted mistakes: what the crash matrices must find, else they prove nothing.

Each function changes the agent in this process; `tests.crash.matrix` calls it in the process that is killed.
"""

from __future__ import annotations

import os
from pathlib import Path

from agent import durable, jobs, runner, slots
from agent.journal import Journal, JournalFile, encode
from wire.messages import Slot


def link_in_two_steps() -> None:
    """The old symlink is removed before the new one is made."""

    def point_link(link: Path, target: str) -> None:
        link.unlink(missing_ok=True)
        link.symlink_to(target)

    slots.point_link = point_link  # type: ignore[attr-defined]


def journal_in_place() -> None:
    """The journal is overwritten where it stands, and there is no copy."""

    def save(self: JournalFile, journal: Journal) -> None:
        self._path.write_bytes(encode(journal))

    JournalFile.save = save  # type: ignore[method-assign]


def believing_a_directory() -> None:
    """A release is put together under the name that it will have, and what has the name is believed."""

    def damage(directory: Path, slot: Slot) -> str | None:
        del slot
        return None if directory.is_dir() else "it is missing"

    def place(self: slots.Slots, part: Path, final: Path) -> None:
        del self, part, final

    slots.PART = ""
    slots.Slots._place = place  # type: ignore[method-assign]
    slots.damage = damage  # type: ignore[attr-defined]
    jobs.damage = damage  # type: ignore[attr-defined]


def no_tidying_at_boot() -> None:
    """What a crash left is looked for at the end of the next order only."""

    def tidy(self: runner.Runner, model: str) -> None:
        del self, model

    runner.Runner._tidy_model = tidy  # type: ignore[method-assign]


def no_fsync_of_folders() -> None:
    """Names are not made to last."""

    def fsync_dir(path: Path) -> None:
        del path

    for module in (durable, slots):
        module.fsync_dir = fsync_dir  # type: ignore[attr-defined]


def no_fsync_of_files() -> None:
    """Content is not made to last before it has its name."""
    real = os.fsync

    def fsync(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").is_dir():
            real(fd)

    os.fsync = fsync  # type: ignore[assignment]
    slots.sync_filesystem = lambda path: None  # type: ignore[attr-defined]  # noqa: ARG005
