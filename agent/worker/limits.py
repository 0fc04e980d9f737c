"""Limits that a worker puts on itself before it loads anything foreign.

For: memory, CPU time, file size, no core file, a low priority, and dying with the daemon. The worker sets
them in its first lines, because running code between fork and exec of a process with threads is unsafe;
what it guards against, the model and its runtime, is loaded after.
Not for: wall time, which only the daemon can keep (`agent.adapters.trial_process`).
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

from msgspec import Struct

_PR_SET_PDEATHSIG = 1
_NICE = 10


class WorkerLimits(Struct, frozen=True, kw_only=True):
    """What one worker may use.

    Attributes:
        memory_bytes_max: address space; a runtime maps far more than it touches.
        cpu_s_max: processor seconds.
        file_bytes_max: of any one file that it writes, its log included.
        wall_s_max: kept by the daemon.
    """

    memory_bytes_max: int = 4 * 1024**3
    cpu_s_max: int = 900
    file_bytes_max: int = 16 * 1024**2
    wall_s_max: float = 900.0


def restrict(limits: WorkerLimits, parent: int) -> None:
    """Puts the limits on this process; ends it where its daemon is gone already."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the daemon that asked for this trial is gone")
    for what, value in (
        (resource.RLIMIT_AS, limits.memory_bytes_max),
        (resource.RLIMIT_CPU, limits.cpu_s_max),
        (resource.RLIMIT_FSIZE, limits.file_bytes_max),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        capped = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (capped, capped))
    os.nice(_NICE)
