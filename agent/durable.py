"""What must still be there after the power went: the few file system steps that everything else uses.

For: writing a file so that after a crash it is the old one or the new one, and making directories last.
Not for: deciding what is written where (`agent.journal`, `agent.slots`, `agent.store`).

The sequence (temporary file, fsync, rename, fsync of the directory) came through every power cut tried
on ext4; leaving out either fsync did not (DESIGN.md section 4).
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"


def fsync_dir(path: Path) -> None:
    """Makes the names in a directory last."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(
    path: Path, data: bytes, *, durable: bool = True, private: bool = False, copy: Path | None = None
) -> None:
    """Replaces `path` by `data` in one step.

    Args:
        path: in a directory that exists.
        data: the new content.
        durable: whether it must outlast a power cut that follows at once; without, the name may point
            to an empty file then, and whoever reads it has to notice.
        private: mode 0600 from its first moment, whatever the umask is.
        copy: another name in the same directory that gets what `path` was.

    Raises:
        OSError: the disk's; `path` is what it was.
    """
    if copy is not None and path.exists():
        _name_twice(path, copy)
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with open(temporary, "wb", opener=_private) if private else temporary.open("wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, path)  # noqa: PTH105 - the tests inject crashes into os itself
    if durable:
        fsync_dir(path.parent)


def _private(path: str, flags: int) -> int:
    fd = os.open(path, flags, 0o600)
    os.fchmod(fd, 0o600)  # one that a crash left may have another
    return fd


def _name_twice(path: Path, copy: Path) -> None:
    """A second name for a file that is about to be replaced costs no write of its content.

    One fsync of the directory, once it is replaced, makes both renames last, in their order.
    """
    temporary = copy.with_name(copy.name + TEMPORARY_SUFFIX)
    temporary.unlink(missing_ok=True)
    os.link(path, temporary)
    os.replace(temporary, copy)  # noqa: PTH105 - the tests inject crashes into os itself
    # Two names of one file, which a crash between the renames leaves: such a rename does nothing.
    temporary.unlink(missing_ok=True)


def point_link(link: Path, target: str) -> None:
    """Makes the symlink `link` point to `target` in one step: readers see the old or the new one.

    Raises:
        OSError: the disk's.
    """
    temporary = link.with_name(link.name + TEMPORARY_SUFFIX)
    temporary.unlink(missing_ok=True)
    os.symlink(target, temporary)  # noqa: PTH211 - the tests inject crashes into os itself
    os.replace(temporary, link)  # noqa: PTH105
    fsync_dir(link.parent)


def exchange(first: Path, second: Path) -> None:
    """Lets two names of one file system change places in one step: nobody finds either missing.

    Raises:
        OSError: the disk's; ENOSYS, EINVAL: this libc or file system cannot do it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    renameat2 = getattr(libc, "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(first))
    here = -100  # AT_FDCWD and RENAME_EXCHANGE of linux/fcntl.h and linux/fs.h
    if renameat2(here, os.fsencode(first), here, os.fsencode(second), 2) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(first))


def sync_filesystem(path: Path) -> None:
    """Writes back everything of the file system that holds `path`; `sync` where libc lacks `syncfs`."""
    libc = ctypes.CDLL(None, use_errno=True)
    syncfs = getattr(libc, "syncfs", None)
    if syncfs is None:
        os.sync()
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        if syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(fd)
