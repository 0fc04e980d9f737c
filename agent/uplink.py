"""What this device says: status, identity, reported, reports and replies.

For: numbering and encoding messages, and handing them to the transport with their channel's rules.
Not for: deciding when to say something (`agent.runner`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from agent.deployment import Deployment, Notice, model_state
from agent.install import Install
from agent.ports import Clock, Onlooker, Transport
from wire.codec import encode
from wire.messages import Hardware, Identity, Message, Reply, Report, Reported, RuntimeInfo, Status
from wire.topics import IDENTITY, REPLY, REPORT, REPORTED, STATUS, Channel, Topics

log = logging.getLogger(__name__)


class Self(Struct, frozen=True, kw_only=True):
    """What does not change while the daemon runs."""

    device: str
    agent_version: str
    hardware: Hardware
    runtimes: tuple[RuntimeInfo, ...] = ()
    os: str = "unknown"
    labels: dict[str, str] = {}


class Uplink:
    """The voice of one device. Any thread may call it."""

    def __init__(
        self,
        transport: Transport,
        topics: Topics,
        me: Self,
        install: Install,
        clock: Clock,
        onlooker: Onlooker | None = None,
    ) -> None:
        self._transport = transport
        self._topics = topics
        self._me = me
        self._install = install
        self._clock = clock
        self._onlooker = onlooker

    @property
    def connected(self) -> bool:
        """Whether what is said goes out now."""
        return self._transport.connected

    def _send(self, channel: Channel, message: Message, topic: str | None = None) -> bool:
        payload = encode(message)
        if len(payload) > channel.size_bytes_max:
            log.error("a message of %d bytes is too large for %s and is not sent", len(payload), channel.name)
            return False
        where = topic or self._topics.topic(channel, device=self._me.device)
        return self._transport.publish(where, payload, qos=channel.qos, retain=channel.retain)

    @staticmethod
    def _aside(act: Callable[[], None]) -> None:
        """What an onlooker makes of it must not keep the fleet from hearing the rest."""
        try:
            act()
        except Exception:
            log.exception("an onlooker failed")

    def status(self, session: int, *, online: bool) -> tuple[str, bytes]:
        """Topic and payload of a status; the last will is one, too."""
        message = Status(
            device=self._me.device,
            install_id=self._install.install_id,
            number=session,
            online=online,
            agent_version=self._me.agent_version,
            at=self._clock.now_text(),
        )
        return self._topics.topic(STATUS, device=self._me.device), encode(message)

    def send_status(self, session: int, *, online: bool) -> bool:
        """Publishes the status."""
        topic, payload = self.status(session, online=online)
        return self._transport.publish(topic, payload, qos=STATUS.qos, retain=STATUS.retain)

    def send_identity(self, disk_free_bytes: int | None) -> bool:
        """Publishes what the device is; None where the free disk could not be read."""
        me = self._me
        message = Identity(
            device=me.device,
            install_id=self._install.install_id,
            number=self._install.number(),
            hardware=me.hardware,
            runtimes=me.runtimes,
            agent_version=me.agent_version,
            os=me.os,
            disk_free_bytes=disk_free_bytes,
            labels=me.labels,
        )
        sent = self._send(IDENTITY, message)
        if self._onlooker is not None:
            self._aside(self._onlooker.greeted)
        return sent

    def send_reported(self, deployments: Mapping[str, Deployment]) -> bool:
        """Publishes the state of every model; without the trials where it would be too large with them."""
        states = {name: model_state(deployment) for name, deployment in deployments.items()}
        message = Reported(
            device=self._me.device,
            install_id=self._install.install_id,
            number=self._install.number(),
            models=states,
        )
        if len(encode(message)) > REPORTED.size_bytes_max:
            log.warning("the reported state is too large; its trials are left out")
            short = {name: replace(state, trial=None) for name, state in states.items()}
            message = replace(message, models=short)
        sent = self._send(REPORTED, message)
        onlooker = self._onlooker
        if onlooker is not None:
            self._aside(lambda: onlooker.reported(states))
        return sent

    def report(self, number: int, model: str | None, notice: Notice) -> Report:
        """A report of one event, with the number that the outbox gave; it goes there first."""
        return Report(
            device=self._me.device,
            install_id=self._install.install_id,
            number=number,
            model=model,
            order=notice.order,
            digest=notice.digest,
            at=self._clock.now_text(),
            event=notice.event,
        )

    def send_report(self, report: Report) -> bool:
        """Publishes a report from the outbox."""
        return self._send(REPORT, report)

    def send_reply(self, topic: str, reply: Reply) -> bool:
        """Publishes the answer to a command."""
        return self._send(REPLY, reply, topic)

    def reply(self, command: str, result: str, **fields: object) -> Reply:
        """An answer with this device's particulars."""
        return Reply(
            device=self._me.device,
            install_id=self._install.install_id,
            number=self._install.number(),
            command=command,
            result=result,  # type: ignore[arg-type]
            **fields,  # type: ignore[arg-type]
        )
