"""Where targets put their files: one folder in memory for each process, removed when it ends.

For: readers that take a path.
Not for: the saved inputs (`tests.fuzz.corpus`).
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path


@cache
def scratch() -> Path:
    """This process's folder."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="shallop-fuzz-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def emptied(name: str) -> Path:
    """A folder of that name with nothing in it."""
    folder = scratch() / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def filed(name: str, data: bytes) -> Path:
    """A file of that name with this content."""
    path = scratch() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
