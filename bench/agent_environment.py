"""The agent as a device has it: its wheel and what the wheel needs, in an environment of its own.

For: figures that the development environment would spoil (an editable install, imports that find more than a
device has, bytecode compiled at each start), and the megabytes of that environment.
Not for: a runtime; trials run in the Python that runs the benchmark.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import venv
from pathlib import Path

from msgspec import Struct

ROOT = Path(__file__).parents[1]
_INSTALLER = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence.pth")


class Environment(Struct, frozen=True, kw_only=True):
    """Programs that start its two Pythons.

    Attributes:
        agent: has what the agent needs and nothing else.
        trial: has a runtime; the one that runs the benchmark, on this tree.
        installed_mb: of the agent's, interpreter and installer left out; megabytes of 10^6 bytes, by folder.
    """

    agent: Path
    trial: Path
    installed_mb: dict[str, float]


def made(folder: Path) -> Environment:
    """Builds the wheel of this tree and installs it from PyPI's wheels."""
    place = folder / "environment"
    venv.create(place, with_pip=True, symlinks=True)
    python = place / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--compile", ROOT],
        check=True,
    )
    said = subprocess.run(
        [python, "-c", "import json, sysconfig; print(json.dumps(sysconfig.get_path('purelib')))"],
        check=True, capture_output=True,
    )  # fmt: skip
    clean = ["unset PYTHONPATH PYTHONDONTWRITEBYTECODE PYTHONUNBUFFERED", "export PYTHONSAFEPATH=1"]
    here = [f"export PYTHONPATH={shlex.quote(str(ROOT))}"]
    return Environment(
        agent=_started(folder / "agent-python", clean, str(python)),
        trial=_started(folder / "trial-python", here, sys.executable),
        installed_mb=_megabytes(Path(json.loads(said.stdout))),
    )


def _started(script: Path, lines: list[str], python: str) -> Path:
    """A script that becomes that Python: the process keeps its id."""
    script.write_text("\n".join(["#!/bin/sh", *lines, f'exec {shlex.quote(python)} "$@"', ""]))
    script.chmod(0o755)
    return script


def _megabytes(site: Path) -> dict[str, float]:
    """By top-level name; what is smaller than 50 kB together as `others`. Of this tree's, all four rooms."""
    sizes: dict[str, int] = {}
    for top in site.iterdir():
        if not top.name.startswith(_INSTALLER):
            files = [top] if top.is_file() else [path for path in top.rglob("*") if path.is_file()]
            name = top.name if sum(f.stat().st_size for f in files) >= 50_000 else "others"
            sizes[name] = sizes.get(name, 0) + sum(file.stat().st_size for file in files)
    found = {name: round(size / 1e6, 2) for name, size in sorted(sizes.items(), key=lambda one: -one[1])}
    return {"total": round(sum(sizes.values()) / 1e6, 2), **found}
