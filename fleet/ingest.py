"""What devices say, taken in: bytes from the broker to views, reports and acknowledgements.

For: the registry's edge towards devices. Each message is parsed once, with its size capped; what cannot
be used is counted and logged by name and hurts nobody else.
Not for: deciding what follows (`fleet.conductor`), or the broker itself.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Container, Iterable

import msgspec
from msgspec import Struct

from fleet.inventory import Device, UpMessage, fold, twinned
from fleet.ports import Delivery, RegistryError, RollbackRow, Tx
from fleet.recall import Recall
from wire import topics as wt
from wire.certificates import Renewal
from wire.codec import decode, is_cleared
from wire.errors import ShallopError, TrustError
from wire.messages import Desired, Identity, OrderRefused, Reply, Report, Reported, Seed, Status
from wire.topics import Channel, Topics
from wire.trust import Policy, open_envelope

_LOG = logging.getLogger("shallop.fleet.ingest")

ORDER_JUMP_MAX = 1_000_000
"""How far numbers from outside may raise our own counter between two starts, all of them together: a registry
that was restored has to count on from what devices saw, and a hostile device must not use the numbers up."""

_UP: dict[str, type[UpMessage]] = {
    "status": Status,
    "identity": Identity,
    "reported": Reported,
    "report": Report,
    "reply": Reply,
}


class Taken(Struct, kw_only=True):
    """What a batch of messages led to.

    Attributes:
        acks: by device and install, the highest report up to which all are committed.
        changed: devices whose view is another one now.
        missing: digests that devices need and the broker does not hold.
        stale: devices that refused their desired document because they have seen a higher number.
        seed: the marker, if it was among the messages.
    """

    acks: dict[tuple[str, str], int] = {}
    changed: set[str] = set()
    missing: set[str] = set()
    stale: set[str] = set()
    seed: Seed | None = None


class Ingest:
    """Takes batches in; keeps only counters of its own.

    Attributes:
        refused: how often messages were refused, by reason.
    """

    def __init__(
        self,
        topics: Topics,
        policy: Callable[[], Policy],
        devices_max: int,
        renew: Callable[[Tx, Renewal, float], None] | None = None,
        recall: Recall | None = None,
    ) -> None:
        self._topics = topics
        self._policy = policy
        self._devices_max = devices_max
        self._renew = renew
        self._recall = recall
        self._shut_out: Container[str] = ()
        self._jump_left = ORDER_JUMP_MAX
        self.refused: Counter[str] = Counter()

    def take(self, tx: Tx, deliveries: Iterable[Delivery], now: float) -> Taken:
        """Takes a batch in, within one transaction; nothing that a device sent raises."""
        taken = Taken()
        self._shut_out = tx.revocations()
        views: dict[str, Device] = {}
        for delivery in deliveries:
            try:
                self._one(tx, delivery, views, taken, now)
            except ShallopError as error:
                self.refused[error.code] += 1
                _LOG.warning(
                    "refused %d bytes on %s: %s", len(delivery.payload), _shown(delivery.topic), error
                )
        for key in taken.acks:
            taken.acks[key] = tx.contiguous(*key)
        for device in taken.changed:
            tx.save_device(views[device])
            taken.missing.update(views[device].missing)
        if taken.changed:
            if self._recall is not None:
                self._recall.outrun(tx, {name: views[name].order_highest for name in taken.changed}, now)
            self._raise_orders(tx, max(views[device].order_highest for device in taken.changed))
        return taken

    def _one(self, tx: Tx, delivery: Delivery, views: dict[str, Device], taken: Taken, now: float) -> None:
        parsed = self._topics.parse(delivery.topic)
        if parsed is None:
            raise RegistryError("unknown_topic", f"{delivery.topic[:200]!r} is no topic of ours")
        channel, params = parsed
        if is_cleared(delivery.payload):
            return
        if channel is wt.SEED:
            taken.seed = decode(delivery.payload, Seed, channel.size_bytes_max)
        elif channel is wt.DESIRED:
            self._own_desired(tx, delivery.payload, params["device"], now)
        elif channel is wt.BARS and self._recall is not None:
            self._recall.bars(tx, delivery.payload, now)
        elif channel is wt.ROOT and self._recall is not None:
            self._recall.root(tx, delivery.payload, now)
        elif channel is wt.RENEWAL:
            self._renewal(tx, delivery.payload, params["device"], now)
        elif channel.name in _UP:
            self._up(tx, channel, params["device"], delivery.payload, views, taken, now)

    def _own_desired(self, tx: Tx, payload: bytes, device: str, now: float) -> None:
        """A retained desired document of a former life of this registry: its orders were given out."""
        opened = open_envelope(payload, "desired", self._policy(), wt.DESIRED.size_bytes_max)
        desired = decode(opened, Desired, wt.DESIRED.size_bytes_max)
        if desired.device != device:
            raise TrustError(
                "wrong_device", f"a desired document of {desired.device} on the topic of {device}"
            )
        if self._recall is not None and self._recall.signs:
            self._recall.desired(tx, desired, payload, now)
            return
        highest = max((entry.order for entry in desired.models.values()), default=0)
        if self._raise_orders(tx, self._believable(tx, highest)):
            _LOG.warning("the broker holds order %d of %s, newer than our own; counting on", highest, device)

    def _up(
        self,
        tx: Tx,
        channel: Channel,
        device: str,
        payload: bytes,
        views: dict[str, Device],
        taken: Taken,
        now: float,
    ) -> None:
        if device in self._shut_out:
            raise RegistryError("device_revoked", f"{device} was revoked; nothing that it says is taken in")
        message: UpMessage = decode(payload, _UP[channel.name], channel.size_bytes_max)
        _require_own(message.device, device)
        view = known = views.get(device) or tx.device(device) or self._newcomer(tx, device)
        self._check_orders(tx, message)
        if isinstance(message, Report) and _keep_report(tx, message, taken, now):
            view = twinned(view)
        if self._recall is not None:
            self._recall.hears(tx, message, device)
        if _is_stale(message):
            taken.stale.add(device)
        if isinstance(message, Reply):
            _answer(tx, message)
        folded = fold(view, message, now)
        views[device] = folded
        if folded is not known:
            if folded.duplicate_identity and not known.duplicate_identity:
                _LOG.error("duplicate_identity: two machines answer as %s", device)
            taken.changed.add(device)

    def _renewal(self, tx: Tx, payload: bytes, device: str, now: float) -> None:
        """Of a revoked device too: it is told so, once its proofs stand."""
        renewal = decode(payload, Renewal, wt.RENEWAL.size_bytes_max)
        _require_own(renewal.device, device)
        if self._renew is None:
            raise RegistryError(
                "no_ca", "there is no authority for certificates; `shallop-fleet broker init`"
            )
        self._renew(tx, renewal, now)

    def _newcomer(self, tx: Tx, device: str) -> Device:
        if tx.device_count() >= self._devices_max:
            raise RegistryError(
                "too_many_devices", f"{self._devices_max} devices are known; raise devices_max or forget some"
            )
        # Written at once, so that the count is right for the next newcomer of this batch.
        view = Device(id=device)
        tx.save_device(view)
        return view

    def _raise_orders(self, tx: Tx, highest: int) -> bool:
        before = tx.mark().orders
        raised = tx.raise_orders(highest)
        self._jump_left -= max(0, tx.mark().orders - before)
        return raised

    def _check_orders(self, tx: Tx, message: UpMessage) -> None:
        highest = max(_orders_in(message), default=0)
        # Our own counter is asked only for a number that it could exceed at all.
        if highest > self._jump_left:
            self._believable(tx, highest)

    def _believable(self, tx: Tx, highest: int) -> int:
        known = tx.mark().orders
        if highest > known + self._jump_left:
            raise RegistryError(
                "order_unbelievable", f"order {highest} is far above our own highest, {known}; not counted"
            )
        return highest


def _shown(topic: str) -> str:
    """A topic may be 64 KiB long and hold line ends, which would make lines of the log of their own."""
    return topic[:200] if topic[:200].isprintable() else ascii(topic[:200])


def _require_own(sender: str, device: str) -> None:
    if sender != device:
        raise RegistryError("wrong_device", f"a message of {sender} on the topic of {device}")


def _orders_in(message: UpMessage) -> list[int]:
    if isinstance(message, Reported):
        return [max(state.order, state.order_highest) for state in message.models.values()]
    if isinstance(message, Reply):
        states = [max(state.order, state.order_highest) for state in message.models.values()]
        return [message.order_highest, *states]
    if isinstance(message, Report):
        refused = message.event.order_highest if isinstance(message.event, OrderRefused) else 0
        return [message.order, refused]
    return []


def _is_stale(message: UpMessage) -> bool:
    event = message.event if isinstance(message, Report) else None
    return isinstance(event, OrderRefused) and event.reason.code == "stale_document"


def _keep_report(tx: Tx, message: Report, taken: Taken, now: float) -> bool:
    """Whether another report had this number: two machines carry copies of one state directory."""
    new = tx.add_report(message, now)
    taken.acks[message.device, message.install_id] = 0
    return not new and tx.contradicts(message)


def _answer(tx: Tx, message: Reply) -> None:
    """A command's answer: a rollback that does not apply is ended; one that is done is seen in the view."""
    if message.result not in {"not_applicable", "refused"}:
        return
    for row in tx.rollback_rows(open_only=True):
        asked = row.device == message.device and f"rollback-{row.order}" == message.command
        if asked and row.state == "commanded":
            detail = message.result if message.reason is None else message.reason.detail
            state = "not_applicable" if message.result == "not_applicable" else "failed"
            changed: RollbackRow = msgspec.structs.replace(row, state=state, detail=detail[:2000])
            tx.save_rollback(changed)
