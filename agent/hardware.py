"""What machine this is, as far as it can be read.

For: the identity that a device reports, the check of a variant's requirements, and a device id where none is
configured. Every function takes `root`, below which /proc and /sys are looked for. What cannot be read is
"unknown" or empty, never guessed.
Not for: loading a runtime to see whether it works; versions are read from the installed packages' metadata.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

from wire.messages import Hardware, RuntimeInfo

RUNTIMES = ("onnxruntime", "ai-edge-litert", "tflite-runtime")
NAME_CHARS_MAX = 200


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t")
    except OSError:
        return ""


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first value of each key; Raspberry Pi OS repeats the block per core and ends with the board's."""
    found: dict[str, str] = {}
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, separator, value = line.partition(":")
        if separator:
            found.setdefault(key.strip(), value.strip())
    return found


def _memory_bytes(root: Path) -> int:
    match = re.search(r"^MemTotal:\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def board(root: Path = Path("/")) -> str:
    """The board's name: the device tree's model, else the firmware's product name."""
    name = _read(root / "proc/device-tree/model") or _read(root / "sys/class/dmi/id/product_name")
    return name[:NAME_CHARS_MAX] or "unknown"


def detect(root: Path = Path("/"), arch: str | None = None, power_sensor: str | None = None) -> Hardware:
    """The machine; `arch` is this interpreter's unless a test says otherwise."""
    info = _cpuinfo(root)
    features = (info.get("flags") or info.get("Features") or "").split()
    cpu = info.get("model name") or info.get("Model") or info.get("CPU part") or "unknown"
    return Hardware(
        arch=arch or platform.machine() or "unknown",
        cpu=cpu[:NAME_CHARS_MAX],
        board=board(root),
        cpu_features=tuple(sorted(set(features)))[:512],
        cores=os.cpu_count() or 0,
        memory_bytes=_memory_bytes(root),
        power_sensor=power_sensor,
    )


def runtimes() -> tuple[RuntimeInfo, ...]:
    """Installed inference runtimes, by their packages' metadata; none of them is imported."""
    found = []
    for name in RUNTIMES:
        try:
            found.append(RuntimeInfo(name=name, version=importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)


def operating_system(root: Path = Path("/")) -> str:
    """The distribution's name for people."""
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)"?$', _read(root / "etc/os-release"), re.MULTILINE)
    return match[1][:NAME_CHARS_MAX] if match else "unknown"


def device_id(root: Path = Path("/")) -> str | None:
    """A stable id from the board's serial number, else from the machine id; None where neither is there."""
    serial = _read(root / "proc/device-tree/serial-number") or _cpuinfo(root).get("Serial", "")
    for prefix, value in (("board", serial), ("machine", _read(root / "etc/machine-id"))):
        word = re.sub(r"[^a-z0-9]", "", value.lower())
        if word.strip("0"):
            return f"{prefix}-{word[:40]}"
    return None
