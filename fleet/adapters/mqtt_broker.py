"""The broker over MQTT 3.1.1, by TLS where the address says so: the port `Broker` on paho-mqtt 2.

For: one connection that reconnects by itself, publishes with bounded inflight and hands messages over in
batches.
Not for: knowing what a message means (`fleet.ingest`), or topics.

Traps of paho that are dealt with here (DESIGN.md section 3): TCP_NODELAY is set when the socket opens; no
exception leaves a callback, which would kill the network thread silently; inflight is bounded by our own
window and acknowledgements are taken from `on_publish`, because `wait_for_publish` returns silently
when time is up.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from fleet.adapters.mqtt_bounded import BoundedClient
from fleet.ports import BrokerError, Delivery, Outgoing

_LOG = logging.getLogger("shallop.fleet.mqtt")

INFLIGHT_MAX = 64
"""Publications that wait for their PUBACK at one time."""
INBOX_MAX = 50_000
"""Messages kept until they are drained; more are dropped and counted."""
INBOX_BYTES_MAX = 256 * 1024 * 1024
KEEPALIVE_S = 20


def parse_url(url: str) -> tuple[str, int]:
    """Host and port of `mqtt://HOST:PORT`, or of `mqtts://HOST:PORT` with TLS.

    Raises:
        BrokerError: `broker_url`.
    """
    parts = urlsplit(url)
    try:
        port = parts.port or (8883 if encrypted(url) else 1883)
    except ValueError:
        port = 0
    if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname or port == 0:
        raise BrokerError("broker_url", f"{url!r} is no broker; write mqtt://HOST:PORT or mqtts://HOST:PORT")
    return parts.hostname, port


def encrypted(url: str) -> bool:
    """Whether that broker is spoken to by TLS."""
    return urlsplit(url).scheme == "mqtts"


class MqttBroker:
    """A connection under `client_id`, started at once and kept up until `close`.

    Args:
        url: see `parse_url`.
        client_id: with TLS the name in the certificate, which the broker takes in any case.
        tls: for mqtts://; `fleet.adapters.broker_tls.LatestContext` where it may change.
    """

    def __init__(self, url: str, client_id: str, tls: ssl.SSLContext | None = None) -> None:
        host, port = parse_url(url)
        self._lock = threading.Lock()
        self._inbox: deque[Delivery] = deque()
        self._inbox_bytes = 0
        self._overflow = 0
        self._session = 0
        self._filters: list[tuple[str, int]] = []
        self._publishing = threading.Lock()
        self._acks: set[int] = set()
        self._acks_changed = threading.Condition()
        self._wake: Callable[[], None] = lambda: None
        self._connected = threading.Event()
        client = BoundedClient(client_id)
        if tls is not None:
            client.tls_set_context(tls)
        client.max_inflight_messages_set(INFLIGHT_MAX)
        client.on_socket_open = _no_delay
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.connect_async(host, port, keepalive=KEEPALIVE_S)
        client.loop_start()
        self._client = client

    @property
    def connected(self) -> bool:
        """Whether it stands."""
        return self._connected.is_set()

    @property
    def session(self) -> int:
        """Counts connections."""
        return self._session

    @property
    def trouble(self) -> str | None:
        """What the broker did lately that it should not; None if nothing."""
        return self._client.trouble

    def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribes (again), so that the broker sends retained messages; kept over reconnects."""
        self._filters = list(filters)
        if self.connected:
            self._client.subscribe(list(filters))

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Ends subscriptions; unknown ones are ignored."""
        self._filters = [(name, qos) for name, qos in self._filters if name not in filters]
        if self.connected and filters:
            self._client.unsubscribe(list(filters))

    def publish(self, messages: Sequence[Outgoing], timeout_s: float) -> set[int]:
        """Publishes with bounded inflight; the keys that the broker acknowledged in time.

        A message that was not acknowledged may still arrive: paho keeps it and sends it first after a
        reconnection, so a later message on the same topic still has the last word.
        """
        until = time.monotonic() + timeout_s
        acked: set[int] = set()
        with self._publishing:
            with self._acks_changed:
                self._acks.clear()
            session, waiting = self._session, dict[int, int]()
            for message in messages:
                while len(waiting) >= INFLIGHT_MAX:
                    if not self._collect(waiting, acked, session, until):
                        return acked
                # No lock of ours is held here: paho holds one of its own while it calls `on_publish`.
                info = self._client.publish(message.topic, message.payload, message.qos, message.retain)
                if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                    break
                waiting[info.mid] = message.key
            while waiting and self._collect(waiting, acked, session, until):
                pass
        return acked

    def _collect(self, waiting: dict[int, int], acked: set[int], session: int, until: float) -> bool:
        """Moves acknowledged keys; waits for at least one; False if none can come any more."""
        with self._acks_changed:
            while True:
                arrived = self._acks & waiting.keys()
                acked.update(waiting.pop(mid) for mid in arrived)
                self._acks -= arrived
                if arrived:
                    return True
                left = until - time.monotonic()
                if left <= 0 or not self.connected or self._session != session:
                    return False
                self._acks_changed.wait(left)

    def drain(self, limit: int) -> list[Delivery]:
        """Messages received since the last call, at most `limit`."""
        with self._lock:
            taken = [self._inbox.popleft() for _ in range(min(limit, len(self._inbox)))]
            self._inbox_bytes -= sum(_size_bytes(delivery) for delivery in taken)
        return taken

    def take_overflow(self) -> int:
        """How many messages were dropped because nobody drained them; the counter starts anew."""
        with self._lock:
            count, self._overflow = self._overflow, 0
        return count

    def on_activity(self, wake: Callable[[], None]) -> None:
        """Calls `wake` when there is something to drain or the connection changed."""
        self._wake = wake

    def close(self) -> None:
        """Disconnects."""
        self._client.disconnect()
        self._client.loop_stop()

    # --- called by paho's thread; nothing may be raised here -----------------------------------------

    def _on_connect(
        self,
        client: mqtt.Client,
        _userdata: object,
        _flags: mqtt.ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            _LOG.warning("the broker refused the connection: %s", reason)
            return
        self._session += 1
        self._connected.set()
        if self._filters:
            client.subscribe(self._filters)
        _LOG.info("connected to the broker (connection %d)", self._session)
        self._wake()

    def _on_disconnect(
        self,
        _client: mqtt.Client,
        _userdata: object,
        _flags: mqtt.DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._connected.clear()
        with self._acks_changed:
            self._acks_changed.notify_all()
        _LOG.warning("the broker's connection ended: %s", reason)
        self._wake()

    def _on_message(self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        try:
            delivery = Delivery(topic=message.topic, payload=bytes(message.payload), retain=message.retain)
        except UnicodeDecodeError:
            _LOG.warning("a topic that is not UTF-8 was ignored")
            return
        size_bytes = _size_bytes(delivery)
        with self._lock:
            full = len(self._inbox) >= INBOX_MAX
            if full or self._inbox_bytes + size_bytes > INBOX_BYTES_MAX:
                self._overflow += 1
                return
            self._inbox.append(delivery)
            self._inbox_bytes += size_bytes
        self._wake()

    def _on_publish(
        self,
        _client: mqtt.Client,
        _userdata: object,
        mid: int,
        _reason: ReasonCode,
        _properties: Properties,
    ) -> None:
        with self._acks_changed:
            self._acks.add(mid)
            self._acks_changed.notify_all()


def _size_bytes(delivery: Delivery) -> int:
    """A topic may be 64 KiB long, and the payload empty."""
    return len(delivery.topic) + len(delivery.payload)


def _no_delay(_client: mqtt.Client, _userdata: object, sock: object) -> None:
    if isinstance(sock, socket.socket):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
