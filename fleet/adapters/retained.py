"""What a broker retains on given topics, by digest.

For: comparing it with what the registry gives out (`shallop-fleet verify --broker`). A window of topics is
subscribed at a time and each message is hashed as it comes, as a device does; nothing else is asked for and
nothing is published.
Not for: the registry's own connection (`fleet.adapters.mqtt_broker`).
"""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path

import paho.mqtt.client as mqtt
from msgspec import Struct
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from fleet.adapters.broker_tls import client_context
from fleet.adapters.mqtt_bounded import BoundedClient
from fleet.adapters.mqtt_broker import encrypted, parse_url
from fleet.ports import BrokerError

WINDOW = 32
STALL_S_MAX = 3.0
"""After the last message of a window, for those that may not be there."""
CONNECT_S_MAX = 10.0


class _Ear:
    """Hears one window after the other."""

    def __init__(self) -> None:
        self.heard: dict[str, str] = {}
        self._wanted: frozenset[str] = frozenset()
        self._changed = threading.Condition()
        self._connected = False
        self._refused = ""

    def on_connect(
        self,
        _client: mqtt.Client,
        _userdata: object,
        _flags: mqtt.ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        """The broker let us in, or said why not."""
        with self._changed:
            self._connected, self._refused = not reason.is_failure, str(reason) if reason.is_failure else ""
            self._changed.notify_all()

    def on_message(self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        """One retained message; of topics outside the window nothing is kept."""
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return
        with self._changed:
            if message.retain and topic in self._wanted and topic not in self.heard:
                self.heard[topic] = hashlib.sha256(message.payload).hexdigest()
                self._changed.notify_all()

    def wait_connected(self, url: str) -> None:
        """Returns once the connection stands.

        Raises:
            BrokerError: `broker_unreachable`, `broker_refused`.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._connected or self._refused, CONNECT_S_MAX):
                raise BrokerError("broker_unreachable", f"no broker answers at {url} in {CONNECT_S_MAX:g} s")
            if self._refused:
                raise BrokerError("broker_refused", f"the broker at {url} refused: {self._refused}")

    def want(self, topics: Sequence[str]) -> None:
        """From now on only these are heard."""
        with self._changed:
            self._wanted = frozenset(topics)

    def wait_window(self, topics: Sequence[str]) -> None:
        """Returns once every topic was heard, or nothing more came for `STALL_S_MAX`."""
        with self._changed:
            # Other news, such as another connection, are no reason to stop listening.
            while missing := self._missing(topics):
                if not self._changed.wait_for(lambda: self._missing(topics) < missing, STALL_S_MAX):
                    return

    def _missing(self, topics: Sequence[str]) -> int:
        return sum(topic not in self.heard for topic in topics)


class Look(Struct, frozen=True, kw_only=True):
    """Where to look.

    Attributes:
        url: mqtt://HOST:PORT or mqtts://HOST:PORT.
        ca_file: for mqtts://, whose certificate the broker must have.
        cert_file: for mqtts://, a certificate and its key that may read releases, such as a device's.
    """

    url: str
    ca_file: Path | None = None
    cert_file: Path | None = None

    def context(self) -> ssl.SSLContext | None:
        """TLS, where the URL asks for it.

        Raises:
            BrokerError: `broker_tls`: files are missing or cannot be used.
        """
        if not encrypted(self.url):
            return None
        if self.ca_file is None or self.cert_file is None:
            raise BrokerError(
                "broker_tls",
                "an mqtts:// broker wants --broker-ca FILE and --broker-cert FILE, such as a device's",
            )
        return client_context(self.ca_file, self.cert_file)


def retained(look: Look, topics: Sequence[str]) -> dict[str, str | None]:
    """SHA-256 of what lies on each topic; None where nothing does.

    Raises:
        BrokerError: `broker_url`, `broker_tls`, `broker_unreachable`, `broker_refused`, `broker_lost`.
    """
    url, (host, port) = look.url, parse_url(look.url)
    context = look.context()
    ear = _Ear()
    client = BoundedClient("")
    client.on_connect = ear.on_connect
    client.on_message = ear.on_message
    if context is not None:
        client.tls_set_context(context)
    try:
        client.connect(host, port)
    except OSError as error:
        raise BrokerError("broker_unreachable", f"no broker answers at {url}: {error}") from None
    client.loop_start()
    try:
        ear.wait_connected(url)
        for start in range(0, len(topics), WINDOW):
            window = list(topics[start : start + WINDOW])
            ear.want(window)
            code, _ = client.subscribe([(topic, 1) for topic in window])
            if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
                raise BrokerError(
                    "broker_lost",
                    f"the broker at {url} went away: {client.trouble or mqtt.error_string(code)}",
                )
            ear.wait_window(window)
            if client.left:
                raise BrokerError("broker_lost", f"the broker at {url} was left: {client.trouble}")
            client.unsubscribe(window)
    finally:
        client.disconnect()
        client.loop_stop()
    return {topic: ear.heard.get(topic) for topic in topics}
