"""paho's client with bounds, for a broker that may be anyone's.

For: every MQTT connection of the host side (`fleet.adapters.mqtt_broker`, `fleet.adapters.retained`). What a
broker sends takes a bounded part of memory, ends no thread, and is named in the log and in `trouble`; a
broker that has to be left is asked again ever more seldom.
Not for: what a message means, or which are dropped because nobody takes them (`MqttBroker`).

paho reads a packet whole before it hands it on, up to the 256 MB that MQTT allows; MQTT 3.1.1 has no limit to
ask for, and paho no hook but these. A message larger than any of the contract is *read past*: its first bytes
are kept, so that it is acknowledged and then refused by its topic. To end the connection would let one device
shut the registry out for good, where the broker is not ours and has no limit: it brings it again each time.
"""

from __future__ import annotations

import logging
import time

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from fleet.broker_rules import PACKET_BYTES_MAX

_LOG = logging.getLogger("shallop.fleet.mqtt")

READ_BYTES = 64 * 1024
"""Of one call: Python sets so much memory aside before anything comes."""
UNREAD_MAX = 66_000
"""Packets that wait to be sent: an answer for each of MQTT's 65,535 packet ids, and a few of our own."""
DELAY_S, DELAY_S_MAX = 1, 10
"""Before another attempt, where a connection was lost in the ordinary way."""
LEFT_DELAY_S_MAX = 60
"""Likewise, where we left a broker that kept on being hostile."""
CALM_S = 600.0
"""After so long without another incident it is told no more."""

_KIND, _CONNACK, _PUBLISH, _QOS_2 = 0xF0, 0x20, 0x30, 0x04
_REFUSES_PROTOCOL = b"\x01"
"""CONNACK's code at which paho would go back to MQTT 3.1, for good, and raise where it finds nobody there."""


class BoundedClient(mqtt.Client):
    """MQTT 3.1.1 under `client_id`; an empty one is chosen by the broker, without a session that is kept."""

    def __init__(self, client_id: str) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=not client_id,
            protocol=MQTTProtocolVersion.MQTTv311,
        )
        self._said, self._said_s = "", float("-inf")
        self._times_left, self._left_s = 0, float("-inf")
        self.reconnect_delay_set(DELAY_S, DELAY_S_MAX)

    @property
    def trouble(self) -> str | None:
        """The last incident, by name, for `CALM_S`; None where there was none."""
        return self._said if time.monotonic() - self._said_s < CALM_S else None

    @property
    def left(self) -> bool:
        """Whether a connection was ended here because of what came."""
        return self._times_left > 0

    # --- called by paho on its own thread -------------------------------------------------------------

    def _sock_recv(self, bufsize: int) -> bytes:
        packet = self._in_packet
        size_bytes = packet["remaining_length"] if packet["have_remaining"] else 0
        if size_bytes > PACKET_BYTES_MAX:
            if packet["to_process"] == size_bytes:
                self._oversized(packet["command"], size_bytes)
            del packet["packet"][PACKET_BYTES_MAX:]
        return super()._sock_recv(min(bufsize, READ_BYTES))

    def _oversized(self, command: int, size_bytes: int) -> None:
        """Before the first of its bytes is read; only a message may be read past."""
        why = f"the broker sends a packet of {size_bytes} bytes, at most {PACKET_BYTES_MAX} are kept"
        if command & _KIND != _PUBLISH:
            self._leave("packet_too_large", why)
            raise ConnectionAbortedError(why)
        self._tell("packet_too_large", f"{why}; the message is read past")

    def _packet_handle(self) -> MQTTErrorCode:
        command, packet = self._in_packet["command"], self._in_packet["packet"]
        if command & (_KIND | _QOS_2) == _PUBLISH | _QOS_2:
            # paho keeps each until it is released, and we subscribe to nothing with QoS 2.
            return self._leave("packet_malformed", "the broker sends a message with QoS 2, asked for was 1")
        if len(self._out_packet) > UNREAD_MAX:
            return self._leave("answers_unread", f"{UNREAD_MAX} answers to the broker wait to be read by it")
        if command & _KIND == _CONNACK and packet[1:] == _REFUSES_PROTOCOL:
            return self._leave("protocol_refused", "the broker refuses MQTT 3.1.1")
        try:
            result = super()._packet_handle()
        except Exception as error:  # noqa: BLE001 - it would end paho's thread, and nobody would notice
            return self._leave("packet_malformed", f"{type(error).__name__}: {error}"[:200])
        if result == MQTTErrorCode.MQTT_ERR_PROTOCOL:
            return self._leave("packet_malformed", f"a packet of kind {command >> 4} cannot be read")
        if command & _KIND == _CONNACK and result == MQTTErrorCode.MQTT_ERR_SUCCESS:
            self.reconnect_delay_set(DELAY_S, DELAY_S_MAX)
        return result

    def _tell(self, code: str, why: str) -> None:
        self._said, self._said_s = f"{code}: {why}", time.monotonic()
        _LOG.warning("%s: %s", code, why)

    def _leave(self, code: str, why: str) -> MQTTErrorCode:
        """Gives what makes paho end the connection; the next attempt comes later each time."""
        now = time.monotonic()
        self._times_left = self._times_left + 1 if now - self._left_s < CALM_S else 1
        self._left_s = now
        delay_s = min(2 ** min(self._times_left, 10), LEFT_DELAY_S_MAX)
        self.reconnect_delay_set(delay_s, LEFT_DELAY_S_MAX)
        self._tell(code, f"{why}; the connection is ended, the next attempt comes in {delay_s} s")
        return MQTTErrorCode.MQTT_ERR_PROTOCOL
