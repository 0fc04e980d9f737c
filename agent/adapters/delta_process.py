"""The daemon's side of a delta: starts the worker, watches it, reads how it went.

For: fulfilling `agent.ports.DeltaRunner` by a process that ends, so that neither numpy nor a hostile delta
ever is in the daemon. Limits are the worker's own (`agent.worker.limits`); wall time and cancelling are
kept here.
Not for: believing the output: the caller hashes it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import msgspec
from msgspec.structs import replace

from agent.errors import Cancelled, FinalError, RetryError
from agent.worker.delta_job import DeltaOrder, read_outcome
from agent.worker.limits import WorkerLimits

_POLL_S = 0.05
_LOG_TAIL_BYTES = 600
_PACKAGE_ROOT = Path(__file__).parent.parent.parent


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
        worker = self._start(folder)
        try:
            self._wait(worker, cancel)
        finally:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and so has all that it started
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        try:
            outcome = read_outcome(folder / "result.json")
        except (OSError, ValueError) as error:
            how = f"ended with {worker.returncode} and left no outcome ({error}): {_tail(folder / 'log')}"
            raise FinalError("delta_crashed", f"the delta's worker {how}"[:1000]) from None
        if outcome.code is not None:
            kind = RetryError if outcome.code == "disk_full" else FinalError
            raise kind(outcome.code, outcome.detail)

    def _start(self, folder: Path) -> subprocess.Popen[bytes]:
        installed = _PACKAGE_ROOT.name in {"site-packages", "dist-packages"}
        environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": str(folder), "TMPDIR": str(folder),
            "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1",
            # As for trials: never one environment's packages before another's.
            **({} if installed and self._python != sys.executable else {"PYTHONPATH": str(_PACKAGE_ROOT)}),
        }  # fmt: skip
        command = [self._python, "-m", self._module, str(folder / "order.json")]
        try:
            with (folder / "log").open("wb") as log:
                return subprocess.Popen(
                    command, cwd=folder, env=environment, stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL, stderr=log, start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            raise RetryError("delta_not_started", f"cannot start {self._python}: {error}") from None

    def _wait(self, worker: subprocess.Popen[bytes], cancel: threading.Event) -> None:
        deadline = time.monotonic() + self._limits.wall_s_max
        while worker.poll() is None:
            if cancel.wait(_POLL_S):
                raise Cancelled
            if time.monotonic() > deadline:
                raise FinalError(
                    "delta_timeout",
                    f"the delta was not applied within {self._limits.wall_s_max:.0f} s and its worker killed",
                )


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_TAIL_BYTES))
            return file.read(_LOG_TAIL_BYTES).decode(errors="replace").strip()
    except OSError:
        return ""
