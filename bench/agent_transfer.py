"""A large file over MQTT beside HTTP, on one machine in one run.

For: `bench.agent`. The agent fetches, hashes and stores chunks, syncs, and assembles nothing yet when it says
`verifying`; the HTTP client downloads, hashes and syncs, which is what any updater does at least. Server and
client of HTTP are processes of their own, as broker and agent are.
Not for: a network; both run over loopback, and Python's own HTTP server or nginx is named in the result.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.processes import watched
from examples.demo.house import House, wait_for
from fleet.adapters.broker_process import free_port
from tests.integration.bundles import make_bundle
from tests.integration.hand import Hand
from wire.figures import percentile
from wire.messages import Phase

_CLIENT = """
import hashlib, os, sys, time, urllib.request
began, total = time.perf_counter(), hashlib.sha256()
with urllib.request.urlopen(sys.argv[1]) as response, open(sys.argv[2], "wb") as out:
    while data := response.read(65536):
        total.update(data)
        out.write(data)
    out.flush()
    os.fsync(out.fileno())
print(time.perf_counter() - began)
"""
_NGINX = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log; worker_processes 1; user root;
events {{}}
http {{ access_log off; sendfile on; server {{ listen 127.0.0.1:{port}; root {folder}; }} }}
"""


def transfer(
    house: House, hand: Hand, device: str, folder: Path, *, size_bytes: int, rounds: int
) -> dict[str, Any]:
    """Rounds of HTTP and MQTT by turns, each of other bytes; medians, and the daemon's peak memory."""
    agent = house.agents[device]
    http_s, mqtt_s, peaks = [], [], []
    with _served(folder) as (url, server):
        for number in range(rounds):
            model = f"big-{number}"
            make_bundle(folder / model, model=model, seed=900 + number, ballast_bytes=size_bytes)
            digest = hand.publish_bundle(folder / model)
            file = folder / model / "variants/float_wf32_af32/model.onnx"
            http_s.append(_downloaded(f"{url}/{file.relative_to(folder)}", folder / "copy"))
            with watched(agent.pid) as peak:
                mqtt_s.append(_fetched(hand, device, model, digest, order=10_000 + number))
            peaks.append(peak)
            hand.wait_ended(device, model, 10_000 + number, 180)
    ratios = [http / mqtt for http, mqtt in zip(http_s, mqtt_s, strict=True)]
    return {
        "bytes": file.stat().st_size,
        "rounds": rounds,
        "mqtt_mb_per_s": round(file.stat().st_size / percentile(mqtt_s, 0.5) / 1e6, 1),
        "http_mb_per_s": round(file.stat().st_size / percentile(http_s, 0.5) / 1e6, 1),
        "ratio_to_http": round(percentile(ratios, 0.5), 3),
        "ratios_to_http": [round(ratio, 3) for ratio in ratios],
        "http_server": server,
        "http_client": "urllib: downloads, hashes (SHA-256), writes, fsyncs",
        "broker": house.broker_kind(),
        "daemon_pss_mib_peak": max(peak.pss for peak in peaks),
        "daemon_rss_mib_peak": max(peak.rss for peak in peaks),
    }


def _fetched(hand: Hand, device: str, model: str, digest: str, order: int) -> float:
    """Seconds from the order to the device's own word that everything is fetched."""
    seen, began = len(hand.reports), time.perf_counter()
    hand.desire(device, model, digest, order=order)

    def done() -> float | None:
        for report in hand.reports[seen:]:
            phase = getattr(report.event, "phase", None)
            if report.model == model and phase in {Phase.VERIFYING, Phase.TRIALING}:
                return time.perf_counter()
        return None

    return wait_for("the big file to be fetched", done, 300) - began


def _downloaded(url: str, target: Path) -> float:
    """Seconds, the client's own start left out."""
    command = [sys.executable, "-c", _CLIENT, url, str(target)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[tuple[str, str]]:
    """The folder over HTTP: its address, and what serves it."""
    port, nginx = free_port(), shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is not None:
        config = folder / "nginx.conf"
        config.write_text(_NGINX.format(folder=folder, port=port))
        command, name = [nginx, "-c", str(config)], "nginx"
    else:
        command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
        command, name = [*command, "--directory", str(folder)], "Python's http.server"
    with (folder / "http.log").open("wb") as log:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for("the HTTP server", lambda: _answers(port), 20)
        yield f"http://127.0.0.1:{port}", name
    finally:
        server.terminate()
        server.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
