"""Puts one broker through what Shallop's contract asks of it; the figures of ADR 0002.

Started by hand, `python -m bench.broker_trial mosquitto|nats|iotcore`, with paho-mqtt and the
broker installed. Every trial prints one line of JSON: what arrived, how fast, what was kept.
It judges nothing: the decision stands in docs/adr/0002-embedded-broker.md.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

BLOB_BYTES = 65_536
BLOBS = 200
WINDOW = 32
WAIT_S_MAX = 20.0


def free_port() -> int:
    """A loopback port that nobody holds just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch_mosquitto(port: int, data: Path) -> list[str]:
    """Mosquitto with the production limits, saving its memory every second."""
    path = data / "mosquitto.conf"
    path.write_text(
        f"user root\nlistener {port} 127.0.0.1\nallow_anonymous true\npersistence true\n"
        f"persistence_location {data}/\nautosave_interval 1\nset_tcp_nodelay true\n"
        "max_inflight_messages 100\nmax_queued_messages 10000\n"
    )
    return [shutil.which("mosquitto") or "/usr/sbin/mosquitto", "-c", str(path)]


def launch_nats(port: int, data: Path) -> list[str]:
    """NATS with JetStream on disk; MQTT needs a server name."""
    path = data / "nats.conf"
    path.write_text(
        f'server_name: trial\nmax_payload: 6291456\nlisten: "127.0.0.1:-1"\n'
        f'jetstream {{ store_dir: "{data}" }}\nmqtt {{ listen: "127.0.0.1:{port}" }}\n'
    )
    return [str(Path(sys.executable).with_name("nats-server")), "-c", str(path)]


def launch_iotcore(port: int, _data: Path) -> list[str]:
    """Rumqttd in this Python, its payload cap raised from 20 KB."""
    code = (
        "from iotcore import IotCoreBroker; IotCoreBroker(listen='127.0.0.1', "
        f"port={port}, max_payload_size=6291456).run_forever()"
    )
    return [sys.executable, "-c", code]


LAUNCHERS: dict[str, Callable[[int, Path], list[str]]] = {
    "mosquitto": launch_mosquitto,
    "nats": launch_nats,
    "iotcore": launch_iotcore,
}


class Server:
    """One broker process that can be stopped, killed and started again on its port."""

    def __init__(self, kind: str, data: Path) -> None:
        self.kind, self.data, self.port = kind, data, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start it; seconds until a CONNECT is answered."""
        begin = time.monotonic()
        with (self.data / "log").open("ab") as log:
            command = LAUNCHERS[self.kind](self.port, self.data)
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        while time.monotonic() - begin < WAIT_S_MAX:
            with contextlib.suppress(OSError), Client(self.port):
                return time.monotonic() - begin
            time.sleep(0.01)
        raise TimeoutError((self.data / "log").read_text()[-2000:])

    def end(self, number: signal.Signals) -> tuple[float, int]:
        """Send a signal and wait; seconds and exit status."""
        assert self.process is not None
        begin = time.monotonic()
        self.process.send_signal(number)
        status = self.process.wait(30)
        return time.monotonic() - begin, status

    def memory_mb(self, field: str = "VmRSS") -> float:
        """Resident memory now, or its high-water mark (`VmHWM`)."""
        assert self.process is not None
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return round(int(text.split(f"{field}:")[1].split()[0]) / 1024, 1)


def set_nodelay(_client: mqtt.Client, _data: object, link: object) -> None:
    """Paho leaves Nagle's algorithm on; it would halve the figures."""
    assert isinstance(link, socket.socket)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Client:
    """A paho client that keeps all it received and connects in its constructor."""

    def __init__(self, port: int, name: str = "", *, clean: bool = True, will: str | None = None) -> None:
        self.received: list[mqtt.MQTTMessage] = []
        self.news = threading.Condition()
        self.paho = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=name or f"trial-{secrets.token_hex(4)}",
            clean_session=clean,
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        self.granted: list[int] = []
        connected = threading.Event()
        self.paho.on_connect = lambda *_: connected.set()
        self.paho.on_message = self._take
        self.paho.on_subscribe = lambda _c, _u, _m, codes, _p: self._note(codes)
        self.paho.on_socket_open = set_nodelay
        self.paho.max_inflight_messages_set(64)
        if will:
            self.paho.will_set(will, b"offline", qos=1, retain=True)
        self.paho.connect("127.0.0.1", port)
        self.paho.loop_start()
        if not connected.wait(5):
            self.close()
            raise ConnectionError("no CONNACK")

    def _note(self, codes: list[ReasonCode]) -> None:
        self.granted += [code.value for code in codes]

    def _take(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        with self.news:
            self.received.append(message)
            self.news.notify_all()

    def publish(self, topic: str, payload: bytes, *, retain: bool = True) -> mqtt.MQTTMessageInfo:
        """Publish at QoS 1."""
        return self.paho.publish(topic, payload, qos=1, retain=retain)

    def send(self, topic: str, payload: bytes, *, retain: bool = True) -> bool:
        """Publish at QoS 1 and wait for its acknowledgement."""
        info = self.publish(topic, payload, retain=retain)
        with contextlib.suppress(RuntimeError):
            info.wait_for_publish(WAIT_S_MAX)
        return info.is_published()

    def wait(self, count: int, timeout_s: float = WAIT_S_MAX) -> int:
        """Wait for that many messages in all; how many came."""
        with self.news:
            self.news.wait_for(lambda: len(self.received) >= count, timeout_s)
            return len(self.received)

    def ask(self, topic: str, count: int = 1, qos: int = 0, timeout_s: float = 1.5) -> list[bytes]:
        """Subscribe and return the payloads that came for it."""
        before = len(self.received)
        self.paho.subscribe(topic, qos)
        self.wait(before + count, timeout_s)
        return [bytes(m.payload) for m in self.received[before:]]

    def close(self) -> None:
        """Disconnect and end the thread."""
        self.paho.disconnect()
        self.paho.loop_stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def say(trial: str, **facts: object) -> None:
    """One line of JSON."""
    print(json.dumps({"trial": trial, **facts}), flush=True)


def trial_blobs(server: Server) -> None:
    """(a) Retained blobs, published at QoS 1, fetched by exact topic at QoS 0."""
    blobs = {}
    for _ in range(BLOBS):
        blob = os.urandom(BLOB_BYTES)
        blobs[f"shallop/v1/blob/{hashlib.sha256(blob).hexdigest()}"] = blob
    with Client(server.port) as publisher:
        begin = time.monotonic()
        infos = [publisher.publish(topic, blob) for topic, blob in blobs.items()]
        for info in infos:
            info.wait_for_publish(WAIT_S_MAX)
        publish_s = time.monotonic() - begin
    rates, whole = [], []
    for _ in range(3):
        with Client(server.port) as reader:
            begin = time.monotonic()
            whole.append(fetch(reader, blobs))
            rates.append(round(BLOBS * BLOB_BYTES / 1e6 / (time.monotonic() - begin), 1))
    say(
        "a_blobs",
        published=sum(info.is_published() for info in infos),
        publish_mb_s=round(BLOBS * BLOB_BYTES / 1e6 / publish_s, 1),
        whole=whole,
        fetch_mb_s=rates,
        rss_mb=server.memory_mb(),
        peak_mb=server.memory_mb("VmHWM"),
    )


def fetch(reader: Client, blobs: dict[str, bytes]) -> int:
    """Fetch the blobs a window at a time; how many came whole."""
    topics = list(blobs)
    for at in range(0, len(topics), WINDOW):
        window = topics[at : at + WINDOW]
        reader.paho.subscribe([(topic, 0) for topic in window])
        if reader.wait(at + len(window), 6.0) < at + len(window):
            break
        reader.paho.unsubscribe(window)
    return sum(blobs.get(m.topic) == m.payload for m in reader.received)


def trial_retained(server: Server) -> None:
    """(b) Overwritten, cleared, and delivered again to the same subscriber."""
    topic = "shallop/v1/device/pi-1/down/desired"
    with Client(server.port) as one, Client(server.port) as other:
        one.send(topic, b"first")
        one.send(topic, b"second")
        overwritten = other.ask(topic)
        again = [other.ask(topic) for _ in range(3)]
        before = len(other.received)
        one.send(topic, b"")
        other.wait(before + 1)
        cleared_live = [bytes(m.payload) for m in other.received[before:]]
    with Client(server.port) as late:
        say(
            "b_retained",
            overwritten=str(overwritten),
            resubscribed=str(again),
            cleared_live=str(cleared_live),
            after_clearing=str(late.ask(topic, timeout_s=1)),
        )


WILL_CHILD = """
import sys, time
from bench.broker_trial import Client
Client(int(sys.argv[1]), "dying", will=sys.argv[2]); print("up", flush=True); time.sleep(60)
"""


def trial_will(server: Server) -> None:
    """(c) The last will of a process killed with SIGKILL, live and retained."""
    topic = "shallop/v1/device/dying/up/status"
    with Client(server.port) as watcher:
        watcher.ask(topic, timeout_s=0.3)
        command = [sys.executable, "-c", WILL_CHILD, str(server.port), topic]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            begin = time.monotonic()
            child.kill()
            came = watcher.wait(1, 10)
            after_s = round(time.monotonic() - begin, 3)
    with Client(server.port) as late:
        kept = late.ask(topic)
        say("c_will", live=came, after_s=after_s, retained=str(kept))


def trial_sessions(server: Server) -> None:
    """(d) QoS 1 messages wait for a client that is away."""
    topic = "shallop/v1/all/down/command"
    with Client(server.port, "sleeper", clean=False) as sleeper:
        sleeper.ask(topic, qos=1, timeout_s=0.5)
    with Client(server.port) as publisher:
        for number in range(50):
            publisher.send(topic, b"%d" % number, retain=False)
    with Client(server.port, "sleeper", clean=False) as sleeper:
        came = sleeper.wait(50, 5)
        in_order = [int(m.payload) for m in sleeper.received] == list(range(50))
        say("d_session", came=came, of=50, in_order=in_order, granted=sleeper.granted)


def trial_chatter(server: Server) -> None:
    """(g) Three devices report, the server answers each report."""
    names = ["pi-1", "pi-2", "pi-3"]
    with contextlib.ExitStack() as stack:
        hub = stack.enter_context(Client(server.port, "registry"))
        devices = {name: stack.enter_context(Client(server.port, name)) for name in names}
        for name, device in devices.items():
            device.ask(f"shallop/v1/device/{name}/down/ack", qos=1, timeout_s=0.3)
        hub.ask("shallop/v1/device/+/up/report", qos=1, timeout_s=0.3)
        begin = time.monotonic()
        for number in range(100):
            for name, device in devices.items():
                device.publish(f"shallop/v1/device/{name}/up/report", b"%d" % number, retain=False)
        answered = 0
        while answered < 300 and hub.wait(answered + 1, 5) > answered:
            name = hub.received[answered].topic.split("/")[3]
            hub.publish(f"shallop/v1/device/{name}/down/ack", b"ok", retain=False)
            answered += 1
        acks = [device.wait(100, 5) for device in devices.values()]
        say("g_chatter", reports=answered, acks=acks, seconds=round(time.monotonic() - begin, 2))
        begin = time.monotonic()
        for _ in range(20):
            hub.send("shallop/v1/all/down/command", b"x", retain=False)
        say("g_ack_ms", mean=round((time.monotonic() - begin) * 50, 2))


def trial_sizes(server: Server) -> None:
    """(h) Retained messages up to 256 KiB and beyond."""
    facts = {}
    for kib in (1, 64, 128, 256, 6000):
        payload = os.urandom(kib * 1024)
        with Client(server.port) as one, Client(server.port) as other:
            sent = one.send(f"size/{kib}", payload)
            facts[f"kib_{kib}"] = [sent, other.ask(f"size/{kib}", timeout_s=5) == [payload]]
    say("h_sizes", **facts)


def trial_wildcard(server: Server) -> None:
    """(i) device/+/up/# with retained delivery, and a shared subscription."""
    with Client(server.port) as one, Client(server.port) as other:
        for number in range(100):
            for leaf in ("status", "identity", "reported"):
                one.send(f"wild/device/d{number}/up/{leaf}", b"x" * 500)
        came = other.ask("wild/device/+/up/#", 300, qos=1, timeout_s=8)
        flags = sum(m.retain for m in other.received)
    with Client(server.port) as shared, Client(server.port) as one:
        shared.ask("$share/g/wild/s", qos=1, timeout_s=0.3)
        one.send("wild/s", b"hello", retain=False)
        say(
            "i_wildcard",
            came=len(came),
            of=300,
            retain_flag=flags,
            share_granted=shared.granted,
            share_delivered=shared.wait(1, 2),
        )


def trial_hundred_mb(server: Server) -> None:
    """100 MB retained: memory, and what a wildcard over all of it brings (ours never ask that)."""
    facts: dict[str, object] = {}
    with Client(server.port) as one:
        for count in (800, 1600):
            infos = [one.publish(f"many/{at}", os.urandom(BLOB_BYTES)) for at in range(count)]
            for info in infos:
                info.wait_for_publish(WAIT_S_MAX)
            facts[f"rss_mb_{count}"] = server.memory_mb()
            with Client(server.port) as other:
                other.paho.subscribe("many/#")
                came = other.wait(count, 8)
                facts[f"wildcard_{count}"] = [came, "connected" if other.paho.is_connected() else "cut off"]
    say("j_hundred_mb", **facts)


def trial_first_subscription(server: Server) -> None:
    """40 restarts: does the very first subscription get what is retained?"""
    blob, topics = os.urandom(BLOB_BYTES), [f"first/{at}" for at in range(20)]
    with Client(server.port) as one:
        for topic in topics:
            one.send(topic, blob)
    missed = 0
    time.sleep(4)  # Mosquitto must have saved
    for _ in range(40):
        server.end(signal.SIGKILL)
        server.start()
        with Client(server.port) as reader:
            missed += reader.ask(topics[0], timeout_s=2) != [blob]
    say("k_first_subscription", restarts=40, missed=missed)


def trial_restart(server: Server, number: signal.Signals, pause_s: float) -> None:
    """(e, f) What is remembered after a kill or a stop, and how long that takes."""
    topic = f"memory/{number.name}/{pause_s}/"
    with Client(server.port, "rememberer", clean=False) as sleeper:
        sleeper.ask(f"{topic}queue", qos=1, timeout_s=0.5)
    with Client(server.port) as one:
        for key in range(20):
            one.send(f"{topic}{key}", os.urandom(BLOB_BYTES))
        one.send(f"{topic}0", b"overwritten")
        one.send(f"{topic}1", b"")
        for _ in range(10):
            one.send(f"{topic}queue", b"waits", retain=False)
    time.sleep(pause_s)
    stop_s, status = server.end(number)
    start_s = server.start()
    with Client(server.port) as reader:
        kept = sum(len(reader.ask(f"{topic}{key}", timeout_s=1)) for key in range(2, 20))
        cleared = [len(payload) for payload in reader.ask(f"{topic}1", timeout_s=1)]
        first = reader.ask(f"{topic}0", timeout_s=1)
    with Client(server.port, "rememberer", clean=False) as sleeper:
        queued = sleeper.wait(10, 2)
    say(
        "e_restart",
        signal=number.name,
        seconds_before=pause_s,
        exit=status,
        stop_s=round(stop_s, 3),
        start_s=round(start_s, 3),
        kept=kept,
        of=18,
        overwritten=first == [b"overwritten"],
        cleared_came_back_bytes=cleared,
        queued=queued,
        queued_of=10,
    )


@contextlib.contextmanager
def running(kind: str) -> Iterator[Server]:
    """A broker with a data directory of its own, killed at the end."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(kind, Path(folder))
        start_s = server.start()
        time.sleep(2)
        say("f_start", kind=kind, start_s=round(start_s, 3), idle_rss_mb=server.memory_mb())
        try:
            yield server
        finally:
            server.end(signal.SIGKILL)


TRIALS = [
    trial_blobs,
    trial_retained,
    trial_will,
    trial_sessions,
    trial_chatter,
    trial_sizes,
    trial_wildcard,
    trial_hundred_mb,
    trial_first_subscription,
]


def main() -> None:
    """Run every trial on the broker named on the command line."""
    kind = sys.argv[1]
    for trial in TRIALS:
        with running(kind) as server:
            try:
                trial(server)
            except Exception as error:  # noqa: BLE001 - a broker that fails one is tried further
                say(trial.__name__, failed=f"{type(error).__name__}: {error}"[-500:])
    with running(kind) as server:
        for number, pause_s in ((signal.SIGTERM, 0), (signal.SIGKILL, 0), (signal.SIGKILL, 3)):
            trial_restart(server, signal.Signals(number), pause_s)


if __name__ == "__main__":
    main()
