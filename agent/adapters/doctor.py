"""`shallop-agent doctor`: every probe at once, each with a limit on its time, judged as they answer.

For: the table of what is looked at; a probe that hangs or breaks is one line that says so.
Not for: looking (`agent.adapters.probe_*`), judging (`agent.doctor`), or printing (`agent.doctor.table`).
"""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from agent import belonging, statusing, trust
from agent.adapters import (
    probe_broker,
    probe_identity,
    probe_machine,
    probe_places,
    probe_runtimes,
    probe_sensors,
)
from agent.adapters.ed25519 import verify
from agent.adapters.locks import StateLock, state_lock_held
from agent.adapters.system import SystemClock
from agent.config import Config
from agent.doctor import broker, identity, machine, places, readiness, sensing, software
from agent.doctor.finding import Finding, problem, unknown
from agent.errors import ConfigError, StateError
from agent.identities import CURRENT, Identities
from agent.install import saved_install_id
from agent.ports import TrialRunner
from agent.renewal import Introduction
from agent.tls import JudgedAt
from agent.trust import Trust
from wire.topics import STATUS, Topics

UNIT = "shallop-agent.service"
_PROPERTIES = ("LoadState", "UnitFileState", "ActiveState", "SubState", "WatchdogUSec", "NRestarts")
Look = Callable[[], list[Finding]]


class Doctor:
    """One visit.

    Args:
        config: of the agent.
        config_path: where it lies.
        device: the agent's id; None where there is none.
        trial_runner: as the daemon would use it, below the given folder.
        folder: for what the worker reads.
        root: below which /proc and /sys are looked for.
    """

    def __init__(
        self,
        config: Config,
        config_path: Path,
        device: str | None,
        trial_runner: TrialRunner,
        folder: Path,
        root: Path = Path("/"),
    ) -> None:
        self._configured, self._config_path = config, config_path
        self._found = Identities(Path(config.state_dir)).usable(CURRENT)
        try:
            self._config = belonging.effective(config, self._found)
        except ConfigError:  # the line `identity` says so
            self._config, self._found = config, None
        self._device = self._found.device if self._found is not None else device
        self._trial_runner, self._folder, self._root = trial_runner, folder, root
        self._state_dir = Path(config.state_dir)

    def probes(self) -> tuple[tuple[str, float, Look], ...]:
        """Name, seconds at most, and the look itself, in the order of the table."""
        return (
            ("agent", 5.0, lambda: broker.daemon(self._agent())),
            ("clock", 5.0, self._clock),
            ("disk", 10.0, self._disk),
            ("memory_cgroup", 5.0, lambda: machine.memory_cgroup(probe_machine.memory(self._root))),
            ("kernel", 5.0, lambda: machine.kernel(probe_machine.kernel(self._root))),
            ("sensors", 15.0, lambda: sensing.sensors(probe_sensors.sensors(self._root))),
            ("runtimes", 60.0, self._runtimes),
            ("broker", 20.0, self._broker),
            ("permissions", 5.0, self._permissions),
            ("journal", 30.0, lambda: places.state(probe_places.state(self._state_dir))),
            ("systemd", 10.0, self._systemd),
            ("admission", 10.0, self._admission),
            ("trust", 5.0, lambda: software.trust(self._trust())),
            ("identity", 15.0, self._enrolled),
        )

    def examine(self) -> list[Finding]:
        """All probes at once; takes as long as the slowest, never longer than the longest limit."""
        started_s = time.monotonic()
        running = [(name, limit_s, _begin(look)) for name, limit_s, look in self.probes()]
        found: list[Finding] = []
        for name, limit_s, answers in running:
            left_s = max(0.0, started_s + limit_s - time.monotonic())
            try:
                said = answers.get(timeout=left_s)
            except queue.Empty:
                found.append(
                    unknown(name, f"no answer within {limit_s:.0f} s", "see `dmesg`; something hangs")
                )
                continue
            if isinstance(said, ConfigError):
                found.append(problem(name, str(said), "correct it in the configuration"))
            elif isinstance(said, Exception):
                found.append(unknown(name, f"could not be looked at: {type(said).__name__}: {said}"))
            else:
                found.extend(said)
        return found

    # --- what needs the configuration

    def _agent(self) -> broker.AgentFacts:
        running = state_lock_held(self._state_dir)
        if not running:
            return broker.AgentFacts(running=False)
        pid, noted = StateLock(self._state_dir).holder(), statusing.read(self._state_dir)
        if noted is None or noted.pid != pid:
            return broker.AgentFacts(running=True, pid=pid)
        return broker.AgentFacts(
            running=True,
            pid=pid,
            connected=bool(noted.connected),
            since=noted.since,
            detail=statusing.why_not(noted, alive=True),
        )

    def _trust(self) -> software.TrustFacts:
        unsigned, path = self._config.insecure_unsigned, self._state_dir / trust.FILE_NAME
        try:
            path.stat()
            if not os.access(path, os.R_OK):
                return software.TrustFacts(insecure_unsigned=unsigned, enrolled=None)
        except FileNotFoundError:
            return software.TrustFacts(insecure_unsigned=unsigned, enrolled=False)
        except OSError:
            return software.TrustFacts(insecure_unsigned=unsigned, enrolled=None)
        try:
            state = trust.read(path)
        except StateError as error:
            return software.TrustFacts(insecure_unsigned=unsigned, enrolled=True, error=str(error.args[0]))
        number = state.root.number if state else None
        return software.TrustFacts(insecure_unsigned=unsigned, enrolled=state is not None, root=number)

    def _enrolled(self) -> list[Finding]:
        found = probe_identity.files(self._configured, self._state_dir, self._time())
        # Who is not enrolled and does not mean to be need not read of it.
        if found.there is False and not found.waits and self._configured.insecure_unsigned:
            return []
        return identity.identity(found)

    def _time(self) -> JudgedAt:
        """When certificates are judged, as in the daemon."""
        trusted, found = Trust(self._state_dir, verify), self._found
        introduction = Introduction(Identities(self._state_dir), found) if found is not None else None
        return belonging.judged_time(trusted, introduction, SystemClock()).now_s

    def _clock(self) -> list[Finding]:
        written = [self._state_dir / "journal.json", self._state_dir / trust.FILE_NAME]
        return machine.clock(probe_machine.clock([*written, self._config_path, Path(__file__)]))

    def _admission(self) -> list[Finding]:
        if not self._config.admission.asked:
            return []
        from agent.adapters.readiness import Readiness  # noqa: PLC0415 - few devices ask for it

        trusted = Trust(self._state_dir, verify)
        rules = self._config.admission.rules()
        now = Readiness(rules, SystemClock(), lambda: trusted.signed_at, self._root)
        return readiness.admission(now.judged())

    def _disk(self) -> list[Finding]:
        margin = self._config.limits.disk_free_bytes_min
        return machine.disk(probe_machine.disk(self._state_dir, margin, self._root))

    def _runtimes(self) -> list[Finding]:
        python = self._config.trial.python
        return software.runtimes(probe_runtimes.runtimes(python, self._trial_runner, self._folder))

    def _permissions(self) -> list[Finding]:
        found = probe_places.paths(self._config, self._config_path)
        return places.permissions(found, probe_places.person(self._state_dir))

    def _broker(self) -> list[Finding]:
        who = self._identity()
        if self._device is None:
            return broker.identity(who)
        config, agent = self._config.broker, self._agent()
        answer = probe_broker.ask(
            config, self._config.password(), config.client_id or self._device,
            Topics(config.root).topic(STATUS, device=self._device), agent_runs=bool(agent.running),
            found=self._found, at_s=self._time(),
        )  # fmt: skip
        if answer.told is not None:
            who = broker.told(who, answer.told.install_id, online=answer.told.online)
        return [*broker.identity(who), *broker.broker(answer.facts, agent)]

    def _identity(self) -> broker.IdentityFacts:
        source: broker.Source = "nothing"
        if self._found is not None:
            source = "enrolment"
        elif self._config.device is not None:
            source = "configuration"
        elif self._device is not None:
            source = "board serial number" if self._device.startswith("board-") else "machine id"
        return broker.IdentityFacts(
            device=self._device,
            source=source,
            hostname=socket.gethostname(),
            install_id=saved_install_id(self._state_dir),
        )

    def _systemd(self) -> list[Finding]:
        if not (self._root / "run/systemd/system").is_dir():
            return software.systemd(software.SystemdFacts(booted=False), UNIT)
        return software.systemd(software.SystemdFacts(booted=True, properties=unit_properties(UNIT)), UNIT)


def _begin(look: Look) -> queue.SimpleQueue[list[Finding] | Exception]:
    """Starts a look on a thread that keeps nobody from leaving."""
    answers: queue.SimpleQueue[list[Finding] | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put(look())
        except Exception as error:  # noqa: BLE001 - one broken look must not hide the others
            answers.put(error)

    threading.Thread(target=run, daemon=True).start()
    return answers


def unit_properties(unit: str) -> dict[str, str]:
    """What systemd says of a unit; empty where it does not answer."""
    try:
        said = subprocess.run(
            ["systemctl", "show", unit, f"--property={','.join(_PROPERTIES)}"], stdin=subprocess.DEVNULL,
            capture_output=True, timeout=5.0, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = said.stdout.decode(errors="replace").splitlines()
    return {key: value for key, separator, value in (line.partition("=") for line in lines) if separator}
