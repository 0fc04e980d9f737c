"""Reports on the disk until the registry has acknowledged them.

For: numbering reports, keeping them through restarts, resending them, and a cap on how many.
Not for: sending (`agent.adapters.mqtt`), or deciding what is reported (`agent.lifecycle`).
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from agent.durable import fsync_dir, fsync_file, write_file
from wire.codec import encode
from wire.messages import PhaseChanged, Report
from wire.topics import REPORT

log = logging.getLogger(__name__)


class Outbox:
    """The reports below one directory, one file each, named by number."""

    def __init__(self, root: Path, reports_max: int) -> None:
        self._root = root
        self._max = reports_max
        self._unsynced: list[Path] = []
        root.mkdir(parents=True, exist_ok=True)
        # number -> whether it only tells a change of phase, which is the first to be dropped
        self._kept: dict[int, bool] = {}
        for number in sorted(int(p.stem) for p in root.glob("*.json") if p.stem.isdigit()):
            report = self._read(number)
            if report is not None:
                self._kept[number] = isinstance(report.event, PhaseChanged)

    def __len__(self) -> int:
        return len(self._kept)

    def _path(self, number: int) -> Path:
        return self._root / f"{number:016d}.json"

    def _read(self, number: int) -> Report | None:
        path = self._path(number)
        try:
            return msgspec.json.decode(path.read_bytes(), type=Report)
        except (OSError, msgspec.DecodeError) as error:
            log.warning("report %s cannot be read and is dropped: %s", number, error)
            path.unlink(missing_ok=True)
            return None

    def add(self, report: Report) -> None:
        """Keeps a report; beyond the cap the oldest change of phase goes, else the oldest of all.

        It lasts through a power cut only after `sync()`; until then the journal still holds the notice
        that it was made from.

        Raises:
            OSError: the disk's.
        """
        data = encode(report)
        if len(data) > REPORT.size_bytes_max:
            log.error("a report of %s bytes is above the channel's limit and is dropped", len(data))
            return
        write_file(self._path(report.number), data, durable=False)
        self._unsynced.append(self._path(report.number))
        self._kept[report.number] = isinstance(report.event, PhaseChanged)
        while len(self._kept) > self._max:
            self._drop(next((n for n, phase in self._kept.items() if phase), next(iter(self._kept))))

    def _drop(self, number: int) -> None:
        self._kept.pop(number, None)
        self._path(number).unlink(missing_ok=True)

    def sync(self) -> None:
        """Makes what was added last.

        Raises:
            OSError: the disk's.
        """
        if not self._unsynced:
            return
        for path in self._unsynced:
            if path.exists():
                fsync_file(path)
        fsync_dir(self._root)
        self._unsynced.clear()

    def acknowledge(self, number: int) -> int:
        """Forgets the reports up to `number`.

        Returns:
            How many that were.
        """
        covered = [kept for kept in self._kept if kept <= number]
        for kept in covered:
            self._drop(kept)
        return len(covered)

    def pending(self, limit: int) -> list[Report]:
        """The oldest reports that are not acknowledged."""
        reports = []
        for number in list(self._kept)[:limit]:
            report = self._read(number)
            if report is None:
                self._kept.pop(number, None)
            else:
                reports.append(report)
        return reports
