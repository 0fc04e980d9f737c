"""The application's own figures, counted where they are made: latency and confidence of each inference.

For: the agent to see during the soak and long after it that a model drifts on real inputs.
Not for: single measurements, or figures of anything else. Nothing here raises into the application, syncs
a disk, or starts a thread: what cannot be written is forgotten.

One file for each process and object, `DIR/MODEL@PID-RANDOM.json`, replaced by a rename at most every
`flush_s` and at the end of the program: kind `shallop-live`, version 1, counts since `use()`. It holds at
most 12 KiB, whatever is counted.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import math
import os
import threading
import time
import weakref
from pathlib import Path

from shallop_client.histogram import Counts
from shallop_client.model import Release

log = logging.getLogger(__name__)

LIVE_DIR = "/run/shallop/live"
KIND, VERSION = "shallop-live", 1
FILES_TIDIED_MAX = 1000
"""Looked at when an object is made, so that a crowded directory holds nobody up."""

_objects: weakref.WeakSet[Live] = weakref.WeakSet()


class Live:
    """A counter for one model. Any thread may use it; a child made by fork begins to count anew.

    Args:
        name: the model's.
        live_dir: the agent's `live_dir`; where there is no such directory, nothing is written.
        flush_s: seconds between two writes, at least.

    Attributes:
        errors: writes and records that failed and were forgotten.
    """

    def __init__(self, name: str, live_dir: str | os.PathLike[str] = LIVE_DIR, flush_s: float = 10.0) -> None:
        if not name or "/" in name or "@" in name or name.startswith("."):
            raise ValueError(f"{name!r} is no model's name")
        self.name = name
        self.errors = 0
        self._dir = Path(live_dir)
        self._flush_s = max(0.1, flush_s)
        self._release: str | None = None
        self._epoch = 0
        self._begin()
        _tidy(self._dir, name)
        _objects.add(self)

    def _begin(self) -> None:
        """A life of its own for this process: another file, another lock, no counts."""
        # A signal handler may record, too, in the middle of a record.
        self._lock = threading.RLock()
        self._counts = Counts()
        self._epoch += 1
        self._changed = self._writing = False
        self._file = self._dir / f"{self.name}@{os.getpid()}-{os.urandom(4).hex()}.json"
        self._flush_at_s = time.monotonic() + self._flush_s

    def use(self, release: Release | None) -> None:
        """From now on inferences are this release's; its counts begin at 0."""
        name = None if release is None else release.directory.name
        with self._lock:
            if name != self._release:
                self._write()
                self._release, self._counts = name, Counts()
                self._epoch += 1
                self._changed = True
                self._write()

    def record(self, latency_ms: float = math.nan, confidence: float = math.nan) -> None:
        """Counts one inference, in about a microsecond.

        Args:
            latency_ms: how long it took, as the application sees it.
            confidence: how sure the model is, from 0 to 1, such as the highest probability.
        """
        try:
            with self._lock:
                self._counts.add(latency_ms, confidence)
                self._changed = True
                if time.monotonic() >= self._flush_at_s:
                    self._write()
        except Exception:  # noqa: BLE001 - whatever it is, the application goes on
            self.errors += 1

    def flush(self) -> None:
        """Writes now what was counted; the program's end does so by itself."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        """Under the lock. A full disk or a missing directory costs the figures and nothing else."""
        self._flush_at_s = time.monotonic() + self._flush_s
        if not self._changed or self._writing:
            return
        self._writing = True
        told = {
            "kind": KIND, "version": VERSION, "model": self.name, "pid": os.getpid(), "epoch": self._epoch,
            "release": self._release, **self._counts.as_json(),
        }  # fmt: skip
        temporary = self._file.with_name(f".{self._file.name}.tmp")
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
            with os.fdopen(fd, "wb") as file:
                os.fchmod(fd, 0o644)  # whatever the umask: the agent is another user
                file.write(json.dumps(told, separators=(",", ":")).encode())
            temporary.replace(self._file)
            self._changed = False
        except Exception as error:  # noqa: BLE001
            if not self.errors:
                log.warning("live figures of %s are not written: %s", self.name, error)
            self.errors += 1
            with contextlib.suppress(OSError):
                temporary.unlink()
        finally:
            self._writing = False


def _tidy(folder: Path, name: str) -> None:
    """Removes what programs of this user left that ended; others' files the directory protects."""
    try:
        with os.scandir(folder) as entries:
            for number, entry in enumerate(entries):
                if number >= FILES_TIDIED_MAX:
                    return
                model, _, rest = entry.name.lstrip(".").partition("@")
                if model == name and _left(rest.partition("-")[0]):
                    with contextlib.suppress(OSError):
                        Path(entry.path).unlink()
    except OSError:
        return


def _left(pid: str) -> bool:
    """Whether its program is gone; one in another container only looks so, and writes anew."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return False


def _after_fork() -> None:
    for live in list(_objects):
        live._begin()  # noqa: SLF001 - of this module


def _at_exit() -> None:
    for live in list(_objects):
        with contextlib.suppress(Exception):
            live.flush()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
