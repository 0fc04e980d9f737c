"""A Raspberry Pi's file system on this machine: Debian's arm64 Python and the real aarch64 wheels.

For: `.arm/base-KEY`, made once (Debian packages unpacked, nothing installed by emulation; FACTS.md section 6)
and kept: KEY names what it is made of, and a checksum over every file stands beside it, so that one that is
half made, damaged or of other contents is made anew. And boards: cheap copies of it by hard links, each with
the /proc and /sys of the machine that it imitates and with this tree's own wheel.
Not for: running anything (`tests.arm.boards`). What is downloaded comes from Debian's archive and PyPI by
their ordinary clients.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ARM = ROOT / ".arm"
SUITE = "bookworm"
"""What Raspberry Pi OS stood on when both boards were sold; its Python is 3.11."""
PYTHON = "3.11"
PACKAGES = ("python3.11", "libstdc++6", "libgcc-s1", "base-files")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
RUNTIMES = ("onnxruntime", "ai-edge-litert")
VENV = Path("opt/shallop")
"""Below the board's root: the environment that production has too."""
SITE = VENV / f"lib/python{PYTHON}/site-packages"
INSTALL_TOOLS = "apt-get install --no-install-recommends qemu-user-static mmdebstrap debian-archive-keyring"


def emulator() -> str:
    """The emulator; without the tools the test is skipped, but fails in CI, where that would hide it."""
    found = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if found is None or shutil.which("mmdebstrap") is None:
        missing = f"qemu-user or mmdebstrap is not installed: {INSTALL_TOOLS}"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def requirements() -> list[str]:
    """The agent's own from pyproject.toml, and the runtimes in the versions that this host has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = [f"{name}=={importlib.metadata.version(name)}" for name in RUNTIMES]
    return [*project["dependencies"], "numpy>=1.26", *pinned]


@functools.cache
def base() -> Path:
    """The file system that boards are copied from; made where it is missing or not whole."""
    ARM.mkdir(exist_ok=True)
    recipe = "\n".join([SUITE, PYTHON, *PACKAGES, *PLATFORMS, *requirements()])
    place = ARM / f"base-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    told = place.with_suffix(".sha256")
    with (ARM / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (told.exists() and told.read_text() == checksum(place)):
            _forget(place, told)
            with tempfile.TemporaryDirectory(prefix="making-", dir=ARM) as making:
                folder = Path(making) / "root"
                _make(folder)
                folder.rename(place)
            told.write_text(checksum(place))
    return place


def checksum(folder: Path) -> str:
    """SHA-256 over the names, kinds and contents of everything in a folder."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        total.update(f"{path.relative_to(folder)}\0".encode())
        if path.is_symlink():
            total.update(b"l" + os.readlink(path).encode())  # noqa: PTH115 - the very text of it
        elif path.is_file():
            with path.open("rb") as file:
                total.update(b"f" + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _forget(place: Path, told: Path) -> None:
    told.unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)


def _make(folder: Path) -> None:
    sys.stderr.write(f"making an arm64 environment in {ARM}: 80 MB of packages, 185 MB of wheels ...\n")
    _run(
        "mmdebstrap", "--quiet", "--variant=extract", "--architectures=arm64",
        f"--include={','.join(PACKAGES)}", SUITE, str(folder), "http://deb.debian.org/debian",
    )  # fmt: skip
    site = folder / SITE
    site.mkdir(parents=True)
    platforms = [f"--platform={name}" for name in PLATFORMS]
    _run(
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--target", str(site), "--only-binary=:all:", *platforms, "--python-version", PYTHON,
        "--implementation", "cp", *requirements(),
    )  # fmt: skip
    (folder / VENV / "bin").mkdir()
    (folder / VENV / "bin/python").symlink_to(f"/usr/bin/python{PYTHON}")
    (folder / VENV / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")


def wheel(folder: Path) -> Path:
    """This tree as the wheel that a device installs, built now."""
    _run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--wheel-dir", str(folder), str(ROOT),
    )  # fmt: skip
    (built,) = folder.glob("shallop-*.whl")
    return built


@contextmanager
def copied(shallop: Path) -> Iterator[Path]:
    """A board's own root: the base by hard links, and the wheel `shallop` unpacked into its environment."""
    with tempfile.TemporaryDirectory(prefix="board-", dir=ARM) as folder:
        root = Path(folder) / "root"
        shutil.copytree(base(), root, symlinks=True, copy_function=os.link)
        with zipfile.ZipFile(shallop) as archive:
            archive.extractall(root / SITE)
        yield root
