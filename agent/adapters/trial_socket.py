"""Trials by a worker that systemd starts for each connection to a socket.

For: a daemon whose own unit may start nothing, and a worker in a unit with walls of its own (systemd/). The
order goes out as one line, one outcome comes back; the wall time is kept here, and hanging up ends the
worker.
Not for: the worker's side (`agent.worker.serve`), or starting one oneself (`agent.adapters.trial_process`).
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path

from agent.errors import Cancelled, FinalError, RetryError
from agent.worker.job import (
    ORDER_BYTES_MAX,
    OUTCOME_BYTES_MAX,
    TrialJob,
    TrialOrder,
    encoded,
    outcome_of,
    result_of,
)
from agent.worker.limits import WorkerLimits
from wire.measures import TrialResult

GRACE_S = 20.0
"""For the unit to start, and for the worker to tell itself that its time is up."""
_CONNECT_S = 10.0
_POLL_S = 0.05
_READ_BYTES = 65536
_REMEDY = (
    "look at `systemctl status shallop-worker.socket` and `journalctl -u 'shallop-worker@*'`, or take "
    "`trial.socket` out of the configuration"
)


class TrialSocket:
    """Has each trial run behind the socket; fulfils `agent.ports.TrialRunner`.

    Args:
        path: of the socket.
        limits: asked of the worker; its wall time is kept here too.
        grace_s: on top of the wall time, before this side hangs up.
    """

    def __init__(self, path: Path, limits: WorkerLimits, grace_s: float = GRACE_S) -> None:
        self._path, self._limits, self._grace_s = path, limits, grace_s

    def run(self, job: TrialJob, cancel: threading.Event) -> TrialResult:
        """Measures a candidate.

        Raises:
            FinalError: `trial_timeout`, `trial_crashed`, `trial_result_invalid`, `trial_file_oversized`, or
                the worker's own reason.
            RetryError: `trial_not_started`: nobody answers at the socket, or the unit does not start.
            Cancelled: `cancel` was set.
        """
        order = encoded(TrialOrder(job=job, limits=self._limits)) + b"\n"
        if len(order) > ORDER_BYTES_MAX:
            raise FinalError(
                "trial_file_oversized", f"the order is larger than the {ORDER_BYTES_MAX} bytes of a worker"
            )
        deadline = time.monotonic() + self._limits.wall_s_max + self._grace_s
        with self._connected() as connection:
            conversation = _Conversation(connection, cancel, deadline, self._path)
            conversation.say(order)
            return result_of(outcome_of(conversation.hear()))

    def _connected(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.settimeout(_CONNECT_S)
            connection.connect(str(self._path))
        except OSError as error:
            connection.close()
            raise RetryError(
                "trial_not_started", f"no worker answers at {self._path} ({error}): {_REMEDY}"
            ) from None
        connection.settimeout(_POLL_S)
        return connection


class _Conversation:
    """One order and its outcome, over a connection that waits a little at a time."""

    def __init__(
        self, connection: socket.socket, cancel: threading.Event, deadline: float, path: Path
    ) -> None:
        self._connection, self._cancel, self._deadline, self._path = connection, cancel, deadline, path

    def say(self, order: bytes) -> None:
        """Sends the order; a worker that has hung up is told of by `hear`."""
        left = memoryview(order)
        while left:
            self._check()
            try:
                left = left[self._connection.send(left) :]
            except TimeoutError:
                continue
            except OSError:
                return

    def hear(self) -> bytes:
        """The outcome, without the empty line that goes before it."""
        data = bytearray()
        while True:
            start = len(data) - len(data.lstrip(b"\n"))
            if b"\n" in data[start:]:
                return bytes(data[start : data.index(b"\n", start)])
            if len(data) > OUTCOME_BYTES_MAX:
                raise FinalError("trial_file_oversized", f"the worker said over {OUTCOME_BYTES_MAX} bytes")
            self._check()
            with contextlib.suppress(TimeoutError):
                part = self._read()
                if not part:
                    raise self._hung_up(started=bool(data))
                data += part

    def _read(self) -> bytes:
        try:
            return self._connection.recv(_READ_BYTES)
        except ConnectionResetError:
            return b""

    def _check(self) -> None:
        if self._cancel.is_set():
            raise Cancelled
        if time.monotonic() > self._deadline:
            raise FinalError("trial_timeout", "the trial did not end within its time and was called off")

    def _hung_up(self, *, started: bool) -> FinalError | RetryError:
        if started:
            return FinalError(
                "trial_crashed",
                "the worker's unit ended without a result, most likely at a limit of its own; "
                "`journalctl -u 'shallop-worker@*'` says how",
            )
        return RetryError("trial_not_started", f"the worker's unit at {self._path} did not start: {_REMEDY}")
