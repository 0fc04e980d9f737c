"""The only place where the agent's adapters are built and put together.

For: a running daemon from a configuration, and the same parts for commands that work without it.
Not for: parsing arguments (`agent.cli`).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from agent import belonging, hardware, recovery, statusing, tls
from agent.adapters import ed25519
from agent.adapters.ed25519 import verify
from agent.adapters.hooks import CommandHooks
from agent.adapters.live_files import LiveFiles
from agent.adapters.locks import MachineLock, StateLock, state_lock_held
from agent.adapters.memory import LeanTrials
from agent.adapters.mqtt import Address, MqttTransport
from agent.adapters.power import find_sensor
from agent.adapters.system import SystemClock, SystemDisk, SystemRandom, boot_id
from agent.adapters.systemd_notify import SystemdSupervisor
from agent.adapters.thermal import raised_flags
from agent.adapters.trial_process import TrialProcess, installed_runtimes
from agent.adapters.trial_socket import TrialSocket
from agent.adapters.units import SystemdUnits
from agent.again import Again
from agent.config import Config
from agent.connection import Connection
from agent.deployment import Deployment, RollbackAsked
from agent.errors import ConfigError, StateError
from agent.exchange import Exchange
from agent.fetching import Fetcher, Sources
from agent.identities import Identities
from agent.identity import Identity
from agent.install import Install
from agent.jobs import Jobs, Machine
from agent.journal import Journal, JournalFile
from agent.live_watch import LiveWatch
from agent.outbox import Outbox, pending
from agent.packages import installed_version
from agent.ports import Onlooker, Registry, TrialRunner
from agent.requests import Requests
from agent.runner import Runner
from agent.signed_time import SignedTime
from agent.slots import ReleaseInfo, Slots, file_sha256
from agent.soaking import Soaking
from agent.statusing import Board
from agent.store import BlobStore
from agent.trust import Trust
from agent.uplink import Self, Uplink
from wire.messages import Hardware, OrderOutcome, Slot
from wire.roots import Root
from wire.topics import ROOT as ROOT_DOCUMENT
from wire.topics import Topics

if TYPE_CHECKING:
    import ssl

    from agent.doctor.finding import Finding
    from agent.rebuilding import Rebuilder
    from agent.renewal import Introduction
    from agent.status_view import Picture

log = logging.getLogger(__name__)

ROOT = Path("/")
LIVE_STOP_S = 0.5


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
        self.identities = Identities(self.root)


@contextlib.contextmanager
def opened(config: Config) -> Iterator[State]:
    """The state directory, made if it is new, under its lock.

    Raises:
        StateError: `state_locked` or `state_unusable`.
    """
    # Whoever has the lock is told of wishes by it, before it can listen, too; hooks would inherit SIG_IGN.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGHUP, lambda _number, _frame: None)
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
    with opened(config) as state:
        trust = Trust(state.root, verify)
        config, found = belonging.taken_up(config, state.identities, trust, state.root, ed25519, verify)
        again = _serve(config, found, state, trust)
    if again.asked:
        again.start()


def _serve(config: Config, found: Identity | None, state: State, trust: Trust) -> Again:
    """Returns whether the daemon is to start again."""
    device = state.journal.device = device_of(config)
    # What a trial left that was killed together with the daemon.
    if (state.root / "trials").exists():
        shutil.rmtree(state.root / "trials", ignore_errors=True)
    machine, clock, topics = _machine(config), SystemClock(), Topics(config.broker.root)
    policy = trust.policy(insecure_unsigned=config.insecure_unsigned)
    introduction = belonging.introduction(config, state.identities, found)
    time = belonging.judged_time(trust, introduction, clock)
    transport = _transport(config, device, introduction, time)
    exchange, install = Exchange(transport), Install(state.root)
    me = _self(config, device, machine)
    onlooker = _home_assistant(config, state.root, me, topics, transport)
    uplink = Uplink(transport, topics, me, install, clock, onlooker)
    store = BlobStore(state.root / "blobs")
    sources = Sources(store, state.slots)
    fetcher = _fetcher(config, transport, exchange, store, sources, topics, trust)
    live, supervisor, board = _live(config, state), SystemdSupervisor(), Board(state.root, clock)
    runner = Runner(
        journal=state.journal, slots=state.slots, store=store, shards_dir=state.shards_dir,
        outbox=Outbox(state.root / "reports", config.limits.reports_max, install.reserved), uplink=uplink,
        jobs=_jobs(config, state, machine, fetcher, sources, store, live, trust), clock=clock,
        supervisor=supervisor, bounds=config.bounds(), board=board,
    )  # fmt: skip
    again = Again(runner, supervisor.environment)
    renewal = None
    if introduction is not None and found is not None:
        from agent.renewal import Parts, RenewalWork  # noqa: PLC0415 - only a device that is enrolled

        parts = Parts(
            device=device, install_id=install.install_id, identities=state.identities, trusted=trust,
            keys=ed25519, registry=lambda: _registry(time), line=transport, topics=topics, clock=clock,
            now_s=time.now_s, random=SystemRandom(), runner=runner, board=board, moved=again.ask,
        )  # fmt: skip
        renewal = RenewalWork(parts, introduction, found)
    connection = Connection(
        device=device, topics=topics, trust=trust, policy=policy, transport=transport, exchange=exchange,
        uplink=uplink, install=install, runner=runner, clock=clock, disk=SystemDisk(), state_dir=state.root,
        board=board, renewal=renewal,
    )  # fmt: skip
    _signals(runner, connection, state, again)
    where = f"{config.broker.host}:{config.broker.port}"
    log.info("device %s, state in %s, broker %s", device, state.root, where)
    if renewal is not None:
        runner.post(renewal.look)
    transport.start(connection)
    live.start(runner, lambda: transport.connected)
    try:
        runner.run()
    finally:
        if not again.asked:
            supervisor.stopping()
        live.close(LIVE_STOP_S)
        transport.stop(connection.farewell())
        board.connection(up=False, detail="the agent was stopped")
    log.info("stopped")
    return again


def _self(config: Config, device: str, machine: Machine) -> Self:
    return Self(
        device=device, agent_version=version(), hardware=machine.hardware, runtimes=machine.runtimes,
        os=hardware.operating_system(ROOT), labels=config.labels,
    )  # fmt: skip


def _live(config: Config, state: State) -> LiveWatch:
    return LiveWatch(
        source=LiveFiles(Path(config.live_dir)), path=state.root / "live.json", clock=SystemClock(),
        rules=config.live.rules(), look_s=config.live.look_s,
    )  # fmt: skip


def _fetcher(
    config: Config, transport: MqttTransport, exchange: Exchange, store: BlobStore, sources: Sources,
    topics: Topics, trust: Trust,
) -> Fetcher:  # fmt: skip
    return Fetcher(
        transport=transport, exchange=exchange, store=store, sources=sources, clock=SystemClock(),
        disk=SystemDisk(), topics=topics, policy=trust.policy(insecure_unsigned=config.insecure_unsigned),
        window_max=config.limits.window_chunks_max, disk_margin_bytes=config.limits.disk_free_bytes_min,
        limits=config.transfer.limits(), signed_at=lambda: trust.signed_at,
    )  # fmt: skip


def _home_assistant(
    config: Config, state_dir: Path, me: Self, topics: Topics, transport: MqttTransport
) -> Onlooker | None:
    """What shows this device to Home Assistant, or takes it back; loaded only where there is a need."""
    if not config.home_assistant.enabled and not (state_dir / "home_assistant.json").exists():
        return None
    from agent.adapters.ambient import AmbientReader  # noqa: PLC0415
    from agent.home_assistant import Shown  # noqa: PLC0415
    from agent.home_assistant_link import HomeAssistantLink  # noqa: PLC0415

    shown = Shown(device=me.device, agent_version=me.agent_version, board=me.hardware.board, topics=topics)
    link = HomeAssistantLink(config.home_assistant, shown, transport, state_dir)
    if link.needed:
        AmbientReader(link.tell, config.home_assistant.interval_s, state_dir, ROOT).start()
    return link


def _registry(time: SignedTime) -> Registry:
    from agent.adapters.registry_https import HttpsRegistry  # noqa: PLC0415 - for a certificate that ended

    return HttpsRegistry(time.now_s)


def _transport(
    config: Config, device: str, introduction: Introduction | None, time: SignedTime
) -> MqttTransport:
    broker = config.broker
    heard = introduction.heard if introduction else tls.Heard()
    encrypted: ssl.SSLContext | tls.Fresh | None = None
    if broker.tls is not None:
        encrypted = tls.context(broker.tls, time.now_s, heard)
    elif introduction is not None:
        encrypted = tls.Fresh(lambda: tls.of_identity(introduction.choose(), time.now_s, heard))
    address = Address(
        host=broker.host, port=broker.port, client_id=broker.client_id or device, username=broker.username,
        password=config.password(), keepalive_s=broker.keepalive_s, reconnect_s_max=broker.reconnect_s_max,
        tls=encrypted, heard=heard, barred=introduction.barred if introduction else None,
        reconnect_spread_s=config.transfer.reconnect_spread_s,
    )  # fmt: skip
    return MqttTransport(address, SystemRandom())


def _jobs(  # noqa: PLR0913, PLR0917 - it is called once
    config: Config, state: State, machine: Machine, fetcher: Fetcher, sources: Sources, store: BlobStore,
    live: LiveWatch, trust: Trust,
) -> Jobs:  # fmt: skip
    trial, scratch, ready = config.trial, state.root / "trials", None
    if config.admission.asked:
        from agent.adapters.readiness import Readiness  # noqa: PLC0415 - few devices ask for it

        ready = Readiness(config.admission.rules(), SystemClock(), lambda: trust.signed_at, ROOT).require

    def rebuilder() -> Rebuilder:
        from agent.adapters.delta_process import DeltaProcess  # noqa: PLC0415 - few orders offer deltas
        from agent.rebuilding import Rebuilder  # noqa: PLC0415 - as above

        deltas = DeltaProcess(scratch, trial.worker_limits(), trial.python or sys.executable)
        return Rebuilder(fetcher=fetcher, sources=sources, store=store, slots=state.slots, runner=deltas)

    hooks, clock = CommandHooks(config.hooks), SystemClock()
    soaking = Soaking(
        hooks=hooks, units=SystemdUnits(config.hooks), flags=functools.partial(raised_flags, ROOT),
        clock=clock, slots=state.slots, models_dir=state.models_dir, rules=config.soak.rules(),
        boot=boot_id(ROOT), live=live.latency, live_latency_factor_max=config.soak.live_latency_factor_max,
    )  # fmt: skip
    return Jobs(
        rebuilder=rebuilder, fetcher=fetcher, sources=sources, slots=state.slots, models_dir=state.models_dir,
        shards_dir=state.shards_dir, machine=machine, trial_runner=LeanTrials(_trial_runner(config, scratch)),
        trial_lock=MachineLock(trial.lock_path()), trial_settings=trial.settings(),
        hooks=hooks, clock=clock, random=SystemRandom(), soaking=soaking,
        require_not_barred=trust.require_not_barred, require_ready=ready,
    )  # fmt: skip


def _trial_runner(config: Config, scratch: Path) -> TrialRunner:
    trial, limits = config.trial, config.trial.worker_limits()
    if trial.socket:
        return TrialSocket(Path(trial.socket), limits)
    return TrialProcess(scratch, limits, trial.python or sys.executable)


def _signals(runner: Runner, connection: Connection, state: State, again: Again) -> None:
    """SIGTERM and SIGINT stop; SIGHUP looks for local requests, and for an enrolment that is complete."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: again.end())

    def look() -> None:
        state.requests.take(connection.rollback_locally)
        if state.identities.complete:
            again.ask()

    signal.signal(signal.SIGHUP, lambda _number, _frame: runner.post(look))
    runner.post(look)


# --- without the daemon -----------------------------------------------------------------------------


def status(config: Config) -> Picture:
    """The saved state and what the running agent noted, read without the lock.

    Raises:
        StateError: there is none, or it cannot be read.
    """
    from agent.status_view import Picture, model_picture  # noqa: PLC0415 - not needed by the daemon

    root = Path(config.state_dir)
    file = JournalFile(root)
    try:
        journal = file.load() if root.is_dir() else None
    except OSError as error:
        raise StateError("state_unreadable", f"cannot read {root}: {error}; run this as its owner") from None
    noted = statusing.read(root)
    if journal is None and noted is None:
        raise StateError("no_state", f"there is no agent's state in {root}; has the agent run here?")
    running, pid = state_lock_held(root), StateLock(root).holder()
    # A command, too, takes the lock for a moment; only an agent's own notes tell about its connection.
    own = noted is not None and (noted.pid, noted.boot_id) == (pid, statusing.boot_id())
    alive = noted if running and own else None
    config, identity = belonging.pictured(config, Identities(root), alive)
    models = journal.models if journal else {}
    return Picture(
        device=config.device or hardware.device_id(ROOT),
        broker=f"{config.broker.host}:{config.broker.port}",
        running=running,
        pid=pid if running else None,
        started_at=alive.started_at or None if alive else None,
        connected=bool(alive.connected) if alive else False if running is False else None,
        connected_since=alive.since if alive and alive.connected else None,
        broker_seen_at=statusing.seen_at(noted) or None if noted else None,
        connection_detail=statusing.why_not(noted, alive=alive is not None),
        pending_reports=pending(root / "reports"),
        identity=identity,
        journal_notes=tuple(file.notes),
        models={
            name: model_picture(
                d,
                statusing.retry_in(alive, name, SystemClock().boot_s()),
                noted.trialed_at.get(name) if noted else None,
            )
            for name, d in models.items()
        },
    )


def doctor(config: Config, config_path: Path) -> list[Finding]:
    """Everything that `shallop-agent doctor` finds, with or without the daemon."""
    from agent.adapters.doctor import Doctor  # noqa: PLC0415 - not needed by the daemon

    # A worker behind a socket has a /tmp of its own, and reads below the state directory.
    where = config.state_dir if config.trial.socket else None
    with tempfile.TemporaryDirectory(prefix="shallop-doctor-", dir=where, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        runner = _trial_runner(config, folder / "trials")
        device = config.device or hardware.device_id(ROOT)
        return Doctor(config, config_path, device, runner, folder).examine()


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
    journal = None
    with contextlib.suppress(StateError):  # one that is damaged is the agent's to mend
        journal = state.journal.load()
    if journal is not None:
        _require_active(journal, model)
    state.requests.put(model)
    holder = state.lock.holder()
    if holder is not None:
        with contextlib.suppress(ProcessLookupError):  # one that has just begun, and looks by itself
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

    active, d = _require_active(journal, model), journal.models[model]
    asked = RollbackAsked(digest=active.digest, order=d.order_highest)
    after = roll_back(d, asked, switch, lambda changed: _save(state, journal, changed), config.bounds())
    return f"{model} is back at {after.active.release if after.active else 'nothing'}"


def _require_active(journal: Journal, model: str) -> Slot:
    d = journal.models.get(model)
    if d is None or d.active is None:
        raise StateError("unknown_model", f"there is no active release of {model} on this device")
    return d.active


def _save(state: State, journal: Journal, changed: Deployment) -> None:
    state.journal.save(replace(journal, models={**journal.models, changed.model: changed}))


def trust_root(config: Config, path: Path, root_sha256: str) -> Root:
    """Trusts the root document in a file, whose digest was brought here by another way.

    Raises:
        StateError: `state_locked` (the daemon runs), `root_unreadable`, `trust_version`.
        WireError, TrustError: it is not that root, or not signed by its own keys.
    """
    try:
        with path.open("rb") as file:
            data = file.read(ROOT_DOCUMENT.size_bytes_max + 1)
    except OSError as error:
        raise StateError("root_unreadable", f"{path} cannot be read: {error}") from None
    with opened(config) as state:
        return Trust(state.root, verify).pin(data, root_sha256.lower())


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
