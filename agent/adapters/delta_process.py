"""The daemon's side of a delta: starts the worker, watches it, reads how it went.

For: fulfilling `agent.ports.DeltaRunner` by a process that ends, so that neither numpy nor a hostile delta
ever is in the daemon. Limits are the worker's own (`agent.worker.limits`); wall time and cancelling are
kept here.
Not for: believing the output: the caller hashes it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import msgspec
from msgspec.structs import replace

from agent.adapters import worker_process
from agent.errors import FinalError, RetryError
from agent.worker.delta_job import DeltaOrder, read_outcome
from agent.worker.limits import WorkerLimits

_LOG_TAIL_BYTES = 600


class DeltaProcess:
    """Applies each delta in a process of its own.

    Args:
        scratch: a directory that nobody else uses.
        limits: of one worker; the size of the output is added by the order.
        python: the interpreter that has numpy.
        module: the worker's entry.
    """

    def __init__(
        self,
        scratch: Path,
        limits: WorkerLimits,
        python: str = sys.executable,
        module: str = "agent.worker.delta",
    ) -> None:
        self._scratch, self._limits, self._module = scratch.absolute(), limits, module
        self._python = str(Path(python).absolute()) if os.sep in python else python

    def apply(self, base: Path, delta: Path, output: Path, size_bytes: int, cancel: threading.Event) -> None:
        """Writes `output` from `base` and `delta`.

        Raises:
            FinalError: `delta_timeout`, `delta_crashed`, or the worker's own reason.
            RetryError: `delta_not_started`, or `disk_full`.
            Cancelled: `cancel` was set.
            OSError: the scratch directory cannot be written.
        """
        self._scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="delta-", dir=self._scratch))
        try:
            order = DeltaOrder(
                base=str(base.absolute()), delta=str(delta.absolute()), output=str(output.absolute()),
                size_bytes=size_bytes, result_path=str(folder / "result.json"), parent_pid=os.getpid(),
                limits=replace(self._limits, file_bytes_max=max(size_bytes, 1024 * 1024)),
            )  # fmt: skip
            self._run(order, folder, cancel)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self, order: DeltaOrder, folder: Path, cancel: threading.Event) -> None:
        (folder / "order.json").write_bytes(msgspec.json.encode(order))
        worker = self._start(folder / "order.json")
        try:
            in_time = worker_process.ended(worker, self._limits.wall_s_max, cancel)
        finally:
            worker_process.kill_group(worker)
        if not in_time:
            raise FinalError(
                "delta_timeout",
                f"the delta was not applied within {self._limits.wall_s_max:.0f} s and its worker killed",
            )
        try:
            outcome = read_outcome(folder / "result.json")
        except (OSError, ValueError) as error:
            said = worker_process.tail(folder / "log", _LOG_TAIL_BYTES)
            how = f"ended with {worker.returncode} and left no outcome ({error}): {said}"
            raise FinalError("delta_crashed", f"the delta's worker {how}"[:1000]) from None
        if outcome.code is not None:
            kind = RetryError if outcome.code == "disk_full" else FinalError
            raise kind(outcome.code, outcome.detail)

    def _start(self, order: Path) -> subprocess.Popen[bytes]:
        try:
            return worker_process.start(self._python, self._module, order, {"OMP_NUM_THREADS": "1"})
        except OSError as error:
            raise RetryError("delta_not_started", f"cannot start {self._python}: {error}") from None
