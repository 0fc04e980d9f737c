"""What the agent costs a device: memory, start, processor, bytes written, rollback, transfer, megabytes.

For: `python -m bench agent`. The real agent as a process in an environment like a device's, a real broker
(Mosquitto where it is installed, else the embedded one), tiny real models. Ratios are measured side by
side in one run.
Not for: asserting anything; a slow or busy machine gives slow figures, and the load stands beside them.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from bench.agent_encrypted import encrypted_idle
from bench.agent_environment import made
from bench.agent_transfer import transfer
from bench.processes import idle, memory, written
from examples.demo.house import House
from tests.integration.bundles import make_bundle
from tests.integration.hand import Hand
from wire.figures import percentile
from wire.messages import OrderOutcome, Phase

MODEL, DEVICE = "tiny", "bench-1"
DEPLOYED_BYTES = 5_000_000
SYNC_CALLS = "fsync,fdatasync,syncfs,sync,msync,sync_file_range"
AIMS = {
    "idle_pss_mib": 22.0, "idle_pss_mib_encrypted": 22.0, "start_to_online_ms_p50": 1000.0,
    "idle_cpu_percent": 0.1, "rollback_ms_p99": 50.0,
}  # fmt: skip
"""Issue 5; on x86-64, each an upper bound."""


class Length(Struct, frozen=True, kw_only=True):
    """How much is measured."""

    rollbacks: int = 100
    starts: int = 10
    warm_up_s: float = 20.0
    window_s: float = 60.0
    transfer_bytes: int = 100_000_000
    transfer_rounds: int = 3


LENGTHS = {
    "quick": Length(
        rollbacks=10, starts=3, warm_up_s=3, window_s=4, transfer_bytes=16_000_000, transfer_rounds=1
    ),
    "default": Length(),
    "full": Length(rollbacks=300, warm_up_s=300, window_s=600),
}


def agent_figures(length: Length, say: Callable[[str], None] = lambda _what: None) -> dict[str, Any]:
    """All figures of this module, as JSON-able values; `say` hears what is being done."""
    folder = Path(tempfile.mkdtemp(prefix="shallop-bench-"))
    load_before = os.getloadavg()[0]
    try:
        say("an environment like a device's")
        environment = made(folder)
        with House(folder / "house") as house:
            house.start_broker()
            trial = {
                "lock_file": str(folder / "trial.lock"),
                "python": str(environment.trial),
                "warmup": 1,
                "latency_runs": 10,
            }
            house.agent(DEVICE, str(environment.agent), trial=trial)
            with Hand(house.broker_port) as hand:
                figures = _measured(house, hand, folder, length, say)
            say(f"idling, encrypted: {length.warm_up_s + length.window_s:.0f} s")
            figures["idle_encrypted"] = encrypted_idle(
                house, DEVICE, str(environment.agent), folder, length.warm_up_s, length.window_s
            )
        figures |= {"installed_mb_without_runtime": environment.installed_mb}
        figures["machine"] = {
            "processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
            "python": platform.python_version(), "load_before": round(load_before, 2),
            "load_after": round(os.getloadavg()[0], 2),
        }  # fmt: skip
        return {**figures, "aims": _aims(figures)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measured(
    house: House, hand: Hand, folder: Path, length: Length, say: Callable[[str], None]
) -> dict[str, Any]:
    agent = house.agents[DEVICE]
    say(f"{length.rollbacks} rollbacks")
    rollback = _rollback(house, hand, folder, length.rollbacks)
    say(f"{length.starts} starts")
    start = _start(house, hand, length.starts)
    say("a deployment's writes")
    deployment = _deployment(house, hand, folder)
    say(f"idling: {length.warm_up_s + length.window_s:.0f} s")
    # Begun anew and with a release behind it, as a device is on any of its days.
    agent.stop()
    agent.start()
    resting = idle(agent.pid, length.warm_up_s, length.window_s)
    say(f"{length.transfer_rounds} transfers beside HTTP")
    moved = transfer(
        house, hand, DEVICE, folder, size_bytes=length.transfer_bytes, rounds=length.transfer_rounds
    )
    after = memory(agent.pid)
    return {
        "rollback": rollback,
        "start": start,
        "deployment": deployment,
        "idle": asdict(resting) | {"memory_mib": asdict(resting.memory_mib)},
        "transfer": moved | {"daemon_memory_mib_after": asdict(after)},
    }


def _aims(figures: dict[str, Any]) -> dict[str, Any]:
    found = {
        "idle_pss_mib": figures["idle"]["memory_mib"]["pss_only_python"],
        "start_to_online_ms_p50": figures["start"]["to_online_ms_p50"],
        "idle_cpu_percent": figures["idle"]["cpu_percent"],
        "rollback_ms_p99": figures["rollback"]["publish_to_symlink_ms_p99"],
    }
    encrypted = figures["idle_encrypted"]
    if encrypted is not None:
        found["idle_pss_mib_encrypted"] = encrypted["memory_mib"]["pss_only_python"]
    return {
        name: {"aim": aim, "found": found[name], "met": found[name] <= aim}
        for name, aim in AIMS.items()
        if name in found
    }


def _deploy(hand: Hand, digest: str, order: int, release: str, model: str = MODEL) -> None:
    hand.desire(DEVICE, model, digest, order=order, release=release)
    state = hand.wait_ended(DEVICE, model, order, 120)
    if state.outcome is not OrderOutcome.ACTIVE:
        raise RuntimeError(f"order {order} ended {state.outcome}: {state.reason}")


def _rollback(house: House, hand: Hand, folder: Path, times: int) -> dict[str, Any]:
    """From publishing the message to the switched symlink, over `times` rollbacks."""
    digests = []
    for release in ("1", "2"):
        make_bundle(folder / release, release=release, seed=int(release))
        digests.append(hand.publish_bundle(folder / release))
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


def _deployment(house: House, hand: Hand, folder: Path) -> dict[str, Any]:
    """What one deployment writes, agent and worker together; another one, watched, for its sync calls."""
    agent, sizes = house.agents[DEVICE], []
    for number in (1, 2):
        make_bundle(folder / f"d{number}", model=f"d{number}", seed=50 + number, ballast_bytes=DEPLOYED_BYTES)
    digests = [hand.publish_bundle(folder / f"d{number}") for number in (1, 2)]
    sizes.append(_disk_bytes(house.state(DEVICE)))
    before = written(agent.pid)
    _deploy(hand, digests[0], 5001, "1", "d1")
    time.sleep(1)  # what follows the report is part of it
    after = written(agent.pid)
    sizes.append(_disk_bytes(house.state(DEVICE)))
    syncs = _syncs(agent.pid, folder / "strace.log", lambda: _deploy(hand, digests[1], 5002, "1", "d2"))
    sent = sum(file.stat().st_size for file in (folder / "d1").rglob("*") if file.is_file())
    return {
        "bundle_bytes": sent,
        "storage_bytes": after.storage_bytes - before.storage_bytes,
        "storage_bytes_per_byte": round((after.storage_bytes - before.storage_bytes) / sent, 2),
        "calls_bytes": after.calls_bytes - before.calls_bytes,
        "state_bytes_before": sizes[0],
        "state_bytes_after": sizes[1],
        "sync_calls": syncs,
    }


def _disk_bytes(folder: Path) -> int:
    """Allocated on the disk; a file with two names counts once."""
    nodes = {(s.st_dev, s.st_ino): s.st_blocks * 512 for s in (p.lstat() for p in folder.rglob("*"))}
    return sum(nodes.values())


def _syncs(pid: int, log: Path, act: Callable[[], None]) -> int | None:
    """How often the process and its children asked for something to be on the disk; None without strace."""
    tool = shutil.which("strace")
    if tool is None:
        return None
    tracer = subprocess.Popen(
        [tool, "-f", "-qq", "-e", f"trace={SYNC_CALLS}", "-e", "signal=none", "-o", log, "-p", str(pid)],
        stderr=subprocess.DEVNULL,
    )
    time.sleep(1)
    try:
        act()
        time.sleep(1)
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(10)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return sum("(" in line and "resumed>" not in line for line in lines)
