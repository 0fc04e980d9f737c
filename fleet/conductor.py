"""The loop that turns what devices said into what is published next.

For: one `tick()`: take messages in and acknowledge what was committed; let every open rollout advance;
follow up rollbacks; publish the outbox. Each step is one transaction or one publication, so a kill
between any two of them loses nothing, and what is repeated is idempotent.
Not for: deciding (`fleet.rollout`), people's verbs (`fleet.people`), threads (`fleet.app`).

Level-triggered: it keeps nothing in memory that it could not find out again by reading the broker's
retained messages and its own database.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

from msgspec import Struct

from fleet.audit_watch import AuditWatch
from fleet.config import Config
from fleet.current import Current
from fleet.enrolling import Enrolling
from fleet.facts import facts_of, read_rollout, with_rollout
from fleet.ingest import Ingest
from fleet.orders import Desk, give
from fleet.ports import Broker, Clock, Delivery, Store, StoreError
from fleet.publish.shelf import DeltaShelf
from fleet.publisher import Publisher
from fleet.record import record
from fleet.rollback import follow_up
from fleet.rollout import ENDS, RolloutState, advance
from fleet.upkeep import upkeep

_LOG = logging.getLogger("shallop.fleet.conductor")

OPEN_STATES = tuple(state.value for state in RolloutState if state not in ENDS)

UPKEEP_S = 60.0
"""How often old reports and content are looked at."""
FOLLOW_S = 1.0
"""How often it is looked whether the keys changed."""


class Ports(Struct, frozen=True):
    """What the conductor acts through."""

    store: Store
    broker: Broker
    clock: Clock
    publisher: Publisher
    ingest: Ingest
    deltas: DeltaShelf | None = None
    enrolling: Enrolling | None = None
    watch: AuditWatch | None = None
    follow: Callable[[], object] = lambda: None
    """Looks whether the keys changed (`fleet.succession`)."""


class Conductor:
    """One registry's loop; `tick` is called by one thread only.

    Attributes:
        failures: steps that raised, by step, for `health`; the loop goes on.
    """

    def __init__(self, ports: Ports, desk: Current[Desk], config: Config) -> None:
        self._ports = ports
        self._desk = desk
        self._config = config
        self._changed: set[str] = set()
        self._everything_changed = True
        self._advance_at = 0.0
        self._upkeep_at = 0.0
        self._follow_at = 0.0
        self.failures: Counter[str] = Counter()

    def tick(self, *, asked: bool = False) -> bool:
        """Does what there is to do; whether there is more to do at once.

        Args:
            asked: a person changed something, so rollouts are looked at though no device said anything.
        """
        broker = self._ports.broker
        overflow = broker.take_overflow()
        self._ports.ingest.refused["overflow"] += overflow
        self._step("watch", lambda: self._ports.publisher.watch(overflow))
        self._step("keys", lambda: self._follow(self._ports.clock.now()))
        more = self._step("take_in", self._take_in)
        now = self._ports.clock.now()
        if self._ports.publisher.compared and (
            asked or self._changed or self._everything_changed or now >= self._advance_at
        ):
            self._advance_at = now + self._config.tick_s
            self._step("advance", self._advance_all)
            self._step("rollbacks", self._follow_up)
        more |= self._step("publish", self._ports.publisher.round)
        if now >= self._upkeep_at:
            self._upkeep_at = now + UPKEEP_S
            self._step("upkeep", self._upkeep)
        return more

    def _step(self, name: str, work: Callable[[], bool | None]) -> bool:
        """One step; if it raises, the others still run and the next tick tries again."""
        try:
            return bool(work())
        except Exception:  # noqa: BLE001 - the loop must live on; the failure is counted and logged whole
            self.failures[name] += 1
            _LOG.exception("the step %s failed; it is tried again", name)
            return False

    def _follow(self, now: float) -> None:
        """A clock that was set back does not put it off."""
        if not self._follow_at - FOLLOW_S <= now < self._follow_at:
            self._follow_at = now + FOLLOW_S
            self._ports.follow()

    def _take_in(self) -> bool:
        ports = self._ports
        deliveries = ports.broker.drain(self._config.ingest_batch_max)
        if not deliveries:
            return False
        ports.publisher.hears()
        try:
            self._take(deliveries)
        except Exception:  # noqa: BLE001 - one message that the database refuses must not hold up the others
            self._take_singly(deliveries)
        return len(deliveries) == self._config.ingest_batch_max

    def _take(self, deliveries: Sequence[Delivery]) -> None:
        """Takes a batch in, in one transaction, and acknowledges after its commit."""
        ports = self._ports
        with ports.store.begin() as tx:
            taken = ports.ingest.take(tx, deliveries, ports.clock.now())
            ports.publisher.miss(tx, taken.missing)
            ports.publisher.restate(tx, taken.stale)
        if taken.seed is not None:
            ports.publisher.found(taken.seed)
        self._changed |= taken.changed
        ports.publisher.acknowledge(taken.acks)

    def _take_singly(self, deliveries: Sequence[Delivery]) -> None:
        """After a batch failed: each message on its own; what still fails is named and dropped.

        If all of them fail, the database is at fault and not a message: retained messages are read again
        then, and reports come again because they were not acknowledged.

        Raises:
            StoreError: all failed.
        """
        failed = 0
        for delivery in deliveries:
            try:
                self._take([delivery])
            except Exception:  # noqa: BLE001 - as above; it is counted and logged whole
                failed += 1
                self._ports.ingest.refused["unstorable"] += 1
                _LOG.exception("a message on %s could not be taken in", delivery.topic)
        if failed == len(deliveries):
            self._ports.publisher.watch(failed)
            raise StoreError("database_unusable", f"none of {failed} messages could be stored")

    def _advance_all(self) -> None:
        """Every open rollout, each in a transaction of its own."""
        with self._ports.store.begin() as tx:
            ids = [row.id for row in tx.rollouts(OPEN_STATES)]
        for rollout_id in ids:
            self._advance(rollout_id)

    def _advance(self, rollout_id: str) -> None:
        with self._ports.store.begin() as tx:
            row = tx.rollout(rollout_id)
            if row is None or row.state not in OPEN_STATES:
                return
            before = read_rollout(row)
            now = self._ports.clock.now()
            after, orders = advance(before, facts_of(tx, row.model, row.release), now)
            if after != before:
                tx.save_rollout(with_rollout(row, after))
            shelf = self._ports.deltas
            offered = orders if shelf is None else shelf.with_hints(tx, orders)
            give(tx, self._desk.now, offered, rollout_id, now)
            record(tx, before, after, orders, now)
        if after.state is not before.state:
            _LOG.info("rollout %s is %s: %s", rollout_id, after.state.value, after.reason)

    def _follow_up(self) -> None:
        """After the rollouts, which must see a rolled back device while its order is still theirs."""
        changed = None if self._everything_changed else frozenset(self._changed)
        with self._ports.store.begin() as tx:
            follow_up(tx, self._desk.now, changed, self._ports.clock.now(), self._config.rollback_answer_s)
        self._everything_changed = False
        self._changed -= changed or set()

    def _upkeep(self) -> None:
        # Before the broker was asked, this database may be one that went back: what nobody needed then, and
        # so would be cleared, may be what everybody runs now.
        if self._ports.publisher.compared:
            self._look_after()
        if self._ports.watch is not None:
            self._ports.watch.keep()

    def _look_after(self) -> None:
        with self._ports.store.begin() as tx:
            # Said again here because a device that still misses the same says nothing new.
            self._ports.publisher.miss(tx, {digest for d in tx.devices() for digest in d.missing})
            if self._ports.enrolling is not None:
                self._ports.enrolling.upkeep(tx, self._ports.clock.now())
            acks = upkeep(
                tx, self._desk.now.topics, self._ports.clock.now(), self._config, self._ports.deltas
            )
        self._ports.publisher.acknowledge(acks)
