"""Waiting for a name in a directory to change, by inotify where the kernel has it.

For: `shallop_client.model` to sleep until something happens instead of looking again and again.
Not for: saying what happened: whoever wakes up looks for himself, so that an event that was lost, merged
or came from elsewhere does no harm.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
from pathlib import Path

POLL_S = 0.5
"""Between two looks where inotify cannot be had, or the directory is not there yet."""
LOOK_S_MAX = 30.0
"""Longest sleep with inotify: a file system that is not local tells nothing of other machines' changes."""

_IN_CREATE, _IN_DELETE, _IN_MOVED_TO = 0x100, 0x200, 0x80
_IN_DELETE_SELF, _IN_MOVE_SELF, _IN_ONLYDIR = 0x400, 0x800, 0x1000000
_MASK = _IN_CREATE | _IN_DELETE | _IN_MOVED_TO | _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_ONLYDIR
_IN_UNMOUNT, _IN_IGNORED = 0x2000, 0x8000
_GONE = _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_UNMOUNT | _IN_IGNORED
_EVENT = struct.Struct("=iIII")
"""`struct inotify_event` (inotify(7)): watch, mask, cookie, length of the name that follows."""
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)
_EVENTS_BYTES = 64 * 1024


class DirectoryWatch:
    """One directory. `arm()` before looking, `wait()` after: what happens in between is not missed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fd: int | None = None

    def arm(self) -> None:
        """Begins to listen, if it does not yet."""
        if self._fd is None:
            self._fd = _listen(self._directory)

    def wait(self, wait_s: float, stop_fd: int | None = None) -> None:
        """Sleeps until something may have happened, `stop_fd` is readable, or the time is over."""
        if self._fd is None:
            _readable([stop_fd], min(wait_s, POLL_S))
            return
        if self._fd in _readable([self._fd, stop_fd], min(wait_s, LOOK_S_MAX)):
            self._drain()

    def _drain(self) -> None:
        if self._fd is None:
            return
        try:
            data = os.read(self._fd, _EVENTS_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if _gone(data):
            # The directory itself went: the next look listens to the one that takes its place.
            self.close()

    def close(self) -> None:
        """Listens no longer."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _readable(fds: list[int | None], wait_s: float) -> list[int]:
    """Which of them can be read within that time; poll, because an application may hold many files."""
    poll = select.poll()
    for fd in fds:
        if fd is not None:
            poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(max(0.0, wait_s) * 1000)]


def _gone(data: bytes) -> bool:
    """Whether an event tells that the watched directory is not where it was."""
    offset = 0
    while offset + _EVENT.size <= len(data):
        _, mask, _, length = _EVENT.unpack_from(data, offset)
        if mask & _GONE:
            return True
        offset += _EVENT.size + length
    return False


def _listen(directory: Path) -> int | None:
    """A descriptor of inotify for the directory; None where there is none to be had."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        init, add = libc.inotify_init1, libc.inotify_add_watch
    except (OSError, AttributeError):
        return None
    fd: int = init(ctypes.c_int(_NONBLOCK_CLOEXEC))
    if fd < 0:
        return None
    if add(ctypes.c_int(fd), ctypes.c_char_p(os.fsencode(directory)), ctypes.c_uint32(_MASK)) < 0:
        os.close(fd)
        return None
    return fd
