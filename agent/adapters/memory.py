"""Memory that a transfer left, given back to the system.

For: a daemon that is as small after a large release as before it, and a device's memory being there when the
worker loads a runtime. The C library keeps freed blocks of a chunk's size for itself: on x86-64, after three
transfers of 100 MB, the daemon's PSS was 25.9 MiB without this and 24.7 with it, of 20.6 before.
Not for: anything that must succeed: a C library without `malloc_trim` (musl) keeps what it keeps.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading

from agent.ports import TrialRunner
from agent.worker.job import TrialJob
from wire.measures import TrialResult


def give_back() -> None:
    """Collects what Python no longer needs and returns the free pages; takes some milliseconds."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


class LeanTrials:
    """Trials as another runner runs them, begun with what is free given back; an `agent.ports.TrialRunner`.

    Every release that was fetched comes by here, once all of its chunks are on the disk.
    """

    def __init__(self, inner: TrialRunner) -> None:
        self._inner = inner

    def run(self, job: TrialJob, cancel: threading.Event) -> TrialResult:
        """Measures a candidate.

        Raises:
            AgentError: as the other runner.
        """
        give_back()
        return self._inner.run(job, cancel)
