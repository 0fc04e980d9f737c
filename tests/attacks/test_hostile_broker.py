"""The broker itself is the attacker's: it takes the real one's place for a while."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.demo.house import wait_for
from tests.attacks.scene import DEVICE, Scene
from tests.brokers import Mosquitto, require_mosquitto

pytestmark = [pytest.mark.broker, pytest.mark.slow]
ACCEPTED = b"\x20\x02\x00\x00"
LARGEST_PACKET = 268_435_455
"""Of MQTT 3.1.1, section 2.2.3."""
PEAK_BYTES_MAX = 100_000_000


def without_end(peer: socket.socket) -> None:
    """A message as large as MQTT has them: paho reads a packet whole before anybody may look at it."""
    peer.sendall(ACCEPTED + b"\x30\xff\xff\xff\x7f\x00\x01a")
    for _ in range(LARGEST_PACKET // 65_536):
        peer.sendall(bytes(65_536))


def junk(peer: socket.socket) -> None:
    """No MQTT at all."""
    peer.sendall(os.urandom(5000))


def odd(peer: socket.socket) -> None:
    """Answers to nothing, a topic that is no text, a packet of no kind."""
    answers = b"\x90\x03\xff\xff\x80" + b"\x40\x02\x00\x07" + b"\x62\x02\x00\x09" + b"\xb0\x02\x13\x37"
    peer.sendall(ACCEPTED + answers + b"\x30\x05\x00\x03\xff\xfe\xfd" + b"\xf0\x00")


def torn(peer: socket.socket) -> None:
    """The beginning of a message, and the end of the connection."""
    peer.sendall(ACCEPTED + b"\x30\x80\x80\x01\x00\x05hello")


def refusing(peer: socket.socket) -> None:
    """Not authorised."""
    peer.sendall(b"\x20\x02\x00\x05")


WAYS = (without_end, junk, odd, torn, refusing)


class HostileBroker:
    """Serves a device one way after the other; `served` counts those that came to their end."""

    def __init__(self, port: int, client_id: str) -> None:
        self.served: dict[Callable[[socket.socket], None], int] = dict.fromkeys(WAYS, 0)
        self._device = client_id.encode()
        self._server = socket.create_server(("127.0.0.1", port))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._server.accept()
                with peer, contextlib.suppress(OSError):
                    self._serve(peer)

    def _serve(self, peer: socket.socket) -> None:
        """The test's own client comes here too; the device says who it is."""
        peer.settimeout(10)
        if self._device not in peer.recv(4096):
            return
        way = min(WAYS, key=lambda way: self.served[way])
        try:
            way(peer)
        finally:
            self.served[way] += 1

    def close(self) -> None:
        """Ends it."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(20)


def peak_bytes(pid: int) -> int:
    """The most memory that a process ever had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def test_a_hostile_broker(tmp_path: Path) -> None:
    require_mosquitto()
    with Mosquitto(tmp_path / "broker") as real:
        scene = Scene(tmp_path / "house", real.port, transfer={"reconnect_spread_s": 0.2})
        try:
            before = scene.standing()
            real.stop()
            hostile = HostileBroker(real.port, scene.client_id)
            try:
                wait_for("every way", lambda: all(hostile.served.values()), 60)
            finally:
                hostile.close()
            agent = scene.house.agents[DEVICE]
            assert agent.alive(), agent.tail()
            assert peak_bytes(agent.pid) < PEAK_BYTES_MAX
            assert "packet_too_large" in agent.log.read_text()
            assert scene.standing() == before
            real.start()
            scene.restart()
            scene.obeys()
        finally:
            scene.close()
