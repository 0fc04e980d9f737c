"""What a transfer's chunks leave goes back to the system before a trial."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

TRANSFER = """
import os
from pathlib import Path

def rss_mib():
    words = Path("/proc/self/statm").read_text().split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

from agent.adapters.memory import LeanTrials

class Inner:
    def run(self, job, cancel):
        return rss_mib()

chunks = [bytes(65_000) for _ in range(1000)]
kept = chunks[::100]   # as blocks that live on lie between those that are freed
del chunks
print(rss_mib(), LeanTrials(Inner()).run(None, None))
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only the GNU C library gives memory back when asked"
)
def test_freed_chunks_go_back_before_a_trial() -> None:
    done = subprocess.run([sys.executable, "-c", TRANSFER], check=True, capture_output=True, text=True)
    before, during = map(float, done.stdout.split())
    assert before - during > 30
