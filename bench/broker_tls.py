"""What TLS 1.3 with a certificate for each device costs the broker: processor per connection, and memory.

For: `python -m bench.broker_tls [COUNT]`, figures of docs/broker.md; the plain broker and the one that asks
for certificates in turn, in one run, both Mosquitto with Shallop's configurations. COUNT devices connect one
after the other and stay, each with a key and certificate (Ed25519) of its own.
Not for: asserting anything, or what a network adds.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.processes import cpu_s, memory
from fleet.adapters.broker_process import HOST
from tests.brokers import Mosquitto, TlsMosquitto

COUNT_DEFAULT = 1000
ROUNDS = 3
CONNACK_BYTES = 4
KEPT_OPEN = 200

Link = socket.socket | ssl.SSLSocket


def connect_packet(name: str) -> bytes:
    """CONNECT of MQTT 3.1.1 with a kept session, as an agent sends it."""
    body = b"\x00\x04MQTT\x04\x00\x00\x3c" + len(name).to_bytes(2, "big") + name.encode()
    return bytes([0x10, len(body)]) + body


def plain(port: int, name: str) -> Link:
    """A connection without TLS."""
    link = socket.create_connection((HOST, port))
    link.sendall(connect_packet(name))
    return link


def measured(pid: int, names: list[str], connect: Callable[[str], Link]) -> dict[str, Any]:
    """All connect, one after the other, and stay until memory was read."""
    before, used, began = memory(pid).pss, cpu_s(pid), time.perf_counter()
    links, took_ms = [], []
    for name in names:
        start = time.perf_counter()
        link = connect(name)
        if link.recv(CONNACK_BYTES) != b"\x20\x02\x00\x00":
            raise RuntimeError(f"the broker did not take {name} in")
        took_ms.append((time.perf_counter() - start) * 1000)
        links.append(link)
    wall, used = time.perf_counter() - began, cpu_s(pid) - used
    time.sleep(1.0)
    held = memory(pid).pss - before
    for link in links:
        link.close()
    return {
        "connects_per_s_one_client": round(len(names) / wall, 1),
        "broker_cpu_ms_per_connect": round(1000 * used / len(names), 3),
        "connects_per_s_broker_bound": round(len(names) / used) if used > 0 else None,
        "connect_ms_p50": round(statistics.median(took_ms), 2),
        "broker_kib_per_connection": round(1024 * held / len(names), 1),
    }


def plain_figures(folder: Path, names: list[str]) -> dict[str, Any]:
    """The broker for trying out."""
    with Mosquitto(folder, extra="log_type none") as broker:
        assert broker.pid is not None
        return measured(broker.pid, names, lambda name: plain(broker.port, name))


def tls_figures(folder: Path, names: list[str]) -> dict[str, Any]:
    """The production broker."""
    with TlsMosquitto(folder, watching=False, extra="log_type none") as broker:
        assert broker.pid is not None
        contexts = {name: broker.context(*broker.device(name)) for name in names}

        def encrypted(name: str) -> Link:
            link = contexts[name].wrap_socket(
                socket.create_connection((HOST, broker.port)), server_hostname=HOST
            )
            link.sendall(connect_packet(name))
            return link

        return measured(broker.pid, names, encrypted)


def main() -> int:
    """Prints JSON: the median of several rounds for each, and their ratios."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT_DEFAULT
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * count + KEPT_OPEN), hard))
    names = [f"bench-{n}" for n in range(count)]
    rounds: dict[str, list[dict[str, Any]]] = {"plain": [], "tls": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(ROUNDS):
            rounds["plain"].append(plain_figures(Path(folder) / f"plain-{turn}", names))
            rounds["tls"].append(tls_figures(Path(folder) / f"tls-{turn}", names))
    figures = {kind: {key: statistics.median(one[key] for one in found) for key in found[0]}
               for kind, found in rounds.items()}  # fmt: skip
    print(json.dumps({
        "count": count, "rounds": ROUNDS, "cores": os.cpu_count(), "load": os.getloadavg()[0],
        "openssl": ssl.OPENSSL_VERSION, **figures,
    }, indent=1))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
