"""The broker through paho-mqtt 2: MQTT 3.1.1, one connection that comes and goes by itself.

For: fulfilling `agent.ports.Transport`, with paho's traps handled.
Not for: knowing what a message means.

The session is kept by the broker (`clean_session=False`, a stable client id): a rollback that a person
publishes with the registry down then also reaches a device that is offline for that moment. Nothing
depends on it: desired documents are retained and reports are sent until they are acknowledged.

Traps handled: TCP_NODELAY is off unless set when the socket opens (83 -> 155 MB/s); an exception in a
callback ends paho's thread while `is_connected()` stays true, so each callback catches its own; the last
will is taken when the connection is made, so it is set anew before each; waits between attempts are drawn
at random, so that a fleet does not come back as one (`agent.reconnect`); publish and subscribe are safe
from any thread only while paho's own thread runs the loop, so `loop_start` it is.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import paho.mqtt.client as paho
from msgspec import Struct
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from agent.ports import Listener, Randomness
from agent.reconnect import wait_s
from agent.tls import Fresh, Heard
from wire.topics import CHANNELS

if TYPE_CHECKING:
    import ssl

log = logging.getLogger(__name__)

INFLIGHT_MAX = 64
QUEUED_MAX = 2000
CONNECT_S_MAX = 3.0
BARRED_S_MAX = 900.0
"""Ceiling of the wait between two attempts while the broker refuses this device's certificate."""
PACKET_BYTES_MAX = max(channel.size_bytes_max for channel in CHANNELS) + 64 * 1024
"""The contract's largest message with its topic."""
FILTERS_PER_PACKET = 8
"""AWS IoT's limit, the smallest of the brokers looked at."""
_REFUSED = {134, 135}
"""Bad user name or password, not authorized: CONNACK's 4 and 5 of MQTT 3.1.1, as paho shows them."""


class Address(Struct, frozen=True, kw_only=True):
    """Where the broker is and who asks.

    Attributes:
        keepalive_s: silence after which the broker believes this client dead.
        reconnect_s_max: ceiling of the wait between two attempts.
        reconnect_spread_s: over which a fleet comes back that lost its connections at once.
        tls: None where the connection is not encrypted.
        heard: where the TLS leaves why it failed.
        barred: told when the broker refuses this client's certificate, or this client.
    """

    host: str
    port: int
    client_id: str
    username: str | None = None
    password: str | None = None
    keepalive_s: int = 30
    reconnect_s_max: float = 60.0
    reconnect_spread_s: float = 0.0
    tls: ssl.SSLContext | Fresh | None = None
    heard: Heard | None = None
    barred: Callable[[str], None] | None = None


_QOS_2, _CONNACK, _REFUSES_PROTOCOL = 0x34, 0x20, b"\x01"


class _Bounded(paho.Client):
    """Ends a connection that brings a packet larger than any message of the contract, or breaks the protocol.

    paho reads a packet whole before it hands it on, up to the 256 MB that MQTT allows: a hostile broker could
    fill a small device's memory. MQTT 3.1.1 has no limit to ask for, and paho-mqtt 2.1 no hook but these.
    """

    def _sock_recv(self, bufsize: int) -> bytes:
        if bufsize > PACKET_BYTES_MAX:
            log.warning("packet_too_large: the broker sends %d bytes; the connection is ended", bufsize)
            raise ConnectionAbortedError(f"a packet of {bufsize} bytes")
        return super()._sock_recv(bufsize)

    def _packet_handle(self) -> MQTTErrorCode:
        command, packet = self._in_packet["command"], self._in_packet["packet"]
        if command & 0xF4 == _QOS_2:
            # Nobody subscribes with it, and paho keeps each such message until it is released.
            return self._broken("a message with QoS 2, which was not asked for")
        if command == _CONNACK and packet[1:] == _REFUSES_PROTOCOL:
            # paho would go back to MQTT 3.1 for good, and raise where nobody listens by then.
            return self._broken("it refuses MQTT 3.1.1")
        try:
            return super()._packet_handle()
        except Exception as error:  # noqa: BLE001 - it would end paho's thread, and nobody would notice
            return self._broken(f"{type(error).__name__}: {error}"[:200])

    @staticmethod
    def _broken(why: str) -> MQTTErrorCode:
        log.warning("packet_malformed: the broker breaks the protocol: %s; the connection is ended", why)
        return MQTTErrorCode.MQTT_ERR_PROTOCOL


class MqttTransport:
    """One client. `start()` returns at once; the listener hears of connections and messages."""

    def __init__(self, address: Address, random: Randomness) -> None:
        self._address = address
        self._random = random
        self._listener: Listener | None = None
        self._failures = 0
        self._lost = False
        self._up = False
        self._barred, self._told = False, ""
        client = _Bounded(
            CallbackAPIVersion.VERSION2,
            client_id=address.client_id,
            clean_session=False,
            protocol=paho.MQTTv311,
        )
        if address.username is not None:
            client.username_pw_set(address.username, address.password)
        if address.tls is not None:
            client.tls_set_context(address.tls)  # type: ignore[arg-type] # a Fresh one is asked for no more
        client.connect_timeout = CONNECT_S_MAX
        client.max_inflight_messages_set(INFLIGHT_MAX)
        client.max_queued_messages_set(QUEUED_MAX)
        client.on_pre_connect = self._on_pre_connect
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        self._client = client

    # --- the port

    @property
    def connected(self) -> bool:
        """Whether messages go out now."""
        return self._up and self._client.is_connected()

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> bool:
        """Queues a message; False where paho's queue is full, and without a connection.

        Without a connection paho would keep it, and send it when it is old news.
        """
        if not self.connected:
            return False
        info = self._client.publish(topic, payload, qos=qos, retain=retain)
        return info.rc == paho.MQTT_ERR_SUCCESS

    def subscribe(self, topics: list[tuple[str, int]]) -> None:
        """Asks for topics, a few filters a packet; without a connection `connected()` will ask again."""
        for start in range(0, len(topics), FILTERS_PER_PACKET):
            self._client.subscribe(topics[start : start + FILTERS_PER_PACKET])

    def unsubscribe(self, topics: list[str]) -> None:
        """Asks for topics no longer."""
        for start in range(0, len(topics), FILTERS_PER_PACKET):
            self._client.unsubscribe(topics[start : start + FILTERS_PER_PACKET])

    # --- its life

    def start(self, listener: Listener) -> None:
        """Begins to connect, and never gives up."""
        self._listener = listener
        self._wait_next()
        self._client.connect_async(self._address.host, self._address.port, self._address.keepalive_s)
        self._client.loop_start()

    def reconnect(self) -> None:
        """Ends the connection in order, so that no last will is published, and makes another one at once."""
        listener = self._listener
        self.stop()
        if listener is not None:
            self._failures, self._lost = 0, False
            self.start(listener)

    def stop(self, last: tuple[str, bytes] | None = None, wait_s: float = 1.0) -> None:
        """Publishes a last retained message, waits briefly for the broker to have it, and disconnects."""
        if last is not None and self.connected:
            info = self._client.publish(last[0], last[1], qos=1, retain=True)
            # It returns without a word when the time is up; the will then says the same.
            with contextlib.suppress(RuntimeError, ValueError):
                info.wait_for_publish(wait_s)
        self._client.disconnect()
        self._client.loop_stop()
        self._up = False

    def _wait_next(self) -> None:
        """Draws the wait before paho's next attempt."""
        ceiling_s = self._address.reconnect_s_max
        delay = wait_s(
            failures=self._failures, lost=self._lost, spread_s=self._address.reconnect_spread_s,
            ceiling_s=max(BARRED_S_MAX, ceiling_s) if self._barred else ceiling_s, unit=self._random.unit(),
        )  # fmt: skip
        self._client.reconnect_delay_set(min_delay=delay, max_delay=delay)  # type: ignore[arg-type]

    # --- callbacks, on paho's thread

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:
            # paho's thread would end here and nobody would notice.
            log.exception("a callback of the MQTT client failed")

    def _on_pre_connect(self, client: paho.Client, _userdata: object) -> None:
        def act() -> None:
            if self._listener is not None:
                topic, payload = self._listener.will()
                client.will_set(topic, payload, qos=1, retain=True)

        self._guarded(act)

    def _on_socket_open(self, _client: paho.Client, _userdata: object, sock: object) -> None:
        if isinstance(sock, socket.socket):
            plain = sock
            self._guarded(lambda: plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1))

    def _on_connect(
        self,
        _client: paho.Client,
        _userdata: object,
        _flags: object,
        reason_code: ReasonCode,
        _properties: object,
    ) -> None:
        if reason_code.is_failure:
            self._failures += 1
            self._wait_next()
            log.warning("the broker refuses this client: %s", reason_code)
            self._say(str(reason_code), certificate=reason_code.value in _REFUSED)
            return
        self._failures = 0
        self._up, self._barred, self._told = True, False, ""
        if self._listener is not None:
            self._guarded(self._listener.connected)

    def _on_connect_fail(self, _client: paho.Client, _userdata: object) -> None:
        self._failures += 1
        why = self._why("")
        self._wait_next()
        listener = self._listener
        if listener is not None and why not in {"", self._told}:
            self._told = why
            self._guarded(lambda: listener.disconnected(why))
        level = logging.WARNING if self._failures in {1, 10} else logging.DEBUG
        where = f"{self._address.host}:{self._address.port}{': ' if why else ''}{why}"
        log.log(level, "cannot reach the broker at %s", where)

    def _on_disconnect(
        self,
        _client: paho.Client,
        _userdata: object,
        _flags: object,
        reason_code: ReasonCode,
        _properties: object,
    ) -> None:
        if self._up:
            # Most likely everybody lost it: the line forms anew.
            self._lost, self._failures = True, 0
        else:
            self._failures += 1
        self._up = False
        why = self._why(str(reason_code))
        self._wait_next()
        if self._listener is not None:
            listener = self._listener
            self._guarded(lambda: listener.disconnected(why))

    def _say(self, words: str, *, certificate: bool) -> None:
        if self._address.heard is not None:
            self._address.heard.words, self._address.heard.certificate = words, certificate

    def _why(self, otherwise: str) -> str:
        """Why there is no connection; whoever must know that the certificate is refused is told."""
        heard, barred = self._address.heard, self._address.barred
        if heard is None or not heard.words:
            return otherwise
        words, refused = heard.words, heard.certificate
        self._say("", certificate=False)
        if refused:
            self._barred = True
            if barred is not None:
                self._guarded(lambda: barred(words))
        return words

    def _on_message(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        def act() -> None:
            if self._listener is not None:
                self._listener.received(message.topic, bytes(message.payload))

        self._guarded(act)

    def _on_subscribe(
        self,
        _client: paho.Client,
        _userdata: object,
        _mid: int,
        codes: list[ReasonCode],
        _properties: object,
    ) -> None:
        if any(code.is_failure for code in codes):
            log.warning("the broker refuses a subscription; its access list may be too narrow")
