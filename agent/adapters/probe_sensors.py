"""Looks at the sensors once, for `shallop-agent doctor`.

For: facts by the very readers that a trial uses; and what is there and refuses to be read.
Not for: judging them (`agent.doctor.sensing`).
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from agent.adapters.power import find_sensor
from agent.adapters.sensors import vcgencmd
from agent.adapters.thermal import temperature_c, throttling
from agent.doctor.sensing import SensorFacts
from agent.hardware import board

_COUNTER_S = 0.2
"""A counter of energy gives power only between two readings."""


def sensors(root: Path = Path("/")) -> SensorFacts:
    """One look at everything that this board has."""
    sensor, held = find_sensor(root), throttling(root)
    watts = sensor.watts() if sensor else None
    if sensor is not None and watts is None:
        time.sleep(_COUNTER_S)
        watts = sensor.watts()
    said = re.match(r"\s*throttled=0x([0-9a-fA-F]{1,8})\s*$", vcgencmd(root, "get_throttled") or "")
    return SensorFacts(
        board=board(root),
        power_sensor=sensor.name if sensor else None,
        watts=watts,
        unreadable=_unreadable(root) if watts is None else (),
        temperature_c=temperature_c(root),
        throttled=held.now if held else None,
        throttled_before=any(held.past) if held and held.past else None,
        firmware_bits=int(said[1], 16) if said else None,
    )


def _unreadable(root: Path) -> tuple[str, ...]:
    """What this user may not read: energy counters are root's, vcgencmd wants a device."""
    counters = sorted((root / "sys/class/powercap").glob("intel-rapl:*/energy_uj"))
    refused = [f"/{path.relative_to(root)}" for path in counters if not os.access(path, os.R_OK)]
    mailbox = root / "dev/vcio"
    if mailbox.exists() and not os.access(mailbox, os.R_OK):
        refused.append("/dev/vcio")
    return tuple(refused[:3])
