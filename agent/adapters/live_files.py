"""The directory of live figures, which every program of this machine may write to.

For: reading at most so many files of at most so many bytes, and naming what cannot be used, once each.
Not for: what the figures mean (`agent.drift`).

Nothing here is believed or waited for: a symlink, a device, a pipe or a file of another kind is refused by
name, and a directory with too much in it is read up to a limit.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from agent.errors import FinalError
from agent.live import LiveFile, parse

log = logging.getLogger(__name__)

FILE_BYTES_MAX = 32 * 1024
FILES_MAX = 64
"""Of one model; the newest ones."""
ENTRIES_MAX = 4096
REFUSALS_MAX = 256
SUFFIX = ".json"


class LiveFiles:
    """Reads the directory. One thread at a time."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._refused: dict[tuple[str, str], None] = {}

    @property
    def there(self) -> bool:
        """Whether there is a directory; without one no application reports."""
        return self._root.is_dir()

    def read(self, models: Iterable[str]) -> dict[str, dict[str, LiveFile]]:
        """The usable files of each model by name."""
        found: dict[str, dict[str, LiveFile]] = {}
        names = self._names(set(models))
        for model, entries in names.items():
            if len(entries) > FILES_MAX:
                detail = f"{len(entries)} files of live figures, the {FILES_MAX} newest are read"
                self._refuse(model, FinalError("live_crowded", detail))
            for _, name in sorted(entries, reverse=True)[:FILES_MAX]:
                try:
                    found.setdefault(model, {})[name] = parse(_content(self._root / name), model)
                except FinalError as error:
                    self._refuse(name, error)
                except FileNotFoundError:
                    continue  # its program ended, or wrote a new one this very moment
                except OSError as error:
                    self._refuse(name, FinalError("live_unreadable", str(error)))
        return found

    def _names(self, models: set[str]) -> dict[str, list[tuple[float, str]]]:
        """Time of change and name of each file, by model."""
        found: dict[str, list[tuple[float, str]]] = {}
        try:
            with os.scandir(self._root) as entries:
                for number, entry in enumerate(entries):
                    if number >= ENTRIES_MAX:
                        detail = f"more than {ENTRIES_MAX} entries; the rest is not looked at"
                        self._refuse(str(self._root), FinalError("live_crowded", detail))
                        break
                    model, at, _ = entry.name.partition("@")
                    if at and model in models and entry.name.endswith(SUFFIX):
                        found.setdefault(model, []).append((_changed(entry), entry.name))
        except FileNotFoundError:
            return {}
        except OSError as error:
            self._refuse(str(self._root), FinalError("live_unreadable", str(error)))
        return found

    def _refuse(self, name: str, error: FinalError) -> None:
        """Said once for each name and code; the memory of that is bounded, too."""
        key = (name, error.code)
        if key in self._refused:
            return
        if len(self._refused) >= REFUSALS_MAX:
            del self._refused[next(iter(self._refused))]
        self._refused[key] = None
        log.warning("live figures of %r are refused: %s", name[:200], error)


def _changed(entry: os.DirEntry[str]) -> float:
    try:
        return entry.stat(follow_symlinks=False).st_mtime
    except OSError:
        return 0.0


def _content(path: Path) -> bytes:
    """The bytes of a plain file.

    Raises:
        FinalError: `live_not_a_file` or `live_oversized`.
        OSError: it cannot be opened or read.
    """
    # Asked before it is opened, because opening a device may do something, and again of what was opened.
    _plain(path.lstat().st_mode)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        _plain(os.fstat(fd).st_mode)
        data = os.read(fd, FILE_BYTES_MAX + 1)
    finally:
        os.close(fd)
    if len(data) > FILE_BYTES_MAX:
        raise FinalError("live_oversized", f"more than {FILE_BYTES_MAX} bytes")
    return data


def _plain(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise FinalError("live_not_a_file", "it is a symlink, a directory, a pipe, a socket or a device")
