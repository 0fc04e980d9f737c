"""Starts a program for each connection to a Unix socket, as systemd does for `Accept=yes`.

For: tests of the worker's socket without systemd; the units themselves are tested under tests/systemd.
Not for: limits or walls of a unit.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.conftest import ROOT

SERVE = (sys.executable, "-m", "agent.worker.serve")


class Inetd:
    """What was started, in order."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self._command, self._environment = command, environment
        self.started: list[subprocess.Popen[bytes]] = []

    def accept(self, connection: socket.socket) -> None:
        """The program with the connection as its input and output; this side keeps no end of it."""
        with connection:
            self.started.append(
                subprocess.Popen(
                    self._command, cwd=ROOT, env=self._environment, stdin=connection.fileno(),
                    stdout=connection.fileno(),
                    stderr=subprocess.DEVNULL, start_new_session=True,
                )
            )  # fmt: skip


@contextlib.contextmanager
def listening(path: Path, temporary: Path, command: Sequence[str] = SERVE) -> Iterator[Inetd]:
    """A socket at `path`; programs find `temporary` as their directory for scratch."""
    temporary.mkdir(exist_ok=True)
    inetd = Inetd(command, {"PATH": os.environ["PATH"], "TMPDIR": str(temporary)})
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    inetd.accept(listener.accept()[0])

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield inetd
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            for process in inetd.started:
                process.kill()
                process.wait()
