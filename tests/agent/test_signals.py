"""Signals at any moment: a wish ends nothing, SIGTERM and SIGINT end all in order, however many come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.adapters.locks import StateLock, state_lock_held
from agent.requests import Requests
from tests.agent.twins import until

ROOT = Path(__file__).parent.parent.parent


class Daemon:
    """`shallop-agent run` as a process; its broker is not there.

    Args:
        folder: for everything that it writes.
        script: Python that runs in its place, told the configuration's path.
    """

    def __init__(self, folder: Path, script: str | None = None) -> None:
        self.state, self.log = folder / "state", folder / "log"
        config = folder / "agent.yaml"
        config.write_text(
            f"device: roof-1\nstate_dir: {self.state}\ninsecure_unsigned: true\nlive_dir: {folder}\n"
            f"broker: {{host: 127.0.0.1, port: 1}}\ntrial: {{lock_file: {folder}/lock}}\n"
        )
        what = ["-m", "agent", "run", "--config", str(config)]
        if script is not None:
            (folder / "script.py").write_text(textwrap.dedent(script))
            what = [str(folder / "script.py"), str(config)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *what], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip

    def holds(self) -> bool:
        return state_lock_held(self.state) is True

    def said(self, words: str) -> bool:
        return words in self.log.read_text()

    def begun(self) -> None:
        """Waits until it is at work."""
        until(lambda: self.said("broker 127.0.0.1:1") and self.said("cannot reach"), "the agent", 20)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


@pytest.fixture
def daemons() -> Iterator[list[Daemon]]:
    """Those that a test starts; none outlives it."""
    started: list[Daemon] = []
    yield started
    for one in started:
        one.process.kill()
        one.process.communicate()


def test_a_wish_while_it_starts_does_not_end_it(tmp_path: Path, daemons: list[Daemon]) -> None:
    daemon = Daemon(tmp_path)
    daemons.append(daemon)
    while not daemon.holds():
        assert daemon.process.poll() is None
    Requests(daemon.state / "requests").put("digits")
    daemon.process.send_signal(signal.SIGHUP)
    while not daemon.said("cannot reach") and daemon.process.poll() is None:
        time.sleep(0.001)
        daemon.process.send_signal(signal.SIGHUP)
    until(lambda: not list((daemon.state / "requests").iterdir()), "the wish to be taken", 20)
    assert daemon.end() == 0


def test_a_wish_does_not_end_a_command_that_has_the_lock(tmp_path: Path, daemons: list[Daemon]) -> None:
    script = """
        import sys
        from pathlib import Path
        from agent import app, config
        with app.opened(config.load(Path(sys.argv[1]))):
            print("held", flush=True)
            sys.stdin.read()
        print("through", flush=True)
    """
    daemon = Daemon(tmp_path, script)
    daemons.append(daemon)
    assert daemon.process.stdout is not None
    assert daemon.process.stdout.readline() == "held\n"
    assert StateLock(daemon.state).holder() == daemon.process.pid
    daemon.process.send_signal(signal.SIGHUP)
    out, _ = daemon.process.communicate("go on", 20)
    assert (daemon.process.returncode, out) == (0, "through\n")


def test_a_wish_is_not_forgotten_before_it_is_done(tmp_path: Path, daemons: list[Daemon]) -> None:
    script = """
        import os, sys
        from agent import cli
        from agent.connection import Connection
        Connection.rollback_locally = lambda _self, _model: os._exit(9)
        sys.exit(cli.main(["run", "--config", sys.argv[1]]))
    """
    wishes = tmp_path / "state" / "requests"
    wishes.mkdir(parents=True)
    Requests(wishes).put("digits")
    daemon = Daemon(tmp_path, script)
    daemons.append(daemon)
    assert daemon.process.wait(20) == 9
    asked: list[str] = []
    assert Requests(wishes).take(asked.append) == asked == ["digits"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_of_many_signals_the_first_ends_it_in_order(
    tmp_path: Path, daemons: list[Daemon], number: signal.Signals
) -> None:
    daemon = Daemon(tmp_path)
    daemons.append(daemon)
    daemon.begun()
    while daemon.process.poll() is None:
        daemon.process.send_signal(number)
        time.sleep(0.001)
    assert daemon.process.returncode == 0
    assert daemon.said("stopped")
    assert not daemon.said("Traceback")


def test_a_stop_is_not_lost_while_it_starts_again_in_place(tmp_path: Path, daemons: list[Daemon]) -> None:
    """An enrolment that is taken up ends the loop, too; who wants the daemon gone comes first."""
    script = """
        import sys, time
        from agent import app, cli
        from agent.adapters.mqtt import MqttTransport
        signals, stop = app._signals, MqttTransport.stop
        def changed(runner, connection, state, again):
            signals(runner, connection, state, again)
            runner.post(again.ask)
        def slowly(self, *arguments, **named):
            print("ending", flush=True)
            time.sleep(0.5)
            stop(self, *arguments, **named)
        app._signals, MqttTransport.stop = changed, slowly
        sys.exit(cli.main(["run", "--config", sys.argv[1]]))
    """
    daemon = Daemon(tmp_path, script)
    daemons.append(daemon)
    assert daemon.process.stdout is not None
    for _ in range(2):
        assert daemon.process.stdout.readline() == "ending\n"
    assert daemon.end() == 0


@pytest.mark.parametrize("command", ["doctor", "run"])
def test_a_person_who_interrupts_sees_no_traceback(
    tmp_path: Path, daemons: list[Daemon], command: str
) -> None:
    script = f"""
        import os, signal, sys
        from agent import app, cli
        def interrupted(*_arguments):
            os.kill(os.getpid(), signal.SIGINT)
        app.run = app.doctor = interrupted
        sys.exit(cli.main([{command!r}, "--config", sys.argv[1]]))
    """
    daemon = Daemon(tmp_path, script)
    daemons.append(daemon)
    assert daemon.process.wait(20) == 130
    assert not daemon.said("Traceback")
