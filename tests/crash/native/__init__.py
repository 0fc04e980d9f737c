"""Compiling the C parts of the crash tests: each is one file, built once per content into a folder."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from wire.chunks import digest

HERE = Path(__file__).parent


def built(name: str, folder: Path, *, shared: bool = True, package: str | None = None) -> Path:
    """`name`.c as a shared library or a program; the test is skipped by name where it cannot be compiled.

    Args:
        name: of the source file, without its ending.
        folder: where the result is put.
        shared: a library for LD_PRELOAD, else a program.
        package: of pkg-config, whose flags it needs.
    """
    source = HERE / f"{name}.c"
    made = folder / f"{name}-{digest(source.read_bytes())[:12]}{'.so' if shared else ''}"
    if made.exists():
        return made
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: apt-get install gcc libc6-dev")
    flags: list[str] = []
    if package is not None:
        asked = subprocess.run(
            ["pkg-config", "--cflags", "--libs", package], capture_output=True, text=True, check=False
        ) if shutil.which("pkg-config") else None  # fmt: skip
        if asked is None or asked.returncode:
            pytest.skip(f"{package} cannot be compiled against: apt-get install pkg-config lib{package}-dev")
        flags = shlex.split(asked.stdout)
    kind = ["-shared", "-fPIC"] if shared else []
    part = made.with_name(f"{made.name}.{id(made)}")
    command = ["gcc", *kind, "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(part), str(source), *flags]
    subprocess.run([*command, "-ldl"], check=True, timeout=60)
    return part.replace(made)
