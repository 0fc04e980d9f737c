"""What the kernel says a process costs: memory, processor time, bytes written.

For: `bench.agent`. Every figure is read from /proc and named as the kernel names it.
Not for: other systems than Linux.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

KIB_PER_MIB = 1024


class Memory(Struct, frozen=True, kw_only=True):
    """One look, in MiB.

    Attributes:
        rss: pages in memory, shared ones counted whole.
        pss: shared ones counted in parts, by how many processes share them.
        uss: those that nobody shares.
        pss_only_python: as `pss` would be if no other Python ran on the machine: pages of the interpreter
            and of its modules counted whole. Beside other Pythons `pss` flatters; on a device it is this.
    """

    rss: float
    pss: float
    uss: float
    pss_only_python: float


def memory(pid: int) -> Memory:
    """Of a process, from its smaps."""
    rss = pss = uss = only = 0
    file, here = "", 0
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        key, *words = line.split(maxsplit=5)
        if not key.endswith(":"):
            file = words[4] if len(words) == 5 else ""
        elif key == "Rss:":
            here = int(words[0])
            rss += here
        elif key == "Pss:":
            pss += int(words[0])
            only += here if "python" in file else int(words[0])
        elif key in {"Private_Clean:", "Private_Dirty:"}:
            uss += int(words[0])
    mib = [round(kib / KIB_PER_MIB, 2) for kib in (rss, pss, uss, only)]
    return Memory(rss=mib[0], pss=mib[1], uss=mib[2], pss_only_python=mib[3])


def median_memory(looks: list[Memory]) -> Memory:
    """Each figure's own median."""
    fields = Memory.__struct_fields__
    return Memory(**{name: statistics.median(getattr(one, name) for one in looks) for name in fields})


def cpu_s(pid: int) -> float:
    """Processor seconds so far, of all its threads; in steps of `CPU_STEP_S`."""
    words = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) * CPU_STEP_S


CPU_STEP_S = 1 / os.sysconf("SC_CLK_TCK")


class Written(Struct, frozen=True, kw_only=True):
    """What a process and the children that it has waited for wrote (proc(5), `io`).

    Attributes:
        storage_bytes: sent to the storage layer, in pages; 0 on a file system in memory.
        calls_bytes: handed to write and its like, sockets and pipes included.
    """

    storage_bytes: int
    calls_bytes: int


def written(pid: int) -> Written:
    """So far."""
    lines = Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines()
    found = {key: int(value) for key, value in (line.split(": ") for line in lines)}
    return Written(storage_bytes=found["write_bytes"], calls_bytes=found["wchar"])


class Peaks(Struct, kw_only=True):
    """Of a process while it was watched, in MiB; filled when the watching ends.

    Attributes:
        pss: the largest of many looks, so the true peak may be higher.
        rss: the kernel's own high-water mark (VmHWM), exact.
    """

    pss: float = 0.0
    rss: float = 0.0


@contextmanager
def watched(pid: int, every_s: float = 0.02) -> Iterator[Peaks]:
    """The peaks of a process's memory during the block."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")  # proc(5): resets the mark
    peaks, done = Peaks(), threading.Event()

    def look() -> None:
        rollup = Path(f"/proc/{pid}/smaps_rollup")
        while not done.wait(every_s):
            lines = rollup.read_text(encoding="ascii").splitlines()
            found = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            peaks.pss = max(peaks.pss, round(found / KIB_PER_MIB, 2))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        mark = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
        peaks.rss = round(mark / KIB_PER_MIB, 2)


class Idle(Struct, frozen=True, kw_only=True):
    """A process with nothing to do.

    Attributes:
        warm_up_s: waited before.
        window_s: looked at, memory every `every_s`.
        looks: of memory in the window.
        memory_mib: medians over the looks.
        cpu_percent: of one core, over the window.
        cpu_percent_step: what one tick of the kernel's clock is in that window.
    """

    warm_up_s: float
    window_s: float
    looks: int
    memory_mib: Memory
    cpu_percent: float
    cpu_percent_step: float


def idle(pid: int, warm_up_s: float, window_s: float, every_s: float = 2.0) -> Idle:
    """Waits, then looks."""
    time.sleep(warm_up_s)
    looks, began, before = [memory(pid)], time.monotonic(), cpu_s(pid)
    while time.monotonic() - began < window_s:
        time.sleep(min(every_s, window_s))
        looks.append(memory(pid))
    took_s = time.monotonic() - began
    return Idle(
        warm_up_s=warm_up_s,
        window_s=round(took_s, 1),
        looks=len(looks),
        memory_mib=median_memory(looks),
        cpu_percent=round(100 * (cpu_s(pid) - before) / took_s, 3),
        cpu_percent_step=round(100 * CPU_STEP_S / took_s, 3),
    )
