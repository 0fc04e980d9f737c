"""What was verified is never fetched again: kill -9, a reboot, another broker, a broker that dies.

Real Mosquitto, which writes down every message that it sends, and the real agent as a process. A limited
rate makes sure that the end comes in the middle of a transfer.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.adapters.mqtt import Address, MqttTransport
from tests.agent.test_mqtt import Heard
from tests.agent.twins import until
from tests.brokers import Mosquitto
from tests.integration.bundles import make_bundle
from tests.integration.hand import Hand
from wire.messages import OrderOutcome

pytestmark = pytest.mark.broker
ROOT = Path(__file__).parents[2]
DEVICE, MODEL = "roof-17", "tiny"
BALLAST = 3_000_000
RATE = 1_500_000
SENT = re.compile(rf"Sending PUBLISH to {DEVICE} .*/blob/([0-9a-f]{{64}})', \.\.\. \((\d+) bytes\)")


class Talking(Mosquitto):
    """A broker whose log tells each message."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, extra="log_type all")

    @property
    def sent(self) -> Counter[str]:
        """How often each blob was sent to the device."""
        return Counter(name for name, _ in SENT.findall((self.folder / "mosquitto.log").read_text()))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "b"
    make_bundle(folder, ballast_bytes=BALLAST)
    return folder


@contextlib.contextmanager
def daemon(
    folder: Path, broker: Mosquitto, before: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    config = {
        "device": DEVICE,
        "state_dir": str(folder / "state"),
        "insecure_unsigned": True,
        "broker": {"host": broker.host, "port": broker.port, "reconnect_s_max": 0.5},
        "transfer": {"rate_bytes_per_s_max": RATE, "reconnect_spread_s": 0.2},
        "trial": {
            "latency_runs": 20, "warmup": 2, "energy_window_s": 0.05, "lock_file": str(folder / "lock"),
        },
    }  # fmt: skip
    path = folder / "agent.yaml"
    path.write_bytes(msgspec.yaml.encode(config))
    command = [*before, sys.executable, "-m", "agent", "run", "--config", str(path)]
    with (folder / "log").open("ab") as log, subprocess.Popen(command, cwd=ROOT, stderr=log) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(20)


def stored(folder: Path) -> set[str]:
    """Blobs that lie whole under their names: each was hashed before it got its name."""
    # `os.walk` passes over what the agent removes meanwhile.
    folders = os.walk(folder / "state" / "blobs")
    return {name for _, _, names in folders for name in names if len(name) == 64}


def chunks_of(folder: Path) -> int:
    return sum(file.stat().st_size // 65_536 for file in folder.rglob("*.onnx"))


@contextlib.contextmanager
def ordered(broker: Mosquitto, bundle: Path) -> Iterator[Hand]:
    with Hand(broker.port) as hand:
        hand.desire(DEVICE, MODEL, hand.publish_bundle(bundle), order=1)
        yield hand


def half(folder: Path, bundle: Path) -> None:
    until(lambda: len(stored(folder)) > chunks_of(bundle) // 2, "half of the chunks", 60)


def finish(hand: Hand) -> None:
    assert hand.wait_ended(DEVICE, MODEL, 1, 60).outcome is OrderOutcome.ACTIVE


def require_time_namespaces() -> tuple[str, ...]:
    """A command that starts a program with a boot clock that has only just begun."""
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    before = ("unshare", "--time", f"--boottime=-{int(uptime_s) - 10}")
    if shutil.which("unshare") is None or subprocess.run([*before, "true"], check=False).returncode:
        pytest.skip("no time namespace can be made here: run as root on Linux 5.6 or newer, with util-linux")
    return before


@pytest.mark.parametrize("how", ["kill", "stop", "reboot"])
def test_nothing_that_was_verified_is_sent_again_after(how: str, tmp_path: Path, bundle: Path) -> None:
    before = require_time_namespaces() if how == "reboot" else ()
    with Talking(tmp_path / "broker") as broker, ordered(broker, bundle) as hand:
        with daemon(tmp_path, broker) as process:
            half(tmp_path, bundle)
            process.send_signal(signal.SIGTERM if how == "stop" else signal.SIGKILL)
            process.wait(20)
        verified, sent = stored(tmp_path), broker.sent
        assert len(verified) < chunks_of(bundle), "the end came too late for this test"
        with daemon(tmp_path, broker, before):
            finish(hand)
        again = broker.sent - sent
        assert not verified & again.keys()


def test_another_broker_with_the_same_content_sends_only_the_rest(tmp_path: Path, bundle: Path) -> None:
    with Talking(tmp_path / "one") as one, Talking(tmp_path / "two") as two:
        with ordered(one, bundle), daemon(tmp_path, one):
            half(tmp_path, bundle)
        verified = stored(tmp_path)
        assert len(verified) < chunks_of(bundle), "the end came too late for this test"
        with ordered(two, bundle) as hand, daemon(tmp_path, two):
            finish(hand)
        assert two.sent, "the second broker had nothing to send"
        assert not verified & two.sent.keys()


def test_a_broker_that_dies_and_comes_back_sends_only_the_rest(tmp_path: Path, bundle: Path) -> None:
    with Talking(tmp_path / "broker") as broker:
        with Hand(broker.port) as hand:
            hand.desire(DEVICE, MODEL, hand.publish_bundle(bundle), order=1)
        with daemon(tmp_path, broker):
            half(tmp_path, bundle)
            broker.stop()
            verified, sent = stored(tmp_path), broker.sent
            broker.start()
            with Hand(broker.port) as hand:
                finish(hand)
        assert len(verified) < chunks_of(bundle), "the end came too late for this test"
        assert not verified & (broker.sent - sent).keys()


class Drawn:
    """Chance that a test has decided."""

    def __init__(self, unit: float) -> None:
        self._unit = unit

    def unit(self) -> float:
        return self._unit


def test_agents_that_lose_a_real_broker_take_their_places_and_all_come_back(tmp_path: Path) -> None:
    spread_s, units = 2.0, [0.1, 0.3, 0.5, 0.7, 0.9]
    with Mosquitto(tmp_path) as broker, contextlib.ExitStack() as stack:
        agents = []
        for number, unit in enumerate(units):
            address = Address(
                host=broker.host, port=broker.port, client_id=f"a{number}", reconnect_s_max=1.0,
                reconnect_spread_s=spread_s,
            )  # fmt: skip
            transport, heard = MqttTransport(address, Drawn(unit)), Heard()
            transport.start(heard)
            stack.callback(transport.stop)
            agents.append((transport, heard))
        until(lambda: all(heard.connections for _, heard in agents), "the first connections")
        first = [transport._client._reconnect_min_delay for transport, _ in agents]
        assert all(wait_s <= 1.0 for wait_s in first), "the first connection waits for nobody"
        broker.stop()
        until(lambda: all(heard.losses for _, heard in agents), "everybody to notice")
        drawn = [transport._client._reconnect_min_delay for transport, _ in agents]
        assert all(
            wait_s in [pytest.approx(unit * spread_s), spread_s]
            for wait_s, unit in zip(drawn, units, strict=True)
        )
        broker.start()
        until(lambda: all(heard.connections >= 2 for _, heard in agents), "everybody to be back", 30)
