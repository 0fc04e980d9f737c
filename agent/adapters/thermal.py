"""Whether the machine is held back by heat or a weak supply.

For: a trial's figures to say under what conditions they were made.
Not for: acting on it. Every file is looked for below `root`, so that tests bring a tree of their own.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

_HELD_BACK_NOW = 0b1111
"""`vcgencmd get_throttled`, bits 0 to 3: under-voltage, capped, throttled, soft temperature limit."""
_TIMEOUT_S = 2.0


def hwmon(root: Path, name: str) -> Path | None:
    """The hwmon directory of that `name`; numbers change from boot to boot and are never relied on."""
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if read_text(folder / "name") == name:
            return folder
    return None


def read_text(path: Path) -> str | None:
    """A small file's text, stripped; None where it cannot be read (a sensor may answer EAGAIN)."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t")
    except OSError:
        return None


def read_number(path: Path) -> float | None:
    """A number in a file; None where there is none."""
    text = read_text(path)
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def vcgencmd(root: Path, *arguments: str) -> str | None:
    """What the Raspberry Pi's firmware tool says; None where it is not there or fails."""
    tool = root / "usr/bin/vcgencmd"
    if not tool.exists():
        return None
    try:
        run = subprocess.run(
            [str(tool), *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout


def throttled(root: Path) -> bool | None:
    """Whether the machine is held back now; None where nothing here can tell."""
    said = vcgencmd(root, "get_throttled")
    if said is not None and said.startswith("throttled="):
        try:
            return bool(int(said.split("=", 1)[1], 16) & _HELD_BACK_NOW)
        except ValueError:
            return None
    volt = hwmon(root, "rpi_volt")
    alarm = None if volt is None else read_number(volt / "in0_lcrit_alarm")
    return None if alarm is None else bool(alarm)
