"""What to do with what comes from the broker: route it, decode it, let it happen.

For: the listener of the transport, subscriptions after each connection, desired documents, commands,
acknowledgements, and refusing by name what cannot be used, at a bounded rate.
Not for: decoding (`agent.downlink`), deciding (`agent.lifecycle`) or the MQTT client.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from agent import downlink
from agent.deployment import (
    BEFORE_SWITCH,
    Cancelled,
    Deployment,
    Notice,
    Ordered,
    RollbackAsked,
    model_state,
)
from agent.errors import reason_of
from agent.exchange import Exchange
from agent.install import Install
from agent.ports import Clock, Disk, Transport
from agent.runner import Runner, refusal_in
from agent.statusing import Board
from agent.trust import Trust
from agent.uplink import Uplink
from wire.errors import ShallopError, TrustError
from wire.messages import (
    Command,
    Desired,
    DesiredModel,
    Evaluate,
    MessageRefused,
    OrderRefused,
    Phase,
    Reason,
    Reply,
    Rollback,
)
from wire.roots import require_epoch
from wire.topics import (
    ACK,
    BARS,
    BLOB,
    CERTIFICATE,
    CERTIFICATE_REFUSED,
    COMMAND,
    COMMAND_ALL,
    COMMAND_GROUP,
    DESIRED,
    RELEASE,
    ROOT,
    STATUS,
    Channel,
    Topics,
)
from wire.trust import Policy

if TYPE_CHECKING:
    from agent.renewal import RenewalWork

log = logging.getLogger(__name__)

INBOUND_MAX = 256
REFUSAL_EVERY_S = 10.0
STATUS_EVERY_S = 10.0
STALE_TOLD_MAX = 256
SAVE_RETRY_S = 5.0
CONNECTIONS_AHEAD_MAX = 1_000_000
"""A status of this device with a number further ahead is no former life's; followed, it would use the numbers
up, and a counter that is used up keeps the daemon from starting."""
BARRED = Reason(code="release_barred", detail="the release was barred by its publisher")


class Connection:
    """One device's conversation with the fleet; fulfils `agent.ports.Listener`."""

    def __init__(  # noqa: PLR0913 - it is built once, in agent.app
        self,
        *,
        device: str,
        topics: Topics,
        trust: Trust,
        policy: Policy,
        transport: Transport,
        exchange: Exchange,
        uplink: Uplink,
        install: Install,
        runner: Runner,
        clock: Clock,
        disk: Disk,
        state_dir: Path,
        board: Board | None = None,
        renewal: RenewalWork | None = None,
    ) -> None:
        self._renewal = renewal
        self._device = device
        self._topics = topics
        self._trust = trust
        self._policy = policy
        self._transport = transport
        self._exchange = exchange
        self._uplink = uplink
        self._install = install
        self._runner = runner
        self._clock = clock
        self._disk = disk
        self._state_dir = state_dir
        self._board = board
        self._lock = threading.Lock()
        self._inbound = 0
        self._overflowed = self._asking = False
        self._session = install.connections
        self._refused_s: dict[tuple[str, str], float] = {}
        self._status_s = float("-inf")
        self._groups: tuple[str, ...] = ()
        self._stale_told: set[tuple[str, int]] = set()

    # --- the transport's thread

    def will(self) -> tuple[str, bytes]:
        """The last will of the connection that is about to be made, with its own number."""
        self._session = self._install.connect()
        return self._uplink.status(self._session, online=False)

    def connected(self) -> None:
        """Handled on the runner's thread."""
        chosen = self._renewal.chosen if self._renewal is not None else ""
        self._runner.post(lambda: self._greet(chosen))

    def disconnected(self, why: str) -> None:
        """Work goes on; what needs the broker waits."""
        log.warning("the connection to the broker is gone: %s", why)
        self._runner.post(lambda: self._note(up=False, why=why))

    def _note(self, *, up: bool, why: str = "") -> None:
        if self._board is not None:
            self._board.connection(up=up, detail=why)

    def received(self, topic: str, payload: bytes) -> None:
        """Content goes to the job that waits for it, the rest to the runner's thread, bounded."""
        if self._exchange.deliver(topic, payload):
            return
        found = self._topics.parse(topic)
        if found is None:
            return
        channel, params = found
        if channel is BLOB or channel is RELEASE:
            # An earlier process of this session asked for it, and died.
            self._transport.unsubscribe([topic])
            return
        with self._lock:
            if self._inbound >= INBOUND_MAX:
                self._overflowed = True
                return
            self._inbound += 1
        self._runner.post(lambda: self._take(channel, params, payload))

    # --- the runner's thread

    def _greet(self, chosen: str) -> None:
        """Subscribes first: what is retained is already on its way while this device introduces itself."""
        self._note(up=True)
        self._groups = self._runner.groups
        self._subscribe()
        self._uplink.send_status(self._session, online=True)
        self._introduce()
        self._uplink.send_reported(self._runner.models)
        self._exchange.resubscribe()
        self._runner.begin_connection()
        if self._renewal is not None:
            self._renewal.connected(chosen)
        log.info("connected as %s, connection %d", self._device, self._session)

    def _subscribe(self) -> None:
        topics, device = self._topics, self._device
        wanted: list[tuple[Channel, str]] = [
            (DESIRED, topics.topic(DESIRED, device=device)),
            (COMMAND, topics.topic(COMMAND, device=device)),
            (COMMAND_ALL, topics.topic(COMMAND_ALL)),
            (ACK, topics.topic(ACK, device=device)),
            (STATUS, topics.topic(STATUS, device=device)),
            *((COMMAND_GROUP, topics.topic(COMMAND_GROUP, group=group)) for group in self._groups),
            *self._of_trust(),
            *(self._renewal.channels() if self._renewal is not None else ()),
        ]
        self._transport.subscribe([(topic, channel.qos_subscribe) for channel, topic in wanted])

    def _of_trust(self) -> list[tuple[Channel, str]]:
        """What only a device that was enrolled listens to: the next root, and what is barred."""
        if not self._trust.believes:
            return []
        following = str(self._trust.state.root.number + 1)
        return [(ROOT, self._topics.topic(ROOT, number=following)), (BARS, self._topics.topic(BARS))]

    def _take(self, channel: Channel, params: dict[str, str], payload: bytes) -> None:
        with self._lock:
            self._inbound -= 1
            again = self._overflowed and self._inbound == 0
            self._overflowed = self._overflowed and not again
        handlers: dict[str, Callable[[Channel, dict[str, str], bytes], None]] = {
            DESIRED.name: self._desired,
            COMMAND.name: self._command,
            COMMAND_GROUP.name: self._command,
            COMMAND_ALL.name: self._command,
            ACK.name: self._ack,
            STATUS.name: self._status,
            ROOT.name: self._root,
            BARS.name: self._bars,
            CERTIFICATE.name: self._certificate,
            CERTIFICATE_REFUSED.name: self._certificate,
        }
        handler = handlers.get(channel.name)
        if handler is not None:
            try:
                handler(channel, params, payload)
            except ShallopError as error:
                self._refuse(channel, reason_of(error))
            except OSError as error:
                # Nothing holds that could not be saved; what is retained is asked for again.
                log.error("cannot save what came on %s: %s", channel.name, error)  # noqa: TRY400
                self._ask_later()
        if again:
            # Something was lost in a flood; the retained truth comes again.
            log.warning("more messages came than could be handled; asking for the desired document again")
            self._subscribe()

    def _ask_later(self) -> None:
        """Once for all that could not be saved: asking brings all of it, and each would ask for all again."""
        if self._asking:
            return

        def ask() -> None:
            self._asking = False
            self._subscribe()

        self._asking = True
        self._runner.after(SAVE_RETRY_S, ask)

    def _refuse(self, channel: Channel, reason: Reason, event: OrderRefused | None = None) -> None:
        now_s = self._clock.boot_s()
        key = (channel.name, reason.code)
        if now_s - self._refused_s.get(key, float("-inf")) < REFUSAL_EVERY_S:
            return
        self._refused_s[key] = now_s
        log.warning("a message on %s is refused: %s: %s", channel.name, reason.code, reason.detail)
        told = event or MessageRefused(channel=channel.name, reason=reason)
        self._runner.notice(None, Notice(event=told))

    # --- orders

    def _desired(self, channel: Channel, _params: dict[str, str], payload: bytes) -> None:
        document = downlink.desired(payload, self._device, self._policy)
        if self._trust.enrolled and not self._believed(channel, document):
            return
        models = document.models if document else {}
        if document is not None:
            self._obey(document.groups)
        for model, wanted in models.items():
            self._order(model, wanted)
        for model in [name for name in self._runner.models if name not in models]:
            if self._runner.models[model].phase is not Phase.IDLE:
                self._runner.apply(model, Cancelled())

    def _believed(self, channel: Channel, document: Desired | None) -> bool:
        """Whether a document is no older than what was believed before; the number is saved first.

        A cleared one says nothing here: whoever holds the broker can clear it without any key.
        """
        if document is None:
            log.warning("the retained desired document was cleared, which nobody signed; going on as ordered")
            return False
        try:
            self._trust.obey(document)
        except TrustError as error:
            reason, highest = reason_of(error), self._trust.state.document
            self._refuse(channel, reason, OrderRefused(reason=reason, order_highest=highest))
            return False
        return True

    def _barred(self, model: str, digest: str, order: int) -> bool:
        """Whether a release may be brought here by no order any more; what runs already goes on."""
        try:
            self._trust.require_not_barred(digest)
        except TrustError as error:
            known = self._runner.models.get(model)
            refusal = OrderRefused(reason=reason_of(error), order_highest=known.order_highest if known else 0)
            log.warning("%s: order %d is refused: %s", model, order, error)
            self._runner.notice(model, Notice(order=order, digest=digest, event=refusal))
            return True
        return False

    def _order(self, model: str, wanted: DesiredModel) -> None:
        """A stale order that is retained comes with every connection; it is answered once."""
        known = self._runner.models.get(model)
        key = (model, wanted.order)
        if known is not None and wanted.order != known.order and wanted.order <= known.order_highest:
            if key in self._stale_told:
                return
            if len(self._stale_told) >= STALE_TOLD_MAX:
                self._stale_told.clear()
            self._stale_told.add(key)
        elif (known is None or wanted.order != known.order) and self._barred(
            model, wanted.digest, wanted.order
        ):
            return
        self._runner.apply(model, Ordered(desired=wanted))

    def _obey(self, groups: tuple[str, ...]) -> None:
        left = [g for g in self._groups if g not in groups]
        joined = [g for g in groups if g not in self._groups]
        self._groups = groups
        self._runner.set_groups(groups)
        topic = self._topics.topic
        if left:
            self._transport.unsubscribe([topic(COMMAND_GROUP, group=group) for group in left])
        if joined:
            self._transport.subscribe(
                [(topic(COMMAND_GROUP, group=group), COMMAND_GROUP.qos_subscribe) for group in joined]
            )

    # --- commands

    def _command(self, channel: Channel, params: dict[str, str], payload: bytes) -> None:
        command = downlink.command(payload, channel, self._policy)
        downlink.check_target(command, channel, params, self._device, self._groups)
        if self._trust.enrolled:
            require_epoch(self._trust.state.root, _order_of(command))
        answer_to = downlink.reply_topic(command, self._device, self._topics)
        log.info("command %s: %s", command.id, type(command.action).__name__.lower())
        answer = self._act(command)
        if answer_to is not None:
            self._uplink.send_reply(answer_to, answer)

    def _introduce(self) -> None:
        try:
            free_bytes = self._disk.free_bytes(self._state_dir)
        except OSError as error:
            log.warning("the free disk is unknown: %s", error)
            free_bytes = None
        self._uplink.send_identity(free_bytes)

    def _act(self, command: Command) -> Reply:
        action = command.action
        if isinstance(action, Rollback):
            return self._rollback(command.id, action)
        if isinstance(action, Evaluate):
            return self._evaluate(command.id, action)
        self._uplink.send_status(self._session, online=True)
        self._introduce()
        self._uplink.send_reported(self._runner.models)
        states = {name: model_state(d) for name, d in self._runner.models.items()}
        return self._uplink.reply(command.id, "done", models=states)

    def _barred_way_back(self, d: Deployment, leaving: str) -> bool:
        """Whether leaving what runs would lead to a release that is barred by now.

        What soaks may always be left: the release before it still ran a moment ago, and failing it goes back.
        """
        going = d.phase is Phase.IDLE or d.phase in BEFORE_SWITCH
        to = d.previous if going and d.active is not None and d.active.digest == leaving else None
        return to is not None and self._barred(d.model, to.digest, d.order)

    def _rollback(self, command: str, action: Rollback) -> Reply:
        if action.model not in self._runner.models:
            reason = Reason(code="not_applicable", detail=f"there is no model {action.model} on this device")
            return self._uplink.reply(command, "not_applicable", reason=reason)
        if self._barred_way_back(self._runner.models[action.model], action.from_):
            return self._uplink.reply(command, "refused", reason=BARRED)
        notices = self._runner.apply(action.model, RollbackAsked(digest=action.from_, order=action.order))
        return self._answer(command, action.model, notices)

    def _evaluate(self, command: str, action: Evaluate) -> Reply:
        known = self._runner.models.get(action.model)
        if known is not None and known.phase is not Phase.IDLE and known.order != action.desired.order:
            reason = Reason(code="busy", detail="another order is in flight", lasting="retry")
            return self._uplink.reply(command, "refused", reason=reason)
        if self._barred(action.model, action.desired.digest, action.desired.order):
            return self._uplink.reply(command, "refused", reason=BARRED)
        wanted = DesiredModel(
            order=action.desired.order,
            digest=action.desired.digest,
            release=action.desired.release,
            variants=action.desired.variants,
            mode="evaluate",
            shards=action.desired.shards,
            deadline_s=action.desired.deadline_s,
            rollout=action.desired.rollout,
        )
        notices = self._runner.apply(action.model, Ordered(desired=wanted, source="command"))
        return self._answer(command, action.model, notices)

    def _answer(self, command: str, model: str, notices: tuple[Notice, ...] | None) -> Reply:
        d, refusal = self._runner.models.get(model), refusal_in(notices)
        highest = d.order_highest if d else 0
        states = {model: model_state(d)} if d else {}
        if refusal is not None:
            told = "not_applicable" if refusal.reason.code == "not_applicable" else "refused"
            return self._uplink.reply(
                command, told, reason=refusal.reason, order_highest=highest, models=states
            )
        done = notices is not None and (d is None or d.phase is Phase.IDLE)
        result = "done" if done else "accepted"
        return self._uplink.reply(command, result, order_highest=highest, models=states)

    # --- trust

    def _root(self, channel: Channel, params: dict[str, str], payload: bytes) -> None:
        """The next root; with it come the one after it, and what only its keys sign."""
        if not payload or params["number"] != str(self._trust.state.root.number + 1):
            return
        root = self._trust.rotate(payload)
        log.warning("root %d is trusted now, epoch %d", root.number, root.epoch)
        self._transport.unsubscribe([self._topics.topic(channel, **params)])
        self._subscribe()

    def _bars(self, _channel: Channel, _params: dict[str, str], payload: bytes) -> None:
        if payload and self._trust.believes:
            self._trust.bar(payload)

    def _certificate(self, channel: Channel, _params: dict[str, str], payload: bytes) -> None:
        if self._renewal is not None:
            self._renewal.take(channel, payload)

    # --- the rest

    def _ack(self, _channel: Channel, _params: dict[str, str], payload: bytes) -> None:
        ack = downlink.ack(payload)
        if ack.install_id == self._install.install_id:
            self._runner.acknowledged(ack.number)

    def _status(self, _channel: Channel, _params: dict[str, str], payload: bytes) -> None:
        """The retained status of this device is somebody else's, or a will that came late: say it anew."""
        told = downlink.status(payload) if payload else None
        mine = told is not None and told.install_id == self._install.install_id
        if told is not None and mine and told.online and told.number == self._session:
            return
        forged = told is not None and told.number > self._session + CONNECTIONS_AHEAD_MAX
        if told is not None and forged:
            detail = f"connection {told.number} is far beyond {self._session}; it is not this device's"
            self._refuse(STATUS, Reason(code="number_unbelievable", detail=detail))
        now_s = self._clock.boot_s()
        if now_s - self._status_s < STATUS_EVERY_S:
            return
        self._status_s = now_s
        if told is not None and mine and not forged and told.number > self._session:
            self._session = self._install.connect(above=told.number)
        self._uplink.send_status(self._session, online=True)

    def farewell(self) -> tuple[str, bytes]:
        """Topic and payload that say that this device goes offline on purpose."""
        return self._uplink.status(self._session, online=False)

    def rollback_locally(self, model: str) -> None:
        """A person at this machine wants the previous release back."""
        d = self._runner.models.get(model)
        if d is None or d.active is None:
            log.warning("a local rollback of %s, of which nothing runs here, is ignored", model)
            return
        log.info("local rollback of %s", model)
        self._runner.apply(model, RollbackAsked(digest=d.active.digest, order=d.order_highest))


def _order_of(command: Command) -> int:
    """The order number that a command carries; 0 for one that only asks."""
    if isinstance(command.action, Rollback):
        return command.action.order
    return command.action.desired.order if isinstance(command.action, Evaluate) else 0
