"""The only place where the agent's adapters are built and put together.

For: a running daemon from a configuration, and the same parts for commands that work without it.
Not for: parsing arguments (`agent.cli`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

from agent import hardware, recovery
from agent.adapters.ed25519 import verify
from agent.adapters.hooks import CommandHooks
from agent.adapters.locks import MachineLock, StateLock
from agent.adapters.memory import LeanTrials
from agent.adapters.mqtt import Address, MqttTransport
from agent.adapters.power import find_sensor
from agent.adapters.system import SystemClock, SystemDisk, SystemRandom
from agent.adapters.systemd_notify import SystemdSupervisor
from agent.adapters.trial_process import TrialProcess, installed_runtimes
from agent.config import Config
from agent.connection import Connection
from agent.deployment import Deployment, RollbackAsked
from agent.errors import ConfigError, StateError
from agent.exchange import Exchange
from agent.fetching import Fetcher, Sources
from agent.install import Install
from agent.jobs import Jobs, Machine
from agent.journal import Journal, JournalFile
from agent.outbox import Outbox
from agent.packages import installed_version
from agent.requests import Requests
from agent.runner import Runner
from agent.slots import ReleaseInfo, Slots, file_sha256
from agent.store import BlobStore
from agent.trust import Trust
from agent.uplink import Self, Uplink
from wire.messages import Hardware, OrderOutcome
from wire.topics import Topics

log = logging.getLogger(__name__)

ROOT = Path("/")


def version() -> str:
    """Of this program; "unknown" in a checkout that is not installed."""
    return installed_version("shallop") or "unknown"


def device_of(config: Config) -> str:
    """The device's id: configured, else from the board, else from the machine id.

    Raises:
        ConfigError: `no_device`.
    """
    device = config.device or hardware.device_id(ROOT)
    if device is None:
        raise ConfigError("no_device", "this machine has no serial number and no machine id; set `device`")
    return device


def _machine(config: Config) -> Machine:
    sensor = find_sensor(ROOT)
    found: Hardware = hardware.detect(ROOT, power_sensor=sensor.name if sensor else None)
    return Machine(hardware=found, runtimes=installed_runtimes(config.trial.python))


class State:
    """The parts that live in the state directory."""

    def __init__(self, config: Config) -> None:
        self.root = Path(config.state_dir)
        self.models_dir = self.root / "models"
        self.shards_dir = self.root / "shards"
        self.lock = StateLock(self.root)
        self.slots = Slots(self.models_dir)
        self.journal = JournalFile(self.root)
        self.requests = Requests(self.root / "requests")


@contextlib.contextmanager
def opened(config: Config) -> Iterator[State]:
    """The state directory, made if it is new, under its lock.

    Raises:
        StateError: `state_locked` or `state_unusable`.
    """
    try:
        Path(config.state_dir).mkdir(parents=True, exist_ok=True)
        state = State(config)
        state.lock.acquire()
    except OSError as error:
        raise StateError("state_unusable", f"cannot use {config.state_dir}: {error}") from error
    try:
        yield state
    finally:
        state.lock.release()


def run(config: Config) -> None:
    """Runs the daemon until SIGTERM or SIGINT.

    Raises:
        ConfigError: the configuration cannot be used.
        StateError: another daemon is at work, or the state is not this program's.
    """
    device = device_of(config)
    with opened(config) as state:
        _serve(config, device, state)


def _serve(config: Config, device: str, state: State) -> None:
    # What a trial left that was killed together with the daemon.
    shutil.rmtree(state.root / "trials", ignore_errors=True)
    machine, clock, disk = _machine(config), SystemClock(), SystemDisk()
    topics = Topics(config.broker.root)
    trust = Trust(state.root, verify)
    policy = trust.policy(insecure_unsigned=config.insecure_unsigned)
    transport = _transport(config, device)
    exchange = Exchange(transport)
    install = Install(state.root)
    me = Self(
        device=device, agent_version=version(), hardware=machine.hardware, runtimes=machine.runtimes,
        os=hardware.operating_system(ROOT), labels=config.labels,
    )  # fmt: skip
    uplink = Uplink(transport, topics, me, install, clock)
    store = BlobStore(state.root / "blobs")
    sources = Sources(store, state.slots)
    fetcher = Fetcher(
        transport=transport, exchange=exchange, store=store, sources=sources, clock=clock, disk=disk,
        topics=topics, policy=policy, window_max=config.limits.window_chunks_max,
        disk_margin_bytes=config.limits.disk_free_bytes_min,
    )  # fmt: skip
    supervisor = SystemdSupervisor()
    runner = Runner(
        journal=state.journal, slots=state.slots, store=store, shards_dir=state.shards_dir,
        outbox=Outbox(state.root / "reports", config.limits.reports_max, install.reserved), uplink=uplink,
        jobs=_jobs(config, state, machine, fetcher, sources), clock=clock, supervisor=supervisor,
        bounds=config.bounds(),
    )  # fmt: skip
    connection = Connection(
        device=device, topics=topics, trust=trust, insecure_unsigned=config.insecure_unsigned,
        transport=transport, exchange=exchange,
        uplink=uplink, install=install, runner=runner, clock=clock, disk=disk, state_dir=state.root,
    )  # fmt: skip
    _signals(runner, connection, state)
    log.info(
        "device %s, state in %s, broker %s:%d", device, state.root, config.broker.host, config.broker.port
    )
    transport.start(connection)
    try:
        runner.run()
    finally:
        supervisor.stopping()
        transport.stop(connection.farewell())
    log.info("stopped")


def _transport(config: Config, device: str) -> MqttTransport:
    broker = config.broker
    address = Address(
        host=broker.host, port=broker.port, client_id=broker.client_id or device, username=broker.username,
        password=config.password(), keepalive_s=broker.keepalive_s, reconnect_s_max=broker.reconnect_s_max,
    )  # fmt: skip
    return MqttTransport(address, SystemRandom())


def _jobs(config: Config, state: State, machine: Machine, fetcher: Fetcher, sources: Sources) -> Jobs:
    trial = config.trial
    scratch, limits = state.root / "trials", trial.worker_limits()
    runner = TrialProcess(scratch, limits, trial.python) if trial.python else TrialProcess(scratch, limits)
    return Jobs(
        fetcher=fetcher, sources=sources, slots=state.slots, models_dir=state.models_dir,
        shards_dir=state.shards_dir, machine=machine, trial_runner=LeanTrials(runner),
        trial_lock=MachineLock(trial.lock_path()), trial_settings=trial.settings(),
        hooks=CommandHooks(config.hooks), clock=SystemClock(), random=SystemRandom(),
        health_failures_max=config.soak.health_failures_max,
    )  # fmt: skip


def _signals(runner: Runner, connection: Connection, state: State) -> None:
    """SIGTERM and SIGINT stop; SIGHUP looks for local requests."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: runner.stop())

    def look() -> None:
        for model in state.requests.take():
            connection.rollback_locally(model)

    signal.signal(signal.SIGHUP, lambda _number, _frame: runner.post(look))
    runner.post(look)


# --- without the daemon -----------------------------------------------------------------------------


def status(config: Config) -> Journal:
    """The saved state, read without the lock.

    Raises:
        StateError: there is none, or it cannot be read.
    """
    root = Path(config.state_dir)
    journal = JournalFile(root).load() if root.is_dir() else None
    if journal is None:
        raise StateError("no_state", f"there is no agent's state in {root}; has the agent run here?")
    return journal


def rollback(config: Config, model: str) -> str:
    """Goes back to the previous release of `model`, by the daemon if one runs, else here and now.

    Returns:
        What was done, in words.

    Raises:
        StateError: `unknown_model` or `no_previous`.
    """
    try:
        with opened(config) as state:
            return _rollback_offline(config, state, model)
    except StateError as error:
        if error.code != "state_locked":
            raise
    state = State(config)
    state.requests.put(model)
    holder = state.lock.holder()
    if holder is not None:
        os.kill(holder, signal.SIGHUP)
    return f"asked the running agent to roll {model} back; see `shallop-agent status`"


def _rollback_offline(config: Config, state: State, model: str) -> str:
    from agent.offline import roll_back  # noqa: PLC0415 - not needed by the daemon

    journal = recovery.load(state.journal, state.slots)
    hooks = CommandHooks(config.hooks)

    def switch(d: Deployment) -> None:
        standing = d.restore
        state.slots.activate(model, standing.active if standing else None, None)
        hooks.activate(model, state.models_dir / model / "current", threading.Event())

    d = journal.models.get(model)
    if d is None or d.active is None:
        raise StateError("unknown_model", f"there is no active release of {model} on this device")
    asked = RollbackAsked(digest=d.active.digest, order=d.order_highest)
    after = roll_back(d, asked, switch, lambda changed: _save(state, journal, changed), config.bounds())
    return f"{model} is back at {after.active.release if after.active else 'nothing'}"


def _save(state: State, journal: Journal, changed: Deployment) -> None:
    state.journal.save(replace(journal, models={**journal.models, changed.model: changed}))


def adopt(config: Config, model: str, path: Path, release: str) -> Deployment:
    """Imports a model file that a user already runs as the first good release.

    Raises:
        StateError: `state_locked` (the daemon runs), `not_empty` (the model has a release already),
            `not_a_model` (no file, or of no known kind).
    """
    runtime = hardware.runtime_for(path.suffix, installed_runtimes(config.trial.python))
    if runtime is None or not path.is_file():
        raise StateError("not_a_model", f"{path} is no .onnx or .tflite file")
    with opened(config) as state:
        journal = recovery.load(state.journal, state.slots)
        known = journal.models.get(model)
        if known is not None and known.active is not None:
            raise StateError("not_empty", f"{model} already runs release {known.active.release}")
        sha256 = file_sha256(path)
        info = ReleaseInfo(
            model=model, digest=sha256, release=release, variant=f"{runtime.replace('-', '_')}/adopted",
            adopted=True, model_file=f"model{path.suffix}", model_sha256=sha256, runtime=runtime,
        )  # fmt: skip
        state.slots.adopt(info, path)
        base = known or Deployment(model=model)
        adopted = replace(base, active=info.slot, outcome=OrderOutcome.ACTIVE)
        _save(state, journal, adopted)
        state.slots.activate(model, info.slot, None)
        return adopted
