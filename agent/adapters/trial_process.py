"""The daemon's side of a trial: starts the worker, watches it, reads what it left.

For: a model that hangs, eats memory, crashes the runtime or prints without end harming nobody: the worker
has limits of its own (`agent.worker.limits`), and this side keeps the wall time, kills the whole process
group, and reads one small result file. What the worker prints goes to a file that its own limit on file
sizes bounds, so that no thread is needed to drain a pipe; the tail is read where it died.
Not for: measuring, or a sandbox against code in the runtime; that is systemd's part.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import msgspec

from agent.adapters import worker_process
from agent.errors import AgentError, FinalError, RetryError
from agent.hardware import RUNTIME_OF, runtimes, runtimes_of
from agent.worker.job import TrialJob, WorkerOrder, read_outcome, result_of, write_file
from agent.worker.limits import WorkerLimits
from wire.measures import TrialResult
from wire.messages import RuntimeInfo

LOG_CHARS_MAX = 600
_LOG_TAIL_BYTES = 4096
_OUT_OF_MEMORY = (
    "bad_alloc",
    "bad allocation",
    "failed to allocate",
    "cannot allocate memory",
    "memoryerror",
    "out of memory",
    "memory allocation",
)
_ASK_TIMEOUT_S = 20.0


class TrialProcess:
    """Runs each trial in a process that ends; fulfils `agent.ports.TrialRunner`.

    Args:
        scratch: a directory that nobody else uses; each trial makes and removes a folder in it.
        limits: of one worker.
        python: the interpreter that has the runtime; another environment's is fine, if Shallop is
            installed there too.
    """

    def __init__(self, scratch: Path, limits: WorkerLimits, python: str = sys.executable) -> None:
        self._scratch, self._limits = scratch.absolute(), limits
        self._sweeping = threading.Lock()
        # The worker starts in a directory of its own, from where a relative path leads nowhere.
        self._python = str(Path(python).absolute()) if os.sep in python else python
        self._swept = False

    def run(self, job: TrialJob, cancel: threading.Event) -> TrialResult:
        """Measures a candidate.

        Raises:
            FinalError: `trial_timeout`, `trial_crashed`, `trial_out_of_memory`, `trial_result_invalid`,
                `trial_file_oversized`, or the worker's own reason, such as `model_load_failed`.
            RetryError: `trial_not_started`.
            Cancelled: `cancel` was set.
            OSError: the scratch directory cannot be written.
        """
        self._sweep()
        folder = Path(tempfile.mkdtemp(prefix="trial-", dir=self._scratch))
        try:
            return self._run(job, cancel, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _sweep(self) -> None:
        """Once: makes the scratch directory, and removes what a killed daemon left in it."""
        # One at a time: `doctor` tries several runtimes at once, and one's folder is no leftover to another.
        with self._sweeping:
            self._scratch.mkdir(parents=True, exist_ok=True)
            if not self._swept:
                for left in self._scratch.glob("trial-*"):
                    shutil.rmtree(left, ignore_errors=True)
                self._swept = True

    def _run(self, job: TrialJob, cancel: threading.Event, folder: Path) -> TrialResult:
        result = folder / "result.json"
        order = WorkerOrder(job=job, result_path=str(result), limits=self._limits, parent_pid=os.getpid())
        write_file(folder / "job.json", order)
        worker = self._start(folder / "job.json", job.settings.threads)
        try:
            in_time = worker_process.ended(worker, self._limits.wall_s_max, cancel)
        finally:
            worker_process.kill_group(worker)
        if not in_time:
            raise FinalError(
                "trial_timeout",
                f"the trial did not end within {self._limits.wall_s_max:.0f} s and was killed",
            )
        if worker.returncode != 0 or not result.exists() or not result.stat().st_size:
            said = worker_process.tail(folder / "log", _LOG_TAIL_BYTES)
            raise _died(worker.returncode, said[-LOG_CHARS_MAX:])
        return result_of(read_outcome(result))

    def _start(self, order: Path, threads: int) -> subprocess.Popen[bytes]:
        environment = {
            "ORT_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": str(threads),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        try:
            return worker_process.start(self._python, "agent.worker.trial", order, environment)
        except OSError as error:
            raise RetryError("trial_not_started", f"cannot start {self._python}: {error}") from None


def _died(returncode: int, tail: str) -> AgentError:
    """A worker that left no result, in words."""
    if any(word in tail.lower() for word in _OUT_OF_MEMORY):
        return FinalError("trial_out_of_memory", f"the trial needs more memory than it may use: {tail}")
    if returncode == -signal.SIGXCPU:
        return FinalError("trial_timeout", "the trial used up its processor time")
    if returncode == -signal.SIGKILL:
        return FinalError(
            "trial_out_of_memory",
            f"the worker was killed, most likely for want of memory: {tail}".rstrip(": "),
        )
    how = f"exit code {returncode}"
    if returncode < 0:
        try:
            how = signal.Signals(-returncode).name
        except ValueError:
            how = f"signal {-returncode}"
    return FinalError("trial_crashed", f"the worker died of {how} without a result: {tail}")


def installed_runtimes(python: str | None = None) -> tuple[RuntimeInfo, ...]:
    """The inference runtimes that trials can use, by the metadata of the interpreter that runs them.

    Args:
        python: another environment's interpreter; None is this one, which is not asked by a process.

    Returns:
        Empty where the interpreter does not answer: a trial could not run there either.
    """
    if python is None or python == sys.executable:
        return runtimes()
    try:
        return runtimes_of(worker_process.versions(python, RUNTIME_OF, _ASK_TIMEOUT_S))
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError):
        return ()
