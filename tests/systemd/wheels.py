"""Wheels for the machine, and other versions of Shallop made from them.

For: installing without a network, upgrading, and upgrading to what does not work.
Not for: what wheels.sh itself promises to its users (tests/systemd/test_scripts.py).
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.systemd.units import SYSTEMD


def fill(folder: Path, extras: str) -> Path:
    """Shallop's wheel, with all that it needs in `folder`, for this machine's own Python."""
    version = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    made = subprocess.run(
        [SYSTEMD / "wheels.sh", "--extras", extras, "--python", version, folder],
        env={"BUILDER": sys.executable, "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(Path.home())},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    if made.returncode != 0:
        pytest.fail(f"the wheels cannot be fetched: {made.stdout[-1000:]}{made.stderr[-2000:]}")
    (wheel,) = folder.glob("shallop-*.whl")
    return wheel


def version_of(wheel: Path) -> str:
    return wheel.name.split("-")[1]


def another(wheel: Path, version: str, folder: Path, changes: Mapping[str, bytes] | None = None) -> Path:
    """The wheel under another version number, with the text of some files changed."""
    old, changes = version_of(wheel), changes or {}
    made = folder / wheel.name.replace(old, version, 1)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as target:
        for item in source.infolist():
            name = item.filename.replace(f"shallop-{old}.dist-info", f"shallop-{version}.dist-info")
            data = source.read(item)
            if name.endswith("/RECORD"):
                record = name
                continue
            if name.endswith("/METADATA"):
                data = data.replace(f"Version: {old}\n".encode(), f"Version: {version}\n".encode(), 1)
            target.writestr(name, changes.get(name, data))
            written.append(name)
        target.writestr(record, "".join(f"{name},,\n" for name in [*written, record]))
    assert set(changes) <= set(written)
    return made
