"""Reports on the disk until the registry has acknowledged them.

For: numbering reports, keeping them through restarts, resending them, and a cap on how many.
Not for: sending (`agent.adapters.mqtt`), or deciding what is reported (`agent.lifecycle`).

Reports have numbers of their own, each one above the last: the registry acknowledges the end of the unbroken
run that it holds, so that a number left out would hold every later report up.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import msgspec

from agent.durable import fsync_dir, write_file
from agent.errors import UNREADABLE
from wire.codec import encode
from wire.messages import LiveMeasured, PhaseChanged, Report
from wire.topics import REPORT

log = logging.getLogger(__name__)
MARK_SUFFIX = ".acked"
_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)
"""`str.isdigit` is true of figures that `int` cannot read, such as a raised two."""
_REPORT = msgspec.json.Decoder(Report)
JUMP_MAX = 1_000_000
"""An acknowledgement further beyond this device's own reports is no registry's; believed, it would use the
numbers up."""


class Outbox:
    """The reports below one directory, one file each, named by number; an empty file named by the mark.

    Args:
        root: made where it is not there.
        reports_max: kept at most.
        used: the highest number that reports may have had before, where nothing here tells: an agent that
            took them from the counter of all messages.

    Raises:
        OSError: the disk's.
    """

    def __init__(self, root: Path, reports_max: int, used: int = 0) -> None:
        self._root = root
        self._max = reports_max
        root.mkdir(parents=True, exist_ok=True)
        found = _numbers(root, ".json")
        self._acknowledged = self._mark(used if not found else 0)
        # Unreadable ones count, too: they may have been sent.
        self._highest = max([self._acknowledged, *found])
        # number -> whether it only tells a change of phase or live figures, which are the first to be dropped
        self._kept: dict[int, bool] = {}
        for number in found:
            if number <= self._acknowledged:
                self._drop(number)
                continue
            report = self._read(number)
            if report is not None:
                self._kept[number] = isinstance(report.event, PhaseChanged | LiveMeasured)

    def __len__(self) -> int:
        return len(self._kept)

    def _mark(self, used: int) -> int:
        """The highest acknowledged number; the mark is made where there is none."""
        marks = _numbers(self._root, MARK_SUFFIX)
        if not marks:
            write_file(self._mark_path(used), b"")
            return used
        return marks[-1]

    def _mark_path(self, number: int) -> Path:
        return self._root / f"{number:016d}{MARK_SUFFIX}"

    def _path(self, number: int) -> Path:
        return self._root / f"{number:016d}.json"

    def _read(self, number: int) -> Report | None:
        path = self._path(number)
        try:
            return _REPORT.decode(path.read_bytes())
        except (OSError, *UNREADABLE) as error:
            log.warning("report %s cannot be read and is dropped: %s", number, error)
            path.unlink(missing_ok=True)
            return None

    def next_number(self) -> int:
        """The number that the next report must have: no report was ever sent with it."""
        return self._highest + 1

    def add(self, report: Report) -> None:
        """Keeps a report for good, through a power cut too, so that it may be sent after this.

        Beyond the cap the oldest change of phase or live figures go, else the oldest of all.

        Raises:
            OSError: the disk's; the report's number is free still.
        """
        data = encode(report)
        if len(data) > REPORT.size_bytes_max:
            log.error("a report of %s bytes is above the channel's limit and is dropped", len(data))
            return
        write_file(self._path(report.number), data)
        self._highest = max(self._highest, report.number)
        self._kept[report.number] = isinstance(report.event, PhaseChanged | LiveMeasured)
        while len(self._kept) > self._max:
            self._drop(next((n for n, phase in self._kept.items() if phase), next(iter(self._kept))))

    def _drop(self, number: int) -> None:
        self._kept.pop(number, None)
        self._path(number).unlink(missing_ok=True)

    def acknowledge(self, number: int) -> int:
        """Forgets the reports up to `number`, and lasts: no later report gets one of their numbers.

        A number above every report's is believed: a state directory from a copy has sent more than it knows.

        Returns:
            How many reports that were.

        Raises:
            OSError: the disk's; the reports are all still here.
        """
        if number > self._highest + JUMP_MAX:
            log.warning("an acknowledgement of report %d, far beyond %d, is ignored", number, self._highest)
            return 0
        if number > self._acknowledged:
            # A rename needs no room, so a full disk still lets reports go; it lasts before they go.
            os.replace(self._mark_path(self._acknowledged), self._mark_path(number))  # noqa: PTH105 - as in durable
            self._acknowledged = number
            self._highest = max(self._highest, number)
            fsync_dir(self._root)
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


def _numbers(root: Path, suffix: str) -> list[int]:
    return sorted(int(path.stem) for path in root.glob(f"*{suffix}") if _NUMBER.fullmatch(path.stem))


def pending(root: Path) -> int | None:
    """How many reports below `root` are not acknowledged, without touching them; None where none can be seen.

    A report beyond the highest mark counts: a lower one is only not removed yet.
    """
    try:
        names = [path.name for path in root.iterdir()]
    except OSError:
        return None
    marks, numbers = (
        [
            int(stem)
            for name in names
            if name.endswith(suffix) and _NUMBER.fullmatch(stem := name.removesuffix(suffix))
        ]
        for suffix in (MARK_SUFFIX, ".json")
    )
    return sum(number > max(marks, default=-1) for number in numbers)
