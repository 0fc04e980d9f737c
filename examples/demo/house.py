"""A broker, a registry and agents as real processes in one folder.

For: the demo, the benchmarks and the integration tests, which all need the same house started, killed,
restarted and taken down without a leftover process.
Not for: deciding or checking anything; those who use it look at what comes out.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from fleet.adapters.broker_process import free_port

ROOT = Path(__file__).parent.parent.parent
STOP_S = 10.0
T = TypeVar("T")


class HouseError(RuntimeError):
    """A process did not do what was asked of it; the message holds the end of its log."""


def wait_for(what: str, look: Callable[[], T | None], timeout_s: float = 60.0) -> T:
    """Polls `look` until it gives something.

    Raises:
        HouseError: it never did; `what` names it.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise HouseError(f"waited {timeout_s:.0f} s in vain for {what}")


class Process:
    """One long-running program with its log file; may be killed and started again."""

    def __init__(self, name: str, command: Sequence[str], folder: Path) -> None:
        self.name = name
        self.command = list(command)
        self.log = folder / f"{name}.log"
        self._running: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the running process.

        Raises:
            HouseError: it is not running.
        """
        if self._running is None:
            raise HouseError(f"{self.name} is not running")
        return self._running.pid

    def start(self) -> None:
        """Starts it in a process group of its own, its output appended to the log."""
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        with self.log.open("ab") as log:
            self._running = subprocess.Popen(
                self.command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def alive(self) -> bool:
        """Whether it runs."""
        return self._running is not None and self._running.poll() is None

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL if it does not end in `STOP_S` seconds."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self._running is None:
            return
        if self._running.poll() is None:
            self._running.send_signal(how)
        try:
            self._running.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._running.kill()
            self._running.wait()
        self._running = None

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class House:
    """Everything in `folder`; use as a context manager so that nothing is left running.

    Args:
        folder: where data, logs and states go.
        broker_port: of a broker that runs already; None starts the embedded one.

    Attributes:
        token: with which `fleet` speaks; empty: none.
    """

    def __init__(self, folder: Path, broker_port: int | None = None) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.server_port = free_port()
        self.token = ""
        self.agents: dict[str, Process] = {}
        self.broker: Process | None = None
        self.broker_port = broker_port or free_port()
        if broker_port is None:
            self.broker = self._broker()
        self.registry = self._registry()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def server(self) -> str:
        """Address of the registry's HTTP API."""
        return f"http://127.0.0.1:{self.server_port}"

    def _broker(self) -> Process:
        command = [sys.executable, "-m", "fleet.adapters.embedded_broker"]
        command += ["--port", str(self.broker_port), "--data", str(self.folder / "broker")]
        return Process("broker", command, self.logs)

    def _registry(self) -> Process:
        command = [sys.executable, "-m", "fleet.cli", "serve", "--data", str(self.folder / "registry")]
        command += ["--broker", f"mqtt://127.0.0.1:{self.broker_port}"]
        command += ["--listen", f"127.0.0.1:{self.server_port}", "--insecure-unsigned"]
        return Process("registry", command, self.logs)

    def start(self) -> None:
        """Starts the broker, if it is ours, and the registry, and waits until both answer."""
        self.start_broker()
        self.start_registry()

    def start_broker(self) -> None:
        """Starts the broker alone, if it is ours."""
        if self.broker is not None:
            self.broker.start()
        self._wait_port("broker", self.broker_port, self.broker)

    def start_registry(self) -> None:
        """Starts the registry alone, for the first time or again."""
        self.registry.start()
        self._wait_port("registry", self.server_port, self.registry)

    def broker_kind(self) -> str:
        """What the embedded broker says it is, and where; `external` if it is not ours.

        Raises:
            HouseError: it never says so; it answers a moment before it does.
        """
        broker = self.broker
        if broker is None:
            return "external"

        def said() -> str | None:
            lines = broker.tail(lines=1000).splitlines()
            return next((line for line in lines if " on mqtt://" in line), None)

        return wait_for("the broker to say what it is", said, 20)

    def stop(self) -> None:
        """Ends every process."""
        for process in [*self.agents.values(), self.registry, self.broker]:
            if process is not None:
                process.stop()

    def _wait_port(self, what: str, port: int, process: Process | None) -> None:
        def answers() -> bool:
            if process is not None and not process.alive():
                raise HouseError(f"{what} ended at once; its log says:\n{process.tail()}")
            with socket.socket() as probe:
                probe.settimeout(0.5)
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_for(f"{what} on port {port}", answers)

    def state(self, device: str) -> Path:
        """The state directory of an agent."""
        return self.folder / "devices" / device

    def agent(self, device: str, python: str = sys.executable, **extra: Any) -> Process:  # noqa: ANN401
        """Writes the configuration of an agent and starts it.

        Args:
            device: its id.
            python: interpreter of the environment that it lives in.
            extra: any key of its agent.yaml.
        """
        state = self.state(device)
        state.mkdir(parents=True, exist_ok=True)
        config = {
            "device": device,
            "state_dir": str(state),
            "broker": {"host": "127.0.0.1", "port": self.broker_port},
            "insecure_unsigned": True,
            "trial": {"lock_file": str(self.folder / "trial.lock")},
            # One machine: a broker that comes back here has no fleet to be spared from.
            "transfer": {"reconnect_spread_s": 0.5},
            **extra,
        }
        path = self.folder / f"{device}.yaml"
        path.write_bytes(msgspec.yaml.encode(config))
        command = [python, "-m", "agent.cli", "run", "--config", str(path)]
        self.agents[device] = Process(device, command, self.logs)
        self.agents[device].start()
        return self.agents[device]

    def fleet(self, *arguments: str, codes: Sequence[int] = (0,), timeout_s: float = 300.0) -> Any:  # noqa: ANN401
        """Runs `shallop-fleet ARGUMENTS --json` and gives what it printed, parsed.

        Raises:
            HouseError: it ended with a code outside `codes`; the message holds what it said.
        """
        command = [sys.executable, "-m", "fleet.cli", *arguments, "--json"]
        # The house's own registry, whatever token the person's shell has for another one.
        here = {"SHALLOP_SERVER": self.server, "SHALLOP_TOKEN": self.token, "SHALLOP_TOKEN_FILE": ""}
        run = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **here}, capture_output=True,
            text=True, check=False, timeout=timeout_s,
        )  # fmt: skip
        if run.returncode not in codes:
            said = f"{run.stderr.strip()}\n{run.stdout.strip()}"
            raise HouseError(f"shallop-fleet {' '.join(arguments)} ended with {run.returncode}: {said}")
        return json.loads(run.stdout) if run.stdout.strip() else None

    def current(self, device: str, model: str) -> Path | None:
        """Where `current` of a model points on a device; None before the first release."""
        link = self.state(device) / "models" / model / "current"
        return link.resolve() if link.is_symlink() else None
