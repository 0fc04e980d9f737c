"""The application's own commands: told of a switch, asked for its health.

For: running them as argument lists (no shell), in a process group of their own, with a time limit and
their output capped; a hook that hangs is killed with all that it started.
Not for: deciding what follows from a failure (`agent.lifecycle`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from agent.config import HookConfig
from agent.errors import Cancelled, FinalError

OUTPUT_BYTES_MAX = 2000
POLL_S = 0.02


class CommandHooks:
    """Fulfils `agent.ports.Hooks` from the configuration; a model without an entry has no hooks."""

    def __init__(self, hooks: Mapping[str, HookConfig]) -> None:
        self._hooks = hooks

    def activate(self, model: str, current: Path, cancel: threading.Event) -> None:
        """Runs the `activate` command.

        Raises:
            FinalError: `activate_failed` or `activate_timeout`.
            Cancelled: `cancel` was set.
        """
        hook = self._hooks.get(model)
        if hook is None or not hook.activate:
            return
        failed = _run(hook.activate, hook.timeout_s, model, current, cancel)
        if failed is not None:
            code = "activate_timeout" if failed.startswith("no answer") else "activate_failed"
            raise FinalError(code, f"the activate hook of {model}: {failed}")

    def healthy(self, model: str, current: Path, cancel: threading.Event) -> str | None:
        """Runs the `health` command; None if it says that all is well, or there is none.

        Raises:
            Cancelled: `cancel` was set.
        """
        hook = self._hooks.get(model)
        if hook is None or not hook.health:
            return None
        return _run(hook.health, hook.timeout_s, model, current, cancel)

    def interval_s(self, model: str) -> float:
        """Seconds between two looks at its health."""
        hook = self._hooks.get(model)
        return HookConfig().health_interval_s if hook is None else hook.health_interval_s


def _run(
    command: tuple[str, ...], timeout_s: float, model: str, current: Path, cancel: threading.Event
) -> str | None:
    """Runs a command; what went wrong, or None."""
    environment = {**os.environ, "SHALLOP_MODEL": model, "SHALLOP_CURRENT": str(current)}
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return f"it cannot be started: {error}"
        try:
            ended = _wait(process, timeout_s, cancel)
        finally:
            _kill_group(process)
        if not ended:
            return f"no answer within {timeout_s:g} s"
        if process.returncode == 0:
            return None
        output.seek(0)
        said = output.read(OUTPUT_BYTES_MAX).decode(errors="replace").strip()
        return f"exit code {process.returncode}: {said}"


def _wait(process: subprocess.Popen[bytes], timeout_s: float, cancel: threading.Event) -> bool:
    """Whether it ended in time.

    Raises:
        Cancelled: it was called off.
    """
    deadline_s = time.monotonic() + timeout_s
    while process.poll() is None:
        if cancel.wait(POLL_S):
            raise Cancelled
        if time.monotonic() > deadline_s:
            return False
    return True


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
