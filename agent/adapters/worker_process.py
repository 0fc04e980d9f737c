"""A worker as a process: started in a folder of its own, watched, killed with all that it started.

For: what a trial's and a delta's process have in common, and asking the interpreter that runs them what it
has.
Not for: orders, outcomes, or what an end means (`agent.adapters.trial_process`, `delta_process`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from agent.errors import Cancelled

POLL_S = 0.05
ANSWER_BYTES_MAX = 65536
_PACKAGE_ROOT = Path(__file__).parent.parent.parent
_ASK = """
import importlib.metadata as m, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def start(python: str, module: str, order: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts `python -m module order` in the order's folder, its words in `log` there.

    Args:
        python: the interpreter.
        module: the worker's entry.
        order: the file that it is started with; its folder is the worker's own.
        environment: beside the few variables that every worker has; nothing is inherited but PATH.

    Raises:
        OSError: it cannot be started.
    """
    folder = order.parent
    variables = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": str(folder), "TMPDIR": str(folder),
        "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", **environment, **_package_path(python),
    }  # fmt: skip
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [python, "-m", module, str(order)], cwd=folder, env=variables, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=log, start_new_session=True,
        )  # fmt: skip


def _package_path(python: str) -> dict[str, str]:
    """Where the worker finds Shallop, if its interpreter might not know.

    A site-packages directory is never put before those of another environment: its numpy may be of the
    wrong version for the runtime there.
    """
    installed = _PACKAGE_ROOT.name in {"site-packages", "dist-packages"}
    return {} if installed and python != sys.executable else {"PYTHONPATH": str(_PACKAGE_ROOT)}


def ended(worker: subprocess.Popen[bytes], wall_s_max: float, cancel: threading.Event) -> bool:
    """Waits for its end; False where the time was up first.

    Raises:
        Cancelled: `cancel` was set.
    """
    deadline_s = time.monotonic() + wall_s_max
    while worker.poll() is None:
        if cancel.wait(POLL_S):
            raise Cancelled
        if time.monotonic() > deadline_s:
            return False
    return True


def kill_group(worker: subprocess.Popen[bytes]) -> None:
    """Kills the worker and whatever it started, and collects it."""
    with contextlib.suppress(ProcessLookupError):  # it has ended, and so has everything it started
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def tail(log: Path, size_bytes_max: int) -> str:
    """The last words of a log, however long it is; empty where it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size_bytes_max))
            return file.read(size_bytes_max).decode(errors="replace").strip()
    except OSError:
        return ""


def versions(python: str, names: Iterable[str], wall_s_max: float) -> dict[str, str]:
    """Versions of those distributions that an interpreter has, and its own as `python`.

    Raises:
        OSError, subprocess.SubprocessError, msgspec.DecodeError: it does not answer, or not in this way.
    """
    said = subprocess.run(
        [python, "-I", "-c", _ASK, *names], stdin=subprocess.DEVNULL, capture_output=True,
        timeout=wall_s_max, check=True,
    )  # fmt: skip
    return msgspec.json.decode(said.stdout[:ANSWER_BYTES_MAX], type=dict[str, str])
