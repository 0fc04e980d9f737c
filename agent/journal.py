"""The journal: every deployment of this device, in one file that a crash cannot tear.

For: saving before anything is done, and telling a damaged journal from a new device.
Not for: deciding what a saved state means (`agent.lifecycle`), or recovering slots (`agent.recovery`).

The form on disk is JSON below a header (`agent.headed`). The copy before the last save stays as `journal.1`.
A journal that is empty or damaged never means "start afresh".
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from agent.deployment import Deployment
from agent.durable import write_file
from agent.errors import UNREADABLE, StateError
from agent.headed import body_of, headed
from wire.messages import MODELS_MAX
from wire.types import DeviceId, GroupName, ModelName

VERSION = 1
JOURNAL_BYTES_MAX = 16 * 1024 * 1024
RESERVE_BYTES = 256 * 1024


class Journal(Struct, frozen=True, kw_only=True):
    """All that must outlast a restart.

    Attributes:
        models: one deployment per model.
        groups: that the last believed desired document named; group commands are for these only.
        device: whose it is; None where an older agent, or a command before the first start, wrote it.
    """

    models: Annotated[dict[ModelName, Deployment], Meta(max_length=2 * MODELS_MAX)] = {}
    groups: tuple[GroupName, ...] = ()
    device: DeviceId | None = None


_JOURNAL = msgspec.json.Decoder(Journal)


def encode(journal: Journal) -> bytes:
    """The journal as it stands on disk."""
    return headed("journal", VERSION, msgspec.json.encode(journal))


def decode(data: bytes) -> Journal:
    """A journal from disk.

    Raises:
        StateError: `journal_damaged`, or `journal_version` where a newer program wrote it.
    """
    body = body_of(data, "journal", VERSION, "the journal")
    try:
        return _JOURNAL.decode(body)
    except UNREADABLE as error:
        raise StateError("journal_damaged", f"the journal cannot be read: {error}") from None


class JournalFile:
    """The journal of one state directory.

    Attributes:
        notes: what was wrong with the files when they were read, for the log and the reports.
        device: this device's id, once it is known; a journal of another one is not believed: its releases
            passed their trials elsewhere.
    """

    def __init__(self, state_dir: Path, device: str | None = None) -> None:
        self.device = device
        self._path = state_dir / "journal.json"
        self._before = state_dir / "journal.1"
        self._reserve = state_dir / "reserve"
        self._copy_counts = False
        self.notes: list[str] = []

    def load(self) -> Journal | None:
        """The journal, else the copy before it; None on a device that never had one.

        Raises:
            StateError: `journal_lost`: there are files, and none can be used; `journal_version`.
        """
        found = False
        for path in (self._path, self._before):
            try:
                with path.open("rb") as file:
                    data = file.read(JOURNAL_BYTES_MAX + 1)
            except FileNotFoundError:
                continue
            found = True
            try:
                return self._own(decode(data))
            except StateError as error:
                if error.code == "journal_version":
                    raise
                self.notes.append(f"{path.name}: {error}")
                self._copy_counts = path is self._path
        if not found:
            return None
        raise StateError("journal_lost", f"neither journal nor its copy can be used: {'; '.join(self.notes)}")

    def _own(self, journal: Journal) -> Journal:
        if self.device is not None and journal.device not in {None, self.device}:
            raise StateError("journal_foreign", f"the journal is that of device {journal.device}")
        return journal

    def save(self, journal: Journal) -> None:
        """Replaces the journal; the one before stays as a copy.

        On a full disk the reserve is given up for it: the journal is what a way back needs.

        Raises:
            OSError: the disk's; the journal is what it was.
        """
        data = encode(journal if self.device is None else replace(journal, device=self.device))
        try:
            self._replace(data)
        except OSError as error:
            if error.errno != errno.ENOSPC or not self._reserve.exists():
                raise
            self._reserve.unlink()
            self._replace(data)
            return
        if not self._reserve.exists():
            self._make_reserve()

    def _make_reserve(self) -> None:
        """Only where there is room to spare: half a reserve would take the last blocks from all else."""
        with contextlib.suppress(OSError):
            status = os.statvfs(self._reserve.parent)
            if status.f_bavail * status.f_frsize >= 4 * RESERVE_BYTES:
                try:
                    self._reserve.write_bytes(bytes(RESERVE_BYTES))
                except OSError:
                    self._reserve.unlink(missing_ok=True)

    def _replace(self, data: bytes) -> None:
        """What was found unusable takes no copy's place: that one is all there is until this is written."""
        write_file(self._path, data, copy=None if self._copy_counts else self._before)
        self._copy_counts = False
