"""Which target a machine is.

For: reading architecture and CPU features under a given root, and matching them against the targets.
Not for: accelerators or boards; those come with their targets.

A feature decides, never a model name: Skylake-SP has no VNNI whatever its name suggests
(onnxruntime#5849).
"""

from __future__ import annotations

import platform
from pathlib import Path

from msgspec import Struct

from converter.errors import InputError
from converter.targets.loader import Target, all_targets
from wire.bundle import Requirements

_CPUINFO_BYTES_MAX = 4 * 1024 * 1024
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


def detect_target(machine: Machine) -> Target:
    """The target that this machine is.

    Raises:
        InputError: `host_unknown`: none of them, or more than one.
    """
    matching = [target for target in all_targets() if meets(machine, target.requires.value)]
    if len(matching) != 1:
        found = ", ".join(target.id for target in matching) or "none"
        raise InputError(
            "host_unknown",
            f"this machine ({machine.arch}, {machine.cpu}) matches {found} of the known targets; "
            "name one with --target (see `shallop-convert targets`)",
        )
    return matching[0]
