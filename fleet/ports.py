"""What the registry needs of the world, as small Protocols, and the rows that cross them.

For: the store (transactions over typed rows), the broker, the blobs on disk and the clock; each has a
twin in memory (`tests/fleet/twins.py`) that the tests drive in place of the adapters.
Not for: deciding anything, or the adapters themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol

from msgspec import Struct

from fleet.enrolment_ports import EnrolmentTx
from fleet.inventory import Device
from fleet.ports_people import PeopleTx
from wire.errors import ShallopError
from wire.messages import DesiredModel, Report


class RegistryError(ShallopError):
    """The registry cannot do what was asked; `code` says why, `message` what to do."""


class NotFoundError(RegistryError):
    """What was asked for does not exist here."""


class ConflictError(RegistryError):
    """What was asked for contradicts what is already there."""


class StoreError(RegistryError):
    """The database could not be used."""


class BrokerError(RegistryError):
    """The broker could not be used."""


class Mark(Struct, frozen=True, kw_only=True):
    """The registry's identity and counters.

    Attributes:
        registry_id: random, made with the database.
        generation: of the newest publication; the seed on the broker says how far it got.
        orders: the highest order number given out, fleet-wide.
        signed_root: number of the root under which everything was signed last; 0 before any.
        bars: number of the last list of barred releases; 0 before any.
    """

    registry_id: str
    generation: int
    orders: int
    signed_root: int = 0
    bars: int = 0


class ReleaseRow(Struct, frozen=True, kw_only=True):
    """A release; `digest` is the SHA-256 of `manifest`, the exact bytes that were uploaded."""

    digest: str
    model: str
    name: str
    state: Literal["uploading", "published"]
    created_at: float
    manifest: bytes
    envelope: bytes | None = None


class RolloutRow(Struct, frozen=True, kw_only=True):
    """A rollout with what the registry keeps beside the pure state.

    Attributes:
        state: the pure state's name, for queries.
        doc: the pure `Rollout` as JSON.
        rollback_order: reserved for the ready rollback payload.
        rollback_payload: the sealed command of the whole fleet's rollback.
        cleared: whether its content was looked at for clearing after its end.
    """

    id: str
    model: str
    release: str
    state: str
    created_at: float
    doc: bytes
    rollback_order: int
    rollback_payload: bytes
    cleared: bool = False


class DesiredRow(Struct, frozen=True, kw_only=True):
    """What one model on one device should be."""

    device: str
    model: str
    rollout: str | None
    entry: DesiredModel


class Post(Struct, frozen=True, kw_only=True):
    """Something to publish; exactly one of `payload` and `blob` (its digest) is the content.

    Attributes:
        rank: lower goes first: commands, then blobs, releases, desired documents, clearings.
    """

    topic: str
    rank: int
    retain: bool
    qos: int = 1
    payload: bytes | None = None
    blob: str | None = None


class OutboxRow(Struct, frozen=True, kw_only=True):
    """A post with its number and how new it is."""

    id: int
    post: Post
    generation: int


RollbackState = Literal["commanded", "by_desired", "done", "not_applicable", "failed"]


class RollbackRow(Struct, frozen=True, kw_only=True):
    """One device of a rollback that a person asked for.

    Attributes:
        state: `commanded` until the device answers; `by_desired` once the desired document says it.
        order: of the command, or of the desired entry that took its place.
    """

    id: str
    device: str
    model: str
    from_digest: str
    order: int
    state: RollbackState
    asked_at: float
    detail: str = ""


class Tx(PeopleTx, EnrolmentTx, Protocol):  # the one port that is large: a transaction sees all tables
    """One transaction; all of it is kept or nothing."""

    def mark(self) -> Mark:
        """The counters."""

    def take_orders(self, count: int) -> int:
        """Reserves `count` order numbers and gives the first."""

    def raise_orders(self, at_least: int) -> bool:
        """Raises the order counter to `at_least`; whether that changed it."""

    def signed_under(self, root: int) -> None:
        """Notes that everything is signed under that root."""

    def raise_generation(self, at_least: int) -> None:
        """Raises the generation to `at_least` if it is lower."""

    def device(self, device: str) -> Device | None:
        """One device with its labels and groups."""

    def devices(self) -> list[Device]:
        """All devices by id."""

    def device_count(self) -> int:
        """How many are known."""

    def save_device(self, device: Device) -> None:
        """Writes the view; labels and groups are written by `save_labels`."""

    def save_labels(self, device: Device) -> None:
        """Writes the registry's labels and groups of a device."""

    def forget_device(self, device: str) -> None:
        """Deletes everything about a device; unknown ones are ignored."""

    def add_report(self, report: Report, now: float) -> bool:
        """Keeps a report and moves the mark of completeness; False if it was already there."""

    def contradicts(self, report: Report) -> bool:
        """Whether another report of the same install has its number."""

    def contiguous(self, device: str, install_id: str) -> int:
        """Highest number up to which every report is here; 0 if none is."""

    def skip_gaps(self, older_than: float) -> list[tuple[str, str, int]]:
        """Gives up on reports missing since before `older_than`: (device, install id, new mark)."""

    def reports(self, device: str, limit: int) -> list[Report]:
        """The newest reports of a device, newest first."""

    def reports_of_order(self, order: int) -> list[Report]:
        """All devices' reports about an order, oldest first."""

    def prune_reports(self, received_before: float) -> int:
        """Deletes acknowledged reports older than that; how many."""

    def release(self, digest: str) -> ReleaseRow | None:
        """One release."""

    def release_named(self, model: str, name: str) -> ReleaseRow | None:
        """One release by its names."""

    def releases(self) -> list[ReleaseRow]:
        """All releases, oldest first."""

    def save_release(self, release: ReleaseRow) -> None:
        """Writes a release."""

    def delete_release(self, digest: str) -> None:
        """Deletes one."""

    def known_blobs(self, digests: Collection[str]) -> set[str]:
        """Which of them are on disk."""

    def add_blob(self, digest: str, size_bytes: int, path: str) -> None:
        """Records that a blob is on disk."""

    def lose_blob(self, digest: str) -> None:
        """Records that the disk no longer holds a blob; nothing tries to publish it any more."""

    def rollout(self, rollout_id: str) -> RolloutRow | None:
        """One rollout."""

    def rollouts(self, states: Collection[str] | None = None) -> list[RolloutRow]:
        """Rollouts in those states (None: all), oldest first."""

    def save_rollout(self, row: RolloutRow) -> None:
        """Writes a rollout."""

    def desired(self, device: str) -> dict[str, DesiredRow]:
        """Entries of one device by model."""

    def desired_of_model(self, model: str) -> list[DesiredRow]:
        """Entries of one model on all devices."""

    def desired_devices(self) -> list[str]:
        """Devices that have any entry, by id."""

    def desired_digests(self) -> set[str]:
        """Releases that any desired entry names."""

    def save_desired(self, row: DesiredRow) -> None:
        """Writes an entry."""

    def drop_desired(self, device: str, model: str) -> None:
        """Deletes an entry."""

    def rollback_rows(self, rollback_id: str | None = None, *, open_only: bool = False) -> list[RollbackRow]:
        """Rollbacks, all devices of one or all that are not ended."""

    def save_rollback(self, row: RollbackRow) -> None:
        """Writes one."""

    def post(self, posts: Iterable[Post]) -> None:
        """Puts posts into the outbox; a retained one takes the place of an older one of its topic.

        The first retained post of a transaction raises the generation, which all of them get.
        """

    def pending(self, limit: int) -> list[OutboxRow]:
        """Unpublished posts, lowest rank first, then oldest."""

    def pending_count(self) -> int:
        """How many are unpublished."""

    def published(self, ids: Collection[int], now: float) -> None:
        """Marks retained posts as published; deletes the others and clearings."""

    def retained_topics(self, prefix: str) -> set[str]:
        """Topics below `prefix` that the broker holds or will hold for us."""

    def retained_payload(self, topic: str) -> bytes | None:
        """What the broker holds or will hold for us on a topic; None where that is nothing, or a blob."""

    def republish_after(self, generation: int) -> int:
        """Makes retained posts newer than that pending again; how many."""

    def republish_topics(self, topics: Collection[str]) -> int:
        """Makes those retained posts pending again; how many."""


class Store(Protocol):
    """The database."""

    def begin(self) -> AbstractContextManager[Tx]:
        """A transaction that is committed at the end of the block and undone if it raises.

        Transactions are one after the other.

        Raises:
            StoreError: the database cannot be used.
        """

    def close(self) -> None:
        """Gives up connections."""


class Clock(Protocol):
    """Time."""

    def now(self) -> float:
        """Seconds since 1970."""


class Delivery(Struct, frozen=True, kw_only=True):
    """A message from the broker."""

    topic: str
    payload: bytes
    retain: bool


class Outgoing(Struct, frozen=True, kw_only=True):
    """A message to the broker; `key` names it in the answer."""

    key: int
    topic: str
    payload: bytes
    retain: bool
    qos: int


class Broker(Protocol):
    """The connection to the broker; it reconnects by itself."""

    @property
    def connected(self) -> bool:
        """Whether it stands."""

    @property
    def session(self) -> int:
        """Counts connections; a new number means: read the seed and all retained topics again."""

    def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribes (again), so that the broker sends retained messages; kept over reconnects."""

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Ends subscriptions; unknown ones are ignored."""

    def publish(self, messages: Sequence[Outgoing], timeout_s: float) -> set[int]:
        """Publishes with bounded inflight; the keys that the broker acknowledged in time."""

    def drain(self, limit: int) -> list[Delivery]:
        """Messages received since the last call, at most `limit`."""

    def take_overflow(self) -> int:
        """How many messages were dropped because nobody drained them; the counter starts anew."""

    def on_activity(self, wake: Callable[[], None]) -> None:
        """Calls `wake` from any thread when there is something to drain or the connection changed."""

    def close(self) -> None:
        """Disconnects."""


class CutOff(Struct, frozen=True, kw_only=True):
    """Whether a device is cut off at the broker.

    Attributes:
        in_force: the broker refuses it and its session is ended; else that is tried on and on.
        detail: what was seen, in words.
    """

    in_force: bool
    detail: str


class Gate(Protocol):
    """The broker's door."""

    def cut_off(self, device: str, serials: Mapping[int, float]) -> CutOff:
        """Refuses a device and throws it out; takes some seconds at most. Asked again, it tries again.

        Args:
            device: its id.
            serials: of its certificates that live; when each ends, seconds since 1970.

        Raises:
            KeysError: it could not be written down; the broker has read nothing new.
        """

    def let_in(self, device: str) -> bool:
        """The device may come again, by a new certificate; the revoked ones stay revoked.

        Called before it gets that certificate. False: the broker has not read it yet, and would let the
        device in and show it nothing; once it has, the device is served from its next connection on.

        Raises:
            KeysError: it could not be written down.
        """


class Blobs(Protocol):
    """Content by hash."""

    def put(self, digest: str, content: Iterator[bytes], size_bytes_max: int) -> int:
        """Keeps content whose SHA-256 is `digest`, whole and on disk before it has its name; its size.

        Raises:
            ContentError: `hash_mismatch` or `oversized`; nothing is kept.
        """

    def present(self, digests: Collection[str]) -> set[str]:
        """Which of them lie here."""

    def settle(self, digests: Collection[str]) -> None:
        """Makes the names of these blobs durable; before that a power cut may lose whole ones."""

    def read(self, digest: str) -> bytes:
        """The content.

        Raises:
            ContentError: `blob_lost` or `hash_mismatch`: the disk does not hold what it held.
        """

    def relative_path(self, digest: str) -> str:
        """Where it lies below the blob directory."""

    @property
    def root(self) -> Path:
        """The blob directory."""


class DeltaError(ShallopError):
    """A delta could not be made; nothing is lost by it."""


class DeltaMaker(Protocol):
    """Makes deltas between two contents."""

    @property
    def algorithm(self) -> str:
        """Its name in hints."""

    def make(self, base: bytes, new: bytes) -> bytes | None:
        """The delta; None where it does not pay.

        Raises:
            DeltaError: `delta_not_made`.
            OSError: the disk.
        """

    def stop(self) -> None:
        """Gives up what is being made, and makes nothing more."""


class ReadyFiles(Protocol):
    """Ready rollback payloads as files, for a person whose registry is down."""

    def path(self, rollout_id: str) -> str:
        """Where the payload of a rollout lies."""

    def write(self, rollout_id: str, payload: bytes) -> None:
        """Keeps it, durable before it returns; writing it again changes nothing."""
