"""Twins in memory of the registry's ports, and a registry put together on them.

For: driving the real conductor, people and intake tick by tick, with a fault at any effect.
Not for: the MQTT and SQL adapters' own tests. The store's twin is SQLite in memory: the same queries
without a disk.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fleet.adapters.gate import NoGate
from fleet.adapters.key_files import verify
from fleet.adapters.sql_store import SqlStore, SqlTx
from fleet.conductor import Conductor, Ports
from fleet.config import Config
from fleet.current import Current
from fleet.doorman import Doorman
from fleet.enrolling import Enrolling, Office
from fleet.enrolments import Bounds
from fleet.ingest import Ingest
from fleet.orders import Desk
from fleet.people import People
from fleet.ports import Delivery, Gate, Outgoing, Tx
from fleet.publish.archive import Archive
from fleet.publish.intake import Intake
from fleet.publish.shelf import DeltaShelf
from fleet.publish.upload import read_bundle
from fleet.publisher import Publisher
from fleet.recall import Recall
from tests.fleet.scripted import UNSIGNED, ScriptedDevice
from wire.enrolment import BrokerAddress
from wire.errors import ContentError
from wire.topics import Topics

TOPICS = Topics()

NO_OFFICE = Office(
    authority=lambda: None, check=verify, url=lambda: None, broker=BrokerAddress(host="localhost"),
    bounds=Bounds(expired_renew_s=400 * 86400.0, renewals_per_day_max=10), lifetime_s=90 * 86400.0,
    devices_max=100_000,
)  # fmt: skip
"""A registry without an authority."""


class Killed(BaseException):
    """The process ends here; not an Exception, so that nothing can catch it by accident."""


class FakeClock:
    def __init__(self) -> None:
        self.time = 1_000_000.0

    def now(self) -> float:
        return self.time


class MemoryBlobs:
    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}

    @property
    def root(self) -> Path:
        return Path("/nowhere")

    def relative_path(self, digest: str) -> str:
        return f"{digest[:2]}/{digest}"

    def put(self, digest: str, content: Iterator[bytes], size_bytes_max: int) -> int:
        data = b"".join(content)
        if len(data) > size_bytes_max:
            raise ContentError("oversized", "too large")
        if hashlib.sha256(data).hexdigest() != digest:
            raise ContentError("hash_mismatch", "other bytes")
        self.content[digest] = data
        return len(data)

    def present(self, digests: Collection[str]) -> set[str]:
        return {digest for digest in digests if digest in self.content}

    def settle(self, digests: Collection[str]) -> None:
        assert set(digests) <= self.content.keys() or digests is not None

    def read(self, digest: str) -> bytes:
        if digest not in self.content:
            raise ContentError("blob_lost", digest)
        return self.content[digest]


class MemoryFiles:
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def path(self, rollout_id: str) -> str:
        return f"/files/{rollout_id}.json"

    def write(self, rollout_id: str, payload: bytes) -> None:
        self.files[rollout_id] = payload


def _fits(pattern: str, topic: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\+", "[^/]+"), topic) is not None


class MemoryBroker:
    """A broker with retained messages, devices on it, and one registry at a time.

    Attributes:
        retained: topic to payload.
        log: every message that was published, in order.
        before_publish: called before each of the registry's publications; may raise Killed.
    """

    def __init__(self) -> None:
        self.retained: dict[str, bytes] = {}
        self.log: list[tuple[str, bytes]] = []
        self.devices: list[ScriptedDevice] = []
        self.connected = True
        self.session = 1
        self.before_publish: Callable[[Outgoing], None] = lambda _message: None
        self._filters: list[str] = []
        self._inbox: list[Delivery] = []
        self._overflow = 0

    def new_registry(self) -> None:
        """The registry's process died; the next one connects."""
        self._filters, self._inbox = [], []
        self.session += 1

    def forget_everything(self) -> None:
        """Kill -9 of a broker without persistence; devices and registry connect again."""
        self.retained.clear()
        self._inbox.clear()
        self.session += 1
        for device in self.devices:
            device.connect()
        self.let_devices_speak()

    def join(self, device: ScriptedDevice) -> None:
        self.devices.append(device)
        for pattern, _qos in device.filters():
            for topic, payload in list(self.retained.items()):
                if _fits(pattern, topic):
                    device.hears(topic, payload)
        device.connect()
        self.let_devices_speak()

    def let_devices_speak(self) -> None:
        for device in self.devices:
            says, device.says = device.says, []
            for topic, payload, retain in says:
                self._route(topic, payload, retain)

    def _route(self, topic: str, payload: bytes, retain: bool) -> None:
        self.log.append((topic, payload))
        if retain and payload:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        if any(_fits(pattern, topic) for pattern in self._filters):
            self._inbox.append(Delivery(topic=topic, payload=payload, retain=False))
        for device in self.devices:
            if any(_fits(pattern, topic) for pattern, _qos in device.filters()):
                device.hears(topic, payload)

    # --- the port ------------------------------------------------------------------------------------

    def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        self._filters = [name for name, _qos in filters]
        # In the order of the filters, as Mosquitto does.
        for pattern in self._filters:
            for topic, payload in self.retained.items():
                if _fits(pattern, topic):
                    self._inbox.append(Delivery(topic=topic, payload=payload, retain=True))

    def unsubscribe(self, filters: Sequence[str]) -> None:
        self._filters = [name for name in self._filters if name not in filters]

    def publish(self, messages: Sequence[Outgoing], timeout_s: float) -> set[int]:
        assert timeout_s > 0
        if not self.connected:
            return set()
        for message in messages:
            self.before_publish(message)
            self._route(message.topic, message.payload, message.retain)
        self.let_devices_speak()
        return {message.key for message in messages}

    def drain(self, limit: int) -> list[Delivery]:
        taken, self._inbox = self._inbox[:limit], self._inbox[limit:]
        return taken

    def take_overflow(self) -> int:
        count, self._overflow = self._overflow, 0
        return count

    def lose_inbox(self) -> None:
        """As if messages had come faster than they were drained."""
        self._overflow += len(self._inbox)
        self._inbox.clear()

    def on_activity(self, wake: Callable[[], None]) -> None:
        wake()

    def close(self) -> None:
        self.connected = False


class FaultyStore:
    """A store that may be killed before or after the commit of any transaction."""

    def __init__(self, inner: SqlStore) -> None:
        self.inner = inner
        self.before_commit: Callable[[], None] = lambda: None
        self.after_commit: Callable[[], None] = lambda: None

    @contextmanager
    def begin(self) -> Iterator[Tx]:
        with self.inner.begin() as tx:
            before = self._changes(tx)
            yield tx
            wrote = self._changes(tx) != before
            if wrote:
                self.before_commit()
        if wrote:
            self.after_commit()

    @staticmethod
    def _changes(tx: SqlTx) -> int:
        """Rows that SQLite has changed on this connection; a transaction that only reads has no effect."""
        raw = tx.connection.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        return raw.total_changes

    def close(self) -> None:
        self.inner.close()


class Harness:
    """A registry on twins; `restart` is what kill -9 and a new start do."""

    def __init__(
        self,
        database: str = "sqlite://",
        desk: Desk | None = None,
        office: Office | None = None,
        gate: Gate | None = None,
        **config: object,
    ) -> None:
        self.config = Config(insecure_unsigned=True, seed_wait_s=0.0, **config)  # type: ignore[arg-type]
        self.clock = FakeClock()
        self.store = FaultyStore(SqlStore(database, "a" * 32))
        self.broker = MemoryBroker()
        self.blobs = MemoryBlobs()
        self.files = MemoryFiles()
        self.current = Current(desk or Desk(TOPICS, policy=UNSIGNED))
        self.doorman = Doorman(self.store, self.clock, gate or NoGate("a twin"))
        self.enrolling = Enrolling(self.store, self.clock, self.current, office or NO_OFFICE, self.doorman)
        self.people = People(self.store, self.clock, self.current, self.files, self.config)
        self.deltas: DeltaShelf | None = None
        self.intake = Intake(self.store, self.blobs, self.clock, self.current)
        self.archive = Archive(self.store, self.blobs, self.current, None)
        self._build()

    def _build(self) -> None:
        self.recall = Recall.beginning(self.store, self.current, verify)
        self.publisher = Publisher(
            self.store, self.broker, self.blobs, self.clock, self.current, self.config, self.recall
        )
        renew = self.enrolling.renew_over_mqtt
        self.ingest = Ingest(TOPICS, lambda: self.desk.policy, self.config.devices_max, renew, self.recall)
        ports = Ports(
            store=self.store,
            broker=self.broker,
            clock=self.clock,
            publisher=self.publisher,
            ingest=self.ingest,
            deltas=self.deltas,
            enrolling=self.enrolling,
        )
        self.conductor = Conductor(ports, self.current, self.config)

    @property
    def desk(self) -> Desk:
        """With what it signs now."""
        return self.current.now

    def restart(self) -> None:
        self.broker.new_registry()
        self._build()

    def device(self, name: str, refuses: frozenset[str] = frozenset()) -> ScriptedDevice:
        device = ScriptedDevice(name, TOPICS, refuses)
        self.broker.join(device)
        return device

    def publish(self, directory: Path) -> str:
        bundle = read_bundle(directory)
        _row, missing = self.intake.begin(bundle.data)
        for digest in missing:
            self.intake.blob(bundle.digest, digest, iter([bundle.blob(digest)]))
        return self.intake.finish(bundle.digest).digest

    def settle(self, seconds: float = 5.0) -> None:
        """Ticks until nothing happens any more, at least that long."""
        for _ in range(int(seconds)):
            self.clock.time += 1.0
            self.broker.let_devices_speak()
            while self.conductor.tick():
                self.broker.let_devices_speak()
        self.broker.let_devices_speak()
        self.conductor.tick()
