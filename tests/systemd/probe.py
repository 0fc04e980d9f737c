"""What a trial's worker finds around itself, told over the socket that it was started for.

For: tests/systemd/test_machine_worker.py, which starts it in the worker's place, inside the worker's unit.
Not for: a trial by way of the agent. It runs on the machine's installed Shallop, not on this checkout.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from agent.worker.job import TrialJob
from agent.worker.measuring import run_trial


def attempt(act: Callable[[], object]) -> str:
    """`done`, or the name of what stood in the way."""
    try:
        act()
    except OSError as error:
        return type(error).__name__ if error.errno is None else os.strerror(error.errno)
    return "done"


def connect() -> None:
    with socket.create_connection(("127.0.0.1", 1883), timeout=5):
        pass


def trial(order: dict[str, Any]) -> dict[str, Any]:
    """A real trial in this process, as the worker does it."""
    result = run_trial(msgspec.convert(order, TrialJob))
    return {"samples": result.n_samples, "accuracy": result.accuracy and result.accuracy.value}


def main() -> None:
    order = json.loads(sys.stdin.readline())
    state = Path(order["state_dir"])
    found = {
        "uid": os.getuid(),
        "groups": sorted(os.getgroups()),
        "trial": trial(order["job"]),
        "interfaces": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "internet": attempt(lambda: socket.socket(socket.AF_INET)),
        "broker": attempt(connect),
        "state": attempt(lambda: (state / "planted").write_text("x")),
        "model": attempt(lambda: (state / "probe" / "model.onnx").open("r+b").close()),
        "read-only": [p for p in ("/", "/etc", "/opt", str(state)) if os.statvfs(p).f_flag & os.ST_RDONLY],
        "system": attempt(lambda: Path("/etc/planted").write_text("x")),
        "opt": attempt(lambda: Path("/opt/shallop/planted").write_text("x")),
        "configuration": attempt(lambda: Path("/etc/shallop/agent.yaml").read_bytes()),
        "live": attempt(lambda: Path("/run/shallop/live/planted").write_text("x")),
        "bus": attempt(lambda: socket.socket(socket.AF_UNIX).connect("/run/dbus/system_bus_socket")),
        "home": sorted(map(str, Path("/root").iterdir())) if os.access("/root", os.R_OK) else "closed",
        "processes": sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()),
        "own": os.getpid(),
        "tmp": attempt(lambda: Path("/tmp/scratch").write_text("x")),
        "large": attempt(lambda: Path("/tmp/large").write_bytes(b"x" * (65 << 20))),
        "writable code": attempt(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)),
        "root": attempt(lambda: os.setuid(0)),
        "status": dict(
            line.split(":\t", 1)
            for line in Path("/proc/self/status").read_text().splitlines()
            if ":\t" in line
        ),
        "board": bool(Path("/proc/cpuinfo").read_text()),
        "firmware": attempt(lambda: Path("/dev/vcio").open("r+b").close()),
        "sensors": os.access("/sys/class", os.R_OK),
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
