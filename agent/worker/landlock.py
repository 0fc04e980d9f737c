"""Which files this process may see, by the kernel's Landlock (Linux 5.13 and newer, where it is switched on).

For: taking away, without any privilege, every file but those named: so that a model that takes over its
runtime reads neither the broker's password nor another model, and writes nowhere it was not told to. Where
the kernel is new enough, TCP, abstract sockets and signals to others go as well.
Not for: choosing the files (`agent.worker.sandbox`).

Structures and bits are those of include/uapi/linux/landlock.h; the three calls have the same numbers on every
machine.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_ONLY = 1
_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_FILES_ONLY = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
"""What a rule about something that is no directory may speak of."""
_READ = _READ_FILE | _READ_DIR
_RIGHTS_OF_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""Rights over files that each version of the interface brought, those before included."""
_NET_ABI, _NET = 4, 0b11
"""TCP: bind and connect."""
_SCOPE_ABI, _SCOPE = 6, 0b11
"""Abstract sockets of others, signals to others."""


def abi() -> int:
    """Version of the kernel's interface; 0 where there is none or it is switched off."""
    return max(0, _call(_CREATE_RULESET, 0, 0, _VERSION_ONLY))


def restrict(readable: Iterable[Path], writable: Iterable[Path]) -> str | None:
    """Leaves this process, and all that it will start, nothing but these files and what lies below.

    A path that does not exist is left out. No file can be executed afterwards; libraries still load, because
    mapping one is reading it. The caller has set no_new_privs.

    Returns:
        Why it could not, in words; None where it stands.
    """
    version = abi()
    if version == 0:
        return os.strerror(ctypes.get_errno())
    handled = _RIGHTS_OF_ABI[max(known for known in _RIGHTS_OF_ABI if known <= version)]
    net = _NET if version >= _NET_ABI else 0
    scope = _SCOPE if version >= _SCOPE_ABI else 0
    attributes = struct.pack("=QQQ", handled, net, scope)
    size = 8 if version < _NET_ABI else 16 if version < _SCOPE_ABI else 24
    ruleset = _call(_CREATE_RULESET, ctypes.c_char_p(attributes), size, 0)
    if ruleset < 0:
        return os.strerror(ctypes.get_errno())
    try:
        for path in readable:
            _allow(ruleset, path, _READ & handled)
        for path in writable:
            _allow(ruleset, path, handled & ~_EXECUTE & ~_IOCTL_DEV)
        if _call(_RESTRICT_SELF, ruleset, 0) != 0:
            return os.strerror(ctypes.get_errno())
    finally:
        os.close(ruleset)
    return None


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # it is not there, or hidden from this process already
        return
    try:
        if not stat.S_ISDIR(os.fstat(file).st_mode):
            rights &= _FILES_ONLY
        beneath = struct.pack("=Qi", rights, file)
        _call(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.c_char_p(beneath), 0)
    finally:
        os.close(file)


def _call(number: int, *arguments: int | ctypes.c_char_p) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    plain = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return int(libc.syscall(ctypes.c_long(number), *plain))
