"""Looks at clock, disk, cgroups and kernel for `shallop-agent doctor`.

For: facts; whatever cannot be read is None or empty. Files of /proc and /sys are looked for below `root`.
Not for: judging them (`agent.doctor.machine`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import time
from collections.abc import Iterable
from pathlib import Path

from agent.adapters.sensors import read_text
from agent.doctor.machine import ClockFacts, DiskFacts, KernelFacts, MemoryFacts
from agent.worker import landlock

_MAX_ERROR_US = 16_000_000
"""A larger error means not synchronised; systemd's own rule (ntp_synced() in src/basic/time-util.c)."""
_BOOT_FILES = ("boot/firmware/cmdline.txt", "boot/cmdline.txt")
_ENTRIES_MAX = 100_000


class _Timex(ctypes.Structure):
    """The beginning of `struct timex` (adjtimex(2)); the rest is room enough for any architecture's."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("rest", ctypes.c_char * 512),
    )


def synchronised() -> bool | None:
    """Whether the kernel's clock follows a time server; None where it does not tell."""
    timex = _Timex()
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else timex.maxerror < _MAX_ERROR_US


def clock(written: Iterable[Path]) -> ClockFacts:
    """The clock beside the times of files that this machine has written."""
    times = []
    for path in written:
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return ClockFacts(now_s=time.time(), synchronised=synchronised(), newest_s=max(times, default=None))


def disk(state_dir: Path, margin_bytes: int, root: Path = Path("/")) -> DiskFacts:
    """Room where the state directory is, or will be.

    Raises:
        OSError: the file system does not answer.
    """
    path = next(p for p in (state_dir, *state_dir.parents) if p.exists())
    status = os.statvfs(path)
    kind, options = mount_of(path.resolve(), read_text(root / "proc/self/mountinfo") or "")
    return DiskFacts(
        path=str(path),
        free_bytes=status.f_bavail * status.f_frsize,
        total_bytes=status.f_blocks * status.f_frsize,
        inodes_free=status.f_favail if status.f_files else None,
        margin_bytes=margin_bytes,
        largest_bytes=_largest(state_dir / "models"),
        read_only=bool(status.f_flag & os.ST_RDONLY),
        kind=kind,
        options=options,
    )


def mount_of(path: Path, mountinfo: str) -> tuple[str | None, tuple[str, ...]]:
    """PURE. Kind and options of the file system that holds `path` (proc_pid_mountinfo(5))."""
    best: tuple[int, str | None, tuple[str, ...]] = (-1, None, ())
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if not separator or len(fields) < 6 or len(kinds) < 3:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[4]))
        # Of two on one point the later lies on top.
        if path.is_relative_to(point) and len(point.parts) >= best[0]:
            best = (len(point.parts), kinds[0], (*fields[5].split(","), *kinds[2].split(",")))
    return best[1], best[2]


def size_bytes(folder: Path) -> int:
    """Of all files below, as far as they can be read; symlinks are not followed."""
    total = seen = 0
    for base, _, files in os.walk(folder):
        for name in files:
            seen += 1
            with contextlib.suppress(OSError):
                total += os.lstat(Path(base) / name).st_size
        if seen > _ENTRIES_MAX:
            break
    return total


def _largest(models: Path) -> int | None:
    return max((size_bytes(folder) for folder in models.glob("*/releases/*")), default=None)


def memory(root: Path = Path("/")) -> MemoryFacts:
    """Whether the kernel can limit memory by cgroup."""
    controllers = read_text(root / "sys/fs/cgroup/cgroup.controllers")
    table = re.search(r"^memory\s+\d+\s+\d+\s+([01])$", read_text(root / "proc/cgroups") or "", re.MULTILINE)
    boot = next((f"/{name}" for name in _BOOT_FILES if (root / name).is_file()), None)
    return MemoryFacts(
        cmdline=read_text(root / "proc/cmdline") or "",
        controllers=None if controllers is None else tuple(controllers.split()),
        v1_memory=table[1] == "1" if table else None,
        boot_file=boot,
    )


def kernel(root: Path = Path("/")) -> KernelFacts:
    """What a process can be locked in with."""
    lsm = read_text(root / "sys/kernel/security/lsm")
    status = read_text(root / "proc/self/status") or ""
    return KernelFacts(
        release=platform.release(),
        landlock_abi=landlock.abi(),
        seccomp=re.search(r"^Seccomp:", status, re.MULTILINE) is not None,
        lsm=tuple(lsm.split(",")) if lsm else None,
    )
