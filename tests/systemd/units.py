"""Where the units are, and how systemd-analyze is asked about them.

For: the tests of this folder, with and without a running systemd.
Not for: starting anything (tests/systemd/machine.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parent.parent.parent
SYSTEMD = ROOT / "systemd"
UNITS = SYSTEMD / "units"
SERVICES = (
    "shallop-agent.service", "shallop-worker@.service", "shallop-fleet.service",
    "shallop-broker-reload.service",
)  # fmt: skip
ALL = (*SERVICES, "shallop-worker.socket", "shallop-broker-reload.path")
EXPOSURE_MAX = 2.0


def require(program: str, package: str) -> str:
    """Where a program is; without it the test is not run."""
    found = shutil.which(program, path="/usr/bin:/bin:/usr/sbin:/sbin:/usr/lib/polkit-1")
    if found is None:
        unavailable(f"{program} is not installed: apt-get install {package}")
    return found


def unavailable(why: str) -> NoReturn:
    """Skips by name what cannot be tested here; in CI that would hide it, so there it fails."""
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = require("systemd-analyze", "systemd")
    return subprocess.run(
        [program, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def values(unit: str, key: str) -> list[str]:
    """Every value that a unit gives a key."""
    lines = (UNITS / unit).read_text(encoding="utf-8").splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{key}=")]
