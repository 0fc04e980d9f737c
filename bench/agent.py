"""What the agent costs a device: rollback time, memory, start time, and its transfer beside plain HTTP.

For: `python -m bench agent`. The real agent as a process, a real broker (Mosquitto where it is
installed, else the embedded one), tiny real models. Ratios are measured side by side in one run.
Not for: asserting anything; a slow machine gives slow figures.
"""

from __future__ import annotations

import functools
import http.server
import os
import platform
import shutil
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from examples.demo.house import House, Process, wait_for
from tests.integration.bundles import make_bundle
from tests.integration.hand import Hand
from wire.figures import percentile
from wire.messages import OrderOutcome, Phase

MODEL, DEVICE = "tiny", "bench-1"
PAYLOAD_BYTES = 32_000_000


def agent_figures(*, rollbacks: int = 100, starts: int = 10, idle_s: float = 20.0) -> dict[str, Any]:
    """All figures of this module, as JSON-able values."""
    folder = Path(tempfile.mkdtemp(prefix="shallop-bench-"))
    try:
        with House(folder / "house") as house:
            house.start_broker()
            with Hand(house.broker_port) as hand:
                return {
                    "machine": platform.processor() or platform.machine(),
                    "rollback": _rollback(house, hand, folder, rollbacks),
                    "idle": _idle(house, idle_s),
                    "start": _start(house, hand, starts),
                    "fetch": _fetch(house, hand, folder),
                }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _deploy(hand: Hand, digest: str, order: int, release: str) -> None:
    hand.desire(DEVICE, MODEL, digest, order=order, release=release)
    state = hand.wait_ended(DEVICE, MODEL, order, 120)
    if state.outcome is not OrderOutcome.ACTIVE:
        raise RuntimeError(f"order {order} ended {state.outcome}: {state.reason}")


def _rollback(house: House, hand: Hand, folder: Path, times: int) -> dict[str, Any]:
    """From publishing the message to the switched symlink, over `times` rollbacks."""
    digests = []
    for release in ("1", "2"):
        make_bundle(folder / release, release=release, seed=int(release))
        digests.append(hand.publish_bundle(folder / release))
    house.agent(DEVICE)
    order = 1
    _deploy(hand, digests[0], order, "1")
    took_ms = []
    for _ in range(times):
        order += 1
        _deploy(hand, digests[1], order, "2")
        link = house.state(DEVICE) / "models" / MODEL / "current"
        before = link.readlink()
        order += 1
        started = time.perf_counter()
        hand.rollback(DEVICE, MODEL, digests[1], order, ident=f"rb-{order}")
        while link.readlink() == before:
            time.sleep(0.0002)
        took_ms.append((time.perf_counter() - started) * 1000)
        hand.wait_state(DEVICE, MODEL, lambda s: s.phase is Phase.IDLE and s.active is not None)
    return {
        "n": times,
        "publish_to_symlink_ms_p50": round(percentile(took_ms, 0.5), 2),
        "publish_to_symlink_ms_p99": round(percentile(took_ms, 0.99), 2),
        "publish_to_symlink_ms_max": round(max(took_ms), 2),
    }


def _idle(house: House, idle_s: float) -> dict[str, Any]:
    """Memory and CPU of the daemon after a deployment, with nothing to do."""
    agent = house.agents[DEVICE]
    time.sleep(idle_s / 2)
    before = _cpu_s(agent)
    time.sleep(idle_s / 2)
    rollup = Path(f"/proc/{agent.pid}/smaps_rollup").read_text(encoding="ascii")
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in rollup.splitlines()[1:]}
    return {
        "rss_mib": round(sizes["Rss"] / 1024, 1),
        "pss_mib": round(sizes["Pss"] / 1024, 1),
        "cpu_percent": round(100 * (_cpu_s(agent) - before) / (idle_s / 2), 3),
    }


def _cpu_s(process: Process) -> float:
    words = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _start(house: House, hand: Hand, times: int) -> dict[str, Any]:
    """From starting the program to its retained status `online` at a client of the broker."""
    agent = house.agents[DEVICE]
    took_ms = []
    for _ in range(times):
        agent.stop()
        session = hand.status[DEVICE].number
        started = time.perf_counter()
        agent.start()
        while not (hand.status[DEVICE].online and hand.status[DEVICE].number > session):
            time.sleep(0.001)
        took_ms.append((time.perf_counter() - started) * 1000)
    return {"n": times, "to_online_ms_p50": round(percentile(took_ms, 0.5), 1), "max": round(max(took_ms), 1)}


def _fetch(house: House, hand: Hand, folder: Path) -> dict[str, Any]:
    """One file of 32 MB over MQTT, verified and stored, beside HTTP of the same bytes to the same disk."""
    make_bundle(folder / "big", model="big", release="1", seed=9, ballast_bytes=PAYLOAD_BYTES)
    digest = hand.publish_bundle(folder / "big")
    file = folder / "big" / "variants/float_wf32_af32/model.onnx"
    size = file.stat().st_size
    with _http_server(file.parent) as url:
        http_s = min(_download(f"{url}/model.onnx", folder / "copy") for _ in range(3))
    seen = len(hand.reports)
    order = 1000
    started = time.perf_counter()
    hand.desire(DEVICE, "big", digest, order=order)

    def fetched() -> float | None:
        for report in hand.reports[seen:]:
            phase = getattr(report.event, "phase", None)
            if report.model == "big" and phase in {Phase.VERIFYING, Phase.TRIALING}:
                return time.perf_counter()
        return None

    mqtt_s = wait_for("the big file to be fetched", fetched, 180) - started
    hand.wait_ended(DEVICE, "big", order, 180)
    return {
        "bytes": size,
        "mqtt_mb_per_s": round(size / mqtt_s / 1e6, 1),
        "http_mb_per_s": round(size / http_s / 1e6, 1),
        "ratio_to_http": round(http_s / mqtt_s, 3),
        "broker": house.broker_kind(),
    }


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a log line each."""

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def _http_server(folder: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _download(url: str, target: Path) -> float:
    """Seconds to fetch, write and fsync; what any HTTP updater does at least."""
    started = time.perf_counter()
    with urllib.request.urlopen(url) as response, target.open("wb") as out:
        shutil.copyfileobj(response, out, 64 * 1024)
        out.flush()
        os.fsync(out.fileno())
    return time.perf_counter() - started
