"""Which target a machine is.

For: reading architecture and CPU features under a given root, matching them against the targets, and finding
what gives an accelerator away.
Not for: using an accelerator; a target of one is named by the user, never guessed.

A feature decides, never a model name: Skylake-SP has no VNNI whatever its name suggests
(onnxruntime#5849).
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from converter.errors import InputError
from converter.targets.loader import Target, all_targets
from wire.bundle import Requirements

_CPUINFO_BYTES_MAX = 4 * 1024 * 1024
_PROPERTY_BYTES_MAX = 64 * 1024
_FEATURE_KEYS = ("flags", "Features")
_MODEL_KEYS = ("model name", "Model", "Hardware", "Processor")


class Machine(Struct, frozen=True, kw_only=True):
    """What decides which target a machine is.

    Attributes:
        arch: as `uname -m` gives it.
        features: CPU features, from `flags` (x86) or `Features` (ARM).
        cpu: the processor's name where one is told, else the architecture.
    """

    arch: str
    features: frozenset[str]
    cpu: str


def detect_machine(root: Path = Path("/"), arch: str | None = None) -> Machine:
    """The machine whose /proc lies under `root`.

    Args:
        root: of the /proc tree; another than `/` in tests.
        arch: machine name; this process's own by default.

    Raises:
        InputError: `host_unreadable`: /proc/cpuinfo cannot be read.
    """
    path = root / "proc" / "cpuinfo"
    try:
        with path.open("rb") as file:
            text = file.read(_CPUINFO_BYTES_MAX).decode("utf-8", "replace")
    except OSError as error:
        raise InputError(
            "host_unreadable",
            f"{path} cannot be read ({error.strerror}), so this machine's class is unknown; "
            "name a target with --target (see `shallop-convert targets`)",
        ) from error
    machine = platform.machine() if arch is None else arch
    values = _first_values(text)
    features = next((values[key] for key in _FEATURE_KEYS if key in values), "")
    cpu = next((values[key] for key in _MODEL_KEYS if values.get(key)), machine)
    return Machine(arch=machine, features=frozenset(features.split()), cpu=cpu)


def _first_values(cpuinfo: str) -> dict[str, str]:
    """Each key's first value; cores of one machine share a class."""
    values: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            values.setdefault(key.strip(), value.strip())
    return values


def meets(machine: Machine, requires: Requirements) -> bool:
    """Whether the machine has what is required; empty requirements suit any."""
    return (
        (not requires.arch or machine.arch in requires.arch)
        and (not requires.cpu_any or bool(machine.features & set(requires.cpu_any)))
        and not machine.features & set(requires.cpu_none)
    )


def of_class(machine: Machine, target: Target) -> bool:
    """Whether what is measured on the machine speaks for the target: never where an accelerator runs it."""
    return not target.accelerated and meets(machine, target.requires.value)


def detect_target(machine: Machine) -> Target:
    """The target that this machine is.

    Raises:
        InputError: `host_unknown`: none of them, or more than one.
    """
    fitting = [t for t in all_targets() if not t.accelerated and meets(machine, t.requires.value)]
    wider = {target.refines for target in fitting}
    matching = [target for target in fitting if target.id not in wider]
    if len(matching) != 1:
        found = ", ".join(target.id for target in matching) or "none"
        raise InputError(
            "host_unknown",
            f"this machine ({machine.arch}, {machine.cpu}) matches {found} of the known targets; "
            "name one with --target (see `shallop-convert targets`)",
        )
    return matching[0]


def detect_accelerators(root: Path = Path("/")) -> tuple[str, ...]:
    """Ids of the targets that something under `root` gives away: a node, file, board, USB or PCI device."""
    compatible = _strings(root / "proc/device-tree/compatible")
    usb = set(_ids(root / "sys/bus/usb/devices", "idVendor", "idProduct"))
    pci = set(_ids(root / "sys/bus/pci/devices", "vendor", "device"))
    found = []
    for target in all_targets():
        if target.detect is None:
            continue
        signs = target.detect.value
        paths = (*signs.nodes, *signs.files)
        if (
            any((root / path.lstrip("/")).exists() for path in paths)
            or compatible & set(signs.compatible)
            or usb & set(signs.usb)
            or pci & set(signs.pci)
        ):
            found.append(target.id)
    return tuple(found)


def _strings(path: Path) -> set[str]:
    """A devicetree property: strings that end in NUL."""
    try:
        with path.open("rb") as file:
            content = file.read(_PROPERTY_BYTES_MAX)
    except OSError:
        return set()
    return {text for text in content.decode("ascii", "replace").split("\0") if text}


def _ids(folder: Path, vendor: str, product: str) -> Iterator[str]:
    """`vendor:product` of every device of a bus, four hexadecimal digits each."""
    if not folder.is_dir():
        return
    for device in sorted(folder.iterdir()):
        texts = [_word(device / vendor), _word(device / product)]
        if all(texts):
            yield ":".join(text.lower().removeprefix("0x") for text in texts)


def _word(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_PROPERTY_BYTES_MAX).decode("ascii", "replace").strip()
    except OSError:
        return ""
