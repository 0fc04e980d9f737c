"""What must still be there after the power went: names in a directory.

For: the registry's files that are written beside the database.
Not for: the database, which syncs itself.
"""

from __future__ import annotations

import os
from pathlib import Path


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
