"""What machine this is, as far as it can be read.

For: the identity that a device reports, the check of a variant's requirements, and a device id where none is
configured. Every function takes `root`, below which /proc and /sys are looked for. What cannot be read is
"unknown" or empty, never guessed.
Not for: loading a runtime to see whether it works; versions are read from the installed packages' metadata.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from pathlib import Path

from agent.packages import installed_version
from wire.bundle import Requirements
from wire.messages import Hardware, RuntimeInfo

RUNTIME_OF = {
    "onnxruntime": "onnxruntime",
    "onnxruntime-gpu": "onnxruntime",
    "onnxruntime-openvino": "onnxruntime",
    "ai-edge-litert": "ai-edge-litert",
    "tflite-runtime": "tflite-runtime",
}
"""The runtime, as variants name it, that a Python distribution brings."""
EXTRA_OF = {"onnxruntime": "onnx", "ai-edge-litert": "tflite", "tflite-runtime": "tflite-runtime"}
"""The extra of Shallop that brings a runtime."""
RUNTIMES_FOR = {".onnx": ("onnxruntime",), ".tflite": ("ai-edge-litert", "tflite-runtime")}
"""Who runs a model file of that suffix, the first that is installed."""
NAME_CHARS_MAX = 200
FILE_BYTES_MAX = 4 * 1024 * 1024

# Arm's part numbers of the cores found in small machines (MIDR_EL1; the kernel prints numbers only).
_ARM_PARTS = {
    0xB76: "ARM1176", 0xC07: "Cortex-A7", 0xC08: "Cortex-A8", 0xC09: "Cortex-A9", 0xC0F: "Cortex-A15",
    0xD03: "Cortex-A53", 0xD04: "Cortex-A35", 0xD05: "Cortex-A55", 0xD07: "Cortex-A57",
    0xD08: "Cortex-A72", 0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1", 0xD0D: "Cortex-A77", 0xD41: "Cortex-A78", 0xD42: "Cortex-A78AE",
    0xD46: "Cortex-A510", 0xD4D: "Cortex-A715", 0xD80: "Cortex-A520", 0xD81: "Cortex-A720",
}  # fmt: skip
_ARM = 0x41


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX)
    except OSError:
        return ""
    return data.decode("utf-8", errors="replace").strip("\0 \n\t")


def _cpuinfo(root: Path) -> dict[str, tuple[str, ...]]:
    """The values of each key; a block a core, and on a Raspberry Pi the board's own at the end."""
    found: dict[str, list[str]] = {}
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, separator, value = line.partition(":")
        if separator:
            found.setdefault(key.strip(), []).append(value.strip())
    return {key: tuple(values) for key, values in found.items()}


def _first(info: dict[str, tuple[str, ...]], *keys: str) -> str:
    return next((info[key][0] for key in keys if info.get(key, ("",))[0]), "")


def _memory_bytes(root: Path) -> int | None:
    match = re.search(r"^MemTotal:[ \t]+([0-9]{1,12}) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _cores(root: Path, info: dict[str, tuple[str, ...]]) -> int | None:
    """Cores that are online; None if nothing tells."""
    cores = 0
    for span in filter(None, _read(root / "sys/devices/system/cpu/online").split(",")):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", span)
        cores += int(match[2] or match[1]) - int(match[1]) + 1 if match else 0
    if cores > 0:
        return cores
    return len(info.get("processor", ())) or (os.cpu_count() if root == Path("/") else None)


def _arm_cores(info: dict[str, tuple[str, ...]]) -> str:
    """Names of the different cores, `Cortex-A55 + Cortex-A76`; a part that is not known keeps its numbers."""
    parts = zip(info.get("CPU implementer", ()), info.get("CPU part", ()), strict=False)
    names = set()
    for implementer, part in parts:
        try:
            known = _ARM_PARTS.get(int(part, 16)) if int(implementer, 16) == _ARM else None
        except ValueError:
            known = None
        names.add(known or f"implementer {implementer} part {part}")
    return " + ".join(sorted(names))


def board(root: Path = Path("/")) -> str:
    """The board's name: the device tree's model, else the firmware's product name."""
    name = _read(root / "proc/device-tree/model") or _read(root / "sys/class/dmi/id/product_name")
    return name[:NAME_CHARS_MAX] or "unknown"


def cpu(root: Path = Path("/")) -> str:
    """The processor's name: x86 says it, for ARM it follows from the part numbers."""
    info = _cpuinfo(root)
    name = _first(info, "model name") or _arm_cores(info) or _first(info, "Hardware", "cpu model")
    return name[:NAME_CHARS_MAX] or "unknown"


def detect(root: Path = Path("/"), arch: str | None = None, power_sensor: str | None = None) -> Hardware:
    """The machine; `arch` is this interpreter's unless a test says otherwise."""
    info = _cpuinfo(root)
    features = _first(info, "flags", "Features").split()
    return Hardware(
        arch=arch or platform.machine() or "unknown",
        cpu=cpu(root),
        board=board(root),
        cpu_features=tuple(sorted({feature[:NAME_CHARS_MAX] for feature in features}))[:512],
        cores=_cores(root, info),
        memory_bytes=_memory_bytes(root),
        power_sensor=power_sensor,
    )


def compatible(requires: Requirements, hardware: Hardware) -> str | None:
    """PURE. Why this machine cannot run a variant, in words; None if nothing speaks against it.

    What a requirement asks and the machine does not tell speaks against it.
    """
    features = set(hardware.cpu_features)
    if requires.arch and hardware.arch not in requires.arch:
        return f"made for {', '.join(requires.arch)}, this machine is {hardware.arch}"
    if (requires.cpu_any or requires.cpu_none) and not features:
        return "it asks for features of the processor, and this machine's are unknown"
    if requires.cpu_any and not features & set(requires.cpu_any):
        return f"the processor has none of {', '.join(requires.cpu_any)}"
    unwanted = sorted(features & set(requires.cpu_none))
    return f"not for a processor with {', '.join(unwanted)}" if unwanted else None


def runtimes() -> tuple[RuntimeInfo, ...]:
    """Runtimes installed beside this program, by their packages' metadata; none of them is imported."""
    versions = {name: installed_version(name) for name in RUNTIME_OF}
    return runtimes_of({name: version for name, version in versions.items() if version})


def runtimes_of(versions: dict[str, str]) -> tuple[RuntimeInfo, ...]:
    """PURE. The runtimes that these distributions bring, each once."""
    found: dict[str, RuntimeInfo] = {}
    for name, runtime in RUNTIME_OF.items():
        if versions.get(name):
            found.setdefault(runtime, RuntimeInfo(name=runtime, version=versions[name][:NAME_CHARS_MAX]))
    return tuple(found.values())


def runtime_for(suffix: str, installed: tuple[RuntimeInfo, ...]) -> str | None:
    """PURE. The runtime that would run a model file here; None for a file of no known kind.

    Where none of them is installed it is the first: the application may run the file by other means.
    """
    known = RUNTIMES_FOR.get(suffix)
    if known is None:
        return None
    names = {runtime.name for runtime in installed}
    return next((name for name in known if name in names), known[0])


def operating_system(root: Path = Path("/")) -> str:
    """The distribution's name for people."""
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)"?$', _read(root / "etc/os-release"), re.MULTILINE)
    return match[1][:NAME_CHARS_MAX] if match else "unknown"


def device_id(root: Path = Path("/")) -> str | None:
    """A stable id from the board's serial number, else from the machine id; None where neither is there.

    The machine id itself is not to be shown around (machine-id(5)), so a digest of it stands in.
    """
    serial = _read(root / "proc/device-tree/serial-number") or _first(_cpuinfo(root), "Serial")
    word = re.sub(r"[^a-z0-9]", "", serial.lower())
    if word.strip("0"):
        return f"board-{word[:40]}"
    machine = _read(root / "etc/machine-id").lower()
    if not re.fullmatch(r"[0-9a-f]{32}", machine):
        return None
    return f"machine-{hashlib.sha256(b'shallop device ' + machine.encode()).hexdigest()[:32]}"
