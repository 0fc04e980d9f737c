"""The outbox: what is to be published, and what the broker should be holding for us.

For: posts written in the same transaction as what they follow from. A retained post stays after it was
published, one row a topic, so that a broker which lost its memory can be given everything again.
Not for: publishing (`fleet.conductor`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from sqlalchemy import Connection, and_, delete, func, insert, or_, select, update

from fleet.adapters import tables as t
from fleet.adapters.sql_base import SqlPart, batches
from fleet.ports import Mark, OutboxRow, Post


class SqlOutbox(SqlPart):
    """The outbox and the registry's counters in one transaction."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._generation: int | None = None

    def mark(self) -> Mark:
        """The counters."""
        row = self.connection.execute(select(t.registry)).one()
        return Mark(
            registry_id=row.registry_id,
            generation=row.generation,
            orders=row.orders,
            signed_root=row.signed_root,
            bars=row.bars,
        )

    def take_orders(self, count: int) -> int:
        """Reserves `count` order numbers and gives the first."""
        first = self.mark().orders + 1
        self.connection.execute(update(t.registry).values(orders=first + count - 1))
        return first

    def raise_orders(self, at_least: int) -> bool:
        """Raises the order counter to `at_least`; whether that changed it."""
        low = t.registry.c.orders < at_least
        return self.connection.execute(update(t.registry).where(low).values(orders=at_least)).rowcount > 0

    def signed_under(self, root: int) -> None:
        """Notes that everything is signed under that root."""
        self.connection.execute(update(t.registry).values(signed_root=root))

    def raise_generation(self, at_least: int) -> None:
        """Raises the generation to `at_least` if it is lower."""
        low = t.registry.c.generation < at_least
        self.connection.execute(update(t.registry).where(low).values(generation=at_least))

    def post(self, posts: Iterable[Post]) -> None:
        """Puts posts into the outbox; a retained one takes the place of an older one of its topic."""
        for post in posts:
            if post.retain:
                self.connection.execute(
                    delete(t.outbox).where(t.outbox.c.topic == post.topic, t.outbox.c.retain)
                )
            values = {
                "topic": post.topic,
                "rank": post.rank,
                "retain": post.retain,
                "qos": post.qos,
                "payload": post.payload,
                "blob": post.blob,
                "generation": self._next_generation() if post.retain else 0,
                "published_at": None,
            }
            self.connection.execute(insert(t.outbox).values(**values))

    def pending(self, limit: int) -> list[OutboxRow]:
        """Unpublished posts, lowest rank first, then oldest."""
        query = (
            select(t.outbox)
            .where(t.outbox.c.published_at.is_(None))
            .order_by(t.outbox.c.rank, t.outbox.c.id)
            .limit(limit)
        )
        return [
            OutboxRow(
                id=row.id,
                generation=row.generation,
                post=Post(
                    topic=row.topic,
                    rank=row.rank,
                    retain=row.retain,
                    qos=row.qos,
                    payload=row.payload,
                    blob=row.blob,
                ),
            )
            for row in self.connection.execute(query)
        ]

    def pending_count(self) -> int:
        """How many are unpublished."""
        query = select(func.count()).select_from(t.outbox).where(t.outbox.c.published_at.is_(None))
        return self.connection.execute(query).scalar_one()

    def published(self, ids: Collection[int], now: float) -> None:
        """Marks retained posts as published; deletes the others and clearings."""
        clearing = and_(t.outbox.c.blob.is_(None), func.length(t.outbox.c.payload) == 0)
        for group in batches(ids):
            these = t.outbox.c.id.in_(group)
            self.connection.execute(delete(t.outbox).where(these, or_(~t.outbox.c.retain, clearing)))
            self.connection.execute(update(t.outbox).where(these).values(published_at=now))

    def retained_topics(self, prefix: str) -> set[str]:
        """Topics below `prefix` that the broker holds or will hold for us."""
        query = select(t.outbox.c.topic).where(
            t.outbox.c.retain,
            t.outbox.c.topic.startswith(prefix, autoescape=True),
            or_(t.outbox.c.blob.is_not(None), func.length(t.outbox.c.payload) > 0),
        )
        return set(self.connection.execute(query).scalars())

    def retained_payload(self, topic: str) -> bytes | None:
        """What the broker holds or will hold for us on a topic; None where that is nothing, or a blob."""
        query = select(t.outbox.c.payload).where(t.outbox.c.retain, t.outbox.c.topic == topic)
        found: bytes | None = self.connection.execute(query).scalar()
        return found or None

    def republish_after(self, generation: int) -> int:
        """Makes retained posts newer than that pending again; how many."""
        newer = and_(
            t.outbox.c.retain,
            t.outbox.c.generation > generation,
            t.outbox.c.published_at.is_not(None),
        )
        return self.connection.execute(update(t.outbox).where(newer).values(published_at=None)).rowcount

    def republish_topics(self, topics: Collection[str]) -> int:
        """Makes those retained posts pending again; how many."""
        count = 0
        for group in batches(topics):
            these = and_(t.outbox.c.retain, t.outbox.c.topic.in_(group), t.outbox.c.published_at.is_not(None))
            changed = self.connection.execute(update(t.outbox).where(these).values(published_at=None))
            count += changed.rowcount
        return count

    def _next_generation(self) -> int:
        """The transaction's generation, raised once."""
        if self._generation is None:
            self._generation = self.mark().generation + 1
            self.connection.execute(update(t.registry).values(generation=self._generation))
        return self._generation
