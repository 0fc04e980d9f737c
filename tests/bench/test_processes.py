"""The benchmark's readings of a process, held against what this very process does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.processes import Memory, cpu_s, idle, median_memory, memory, watched, written

MIB = 2**20


def test_memory_adds_up_as_the_kernel_does() -> None:
    found = memory(os.getpid())
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    rss_mib = next(int(line.split()[1]) for line in lines if line.startswith("Rss:")) / 1024
    assert abs(found.rss - rss_mib) < 2
    assert 0 < found.uss <= found.pss <= found.pss_only_python <= found.rss


def test_another_python_makes_pss_smaller_and_not_what_it_would_be_alone() -> None:
    code = "print(flush=True); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        found = memory(other.pid)
        assert found.pss + 0.5 < found.pss_only_python
        other.communicate(b"\n")


def test_each_figure_has_its_own_median() -> None:
    looks = [Memory(rss=r, pss=p, uss=1, pss_only_python=o) for r, p, o in ((9, 1, 5), (7, 3, 4), (8, 2, 6))]
    assert median_memory(looks) == Memory(rss=8, pss=2, uss=1, pss_only_python=5)


def test_a_peak_that_is_over_is_seen_and_an_older_one_is_not() -> None:
    before = memory(os.getpid())
    older = len(os.urandom(1) * (300 * MIB))
    assert older == 300 * MIB
    with watched(os.getpid(), every_s=0.001) as peaks:
        held = bytearray(os.urandom(1) * (64 * MIB))
        for _ in range(20):
            memory(os.getpid())
        del held
    assert before.rss + 50 < peaks.rss < before.rss + 200
    assert before.pss + 50 < peaks.pss < before.pss + 200


def test_what_is_written_and_what_a_child_writes_is_counted(tmp_path: Path) -> None:
    before = written(os.getpid())
    with (tmp_path / "own").open("wb") as file:
        file.write(bytes(MIB))
        file.flush()
        os.fsync(file.fileno())
    os.system(f"head -c {MIB} /dev/zero > {tmp_path}/childs")
    after = written(os.getpid())
    assert 2 * MIB <= after.calls_bytes - before.calls_bytes < 3 * MIB


def test_a_process_that_works_is_not_idle() -> None:
    child = os.fork()
    if child == 0:
        while True:
            pass
    try:
        found = idle(child, 0.0, 0.5, every_s=0.1)
        assert found.cpu_percent > 2 * found.cpu_percent_step
        assert found.looks >= 3
        assert cpu_s(child) > 0
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
