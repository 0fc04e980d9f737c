"""What must still be there after the power went: names in a directory, and small files.

For: the registry's files that are written beside the database.
Not for: the database, which syncs itself.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def kept_from_others() -> Iterator[None]:
    """Within it other users of this machine read nothing that is written: a ready rollback is an order."""
    before = os.umask(0o077)
    os.umask(before | 0o007)
    try:
        yield
    finally:
        os.umask(before)


def fsync_directory(path: Path) -> None:
    """Makes the names in a directory last."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, data: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Puts `data` in the place of a file, whole and lasting, or leaves the file that is there.

    Args:
        path: of the file.
        data: its content.
        mode: its mode.
        owner: its user and group by number; None leaves them to the system.

    Raises:
        OSError: the disk.
    """
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            if owner is not None:
                os.fchown(file.fileno(), *owner)
            # The umask may have taken more away than is wanted, never less.
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def give_directory(path: Path, owner: tuple[int, int] | None, mode: int) -> None:
    """Gives a directory that was just made its owner and mode.

    By its handle: it may lie in a directory of that owner's, who could put a link to another in its place.

    Raises:
        OSError: the disk; ENOTDIR or ELOOP: it is no directory any more.
    """
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if owner is not None:
            os.fchown(handle, *owner)
        os.fchmod(handle, mode)
    finally:
        os.close(handle)


def owner_in(folder: Path) -> tuple[int, int] | None:
    """The user and group of what root writes in a directory: the directory's; None for anybody else."""
    if os.geteuid() != 0:
        return None
    of = folder.stat()
    return of.st_uid, of.st_gid


def write_durably(target: Path, data: bytes) -> None:
    """Puts a file in the place of another, whole or not at all, on disk before it returns."""
    part = target.with_suffix(f".part-{secrets.token_hex(8)}")
    with part.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(target)
    fsync_directory(target.parent)


class DurableFile:
    """One small file.

    Args:
        path: of the file; its directory is there.
        size_bytes_max: more is not read.
    """

    def __init__(self, path: Path, size_bytes_max: int) -> None:
        self._path = path
        self._size_bytes_max = size_bytes_max

    def read(self) -> bytes | None:
        """What was written last, cut at its cap; None before the first.

        Raises:
            OSError: the disk.
        """
        try:
            with self._path.open("rb") as file:
                return file.read(self._size_bytes_max)
        except FileNotFoundError:
            return None

    def write(self, data: bytes) -> None:
        """Keeps it.

        Raises:
            OSError: the disk.
        """
        write_durably(self._path, data)
