"""A real registry process and scripted devices on a real broker, for tests.

For: starting, killing and starting again `shallop-fleet serve` as its own process, and devices that
speak over paho.
Not for: tests that need no process (`tests/fleet/twins.py`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from fleet.adapters.broker_process import free_port
from tests.fleet.scripted import ScriptedDevice
from wire.topics import Topics

ROOT = Path(__file__).parent.parent.parent
START_S_MAX = 30.0
WAIT_S_MAX = 60.0


def wait_for(what: str, condition: Callable[[], bool], seconds: float = WAIT_S_MAX) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(f"waited {seconds} s for: {what}")
        time.sleep(0.05)


class RegistryProcess:
    """`python -m fleet.cli serve` on one data directory and one port.

    Args:
        data: its directory.
        broker_port: of a broker on loopback without TLS.
        options: of `serve`.
        broker: its address, in the place of `broker_port`.
    """

    def __init__(self, data: Path, broker_port: int, *options: str, broker: str | None = None) -> None:
        self.data = data
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [
            sys.executable, "-m", "fleet.cli", "serve", "--data", str(data),
            "--broker", broker or f"mqtt://127.0.0.1:{broker_port}",
            "--listen", f"127.0.0.1:{self.port}", *options,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self.log = data.parent / f"{data.name}.log"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=log, stdout=log
            )
        wait_for(f"the registry at {self.url}, see {self.log}", self._answers, START_S_MAX)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"{self.url}/api/health", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        return self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(how)
        return process.wait(30)


class MqttDevice:
    """A scripted device on a real broker."""

    def __init__(self, device: ScriptedDevice, port: int) -> None:
        self.device = device
        self._lock = threading.Lock()
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=f"device-{device.device}", clean_session=False
        )
        client.reconnect_delay_set(1, 1)
        client.on_connect = self._on_connect
        client.on_message = self._on_message
        self._client = client
        client.connect_async("127.0.0.1", port)
        client.loop_start()

    def _on_connect(self, client: mqtt.Client, *_rest: object) -> None:
        with self._lock:
            client.subscribe(self.device.filters())
            self.device.connect()
            self._speak()

    def _on_message(self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        with self._lock:
            self.device.hears(message.topic, bytes(message.payload))
            self._speak()

    def _speak(self) -> None:
        says, self.device.says = self.device.says, []
        for topic, payload, retain in says:
            self._client.publish(topic, payload, 1, retain)

    def do(self, what: Callable[[ScriptedDevice], None]) -> None:
        """Something that a script does, then what it says."""
        with self._lock:
            what(self.device)
            self._speak()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def start_devices(
    count: int, port: int, refuses: frozenset[str] = frozenset(), topics: Topics | None = None
) -> list[MqttDevice]:
    tree = topics or Topics()
    return [MqttDevice(ScriptedDevice(f"dev-{i}", tree, refuses), port) for i in range(count)]


def read_retained(port: int, topics: Topics, seconds: float = 1.0) -> dict[str, bytes]:
    """Everything that the broker retains below the root, devices' own words left out."""
    found: dict[str, bytes] = {}

    def on_message(_client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        if message.retain and "/up/" not in message.topic:
            found[message.topic] = bytes(message.payload)

    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="")
    client.on_message = on_message
    client.connect("127.0.0.1", port)
    client.loop_start()
    client.subscribe(f"{topics.root}/#", 1)
    before = -1
    while len(found) != before:
        before = len(found)
        time.sleep(seconds)
    client.disconnect()
    client.loop_stop()
    return found
