"""Environments of the tools, one each, made with pip on the first run.

For: keeping what the tools pin apart from each other and from Shallop, and weighing each tool-chain.
Not for: running them (`bench.tflite.tools`).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.launching import ROOT

PACKAGES: dict[str, tuple[str, ...]] = {
    "onnx2tf": ("onnx2tf",),
    "litert-quantizer": ("litert-quantizer>=0.11",),
    "shallop": (f"{ROOT}[converter]",),
    "data": ("numpy", "pillow", "scipy"),
}
"""By environment; onnx2tf's newest version that this Python can have, which brings TensorFlow."""

_INSTALLERS = ("pip", "setuptools", "_distutils_hack", "pkg_resources")
"""What `venv` puts there by itself, with what belongs to it; nobody's weight."""


def environment(folder: Path, name: str) -> Path:
    """Its interpreter; the environment is made if it is not there.

    Raises:
        CalledProcessError: pip failed; what it said stands on standard error.
    """
    place = folder / name
    python = place / "bin" / "python"
    ready = place / ".ready"
    if not ready.exists():
        print(f"installing {', '.join(PACKAGES[name])} into {place} ...", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *PACKAGES[name]], check=True)
        ready.touch()
    return python


def installed_mb(place: Path) -> float:
    """Megabytes (10^6) on disk of an environment's packages, with the bytecode that pip compiles.

    Installers do not count; links are not followed.
    """
    packages = next((place / "lib").glob("python3*")) / "site-packages"
    return round(_bytes(packages, skipped=_INSTALLERS) / 1e6, 1)


def _bytes(folder: Path, skipped: Sequence[str] = ()) -> int:
    """Blocks that the files below take, 512 bytes each: what `du` counts."""
    kept = [one for one in folder.iterdir() if not is_installer(one.name, skipped)]
    files = [file for one in kept for file in ([one] if one.is_file() else one.rglob("*"))]
    return sum(file.lstat().st_blocks * 512 for file in files)


def is_installer(entry: str, installers: Sequence[str] = _INSTALLERS) -> bool:
    """Whether an entry of site-packages is one of these packages or its `.dist-info`."""
    return (
        entry.removesuffix(".dist-info").rsplit("-", 1)[0] in installers
        or entry == "distutils-precedence.pth"
    )


def version(python: Path, package: str) -> str:
    """Of an installed package."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
