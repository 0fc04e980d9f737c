"""A whole agent over in-memory twins: real journal, slots, store and threads, no broker and no runtime."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from agent.adapters.ed25519 import verify
from agent.bringing import Bringing, Wanted
from agent.connection import Connection
from agent.deployment import Bounds, Deployment
from agent.exchange import Exchange
from agent.fetch import TransferLimits
from agent.fetching import Errand, Fetcher, Sources
from agent.install import Install
from agent.jobs import Jobs, Machine
from agent.journal import JournalFile
from agent.outbox import Outbox
from agent.rebuilding import Rebuilder
from agent.runner import Pace, Runner
from agent.slots import Slots
from agent.soak import Rules
from agent.soaking import Soaking
from agent.store import BlobStore
from agent.trust import Trust
from agent.uplink import Self, Uplink
from agent.worker.job import TrialSettings
from tests.agent.twins import (
    TOPICS,
    FixedDisk,
    FixedRandom,
    MemoryBroker,
    MemoryDeltas,
    MemoryHooks,
    MemoryTrials,
    MemoryUnits,
    OpenLock,
    QuietSupervisor,
    Release,
    TestClock,
    release,
    sealed_command,
    until,
)
from wire.messages import (
    DesiredModel,
    Hardware,
    ModelState,
    OrderOutcome,
    Reply,
    Report,
    Reported,
    RuntimeInfo,
    Slot,
    ToDevice,
)
from wire.topics import COMMAND

DEVICE = "roof-17"
MACHINE = Machine(
    hardware=Hardware(arch="aarch64", cpu_features=("asimd",)),
    runtimes=(RuntimeInfo(name="onnxruntime", version="1"),),
)
ONE, TWO = release("1", changes=b"one"), release("2", changes=b"two")
ME = ToDevice(device=DEVICE)
PACE = Pace(tick_s=0.02, idle_s=0.2, save_s=0.1, save_retry_s=0.05, resend_s=3600.0, stop_s=5.0)


class Rig:
    """One start of the agent on a state directory; what it is given outlives it."""

    def __init__(self, root: Path, broker: MemoryBroker, *, unsigned: bool = True) -> None:
        self.root = root
        self.broker = broker
        self.trials = MemoryTrials()
        self.hooks = MemoryHooks()
        self.units = MemoryUnits()
        self.flags: tuple[str, ...] | None = ()
        self.boot = "a start of the machine"
        self.live_latency: tuple[float | None, int] = (None, 0)
        self.live_latency_factor_max: float | None = None
        self.clock = TestClock()
        self.disk = FixedDisk()
        self.supervisor = QuietSupervisor()
        self.unsigned = unsigned
        self.limits = TransferLimits()
        self.signed_at = ""
        self.require_ready: Callable[[], None] | None = None
        self.deltas = MemoryDeltas()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Builds everything anew, as a process would, and runs it."""
        self.build()
        self.broker.listener = self.connection
        self._thread = threading.Thread(target=self.runner.run, name="runner")
        self._thread.start()
        if self.broker.up:
            self.connection.will()
            self.connection.connected()

    def build(self) -> None:
        """The parts; none of them runs."""
        root, broker, clock = self.root, self.broker, self.clock
        root.mkdir(parents=True, exist_ok=True)
        exchange, install = Exchange(broker), Install(root)
        me = Self(device=DEVICE, agent_version="1", hardware=MACHINE.hardware, runtimes=MACHINE.runtimes)
        uplink = Uplink(broker, TOPICS, me, install, clock)
        slots, store = Slots(root / "models"), BlobStore(root / "blobs")
        sources, self.trust = Sources(store, slots), Trust(root, verify)
        policy = self.trust.policy(insecure_unsigned=self.unsigned)
        fetcher = Fetcher(
            transport=broker, exchange=exchange, store=store, sources=sources, clock=clock, disk=self.disk,
            topics=TOPICS, policy=policy, window_max=32,
            disk_margin_bytes=1000, limits=self.limits, signed_at=lambda: self.signed_at,
        )  # fmt: skip

        def rebuilder() -> Rebuilder:
            return Rebuilder(fetcher=fetcher, sources=sources, store=store, slots=slots, runner=self.deltas)

        self.sources, self.slots = sources, slots
        self.bringing = Bringing(
            fetcher=fetcher, sources=sources, rebuilder=rebuilder, clock=clock, where=root / "models"
        )
        jobs = Jobs(
            fetcher=fetcher, sources=sources, slots=slots, models_dir=root / "models",
            shards_dir=root / "shards", machine=MACHINE, trial_runner=self.trials, trial_lock=OpenLock(),
            trial_settings=TrialSettings(), hooks=self.hooks, clock=clock, random=FixedRandom(),
            soaking=self.soaking(), rebuilder=rebuilder, require_not_barred=self.trust.require_not_barred,
            require_ready=self.require_ready,
        )  # fmt: skip
        self.runner = Runner(
            journal=JournalFile(root, DEVICE), slots=slots, store=store, shards_dir=root / "shards",
            outbox=Outbox(root / "reports", 500, install.reserved), uplink=uplink, jobs=jobs, clock=clock,
            supervisor=self.supervisor, bounds=Bounds(), pace=PACE,
        )  # fmt: skip
        self.connection = Connection(
            device=DEVICE, topics=TOPICS, trust=self.trust, policy=policy,
            transport=broker, exchange=exchange, uplink=uplink, install=install,
            runner=self.runner, clock=clock, disk=self.disk, state_dir=root,
        )  # fmt: skip

    def soaking(self) -> Soaking:
        """The soak's work."""
        return Soaking(
            hooks=self.hooks, units=self.units, flags=lambda: self.flags, clock=self.clock,
            slots=Slots(self.root / "models"), models_dir=self.root / "models",
            boot=self.boot, rules=Rules(health_failures_max=2), live=lambda _model, _slot: self.live_latency,
            live_latency_factor_max=self.live_latency_factor_max,
        )  # fmt: skip

    def stop(self) -> None:
        """Ends the loop as SIGTERM does."""
        if self._thread is not None:
            self.broker.listener = None
            self.runner.stop()
            self._thread.join(20)
            assert not self._thread.is_alive(), "the loop did not end"
            self._thread = None

    def fetch_and_assemble(self, order: DesiredModel, which: Release) -> Path:
        """FETCHING and VERIFYING of a release's first variant on this thread; where its files lie."""
        variant = which.manifest.variants[0]
        wanted = Wanted(files=variant.files, shards=())
        errand = Errand(threading.Event(), lambda _missing, _stored: None)
        self.bringing.bring("digits", order, wanted, errand)
        slot = Slot(digest=which.digest, release=order.release, variant=variant.id, order=order.order)
        self.sources.refresh()
        manifest = (which.data, which.manifest)
        self.slots.assemble("digits", slot, manifest, self.sources.read, self.sources.built)
        return self.slots.directory("digits", slot)

    @property
    def current(self) -> Path:
        return self.root / "models" / "digits" / "current"

    @property
    def running(self) -> str | None:
        """Digest of the release that `current` points to."""
        return self.current.resolve().name[:64] if self.current.is_symlink() else None

    @property
    def deployment(self) -> Deployment:
        return self.runner.models["digits"]

    def reported(self) -> ModelState | None:
        """The model's state as it was last reported."""
        said = self.broker.heard("reported")
        return msgspec.json.decode(said[-1], type=Reported).models.get("digits") if said else None

    def reports(self) -> list[Report]:
        return [msgspec.json.decode(payload, type=Report) for payload in self.broker.heard("report/")] or [
            msgspec.json.decode(payload, type=Report)
            for topic, payload in self.broker.said
            if topic.endswith("/up/report")
        ]

    def wait(self, order: int, outcome: OrderOutcome) -> ModelState:
        """The reported state once `order` ended so."""

        def ended() -> bool:
            state = self.reported()
            return state is not None and (state.order, state.outcome) == (order, outcome)

        try:
            until(ended, f"order {order} ending as {outcome}")
        except AssertionError as error:
            raise AssertionError(f"{error}; the last state was {self.reported()}") from None
        state = self.reported()
        assert state is not None
        return state

    def refusals(self) -> list[str]:
        """Codes of every message, variant and order that was refused."""
        codes = []
        for report in self.reports():
            reason = getattr(report.event, "reason", None)
            if type(report.event).__name__.endswith("Refused") and reason is not None:
                codes.append(reason.code)
        return codes


@contextlib.contextmanager
def running(root: Path, *, prepare: Callable[[Rig], None] = lambda _: None) -> Iterator[Rig]:
    """An agent that runs for the block."""
    rig = Rig(root, MemoryBroker())
    prepare(rig)
    rig.start()
    try:
        yield rig
    finally:
        rig.trials.hangs = False
        rig.stop()


def deploy(rig: Rig, which: Release = ONE, order: int = 1) -> None:
    """A release goes through to active."""
    rig.broker.hold(which)
    rig.broker.desire(DEVICE, {"digits": which.order(order)})
    rig.wait(order, OrderOutcome.ACTIVE)


def command(rig: Rig, action: object, **fields: object) -> None:
    payload = sealed_command(ME, action, **fields)
    rig.broker.tell(TOPICS.topic(COMMAND, device=DEVICE), payload)


def answers(rig: Rig) -> list[Reply]:
    return [msgspec.json.decode(payload, type=Reply) for payload in rig.broker.heard("reply")]
