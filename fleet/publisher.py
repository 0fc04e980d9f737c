"""The outbox onto the broker, and what the broker remembers of it.

For: publishing pending posts in rounds, moving the seed marker once all was acknowledged, and making
posts pending again that the broker forgot or that devices miss.
Not for: what stands in the outbox (`fleet.orders`, `fleet.publish`), or messages from devices.
"""

from __future__ import annotations

import logging

from fleet.config import Config
from fleet.orders import Desk
from fleet.ports import Blobs, Broker, Clock, OutboxRow, Outgoing, Store, Tx
from wire import topics as wt
from wire.codec import encode
from wire.errors import ContentError
from wire.messages import Ack, Seed

_LOG = logging.getLogger("shallop.fleet.publisher")

MISSING_REMEMBERED_MAX = 100_000
"""Digests whose last publication again is remembered; above that the memory starts anew."""

_SEED_KEY = -1


class Publisher:
    """The registry's mouth."""

    def __init__(
        self, store: Store, broker: Broker, blobs: Blobs, clock: Clock, desk: Desk, config: Config
    ) -> None:
        self._store = store
        self._broker = broker
        self._blobs = blobs
        self._clock = clock
        self._topics = desk.topics
        self._config = config
        self._session = 0
        self._sync_until: float | None = None
        self._found: Seed | None = None
        self._seeded: int | None = None
        self._republished: dict[str, float] = {}

    @property
    def syncing(self) -> bool:
        """Whether the broker's retained seed is still to be read; nothing is published until then."""
        return self._sync_until is not None or self._broker.session != self._session

    def watch(self, overflow: int) -> None:
        """On a new connection, or if messages were lost: read the seed and all retained words again."""
        now = self._clock.now()
        if self._broker.session != self._session or overflow:
            self._session = self._broker.session
            self._found, self._sync_until = None, now + self._config.seed_wait_s
            channels = (
                wt.SEED,
                wt.DESIRED,
                wt.STATUS,
                wt.IDENTITY,
                wt.REPORTED,
                wt.REPORT,
                wt.REPLY,
                wt.RENEWAL,
            )
            self._broker.subscribe([(self._topics.filter(c), c.qos_subscribe) for c in channels])
        elif self._sync_until is not None and (self._found is not None or now >= self._sync_until):
            self._sync_until = None
            self._compare()

    def found(self, seed: Seed) -> None:
        """The broker's retained marker."""
        self._found = seed

    def _compare(self) -> None:
        """What is newer than the broker's marker becomes pending again; all of it if there is none."""
        self._broker.unsubscribe([self._topics.filter(wt.SEED), self._topics.filter(wt.DESIRED)])
        with self._store.begin() as tx:
            mark = tx.mark()
            ours = self._found is not None and self._found.registry_id == mark.registry_id
            held = self._found.generation if self._found is not None and ours else -1
            # A marker above our own generation: this database is a restored one. Counting on from there
            # keeps the marker rising.
            tx.raise_generation(held)
            count = tx.republish_after(held)
        self._seeded = held if ours else None
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
        if self.syncing or not self._broker.connected:
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
