"""The daemon's side of a trial: starts the worker, watches it, reads what it left.

For: a model that hangs, eats memory, crashes the runtime or prints without end harming nobody: the worker
has limits of its own (`agent.worker.limits`), and this side keeps the wall time, kills the whole process
group, and reads one small result file.
Not for: measuring, or a sandbox against code in the runtime; that is systemd's part.
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

from agent.errors import Cancelled, FinalError, RetryError
from agent.worker.job import TrialFailure, TrialJob, read_outcome, write_file
from agent.worker.limits import WorkerLimits
from wire.measures import TrialResult

LOG_CHARS_MAX = 600
_POLL_S = 0.05
_OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "failed to allocate", "cannot allocate", "memoryerror")
_PACKAGE_ROOT = Path(__file__).parent.parent.parent


class TrialProcess:
    """Runs each trial in a process that ends; fulfils `agent.ports.TrialRunner`.

    Args:
        scratch: a directory of ours; each trial makes and removes a folder in it.
        limits: of one worker.
        python: the interpreter that has the runtime; another environment's is fine.
    """

    def __init__(self, scratch: Path, limits: WorkerLimits, python: str = sys.executable) -> None:
        self._scratch, self._limits, self._python = scratch, limits, python

    def run(self, job: TrialJob, cancel: threading.Event) -> TrialResult:
        """Measures a candidate.

        Raises:
            FinalError: `trial_timeout`, `trial_crashed`, `trial_out_of_memory`, `trial_result_invalid`,
                or the worker's own reason, such as `model_load_failed`.
            RetryError: `trial_not_started`.
            Cancelled: `cancel` was set.
        """
        self._scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="trial-", dir=self._scratch))
        try:
            return self._run(job, cancel, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self, job: TrialJob, cancel: threading.Event, folder: Path) -> TrialResult:
        result = folder / "result.json"
        write_file(folder / "job.json", job)
        worker = self._start(folder, result)
        try:
            self._wait(worker, cancel)
        finally:
            _kill_group(worker)
        if not result.exists():
            raise _died(worker.returncode, folder / "log")
        outcome = read_outcome(result)
        if isinstance(outcome, TrialFailure):
            raise FinalError(_code(outcome), outcome.detail)
        return outcome.result

    def _start(self, folder: Path, result: Path) -> subprocess.Popen[bytes]:
        limits = msgspec.json.encode(self._limits).decode()
        command = [self._python, "-m", "agent.worker.trial", str(folder / "job.json"), str(result), limits]
        environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "PYTHONPATH": str(_PACKAGE_ROOT),
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "LANG": "C.UTF-8",
            "ORT_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
        }
        try:
            with (folder / "log").open("wb") as log:
                return subprocess.Popen(
                    [*command, str(os.getpid())], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL, stderr=log, start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            raise RetryError("trial_not_started", f"cannot start {self._python}: {error}") from None

    def _wait(self, worker: subprocess.Popen[bytes], cancel: threading.Event) -> None:
        deadline = time.monotonic() + self._limits.wall_s_max
        while worker.poll() is None:
            if cancel.wait(_POLL_S):
                raise Cancelled
            if time.monotonic() > deadline:
                raise FinalError(
                    "trial_timeout",
                    f"the trial did not end within {self._limits.wall_s_max:.0f} s and was killed",
                )


def _kill_group(worker: subprocess.Popen[bytes]) -> None:
    """Kills the worker and whatever it started, and collects it."""
    with contextlib.suppress(ProcessLookupError):  # it has ended, and so has everything it started
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def _died(returncode: int, log: Path) -> FinalError:
    """A worker that left no result, in words."""
    text = log.read_bytes()[-4096:].decode(errors="replace") if log.exists() else ""
    tail = text.strip()[-LOG_CHARS_MAX:]
    if any(word in tail.lower() for word in _OUT_OF_MEMORY):
        return FinalError("trial_out_of_memory", f"the trial needs more memory than it may use: {tail}")
    if returncode == -signal.SIGXCPU:
        return FinalError("trial_timeout", "the trial used up its processor time")
    how = f"exit code {returncode}"
    if returncode < 0:
        try:
            how = signal.Signals(-returncode).name
        except ValueError:
            how = f"signal {-returncode}"
    return FinalError("trial_crashed", f"the worker died of {how} without a result: {tail}")


def _code(failure: TrialFailure) -> str:
    """The runtime tells of a failed allocation in words only."""
    if any(word in failure.detail.lower() for word in _OUT_OF_MEMORY):
        return "trial_out_of_memory"
    return failure.code
