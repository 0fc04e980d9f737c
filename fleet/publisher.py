"""The outbox onto the broker, and what the broker remembers of it.

For: publishing pending posts in rounds, moving the seed marker once all was acknowledged, and making
posts pending again that the broker forgot or that devices miss.
Not for: what stands in the outbox (`fleet.orders`, `fleet.publish`), or messages from devices.
"""

from __future__ import annotations

import logging

from fleet.config import Config
from fleet.current import Current
from fleet.orders import Desk, desired_post
from fleet.ports import Blobs, Broker, Clock, Mark, OutboxRow, Outgoing, Store, Tx
from fleet.recall import Recall
from fleet.restored import GENERATION_JUMP_MAX
from wire import topics as wt
from wire.codec import encode
from wire.errors import ContentError
from wire.messages import Ack, Seed

_LOG = logging.getLogger("shallop.fleet.publisher")

MISSING_REMEMBERED_MAX = 100_000
"""Digests whose last publication again is remembered; above that the memory starts anew."""

_SEED_KEY = -1

SYNC_S_MAX = 60.0
"""How long the marker is waited for while other retained messages still come, which a broker sends first."""


class Publisher:
    """The registry's mouth."""

    def __init__(
        self, store: Store, broker: Broker, blobs: Blobs, clock: Clock, desk: Current[Desk], config: Config,
        recall: Recall | None = None,
    ) -> None:  # fmt: skip
        self._store = store
        self._broker = broker
        self._blobs = blobs
        self._clock = clock
        self._desk, self._topics = desk, desk.now.topics
        self._config = config
        self._recall = recall
        self._compared = False
        self._recalled: list[str] = []
        self._session = 0
        self._sync_until: float | None = None
        self._sync_end = 0.0
        self._found: Seed | None = None
        self._seeded: int | None = None
        self._republished: dict[str, float] = {}
        self._restated: dict[str, float] = {}

    @property
    def syncing(self) -> bool:
        """Whether the broker's retained seed is still to be read; nothing is published until then."""
        return self._sync_until is not None or self._broker.session != self._session

    @property
    def compared(self) -> bool:
        """Whether what this database knows was held against what the broker holds, since the start."""
        return self._compared

    @property
    def older_keys(self) -> bool:
        """Whether devices follow a root whose keys do not lie here, so that nothing may be published."""
        return self._recall is not None and bool(self._recall.older_keys)

    def watch(self, overflow: int) -> None:
        """On a new connection, or if messages were lost: read the seed and all retained words again."""
        now = self._clock.now()
        if self._broker.session != self._session or overflow:
            self._session = self._broker.session
            self._found, self._sync_until = None, now + self._config.seed_wait_s
            self._sync_end = now + max(SYNC_S_MAX, self._config.seed_wait_s)
            # A broker answers in this order: the marker ends what is ours; devices' words may take longer.
            own = [(self._topics.filter(c), c.qos_subscribe) for c in (wt.DESIRED, wt.SEED)]
            theirs = (wt.STATUS, wt.IDENTITY, wt.REPORTED, wt.REPORT, wt.REPLY, wt.RENEWAL)
            recalled = [] if self._recall is None else self._recall.filters()
            self._recalled = [topic for topic, _qos in recalled]
            if self._recall is not None:
                with self._store.begin() as tx:
                    self._recall.begin(now, tx.mark().orders)
            self._broker.subscribe(
                [*recalled, *own, *((self._topics.filter(c), c.qos_subscribe) for c in theirs)]
            )
        elif self._sync_until is not None and (self._found is not None or now >= self._sync_until):
            self._sync_until = None
            self._compare()

    def hears(self) -> None:
        """Messages still come, so the marker may be on its way behind them."""
        if self._sync_until is not None:
            until = self._clock.now() + self._config.seed_wait_s
            self._sync_until = min(max(self._sync_until, until), self._sync_end)

    def found(self, seed: Seed) -> None:
        """The broker's retained marker."""
        self._found = seed

    def _compare(self) -> None:
        """What is newer than the broker's marker becomes pending again; all of it if there is none."""
        own = [self._topics.filter(wt.SEED), self._topics.filter(wt.DESIRED)]
        self._broker.unsubscribe([*own, *self._recalled])
        with self._store.begin() as tx:
            mark = tx.mark()
            held = _held(self._found, mark)
            ours = held >= 0
            if held > mark.generation and self._recall is not None:
                self._recall.marker(tx, held, mark.generation, self._clock.now())
            # A marker above our own generation: this database is a restored one. Counting on from there
            # keeps the marker rising.
            tx.raise_generation(held)
            count = tx.republish_after(held)
        self._seeded = held if ours else None
        self._compared = True
        if self._recall is not None:
            self._recall.end()
        if count:
            _LOG.warning("the broker holds generation %d of ours; %d posts are published again", held, count)

    def miss(self, tx: Tx, digests: set[str]) -> None:
        """Publishes again what devices say the broker does not hold; each digest once in a while."""
        now = self._clock.now()
        due = [d for d in digests if now - self._republished.get(d, -1e9) >= self._config.republish_s]
        if not due:
            return
        if len(self._republished) > MISSING_REMEMBERED_MAX:
            self._republished.clear()
        self._republished.update(dict.fromkeys(due, now))
        topics = [self._topics.topic(channel, digest=d) for d in due for channel in (wt.BLOB, wt.RELEASE)]
        count = tx.republish_topics(topics)
        _LOG.warning("devices miss %d digests; %d posts are published again", len(due), count)

    def restate(self, tx: Tx, devices: set[str]) -> None:
        """Gives devices that refused their document as an old one another with a number above theirs.

        Once in a while each: whoever can put an old document back makes them refuse as often as they like.
        """
        now = self._clock.now()
        for device in sorted(devices):
            if now - self._restated.get(device, -1e9) < self._config.republish_s:
                continue
            if tx.retained_payload(self._topics.topic(wt.DESIRED, device=device)) is None:
                continue
            self._restated[device] = now
            tx.post([desired_post(tx, self._desk.now, device, now)])
            _LOG.warning("%s has seen higher numbers than its document had; it gets another", device)

    def acknowledge(self, acks: dict[tuple[str, str], int]) -> None:
        """Tells devices which reports are committed; a lost word is said again after the next report."""
        messages = [
            Outgoing(
                key=index,
                topic=self._topics.topic(wt.ACK, device=device),
                payload=encode(Ack(install_id=install, number=number)),
                retain=wt.ACK.retain,
                qos=wt.ACK.qos,
            )
            for index, ((device, install), number) in enumerate(acks.items())
        ]
        if messages:
            self._broker.publish(messages, self._config.publish_timeout_s)

    def round(self) -> bool:
        """Publishes a round of the outbox; whether there is more to do at once."""
        if self.syncing or not self._broker.connected or self.older_keys:
            return False
        with self._store.begin() as tx:
            rows = tx.pending(self._config.publish_batch_max)
            mark = tx.mark()
        if not rows:
            self._move_seed(mark.registry_id, mark.generation)
            return False
        messages = [message for row in rows if (message := self._outgoing(row)) is not None]
        acked = self._broker.publish(messages, self._config.publish_timeout_s)
        if acked:
            with self._store.begin() as tx:
                tx.published(acked, self._clock.now())
        return bool(acked)

    def _outgoing(self, row: OutboxRow) -> Outgoing | None:
        """The message of a row; None if the disk lost its content, which is then forgotten by name."""
        post = row.post
        payload = post.payload
        if payload is None:
            digest = post.blob or ""
            try:
                payload = self._blobs.read(digest)
            except ContentError as error:
                _LOG.error("a blob is not published: %s", error)
                with self._store.begin() as tx:
                    tx.lose_blob(digest)
                return None
        return Outgoing(key=row.id, topic=post.topic, payload=payload, retain=post.retain, qos=post.qos)

    def _move_seed(self, registry_id: str, generation: int) -> None:
        """Everything up to `generation` was acknowledged: the broker's marker may say so."""
        if self._seeded == generation:
            return
        seed = Outgoing(
            key=_SEED_KEY,
            topic=self._topics.topic(wt.SEED),
            payload=encode(Seed(registry_id=registry_id, generation=generation)),
            retain=wt.SEED.retain,
            qos=wt.SEED.qos,
        )
        if self._broker.publish([seed], self._config.publish_timeout_s):
            self._seeded = generation


def _held(found: Seed | None, mark: Mark) -> int:
    """Up to which generation of ours the broker remembers; -1: nothing of ours. Nobody signs a marker."""
    if found is None or found.registry_id != mark.registry_id:
        return -1
    return found.generation if found.generation - mark.generation <= GENERATION_JUMP_MAX else -1
