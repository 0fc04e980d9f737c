"""Raspberry Pis that are aarch64 processes on this machine.

For: a Python that any program here can start by its path and that believes itself on the board: qemu-user
imitates the processor, and finds absolute paths below the board's root first.
Not for: latency, energy or memory: those of an emulated board say nothing about a real one. Nor for the
firmware's tool `vcgencmd`: a program that an emulated one starts is started by this machine's kernel, which
looks in this machine's folders.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from tests import device_trees
from tests.arm import sysroot

HWCAP_ASIMDDP = 1 << 20
"""Linux, arch/arm64/include/uapi/asm/hwcap.h: the dot product of 8-bit integers."""


class Kind(Struct, frozen=True, kw_only=True):
    """What one board is, and how it is told from the other.

    Attributes:
        device: id of its agent; also the name of its tree in `tests.device_trees`.
        target: the converter's name of it.
        board: the model that its device tree names.
        cpu: as the agent reports it.
        qemu: the same processor's name there.
        dot_product: whether its processor has the instructions `asimddp`.
    """

    device: str
    target: str
    board: str
    cpu: str
    qemu: str
    dot_product: bool


KINDS = (
    Kind(device="rpi4", target="rpi4", board="Raspberry Pi 4 Model B Rev 1.5", cpu="Cortex-A72",
         qemu="cortex-a72", dot_product=False),
    Kind(device="rpi5", target="rpi5", board="Raspberry Pi 5 Model B Rev 1.0", cpu="Cortex-A76",
         qemu="cortex-a76", dot_product=True),
)  # fmt: skip


class Board(Struct, frozen=True, kw_only=True):
    """One of them, ready to run programs.

    Attributes:
        kind: what it is.
        root: its file system.
        python: starts its Python.
    """

    kind: Kind
    root: Path
    python: Path

    def run(self, *arguments: str | Path, timeout_s: float = 120.0) -> str:
        """What its Python prints when started with these arguments.

        Raises:
            RuntimeError: it failed; the message holds what it said.
        """
        done = subprocess.run(
            [self.python, *arguments], check=False, capture_output=True, text=True, timeout=timeout_s
        )
        if done.returncode != 0:
            raise RuntimeError(
                f"{self.kind.device} ended with {done.returncode}: {done.stderr[-2000:]}{done.stdout[-2000:]}"
            )
        return done.stdout

    def script(self, code: str) -> object:
        """The JSON that a few lines of Python print there."""
        return json.loads(self.run("-c", code))


@contextmanager
def board(kind: Kind, shallop: Path) -> Iterator[Board]:
    """A board with the agent's wheel `shallop` installed; taken down at the end."""
    qemu = sysroot.emulator()
    with sysroot.copied(shallop) as root:
        device_trees.build(root, kind.device)
        for left in ("vcgencmd", "said_get_throttled", "said_pmic_read_adc"):
            (root / "usr/bin" / left).unlink(missing_ok=True)
        python = root.parent / "python"
        python.write_text(_started([qemu, "-cpu", kind.qemu, "-L", str(root)], root))
        python.chmod(0o755)
        yield Board(kind=kind, root=root, python=python)


def _started(emulated: Sequence[str], root: Path) -> str:
    """A script for this machine's shell; the Python finds its environment by the name that it is given.

    It writes no bytecode, which would land in this machine's folders where the board's own do not exist, and
    takes modules from its environment alone, as an installed agent does.
    """
    command = [*emulated, "-0", f"/{sysroot.VENV}/bin/python", str(root / f"usr/bin/python{sysroot.PYTHON}")]
    return (
        "#!/bin/sh\nunset PYTHONPATH PYTHONHOME VIRTUAL_ENV\n"
        f'export PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1\nexec {shlex.join(command)} "$@"\n'
    )
