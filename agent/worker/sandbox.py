"""Everything that a worker gives up before it loads a runtime and a model, in one call.

For: capabilities, new privileges, files (Landlock), and system calls (seccomp): each without any privilege
and each by itself, because a roof's kernel has some and not the others. What a kernel refuses is named, so
that a trial's result says which guard was missing.
Not for: limits on memory and time (`agent.worker.limits`), nor for the systemd unit's own walls, which stand
around these (systemd/).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

from agent.worker import landlock, seccomp

_CAPABILITIES_V3 = 0x20080522
_DAC_READ_SEARCH = 1 << 2
"""Kept where it is held: a daemon that runs as root may lie in another user's directory."""
_PACKAGES = ("agent", "wire")
_SYSTEM = (
    "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/zero", "/dev/urandom",
    "/dev/random", "/proc", "/sys",
)  # fmt: skip


def confine(readable: Iterable[Path] = (), writable: Iterable[Path] = ()) -> tuple[str, ...]:
    """Takes this process's rights away, but for reading the runtime, /proc, /sys and `readable`.

    What is open already stays usable: the worker opens its result and its log first and then writes nowhere.
    Call it while there is one thread.

    Args:
        readable: files, and directories with all that is below them.
        writable: directories in which files may be made and changed; none: nothing can be written at all.

    Returns:
        Each guard that is missing here, with why.
    """
    places, scratch = [*runtime_paths(), *readable], list(writable)
    missing = []
    if not drop_capabilities():
        missing.append(f"capabilities (capset: {os.strerror(ctypes.get_errno())})")
    if not seccomp.no_new_privileges():
        missing.append(f"no_new_privs ({os.strerror(ctypes.get_errno())})")
    for name, why in (
        ("Landlock", landlock.restrict(places, scratch)),
        ("seccomp", seccomp.load(writes=bool(scratch))),
    ):
        if why is not None:
            missing.append(f"{name} ({why})")
    return tuple(missing)


def runtime_paths() -> tuple[Path, ...]:
    """What an interpreter with a runtime reads: itself, its packages, the system's libraries, /proc, /sys."""
    found = {Path(place) for place in (*_SYSTEM, sys.prefix, sys.base_prefix, sys.exec_prefix)}
    found |= _mapped()
    for entry in filter(None, sys.path):
        folder = Path(entry)
        # A checkout is more than its packages: its tests, its keys, whatever lies beside them.
        inside = [folder / name for name in _PACKAGES if _is_folder(folder / name)]
        found |= set(inside) if inside and "-packages" not in folder.name else {folder, *_linked(folder)}
    return tuple(sorted(found - {Path("/")}))


def _linked(folder: Path) -> list[Path]:
    """Where packages really lie that an installer only linked here."""
    with contextlib.suppress(OSError):
        return [entry.resolve() for entry in folder.iterdir() if entry.is_symlink()]
    return []


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # below a directory that this user may not look into
        return False


def _mapped() -> set[Path]:
    """Where the libraries lie that are loaded already; the others of an unusual prefix lie beside them."""
    lines: list[str] = []
    with contextlib.suppress(OSError), Path("/proc/self/maps").open(encoding="utf-8") as file:
        lines = file.read(1024 * 1024).splitlines()
    files = {line[line.index("/") :] for line in lines if "/" in line}
    return {Path(file).parent for file in files if ".so" in file}


def drop_capabilities() -> bool:
    """What root may beyond others; an ordinary user's process has none to lose."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", _CAPABILITIES_V3, 0)
    held = ctypes.create_string_buffer(24)
    if libc.capget(header, held) != 0:
        return False
    # Low and high words, each: effective, permitted, inheritable.
    kept = struct.unpack("=6I", held.raw)[1] & _DAC_READ_SEARCH
    wanted = struct.pack("=6I", kept, kept, 0, 0, 0, 0)
    # A unit that has left a process no capability allows it no capset either.
    return held.raw == wanted or bool(libc.capset(header, wanted) == 0)
