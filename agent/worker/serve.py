"""A worker behind a socket: `python -m agent.worker.serve`, started by systemd for one connection.

For: a daemon that may start no processes of its own. The connection is this process's standard input and
output: one order comes in as a line, one outcome goes out, and whoever hangs up ends it. It starts the worker
proper as the daemon would (`agent.adapters.trial_process`), inside the unit's walls, so that a model that
crashes its runtime is told by name here too.
Not for: listening (the socket unit), or trusting the unit: the worker proper closes its own sandbox as well.

A first empty line says that this process runs, so that the daemon can tell a unit that does not start, which
may be repaired, from a candidate that broke its worker, which it will do again.
"""

from __future__ import annotations

import os
import select
import sys
import tempfile
import threading
from pathlib import Path

from agent.adapters.trial_process import TrialProcess
from agent.errors import AgentError, Cancelled, RetryError
from agent.worker.job import (
    DETAIL_CHARS_MAX,
    ORDER_BYTES_MAX,
    TrialFailure,
    TrialSuccess,
    encoded,
    trial_order,
)

_ORDER_S_MAX = 60.0
"""For the whole order to arrive."""
_READ_BYTES = 65536


def main(connection: int = 0, answer: int = 1) -> int:
    """Serves one order; 0 where an outcome was sent, be it a failure."""
    try:
        _send(answer, b"\n")
        line = _line(connection)
        if line is None:
            return 1
        outcome = _outcome(line, _hung_up(connection))
        _send(answer, encoded(outcome) + b"\n")
    except (Cancelled, BrokenPipeError, ConnectionResetError):
        return 1
    return 0


def _line(connection: int) -> bytes | None:
    """The order; None where the other side hung up, or was too slow, before it was whole."""
    data = bytearray()
    while b"\n" not in data:
        if len(data) > ORDER_BYTES_MAX or not select.select([connection], [], [], _ORDER_S_MAX)[0]:
            return None
        part = os.read(connection, _READ_BYTES)
        if not part:
            return None
        data += part
    return bytes(data[: data.index(b"\n")])


def _hung_up(connection: int) -> threading.Event:
    """Set when the other side is gone, or says more than it should."""
    event = threading.Event()

    def watch() -> None:
        poller = select.poll()
        poller.register(connection, select.POLLIN | select.POLLRDHUP)
        poller.poll()
        event.set()

    threading.Thread(target=watch, name="peer", daemon=True).start()
    return event


def _outcome(line: bytes, hung_up: threading.Event) -> TrialSuccess | TrialFailure:
    with tempfile.TemporaryDirectory(prefix="shallop-", ignore_cleanup_errors=True) as scratch:
        try:
            order = trial_order(line)
            return TrialSuccess(result=TrialProcess(Path(scratch), order.limits).run(order.job, hung_up))
        except AgentError as error:
            return _failed(error)
        except OSError as error:
            return _failed(RetryError("trial_not_started", f"the worker's folder is unusable: {error}"))


def _failed(error: AgentError) -> TrialFailure:
    detail = str(error.args[0])[:DETAIL_CHARS_MAX]
    return TrialFailure(code=error.code, detail=detail, lasting=error.lasting)


def _send(answer: int, data: bytes) -> None:
    while data:
        data = data[os.write(answer, data) :]


if __name__ == "__main__":
    sys.exit(main())
