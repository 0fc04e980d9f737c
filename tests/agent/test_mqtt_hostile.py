"""The agent's MQTT client, where the broker breaks the protocol: no thread ends, and it comes back.

Not for: packets without end and junk against a whole daemon (`tests/attacks/test_hostile_broker.py`).
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

import paho.mqtt.client as paho
import pytest

from agent.adapters.mqtt import Address, MqttTransport
from tests.agent.twins import FixedRandom, until

Way = Callable[["Hostile", socket.socket], None]
ACCEPTED = b"\x20\x02\x00\x00"


class Hostile:
    """Serves the first connection one way, and every later one as a broker that lets everybody in."""

    def __init__(self, way: Way) -> None:
        self._way: Way | None = way
        self._peer: socket.socket | None = None
        self.listen()

    def listen(self, port: int = 0) -> None:
        self.server = socket.create_server(("127.0.0.1", port))
        self.port = int(self.server.getsockname()[1])
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._peer, _ = self.server.accept()
                with self._peer as peer, contextlib.suppress(OSError):
                    peer.settimeout(20)
                    peer.recv(4096)
                    way, self._way = self._way, None
                    if way is not None:
                        way(self, peer)
                        continue
                    peer.sendall(ACCEPTED)
                    while peer.recv(4096):
                        pass

    def close(self) -> None:
        for one in (self.server, self._peer):
            if one is not None:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        self.server.close()
        self._thread.join(20)


class Heard:
    """Counts."""

    def __init__(self) -> None:
        self.connections = 0

    def will(self) -> tuple[str, bytes]:
        return "test/will", b"gone"

    def connected(self) -> None:
        self.connections += 1

    def disconnected(self, why: str) -> None:
        """Nothing follows."""

    def received(self, topic: str, payload: bytes) -> None:
        """Nothing follows."""


def says(payload: bytes) -> Way:
    def way(_broker: Hostile, peer: socket.socket) -> None:
        peer.sendall(payload)
        with contextlib.suppress(OSError):
            while peer.recv(4096):
                pass

    return way


def refuses_and_goes(broker: Hostile, peer: socket.socket) -> None:
    """CONNACK 1: paho goes back to MQTT 3.1 and connects anew inside its own thread, and nobody is there."""
    broker.server.shutdown(socket.SHUT_RDWR)
    broker.server.close()
    peer.sendall(b"\x20\x02\x00\x01")
    peer.recv(1)


WAYS: dict[str, Way] = {
    "refuses the protocol": says(b"\x20\x02\x00\x01"),
    "refuses the protocol and goes": refuses_and_goes,
    "a message cut off": says(ACCEPTED + b"\x30\x01\x00"),
    "a suback of no code": says(ACCEPTED + b"\x90\x03\x00\x01\x55"),
    "a message with QoS 2": says(ACCEPTED + b"\x34\x06\x00\x01t\x00\x07x"),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_broker_that_breaks_the_protocol_is_connected_to_again(name: str) -> None:
    broker, heard = Hostile(WAYS[name]), Heard()
    address = Address(host="127.0.0.1", port=broker.port, client_id="roof-17", reconnect_s_max=0.5)
    transport = MqttTransport(address, FixedRandom())
    transport.start(heard)
    try:
        if WAYS[name] is refuses_and_goes:
            broker._thread.join(20)
            threading.Event().wait(1.0)
            broker.listen(broker.port)
        wanted = 1 if "refuses" in name else 2
        until(lambda: heard.connections == wanted and transport.connected, "the next connection")
        assert transport._client._protocol == paho.MQTTv311
    finally:
        transport.stop()
        broker.close()
