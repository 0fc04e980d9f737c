"""A disk that is full, or broken, from the nth write on: for every test of what that does.

Every call that needs room goes through here while it is armed: writes to files below a root, new directories,
links and names, and synchronising. Removing works, as it does on a full disk.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

NEEDS_ROOM = ("mkdir", "symlink", "link", "replace", "rename", "fsync")


class FullDisk:
    """Counts what needs room, and refuses it from number `after` on until it is lifted.

    Attributes:
        tried: how many calls needed room.
        hit: set once one was refused.
    """

    def __init__(self, root: Path, number: int = errno.ENOSPC) -> None:
        self._root = str(root)
        self._errno = number
        self._after: int | None = None
        self._lock = threading.Lock()
        self.tried = 0
        self.hit = threading.Event()

    def fill(self, after: int) -> None:
        """From now on `after` more calls go through."""
        with self._lock:
            self.tried, self._after = 0, after
            self.hit.clear()

    def lift(self) -> None:
        """There is room again."""
        with self._lock:
            self._after = None

    def take(self) -> None:
        """One call that needs room."""
        with self._lock:
            self.tried += 1
            if self._after is None or self.tried <= self._after:
                return
        self.hit.set()
        raise OSError(self._errno, os.strerror(self._errno))

    def covers(self, path: object) -> bool:
        """Whether that lies on this disk."""
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self._root)


class _File(io.FileIO):
    """A file on that disk."""

    disk: FullDisk

    def write(self, data: Any) -> int:  # noqa: ANN401 - as io says
        self.disk.take()
        return super().write(data)


@contextlib.contextmanager
def filling(disk: FullDisk) -> Iterator[FullDisk]:
    """Everything that this process writes below the disk's root is asked for."""
    real_open = io.open

    def open_there(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:  # noqa: ANN401
        if mode not in {"wb", "xb"} or not disk.covers(file):
            return real_open(file, mode, *args, **options)
        raw = _File(file, mode.replace("b", ""))
        raw.disk = disk
        return io.BufferedWriter(raw)

    def wrap(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def effect(*args: Any, **options: Any) -> Any:  # noqa: ANN401
            if name == "fsync" or any(disk.covers(one) for one in args):
                disk.take()
            return real(*args, **options)

        return effect

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(io, "open", open_there))
        for name in NEEDS_ROOM:
            stack.enter_context(mock.patch.object(os, name, wrap(name)))
        yield disk
