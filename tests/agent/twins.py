"""In-memory twins of the agent's ports, and a small release whose files are plain bytes."""

from __future__ import annotations

import contextlib
import errno
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agent.errors import Cancelled, FinalError
from agent.metering import LocalTime
from agent.ports import Listener
from agent.soak import UnitState
from agent.worker.job import TrialJob
from tests.agent import plain_delta
from wire import codec, trust
from wire.bundle import Chunk, File, HostFigures, Manifest, Provenance, Shard, TensorSpec, Variant
from wire.chunks import cut, digest, pieces
from wire.measures import Conformance, Latency, Measure, TrialResult
from wire.messages import Command, Desired, DesiredModel, ToAll, ToDevice, ToGroup
from wire.sla import AccuracyLimit, Limits
from wire.topics import BLOB, DESIRED, RELEASE, Topics

TOPICS = Topics()
VARIANT = "onnxruntime/static_wi8_au8"
SECOND = "onnxruntime/float_wf32_af32"


# --- a release --------------------------------------------------------------------------------------


class Release:
    """A release with its content."""

    def __init__(self, manifest: Manifest, blobs: dict[str, bytes]) -> None:
        self.manifest = manifest
        self.data = codec.encode(manifest)
        self.digest = digest(self.data)
        self.blobs = blobs

    def messages(self) -> dict[str, bytes]:
        """Every retained message of the release."""
        found = {TOPICS.topic(BLOB, digest=name): data for name, data in self.blobs.items()}
        found[TOPICS.topic(RELEASE, digest=self.digest)] = trust.seal("release", self.data)
        return found

    def order(self, number: int, **fields: object) -> DesiredModel:
        """An order for it; it soaks for no time unless told otherwise."""
        given: dict[str, Any] = {"soak_s": 0.0, "deadline_s": 60.0, **fields}
        return DesiredModel(order=number, digest=self.digest, release=self.manifest.release, **given)


def release(
    name: str = "1",
    model: str = "digits",
    *,
    changes: bytes = b"",
    variants: tuple[str, ...] = (VARIANT,),
    content: bytes | None = None,
) -> Release:
    """A release of a few chunks; `changes` makes its model differ from another's in the first chunk only.

    `content` is the model's instead, of every variant.
    """
    blobs: dict[str, bytes] = {}

    def file(path: str, data: bytes) -> File:
        spans = cut(len(data), chunk_bytes_max=1000)
        for piece in pieces(data, spans):
            blobs[digest(piece)] = bytes(piece)
        chunks = tuple(Chunk(sha256=digest(p), size_bytes=len(p)) for p in pieces(data, spans))
        return File(path=path, size_bytes=len(data), sha256=digest(data), chunks=chunks)

    def variant(name: str) -> Variant:
        folder = f"variants/{name.partition('/')[2]}"
        same = b"".join(bytes([n]) * 1000 for n in range(8))
        plain = (changes + name.encode()).ljust(1000, b"-") + same
        model_file = file(f"{folder}/model.onnx", plain if content is None else content)
        accuracy = Measure(value=0.97, low=0.95, high=0.98, n=2000)
        return Variant(
            id=name, runtime="onnxruntime", recipe=folder, precision="int8", model_path=model_file.path,
            files=(model_file,), host=HostFigures(accuracy=accuracy),
        )  # fmt: skip

    manifest = Manifest(
        model=model, release=name, created_at="2026-01-01T00:00:00Z", task="classification", target="host",
        sla=Limits(accuracy=AccuracyLimit(min=0.9)),
        inputs=(TensorSpec(name="x", dtype="float32", shape=(None, 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(None, 2)),),
        labels=("no", "yes"),
        variants=tuple(variant(name) for name in variants),
        validation=(Shard(file=file("validation/0.npz", b"samples" * 200), n_samples=10),),
        provenance=Provenance(source_model_sha256="0" * 64),
    )  # fmt: skip
    return Release(manifest, blobs)


def sealed_desired(device: str, models: dict[str, DesiredModel], groups: tuple[str, ...] = ()) -> bytes:
    return trust.seal("desired", codec.encode(Desired(device=device, models=models, groups=groups)))


def sealed_command(to: ToDevice | ToGroup | ToAll, action: object, **fields: object) -> bytes:
    command = Command(id="c1", to=to, action=action, **fields)  # type: ignore[arg-type]
    return trust.seal("command", codec.encode(command))


# --- ports ------------------------------------------------------------------------------------------


class MemoryBroker:
    """Retained messages, subscriptions, and what the agent said; fulfils `agent.ports.Transport`.

    Attributes:
        up: whether there is a connection.
        fetched: every blob that was delivered, in order.
    """

    def __init__(self) -> None:
        self.up = True
        self.retained: dict[str, bytes] = {}
        self.said: list[tuple[str, bytes]] = []
        self.fetched: list[str] = []
        self.listener: Listener | None = None
        self._subscribed: set[str] = set()
        self._lock = threading.Lock()

    @property
    def connected(self) -> bool:
        return self.up

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> bool:
        del qos
        if not self.up:
            return False
        self.said.append((topic, payload))
        if retain:
            self.retained[topic] = payload
        if topic in self._subscribed and self.listener is not None:
            self.listener.received(topic, payload)
        return True

    def subscribe(self, topics: list[tuple[str, int]]) -> None:
        for topic, _ in topics:
            self._subscribed.add(topic)
            if self.up and topic in self.retained and self.listener is not None:
                if "/blob/" in topic:
                    self.fetched.append(topic.rpartition("/")[2])
                self.listener.received(topic, self.retained[topic])

    def unsubscribe(self, topics: list[str]) -> None:
        self._subscribed -= set(topics)

    # --- the fleet's side

    def hold(self, *releases: Release) -> None:
        """Publishes releases."""
        for one in releases:
            self.retained |= one.messages()

    def tell(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """The fleet says something."""
        if retain:
            self.retained[topic] = payload
        if topic in self._subscribed and self.listener is not None:
            self.listener.received(topic, payload)

    def desire(self, device: str, models: dict[str, DesiredModel], groups: tuple[str, ...] = ()) -> None:
        """Rewrites the desired document."""
        self.tell(TOPICS.topic(DESIRED, device=device), sealed_desired(device, models, groups), retain=True)

    def heard(self, channel: str) -> list[bytes]:
        """Payloads that the agent sent on topics that contain `channel`."""
        return [payload for topic, payload in self.said if f"/up/{channel}" in topic]


class MemoryTrials:
    """A trial that ends at once; `accuracy` by variant, an error instead where one is set."""

    def __init__(self) -> None:
        self.accuracy: dict[str, float] = {}
        self.errors: dict[str, Exception] = {}
        self.jobs: list[TrialJob] = []
        self.hang = threading.Event()
        self.hangs = False

    def run(self, job: TrialJob, cancel: threading.Event) -> TrialResult:
        self.jobs.append(job)
        variant = job.candidate.variant
        assert Path(job.candidate.model_path).is_file()
        assert all(Path(shard).is_file() for shard in job.shards)
        while self.hangs:
            if cancel.wait(0.01):
                raise Cancelled
        if variant in self.errors:
            raise self.errors[variant]
        value = self.accuracy.get(variant, 0.96)
        return TrialResult(
            variant=variant, runtime="onnxruntime", runtime_version="1", shards=job.shard_indices,
            n_samples=10,
            accuracy=Measure(value=value, low=value - 0.05, high=value + 0.03, n=10),
            conformance=Conformance(n=10, equal=0.0, same_answer=0.5, worst=9.0, conforms=False),
            latency=Latency(ms_p50=1.0, ms_p95=1.5, ms_p99=2.0, n=10), memory_bytes_peak=1000,
        )  # fmt: skip


class MemoryDeltas:
    """Deltas applied in this process, by a codec as plain as can be: what differs, with where it goes.

    Attributes:
        runs: how many were applied.
        error: raised instead, where one is set.
        before: called before one is applied.
    """

    def __init__(self) -> None:
        self.runs = 0
        self.error: Exception | None = None
        self.before: Callable[[], None] = lambda: None

    def apply(self, base: Path, delta: Path, output: Path, size_bytes: int, cancel: threading.Event) -> None:
        self.runs += 1
        self.before()
        if cancel.is_set():
            raise Cancelled
        if self.error is not None:
            raise self.error
        plain_delta.apply(base, delta, output, size_bytes)


class MemoryHooks:
    """An application that is told and asked."""

    def __init__(self) -> None:
        self.activated: list[str] = []
        self.looks = 0
        self.ill: str | None = None
        self.refuses = False

    def activate(self, model: str, current: Path, cancel: threading.Event) -> None:
        del model, cancel
        self.activated.append(current.resolve().name[:64])
        if self.refuses:
            raise FinalError("activate_failed", "the application says no")

    def healthy(self, model: str, current: Path, cancel: threading.Event) -> str | None:
        del model, current, cancel
        self.looks += 1
        return self.ill

    def interval_s(self, model: str) -> float:
        del model
        return 0.01


class MemoryUnits:
    """Services that a test moves; a model without an entry has none, a text says why nobody can tell."""

    def __init__(self) -> None:
        self.units: dict[str, UnitState | str] = {}
        self.by_unit: set[str] = set()

    def state(self, model: str) -> UnitState | None:
        found = self.units.get(model)
        return found if isinstance(found, UnitState) else None

    def problem(self, model: str) -> str | None:
        found = self.units.get(model)
        return found if isinstance(found, str) else None

    def activates(self, model: str) -> bool:
        return model in self.by_unit


class OpenLock:
    """A machine with one agent."""

    @contextlib.contextmanager
    def hold(self, cancel: threading.Event) -> Iterator[None]:
        del cancel
        yield


class TestClock:
    """Real time that a test may push forward."""

    __test__ = False

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self.day = LocalTime(minute=12 * 60, synchronised=True)

    def local(self) -> LocalTime:
        return self.day

    def boot_s(self) -> float:
        return time.monotonic() + self.ahead_s

    def now_text(self) -> str:
        return "2026-01-01T00:00:00Z"


class FixedRandom:
    """No chance."""

    def unit(self) -> float:
        return 0.01


class FixedDisk:
    """As much room as a test says."""

    def __init__(self, free: int = 10**12) -> None:
        self.free = free
        self.broken = False

    def free_bytes(self, path: Path) -> int:
        if self.broken:
            raise OSError(errno.EIO, "input/output error", str(path))
        return self.free


class QuietSupervisor:
    """Nobody watches."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.within_s = math.inf

    def ready(self) -> None:
        self.said.append("ready")

    def alive(self) -> None:
        return

    def status(self, text: str) -> None:
        self.said.append(text)

    def stopping(self) -> None:
        self.said.append("stopping")


def until(condition: Callable[[], object], what: str, wait_s: float = 20.0) -> None:
    """Waits for something that other threads bring about."""
    end_s = time.monotonic() + wait_s
    while not condition():
        if time.monotonic() > end_s:
            raise AssertionError(f"it did not happen within {wait_s:g} s: {what}")
        time.sleep(0.005)
