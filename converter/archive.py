"""An `.npz` opened within bounds.

For: the directory of an archive, and the head of an array, before memory is taken for what they promise.
Not for: which arrays a data set needs (`converter.dataset`).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

DIRECTORY_BYTES_MAX = 1024**2
"""Of an archive's list of its files, which Python reads whole: a hundred megabytes of it take gigabytes."""
HEAD_BYTES_MAX = 64 * 1024
"""Of an array's head, whose own count of its bytes may say four gigabytes."""


class _Directory(io.BufferedReader):
    """A file of which no more than its directory is read at one time, until it is known."""

    known = False

    def read(self, size: int | None = -1, /) -> bytes:
        if self.known:
            return super().read(size)
        # To the end is asked for at the end of the file only, where the archive's last record stands.
        asked = DIRECTORY_BYTES_MAX if size is None or size < 0 else size
        if asked > DIRECTORY_BYTES_MAX:
            raise ValueError(f"its list of files has more than {DIRECTORY_BYTES_MAX} bytes")
        return super().read(asked)


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive in a file.

    Raises:
        OSError, ValueError, zipfile.BadZipFile: it cannot be read, or promises too much.
    """
    with _Directory(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
        file.known = True
        yield archive


def head(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array, from its head.

    Raises:
        Exception: a head is parsed as Python, and raises what that does.
    """
    start = io.BytesIO(file.read(HEAD_BYTES_MAX))
    version = np.lib.format.read_magic(start)
    read: Callable[..., Any] = (
        np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(start)
    return shape, dtype
