"""Small files and tools that tell about the machine, read without trust in them.

For: the readers of power, temperature and throttling. Every path lies below a `root`, so that a test brings
a tree of its own. A file that is missing, refuses (a sensor may answer EAGAIN) or holds no number is None,
never zero.
Not for: what the readings mean.
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from pathlib import Path

FILE_BYTES_MAX = 64 * 1024
TOOL_TIMEOUT_S = 2.0
_VCGENCMD = ("usr/bin/vcgencmd", "opt/vc/bin/vcgencmd")
_elsewhere: list[Callable[[str], str | None]] = []
"""Who runs the tool instead; at most one."""


def read_text(path: Path) -> str | None:
    """The first 64 KiB of a file, stripped; None where it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX)
    except OSError:
        return None
    return data.decode("utf-8", errors="replace").strip("\0 \n\t")


def number(text: str | None) -> float | None:
    """The finite number that a text is; None for anything else."""
    try:
        value = math.nan if text is None else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read_number(path: Path) -> float | None:
    """The number in a file; None where there is none."""
    return number(read_text(path))


def hwmons(root: Path) -> list[tuple[str, Path]]:
    """Name and directory of each hwmon; their numbers change from boot to boot and mean nothing."""
    found = []
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        name = read_text(folder / "name")
        if name:
            found.append((name, folder))
    return found


def vcgencmd(root: Path, argument: str) -> str | None:
    """What the Raspberry Pi's firmware tool says; None where it is not there, fails or does not answer."""
    if _elsewhere:
        return _elsewhere[0](argument)
    tool = vcgencmd_path(root)
    if tool is None:
        return None
    try:
        run = subprocess.run(
            [str(tool), argument], stdin=subprocess.DEVNULL, capture_output=True, timeout=TOOL_TIMEOUT_S,
            check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout[:FILE_BYTES_MAX].decode("utf-8", errors="replace")


def vcgencmd_path(root: Path) -> Path | None:
    """Where the tool lies; None where this is no Raspberry Pi, or it is not installed."""
    return next((root / path for path in _VCGENCMD if (root / path).is_file()), None)


def ask_elsewhere(ask: Callable[[str], str | None]) -> None:
    """From now on this process asks `ask` instead of starting the tool, which its sandbox forbids."""
    _elsewhere[:] = [ask]
