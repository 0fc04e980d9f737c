"""One broker process on a loopback port: started, proven to answer, stopped, killed, started again.

For: the embedded broker and the integration tests' Mosquitto, which differ only in their configuration.
Not for: choosing a broker or writing its configuration; nor for clients, whose only trace here is one
CONNECT written by hand, so that nothing has to be installed to ask a broker whether it is up.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

HOST = "127.0.0.1"
ANSWER_S_MAX = 1.0
LET_GO_S_MAX = 2.0
STOP_S_MAX = 10.0
LOG_BYTES_MAX = 4 * 1024 * 1024
TAIL_BYTES_MAX = 4000
POLL_S = 0.02
T = TypeVar("T")

_CONNACK_ACCEPTED = b"\x20\x02\x00\x00"
_DISCONNECT = b"\xe0\x00"


class BrokerStartError(RuntimeError):
    """A broker could not be started; the message says what happened, why, and what to do next."""


def free_port() -> int:
    """A loopback port that nobody held a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    """Whether an MQTT 3.1.1 CONNECT to that loopback port is accepted, not merely the TCP connection."""
    return answers_plainly((HOST, port))


def answers_plainly(address: tuple[str, int]) -> bool:
    """Whether an MQTT 3.1.1 CONNECT without TLS and without a name is accepted there."""
    name = b"shallop-probe"
    head = b"\x00\x04MQTT\x04\x02\x00\x0a" + len(name).to_bytes(2, "big")
    try:
        with socket.create_connection(address, ANSWER_S_MAX) as link:
            link.sendall(b"\x10" + bytes([len(head) + len(name)]) + head + name)
            reply = link.recv(len(_CONNACK_ACCEPTED), socket.MSG_WAITALL)
            link.sendall(_DISCONNECT)
    except OSError:
        return False
    return reply == _CONNACK_ACCEPTED


def refuse_held_port(port: int) -> None:
    """Makes sure that the port is free before a broker is given it.

    A broker that finds its port taken says so only in its log, and the program that holds it may itself
    be a broker and answer our CONNECT: we would report success and speak to the wrong one.

    Raises:
        BrokerStartError: somebody listens there, or we may not.
    """
    with socket.socket() as probe:
        # With SO_REUSEADDR connections of a broker that was just killed do not count, a listener does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise BrokerStartError(
                f"no broker was started: {HOST}:{port} cannot be listened on ({error.strerror}); "
                f"`ss -ltnp 'sport = :{port}'` names who holds it: stop that one or choose another port"
            ) from error


def _within_let_go(attempt: Callable[[], T]) -> T:
    """A broker whose starter was killed dies a moment after it: try again for that moment."""
    deadline = time.monotonic() + LET_GO_S_MAX
    while True:
        try:
            return attempt()
        except BrokerStartError:
            if time.monotonic() > deadline:
                raise
        time.sleep(POLL_S)


class BrokerProcess:
    """Runs `command` as a broker on `port`.

    Args:
        command: with its configuration, which must make it listen on `port` of loopback.
        port: where it will answer.
        log: gets its output; locked as long as the broker lives, so one folder has one broker.
        dies_with_us: the kernel kills the broker when the calling *thread* ends, even by kill -9. Only for
            a program's main thread; where `setpriv` (util-linux) is missing the broker survives kill -9.
        ready: whether the broker on a port is up; None asks by a CONNECT without TLS.
    """

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        log: Path,
        *,
        dies_with_us: bool = False,
        ready: Callable[[int], bool] | None = None,
    ) -> None:
        self.program = command[0]
        self._ready = ready
        self.command = list(command)
        self.port = port
        self.log = log
        setpriv = shutil.which("setpriv") if dies_with_us else None
        if setpriv:
            self.command = [setpriv, "--pdeathsig", "KILL", "--", *self.command]
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the running broker."""
        return self._process.pid if self._process is not None and self.alive() else None

    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def start(self, start_s_max: float) -> None:
        """Starts it and waits until it accepts a CONNECT.

        Raises:
            BrokerStartError: the port or the folder is taken, it ended, or it did not answer in time.
            RuntimeError: it runs already, which is our own bug.
        """
        if self.alive():
            raise RuntimeError(f"the broker on port {self.port} runs already")
        _within_let_go(lambda: refuse_held_port(self.port))
        with self.log.open("ab") as log:
            self._log_start = _within_let_go(lambda: self._claim(log))
            self._process = self._spawn(log)
        try:
            self._wait_answer(start_s_max)
        except BaseException:
            # Also on Ctrl-C: nobody else knows of this process yet.
            self.kill()
            raise

    def _wait_answer(self, start_s_max: float) -> None:
        deadline = time.monotonic() + start_s_max
        ready = self._ready or answers
        while not ready(self.port):
            if not self.alive():
                raise self._failure(f"ended at once with status {self.wait()}")
            if time.monotonic() > deadline:
                raise self._failure(f"accepted no MQTT connection within {start_s_max:g} s and is killed")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """SIGTERM, so that it saves what it remembers; SIGKILL if it takes longer than `STOP_S_MAX`."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        self._end(signal.SIGKILL)

    def wait(self) -> int:
        """Waits until it ends by itself; its exit status."""
        return self._process.wait() if self._process is not None else 0

    def tail(self) -> str:
        """The end of what it said since its last start."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, end - TAIL_BYTES_MAX))
            return log.read().decode(errors="replace").strip()

    def _claim(self, log: BinaryIO) -> int:
        """Locks the log; the broker inherits the lock with its output, so it ends with the broker."""
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BrokerStartError(
                f"no broker was started: another one runs in {self.log.parent} and two would ruin each "
                f"other's data; stop it (`pgrep -af {shlex.quote(str(self.log.parent))}` names it) "
                "or choose another folder"
            ) from error
        if log.seek(0, os.SEEK_END) > LOG_BYTES_MAX:
            log.truncate(0)
        return log.seek(0, os.SEEK_END)

    def _spawn(self, log: BinaryIO) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        except OSError as error:
            raise BrokerStartError(
                f"no broker was started: {self.program} cannot be run ({error.strerror}); install it again"
            ) from error

    def _failure(self, happened: str) -> BrokerStartError:
        said = self.tail() or "nothing"
        return BrokerStartError(
            f"the broker {self.program} on {HOST}:{self.port} {happened}; "
            f"its log {self.log} ends:\n{said}\n"
            "correct what it complains of, or remove its data folder to start with an empty memory"
        )

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(how)
        try:
            self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
