"""Where the registry is put together; the only place that builds its adapters.

For: one process with the HTTP API, the connection to the broker and the conductor's loop.
Not for: any decision; and the command line is `fleet.cli`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from fleet.adapters.blob_files import BlobFiles, PayloadFiles
from fleet.adapters.delta_maker import DeltaProcess
from fleet.adapters.door import Door, DoorHolder, door_files, open_door
from fleet.adapters.durable import DurableFile, kept_from_others
from fleet.adapters.enrolment_office import EnrolmentOffice
from fleet.adapters.following import Following, Followings, stamps
from fleet.adapters.gate import BrokerGate, NoGate
from fleet.adapters.key_files import verify
from fleet.adapters.mqtt_broker import MqttBroker
from fleet.adapters.signing_desk import SigningDesk, first_desk, key_files_in
from fleet.adapters.sql_store import SqlStore
from fleet.adapters.web_server import WebServer
from fleet.api.guard import LOOPBACK, allowed_hosts
from fleet.api.http import Health, Services, build
from fleet.api.people_routes import Crew
from fleet.audit_heads import HEAD_BYTES_MAX
from fleet.audit_log import AuditLog
from fleet.audit_watch import AuditWatch
from fleet.bars import Bars
from fleet.conductor import OPEN_STATES, Conductor, Ports
from fleet.config import Config, ConfigError
from fleet.current import Current
from fleet.enrolling import Enrolling
from fleet.ingest import Ingest
from fleet.orders import Desk
from fleet.people import People
from fleet.people_approval import Approvals
from fleet.ports import ConflictError, Store
from fleet.publish.archive import Archive
from fleet.publish.intake import Intake
from fleet.publish.shelf import DeltaShelf
from fleet.publisher import Publisher
from fleet.recall import Recall
from fleet.refusals import hold_against
from fleet.succession import Stamps
from fleet.tokens import Tokens

_LOG = logging.getLogger("shallop.fleet")

STOP_S_MAX = 15.0
"""How long the loop may take to end its step when the process stops."""


class SystemClock:
    """This machine's clock."""

    def now(self) -> float:
        """Seconds since 1970."""
        return time.time()


class Parts(Struct, frozen=True, kw_only=True):
    """A registry, put together and not started."""

    store: SqlStore
    broker: MqttBroker
    conductor: Conductor
    publisher: Publisher
    services: Services
    loop: Loop
    deltas: DeltaShelf | None
    enrolment: EnrolmentOffice
    gate: BrokerGate | NoGate
    watch: AuditWatch
    following: Followings


class Loop:
    """The conductor's thread: ticks when woken, and every `tick_s` in any case."""

    def __init__(self, conductor: Conductor, tick_s: float) -> None:
        self._conductor = conductor
        self._tick_s = tick_s
        self._something = threading.Event()
        self._asked = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="conductor", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def wake(self) -> None:
        """There is something from the broker."""
        self._something.set()

    def ask(self) -> None:
        """A person changed something."""
        self._asked = True
        self._something.set()

    def stop(self) -> None:
        """Ends after the current step."""
        self._stopping = True
        self._something.set()
        self._thread.join(STOP_S_MAX)

    def _run(self) -> None:
        while not self._stopping:
            asked, self._asked = self._asked, False
            began = time.monotonic()
            more = self._conductor.tick(asked=asked)
            took = time.monotonic() - began
            if not more:
                # On a large fleet a look takes long; the pause grows with it, so that others get their turn.
                self._something.wait(max(self._tick_s, 2 * took))
            self._something.clear()


@contextmanager
def locked(data: Path) -> Iterator[None]:
    """The data directory, for this process alone.

    Raises:
        ConflictError: `already_running`.
        ConfigError: `data_unusable`.
    """
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        opened = (data / "lock").open("w")
    except OSError as error:
        raise ConfigError(
            "data_unusable",
            f"the registry's directory {data} cannot be used: {error.strerror or error}; run this as its "
            "owner, or name another --data",
        ) from None
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConflictError(
                "already_running", f"another registry runs on {data}; stop it or name another --data"
            ) from None
        file.write(str(os.getpid()))
        file.flush()
        yield


def assemble(config: Config) -> Parts:
    """All parts on their adapters; the broker's connection begins.

    Raises:
        StoreError: the database cannot be used.
        BrokerError: the broker's URL or certificates cannot be read.
        KeysError: likewise the authority's.
        ConflictError: `tokens_missing`, or what enrolment lacks.
    """
    data, clock = Path(config.data), SystemClock()
    # Before anything is read: what changes from here on is seen.
    begun = stamps(key_files_in(config.keys_dir)), stamps(door_files(config))
    desk = Current(first_desk(config))
    store = SqlStore(config.database_url, secrets.token_hex(16))
    tokens = Tokens(store, clock)
    require_guarded(config, tokens)
    with store.begin() as tx:
        registry_id = tx.mark().registry_id
    door = open_door(config, clock)
    broker = MqttBroker(config.broker, door.client_id or f"shallop-registry-{registry_id[:12]}", door.tls)
    blobs, files = BlobFiles(data / "blobs"), PayloadFiles(data / "rollbacks")
    enrolment = EnrolmentOffice(config, store, clock, desk, door)
    enrolling = enrolment.enrolling
    # Before anything counts on from where this database ends.
    recall = Recall.beginning(store, desk, verify, authority=bool(door.accepted))
    publisher = Publisher(store, broker, blobs, clock, desk, config, recall)
    ingest = Ingest(
        desk.now.topics, lambda: desk.now.policy, config.devices_max, enrolling.renew_over_mqtt, recall
    )
    deltas = DeltaShelf(data / "deltas", store, blobs, DeltaProcess(), desk.now) if config.deltas else None
    log = AuditLog(store, clock, desk)
    watch = AuditWatch(store, clock, log, DurableFile(data / "audit-head.json", HEAD_BYTES_MAX))
    _look_back(store, clock, watch, recall, enrolling, door.gate)
    signing = SigningDesk(config.keys_dir, desk, store, files, clock)
    following = _followings(begun, signing, DoorHolder(config, door, store, enrolment.follow), desk.now, door)
    ports = Ports(
        store=store, broker=broker, clock=clock, publisher=publisher, ingest=ingest, deltas=deltas,
        enrolling=enrolling, watch=watch, follow=following.look,
    )  # fmt: skip
    conductor = Conductor(ports, desk, config)
    loop = Loop(conductor, config.tick_s)
    broker.on_activity(loop.wake)
    signing.sign_anew(desk.now)
    _write_payloads(store, files)
    services = Services(
        people=People(store, clock, desk, files, config),
        crew=_crew(store, clock, desk, tokens, log, config, loop),
        intake=Intake(store, blobs, clock, desk, _nobody if deltas is None else deltas.consider),
        health=lambda: replace(
            _health(store, broker, publisher, conductor, ingest, desk.now, tokens), trust=enrolling.health(),
            restored=recall.health(store, clock.now()), broker_trouble=door.gate.trouble or broker.trouble,
            authorities=door.accepted, keys_trouble=following.trouble,
        ),
        wake=loop.ask, enrolling=enrolling, archive=Archive(store, blobs, desk, deltas),
    )  # fmt: skip
    return Parts(
        store=store, broker=broker, conductor=conductor, publisher=publisher, services=services, loop=loop,
        deltas=deltas, enrolment=enrolment, gate=door.gate, watch=watch, following=following,
    )  # fmt: skip


def _followings(
    begun: tuple[Stamps, Stamps], signing: SigningDesk, holder: DoorHolder, desk: Desk, door: Door
) -> Followings:
    """What a registry began without, it comes to by a start: its configuration changes with it."""
    kept = [Following(signing, begun[0])] if desk.root is not None else []
    return Followings([*kept, *([Following(holder, begun[1])] if door.tls or door.accepted else [])])


def _crew(
    store: Store,
    clock: SystemClock,
    desk: Current[Desk],
    tokens: Tokens,
    log: AuditLog,
    config: Config,
    loop: Loop,
) -> Crew:
    return Crew(
        tokens=tokens,
        approvals=Approvals(store, clock, desk),
        log=log,
        bars=Bars(store, clock, desk, config.insecure_unsigned),
        wake=loop.ask,
    )


def _look_back(
    store: Store, clock: SystemClock, watch: AuditWatch, recall: Recall, enrolling: Enrolling,
    gate: BrokerGate | NoGate,
) -> None:  # fmt: skip
    """What shows without the broker that this database is older than it was."""
    found, record = watch.look(), gate.refused()
    owed = None if record is None else hold_against(store, enrolling, record, clock.now())
    if not watch.went_back and (owed is None or not owed.database_forgot):
        return
    if not watch.went_back:
        found = "the broker's record refuses devices that it does not know as revoked"
    with store.begin() as tx:
        recall.older(tx, found, clock.now())


def require_guarded(config: Config, tokens: Tokens) -> None:
    """Returns if nobody but people of this machine can reach a registry that asks nobody who they are.

    Raises:
        ConflictError: `tokens_missing`.
    """
    if tokens.demanded():
        return
    if config.listen_address[0] not in LOOPBACK:
        raise ConflictError(
            "tokens_missing",
            f"listening on {config.listen} without any token would let everybody in who reaches it; make the "
            "first one here: `shallop-fleet tokens create NAME --scope administer "
            f"{f'--database {config.database}' if config.database else f'--data {config.data}'}`",
        )
    _LOG.warning(
        "open: no token was ever made, so whoever reaches %s may do everything; "
        "`shallop-fleet tokens create NAME --scope administer --data DIR` closes it", config.listen,
    )  # fmt: skip


def _nobody(_release: str) -> None:
    """Nobody wants to know what was published."""


def _write_payloads(store: Store, files: PayloadFiles) -> None:
    """A kill before a rollout's commit can leave a file without rollout; never the other way round."""
    with store.begin() as tx:
        rows = tx.rollouts(OPEN_STATES)
    for row in rows:
        files.write(row.id, row.rollback_payload)


def _health(
    store: Store,
    broker: MqttBroker,
    publisher: Publisher,
    conductor: Conductor,
    ingest: Ingest,
    desk: Desk,
    tokens: Tokens,
) -> Health:
    with store.begin() as tx:
        mark, pending = tx.mark(), tx.pending_count()
    return Health(
        status=_status(broker, publisher),
        access="tokens" if tokens.demanded() else "open",
        broker_connected=broker.connected,
        syncing=publisher.syncing,
        outbox_pending=pending,
        registry_id=mark.registry_id,
        generation=mark.generation,
        refused={code: count for code, count in ingest.refused.items() if count},
        failures=dict(conductor.failures),
        root=desk.topics.root,
        signed=bool(desk.signers),
        signing_root=None if desk.root is None else desk.root.number,
    )


def _status(broker: MqttBroker, publisher: Publisher) -> str:
    if publisher.older_keys:
        return "older_keys"
    return "ok" if broker.connected and not publisher.syncing else "waiting_for_broker"


def serve(config: Config) -> None:
    """Runs a registry until it is told to stop (SIGINT or SIGTERM).

    Raises:
        ConflictError: `already_running`, or `address_in_use`.
        StoreError: the database cannot be used.
        BrokerError: the broker's URL cannot be read.
    """
    host, port = config.listen_address
    # From here on it ends nobody; whatever is asked for before all is read is done by reading it.
    signal.signal(signal.SIGHUP, lambda *_: None)
    with kept_from_others(), locked(Path(config.data)):
        parts = assemble(config)
        signal.signal(signal.SIGHUP, lambda *_: _look_again(parts))
        parts.loop.start()
        parts.gate.start()
        if parts.deltas is not None:
            parts.deltas.start()
        parts.enrolment.start()
        try:
            WebServer(build(parts.services, allowed_hosts(host)), host, port).run()
        finally:
            parts.enrolment.stop()
            parts.gate.stop()
            parts.loop.stop()
            parts.watch.keep()
            if parts.deltas is not None:
                parts.deltas.stop()
            parts.broker.close()
            parts.store.close()


def _look_again(parts: Parts) -> None:
    """SIGHUP (`systemctl reload`): keys and certificates are read again though they look the same."""
    _LOG.info("the files of the keys are looked at again")
    parts.following.ask()
    parts.loop.wake()
