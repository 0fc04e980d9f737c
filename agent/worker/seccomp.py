"""A filter on this process's system calls, without any privilege: no network, no new processes, no writing.

For: every kernel with CONFIG_SECCOMP_FILTER (3.17 and newer) on x86-64 and aarch64, whether systemd is there
or not. It was chosen before a network namespace, which Debian, Ubuntu and containers often refuse to an
ordinary user; and it stops writing where the kernel has no Landlock (Raspberry Pi OS).
Not for: saying which calls (`agent.worker.syscalls`) or which files may be read (`agent.worker.landlock`).

What is denied fails with EPERM and goes on; nothing is killed, so that a library's harmless attempt (a cache,
a lock file) is not the candidate's end. The one flag that matters for measuring is SPEC_ALLOW: a
kernel before 5.16 would otherwise switch speculation off and report a slower machine than it is.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Iterator

from agent.worker import syscalls

_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_PDEATHSIG = 1
_SET_MODE_FILTER = 1
_SPEC_ALLOW = 1 << 2
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE_THREAD = 0x00010000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

# Classic BPF: load a word, compare it, answer.
_LOAD, _EQUAL, _ABOVE, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_NUMBER, _ARCH = 0, 4

Instruction = tuple[int, int, int, int]
"""Code, steps to skip if true, if false, constant."""


class Instructions(ctypes.Structure):
    """`struct sock_fprog` of linux/filter.h."""

    _fields_ = (("count", ctypes.c_ushort), ("first", ctypes.c_void_p))


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort), ("true", ctypes.c_ubyte), ("false", ctypes.c_ubyte),
        ("k", ctypes.c_uint32),
    )  # fmt: skip


def _low(argument: int) -> int:
    """Where the low half of a system call's argument lies (little endian, as both machines are)."""
    return 16 + 8 * argument


def _deny(number: int | None, error: int = errno.EPERM) -> Iterator[Instruction]:
    if number is not None:
        yield (_EQUAL, 0, 1, number)
        yield (_RETURN, 0, 0, _ERRNO | error)


def _unless(number: int | None, argument: int, tests: list[tuple[int, int]]) -> Iterator[Instruction]:
    """Allows the call if one of the tests of an argument holds, else denies it."""
    if number is None:
        return
    yield (_EQUAL, 0, len(tests) + 3, number)
    yield (_LOAD, 0, 0, _low(argument))
    for index, (code, constant) in enumerate(tests):
        yield (code, len(tests) - index, 0, constant)
    yield (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    yield (_RETURN, 0, 0, _ALLOW)


def _if(number: int | None, argument: int, test: tuple[int, int]) -> Iterator[Instruction]:
    """Denies the call if the test of an argument holds, else allows it."""
    if number is None:
        return
    yield (_EQUAL, 0, 4, number)
    yield (_LOAD, 0, 0, _low(argument))
    yield (test[0], 0, 1, test[1])
    yield (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    yield (_RETURN, 0, 0, _ALLOW)


def program(machine: str, pid: int, *, writes: bool) -> tuple[Instruction, ...]:
    """PURE. The filter for a machine.

    Args:
        machine: one of `syscalls.MACHINES`.
        pid: of the process that it is for: the only one that it may signal or limit.
        writes: files may be opened for writing, made and removed; where is then Landlock's part.
    """
    which = syscalls.MACHINES.index(machine)
    steps: list[Instruction] = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, _AUDIT_ARCH[machine])]
    steps += [(_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    # Ahead of the table: newer calls than it knows, x32's among them.
    steps += [(_ABOVE, 0, 1, syscalls.NEWEST), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    denied = [syscalls.NETWORK, syscalls.PROCESSES, syscalls.KERNEL, syscalls.ATTRIBUTES]
    for table in denied if writes else [*denied, syscalls.FILES]:
        for numbers in table.values():
            steps += _deny(numbers[which])
    for numbers in syscalls.ABSENT.values():
        steps += _deny(numbers[which], errno.ENOSYS)
    steps += _unless(syscalls.CLONE[which], 0, [(_ANY_BIT, _CLONE_THREAD)])
    for numbers in syscalls.SIGNALLING.values():
        steps += _unless(numbers[which], 0, [(_EQUAL, pid)])
    steps += _unless(syscalls.PRLIMIT64[which], 0, [(_EQUAL, 0), (_EQUAL, pid)])
    steps += _if(syscalls.PRCTL[which], 0, (_EQUAL, _PR_SET_PDEATHSIG))
    if not writes:
        for name, numbers in syscalls.OPENING.items():
            steps += _if(numbers[which], syscalls.OPEN_FLAGS[name], (_ANY_BIT, _WRITING))
    return (*steps, (_RETURN, 0, 0, _ALLOW))


def no_new_privileges() -> bool:
    """No program that this process starts, and it starts none, gains a right from its file."""
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0)


def load(*, writes: bool) -> str | None:
    """Puts the filter on this process and on all threads that it will start; there is no way back.

    Returns:
        Why it could not, in words; None where it stands.
    """
    machine = os.uname().machine
    if machine not in syscalls.MACHINES or sys.maxsize < 2**32 or sys.byteorder != "little":
        return f"no table for {machine} with {sys.maxsize.bit_length() + 1} bits"
    steps = program(machine, os.getpid(), writes=writes)
    array = (_Instruction * len(steps))(*(_Instruction(*step) for step in steps))
    whole = Instructions(len(steps), ctypes.cast(array, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    number = ctypes.c_long(syscalls.SECCOMP[syscalls.MACHINES.index(machine)])
    for flags in (_SPEC_ALLOW, 0):  # 4.17 brought the flag
        mode = ctypes.c_long(_SET_MODE_FILTER)
        if libc.syscall(number, mode, ctypes.c_long(flags), ctypes.byref(whole)) == 0:
            return None
    return os.strerror(ctypes.get_errno())
