"""File locks: one daemon per state directory, one trial at a time on a machine.

For: `flock`, which the kernel releases when its holder dies, however it dies.
Not for: locks between threads.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from agent.errors import Cancelled, RetryError, StateError

POLL_S = 0.2


class StateLock:
    """Held by whoever changes a state directory; the file names the holder's process id."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "lock"
        self._file: IO[bytes] | None = None

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            StateError: `state_locked`: a daemon, or another command, is at work in this directory.
        """
        file = os.fdopen(_made(self._path), "r+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            holder = self.holder()
            raise StateError(
                "state_locked",
                f"{self._path.parent} is in use by process {holder or 'unknown'}; stop the agent first",
            ) from None
        self._file = file
        with contextlib.suppress(OSError):
            # On a full disk it is held all the same. In place: what is freed would have to be had again.
            file.write(b"%-20d" % os.getpid())

    def holder(self) -> int | None:
        """Process id of the last holder, if the file names one."""
        try:
            return int(self._path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    def release(self) -> None:
        """Gives the lock back."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _made(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def state_lock_held(state_dir: Path, proc: Path = Path("/proc")) -> bool | None:
    """Whether an agent, or a command, is at work in a state directory; None where that cannot be seen.

    By the kernel's table and not by trying: an agent that starts at that very moment would be refused.
    """
    try:
        inode = (state_dir / "lock").stat().st_ino
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        table = (proc / "locks").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = [line.split() for line in table.splitlines()]
    return any(len(f) > 5 and f[1] == "FLOCK" and f[5].rpartition(":")[2] == str(inode) for f in fields)


class MachineLock:
    """`agent.ports.TrialLock` by a file that all agents of a machine name alike."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.contextmanager
    def hold(self, cancel: threading.Event) -> Iterator[None]:
        """Waits for the lock, and keeps it for the block.

        Raises:
            RetryError: `trial_lock`: the file cannot be opened.
            Cancelled: `cancel` was set while waiting.
        """
        try:
            fd = _opened(self._path)
        except OSError as error:
            raise RetryError("trial_lock", f"cannot open the machine's trial lock: {error}") from error
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if cancel.wait(POLL_S):
                        raise Cancelled from None
            yield
        finally:
            os.close(fd)


def _opened(path: Path) -> int:
    """The file, made if it is missing, in a directory that all users may share.

    Whoever comes second must be able to hold what another user made: a lock needs a file to be readable only,
    and the kernel refuses O_CREAT on another user's file in a directory such as /run/lock
    (fs.protected_regular, proc(5)).
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, flags)
        with contextlib.suppress(FileExistsError):  # another agent was quicker
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
            os.fchmod(fd, 0o644)  # whatever this daemon's umask is
            return fd
