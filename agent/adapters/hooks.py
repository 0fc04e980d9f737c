"""The application's own commands: told of a switch, asked for its health.

For: running them as argument lists (no shell), in a process group of their own, with a time limit and
their output capped. When a hook ends or is ended, all that is left in its group ends with it and its output
goes nowhere: what has to live on is a service of its own, or leaves the group by `setsid` and redirects.
Not for: deciding what follows from a failure (`agent.lifecycle`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from agent.config_life import HookConfig
from agent.errors import Cancelled, FinalError

log = logging.getLogger(__name__)

SYSTEMCTL = ("systemctl", "--no-pager", "--no-ask-password")
OUTPUT_BYTES_MAX = 2000
PIPE_BYTES = 64 * 1024
POLL_S = 0.02
TERM_GRACE_S = 0.5
"""Between the signal that asks and the one that does not; the daemon's own stop waits little longer."""
KILL_S_MAX = 5.0
"""For the kernel to end what was killed."""
OWN_VARIABLES = frozenset({
    "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES",
    "JOURNAL_STREAM", "INVOCATION_ID", "CREDENTIALS_DIRECTORY", "STATE_DIRECTORY", "RUNTIME_DIRECTORY",
})  # fmt: skip
"""What systemd gave the daemon and nobody else: a hook must not answer its watchdog."""


class CommandHooks:
    """Fulfils `agent.ports.Hooks` from the configuration; a model without an entry has no hooks."""

    def __init__(self, hooks: Mapping[str, HookConfig]) -> None:
        self._hooks = hooks

    def activate(self, model: str, current: Path, cancel: threading.Event) -> None:
        """Runs the `activate` command, or has systemd do what `activate_unit` says.

        Raises:
            FinalError: `activate_failed` or `activate_timeout`.
            Cancelled: `cancel` was set.
        """
        hook = self._hooks.get(model)
        command = () if hook is None else _command(hook)
        if hook is None or not command:
            return
        if hook.activate_unit is not None and hook.unit is not None:
            # A unit that crashed too often is not started again, not even with the model that is well.
            forgive = (*SYSTEMCTL, "reset-failed", "--", hook.unit)
            failed = _run(forgive, hook.timeout_s, model, current, cancel)
            if failed is not None:
                log.info("systemctl reset-failed %s: %s", hook.unit, failed)
        failed = _run(command, hook.timeout_s, model, current, cancel)
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


def _command(hook: HookConfig) -> tuple[str, ...]:
    """What tells the application of a switch; empty where nothing does."""
    if hook.activate_unit is not None and hook.unit is not None:
        return (*SYSTEMCTL, hook.activate_unit, "--", hook.unit)
    return hook.activate


def _run(
    command: tuple[str, ...], timeout_s: float, model: str, current: Path, cancel: threading.Event
) -> str | None:
    """Runs a command; what went wrong, or None."""
    inherited = {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES}
    environment = {**inherited, "SHALLOP_MODEL": model, "SHALLOP_CURRENT": str(current)}
    reading, writing = os.pipe()
    said = _Tail(reading)
    try:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=writing, stderr=writing,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        said.close()
        return f"it cannot be started: {error}"
    finally:
        os.close(writing)
    try:
        ended = _wait(process, timeout_s, cancel, said)
    finally:
        _end_group(process, said)
        said.close()
    if not ended:
        return f"no answer within {timeout_s:g} s"
    if process.returncode == 0:
        return None
    return f"exit code {process.returncode}: {said.text()}"


class _Tail:
    """The end of what a command says; the rest is read and forgotten, so that it neither waits nor fills."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._kept = b""
        self._open = True

    def take(self, wait_s: float, cancel: threading.Event) -> None:
        """Reads what is there, or waits for more, or for `cancel`."""
        if not self._open:
            cancel.wait(wait_s)
        elif select.select([self._fd], [], [], wait_s)[0]:
            self.read()

    def read(self) -> None:
        """Reads once what is there; at most what a pipe holds."""
        try:
            data = os.read(self._fd, PIPE_BYTES)
        except BlockingIOError:
            return
        self._open = bool(data)
        self._kept = (self._kept + data)[-OUTPUT_BYTES_MAX:]

    def text(self) -> str:
        return self._kept.decode(errors="replace").strip()

    def close(self) -> None:
        os.close(self._fd)


def _wait(process: subprocess.Popen[bytes], timeout_s: float, cancel: threading.Event, said: _Tail) -> bool:
    """Whether it ended in time.

    Raises:
        Cancelled: it was called off.
    """
    deadline_s = time.monotonic() + timeout_s
    while not _ended(process):
        said.take(POLL_S, cancel)
        if cancel.is_set():
            raise Cancelled
        if time.monotonic() > deadline_s:
            return False
    return True


def _ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it did; it is left unreaped, so that its number, which is its group's, is nobody else's."""
    how = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, how) is not None


def _end_group(process: subprocess.Popen[bytes], said: _Tail) -> None:
    """Ends the command and all that it left in its group: asked first, where it still runs, then killed."""
    if not _ended(process):
        _signal(process, signal.SIGTERM)
        _linger(process, said, TERM_GRACE_S)
    _signal(process, signal.SIGKILL)
    _linger(process, said, KILL_S_MAX)
    if not _ended(process):
        log.error("hook %s cannot be ended, it runs as another user; it is left alone", process.args)
        return
    process.wait()
    said.read()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """A group that took another user's rights, as `sudo` does, takes no signal from this one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _linger(process: subprocess.Popen[bytes], said: _Tail, wait_s: float) -> None:
    deadline_s = time.monotonic() + wait_s
    while not _ended(process) and time.monotonic() < deadline_s:
        said.take(POLL_S, threading.Event())
