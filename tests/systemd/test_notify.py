"""What the daemon tells systemd, by a real socket: ready once, alive from the loop and from nothing else."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.adapters.systemd_notify import STATUS_CHARS_MAX, SystemdSupervisor
from tests.agent.rig import DEVICE, ONE, Rig
from tests.agent.twins import MemoryBroker, until
from wire.messages import OrderOutcome

Start = Callable[..., SystemdSupervisor]


class Listener:
    """systemd's end of the socket."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(self.path)
        self.said: list[str] = []

    def heard(self) -> list[str]:
        """What came since the last call."""
        came = []
        while True:
            try:
                came.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                self.said += came
                return came

    def wait(self, message: str) -> None:
        until(lambda: message in self.heard(), f"{message} from the daemon; it said {self.said}")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    made = Listener(tmp_path / "notify")
    yield made
    made.close()


@pytest.fixture
def start(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> Start:
    """A supervisor as a process with this environment would have."""

    def build(watchdog_s: float | None = None, pid: int | None = None) -> SystemdSupervisor:
        monkeypatch.setenv("NOTIFY_SOCKET", listener.path)
        if watchdog_s is not None:
            monkeypatch.setenv("WATCHDOG_USEC", str(int(watchdog_s * 1e6)))
            monkeypatch.setenv("WATCHDOG_PID", str(pid or os.getpid()))
        return SystemdSupervisor()

    return build


def test_the_loop_never_sleeps_past_the_watchdog(start: Start) -> None:
    assert start(watchdog_s=3).within_s == 1.0
    assert start(watchdog_s=60).within_s == 20.0


def test_the_watchdog_is_fed_well_before_it_bites(
    start: Start, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a loop that wakes as late as it may: never more than half of the interval goes by."""
    supervisor, now_s, fed_s = start(watchdog_s=60), 1000.0, [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    while now_s < 1600.0:
        supervisor.alive()
        fed_s += [now_s] * len(listener.heard())
        now_s += supervisor.within_s
    assert max(later - earlier for earlier, later in itertools.pairwise([*fed_s, now_s])) <= 30.0


@pytest.mark.parametrize("pid", [1, 2**22])
def test_a_watchdog_that_is_meant_for_another_process_is_not_fed(
    start: Start, listener: Listener, pid: int
) -> None:
    supervisor = start(watchdog_s=0.001, pid=pid)
    assert supervisor.within_s == float("inf")
    supervisor.alive()
    assert listener.heard() == []


@pytest.mark.parametrize("text", ["", "0", "soon", "-5", "1.5", "²"])
def test_an_interval_that_is_none_is_no_watchdog(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", text)
    assert SystemdSupervisor().within_s == float("inf")


def test_a_hook_or_a_trial_cannot_speak_for_the_daemon(start: Start) -> None:
    start(watchdog_s=3)
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)


def test_a_daemon_that_starts_again_in_place_is_watched_on(
    start: Start, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its environment the next one would starve the watchdog."""
    for name, value in start(watchdog_s=3).environment.items():
        monkeypatch.setenv(name, value)
    again = SystemdSupervisor()
    assert again.within_s == 1.0
    again.alive()
    listener.wait("WATCHDOG=1")
    monkeypatch.setenv("WATCHDOG_USEC", "")
    assert SystemdSupervisor().environment == {}


def test_a_status_is_one_line_and_no_second_message(start: Start, listener: Listener) -> None:
    start().status("digits: refused\nSTOPPING=1\r\nWATCHDOG=trigger " + "x" * 1000)
    (said,) = listener.heard()
    assert said.startswith("STATUS=digits: refused STOPPING=1 WATCHDOG=trigger xxx")
    assert "\n" not in said
    assert len(said) == len("STATUS=") + STATUS_CHARS_MAX


def test_a_loop_that_turns_feeds_the_watchdog_and_one_that_is_blocked_does_not(
    start: Start, listener: Listener, tmp_path: Path
) -> None:
    rig = Rig(tmp_path / "state", MemoryBroker())
    rig.supervisor = start(watchdog_s=0.3)  # type: ignore[assignment] # the real one instead of the twin
    rig.start()
    blocked, release = threading.Event(), threading.Event()
    try:
        listener.wait("READY=1")
        listener.wait("WATCHDOG=1")
        assert rig.runner._sleep_s() <= 0.1, "a third of the interval, though its pace is 0.2 s"

        def block() -> None:
            blocked.set()
            release.wait(30)

        rig.runner.post(block)
        assert blocked.wait(10)
        listener.heard()
        time.sleep(0.6)  # twice the interval: systemd would have killed it
        assert listener.heard() == []
        release.set()
        listener.wait("WATCHDOG=1")
    finally:
        release.set()
        rig.stop()


def test_systemctl_shows_what_runs(tmp_path: Path) -> None:
    broker = MemoryBroker()
    broker.hold(ONE)
    rig = Rig(tmp_path / "state", broker)
    rig.start()
    try:
        until(lambda: "ready" in rig.supervisor.said, "the start")
        broker.desire(DEVICE, {"digits": ONE.order(1)})
        rig.wait(1, OrderOutcome.ACTIVE)
    finally:
        rig.stop()
    said = rig.supervisor.said
    assert said[:2] == ["no models yet", "ready"]
    assert "digits without a release, fetching" in said
    assert [line for line in said if line != "stopping"][-1] == "digits 1, idle"
