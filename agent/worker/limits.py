"""Limits that a worker puts on itself before it loads anything foreign.

For: memory, CPU time, file size, open files, tasks, no core file, a low priority, being the kernel's first
choice when memory runs out, and dying with the daemon. The worker sets them in its first lines and not the
daemon between fork and exec, because running Python there is unsafe in a process with threads, and not by
prlimit afterwards, because that leaves a gap; what they guard against, the model and its runtime, is loaded
after.
Not for: wall time, which only the daemon can keep (`agent.adapters.trial_process`), or what a worker may
touch (`agent.worker.sandbox`).
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

_PR_SET_PDEATHSIG = 1
_NICE = 10
_CPU_S_GRACE = 5
"""Between SIGXCPU, which has a name, and the kernel's SIGKILL, which could be anything."""


class WorkerLimits(Struct, frozen=True, kw_only=True):
    """What one worker may use.

    Attributes:
        memory_bytes_max: address space; a runtime maps far more than it touches.
        cpu_s_max: processor seconds.
        file_bytes_max: of any one file that it writes, its log included.
        wall_s_max: kept by the daemon.
        files_open_max: at once.
        tasks_more_max: threads and processes of this user beyond those that there are when it begins.
    """

    memory_bytes_max: Annotated[int, Meta(ge=1)] = 4 * 1024**3
    cpu_s_max: Annotated[int, Meta(ge=1)] = 900
    file_bytes_max: Annotated[int, Meta(ge=1)] = 16 * 1024**2
    wall_s_max: Annotated[float, Meta(gt=0.0)] = 900.0
    files_open_max: Annotated[int, Meta(ge=16)] = 256
    tasks_more_max: Annotated[int, Meta(ge=1)] = 512


def restrict(limits: WorkerLimits, parent_pid: int | None) -> None:
    """Puts the limits on this process; ends it where its daemon is gone already."""
    if parent_pid is not None:
        _die_with(parent_pid)
    _limit(resource.RLIMIT_AS, limits.memory_bytes_max)
    _limit(resource.RLIMIT_CPU, limits.cpu_s_max, limits.cpu_s_max + _CPU_S_GRACE)
    _limit(resource.RLIMIT_FSIZE, limits.file_bytes_max)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, limits.files_open_max)
    _limit_tasks(limits.tasks_more_max)
    os.nice(_NICE)
    with contextlib.suppress(OSError):  # /proc may be hidden; then the kernel chooses as it likes
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _die_with(parent_pid: int) -> None:
    import ctypes  # noqa: PLC0415 - the daemon, which knows the type above, does without

    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit("the daemon that asked for this trial is gone")


def _limit(what: int, soft: int, hard: int | None = None) -> None:
    """Lowers a limit; one that stands lower already stays."""
    _, present = resource.getrlimit(what)
    ceiling = soft if hard is None else hard
    if present != resource.RLIM_INFINITY:
        ceiling = min(ceiling, present)
    resource.setrlimit(what, (min(soft, ceiling), ceiling))


def _limit_tasks(more: int) -> None:
    """Bounds what this user may run; the kernel counts all of its tasks, those outside a container too.

    So the limit is tried with a thread, and taken back where more is counted than can be seen here: the
    filter on system calls (`agent.worker.seccomp`) lets no process be started anyway.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    wanted = _tasks_of_user() + more
    ceiling = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NPROC, (ceiling, hard))
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
    except RuntimeError:
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
    else:
        resource.setrlimit(resource.RLIMIT_NPROC, (ceiling, ceiling))


def _tasks_of_user() -> int:
    """Threads of all processes of this user that /proc shows."""
    tasks = 0
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it ended meanwhile
            if folder.name.isdigit() and folder.stat().st_uid == os.getuid():
                tasks += sum(1 for _ in (folder / "task").iterdir())
    return tasks
