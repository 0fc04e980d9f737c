"""Raspberry Pi 5: the power chip's own readings.

For: what the chip feeds into its rails, by `vcgencmd pmic_read_adc`. The power at the plug is more: two
people fitted lines to it (FACTS.md section 5). The figure stays what the chip says, the lines are a remark.
Not for: the Raspberry Pi 4 and older, which have no such chip: their power is unknown.
"""

from __future__ import annotations

import re
from pathlib import Path

from agent.adapters.power_common import PowerSensor
from agent.adapters.sensors import vcgencmd

_LINE = re.compile(
    r"[ \t]*(\w{1,40})_([AV])[ \t]+(?:current|volt)\([0-9]{1,3}\)=([0-9.]{1,20})[AV][ \t]*", re.ASCII
)
"""Of one line, each part of a length: a pattern over the whole text took minutes for 64 KiB of newlines."""


def pmic_watts(said: str) -> float | None:
    """PURE. Sum over the rails by name; None where a current has no voltage, for a part is not the whole.

    EXT5V and BATT have a voltage only: they are inputs, and are left out.
    """
    lines = [match.groups() for line in said.splitlines() if (match := _LINE.fullmatch(line))]
    try:
        found = {(name, unit): float(value) for name, unit, value in lines}
    except ValueError:
        return None
    rails = [name for name, unit in found if unit == "A"]
    if not rails or any((name, "V") not in found for name in rails):
        return None
    return sum(found[name, "A"] * found[name, "V"] for name in rails)


WALL_FITS = ((1.1451, 0.5879), (1.1327, 0.6444))
"""Factor and watts of each published fit of the power at the plug to the sum of the rails."""


def at_the_wall(watts: float) -> str:
    """PURE. What the plug would give, by others' fits: an estimate, in words."""
    fits = sorted(factor * watts + more for factor, more in WALL_FITS)
    return (
        f"rpi5_pmic measures the chip's rails, {watts:.2f} W under load; at the plug that is an estimated "
        f"{fits[0]:.2f} to {fits[-1]:.2f} W by two published fits"
    )


def pmic(root: Path) -> PowerSensor | None:
    """The chip, where there is one that answers."""

    def read() -> float | None:
        said = vcgencmd(root, "pmic_read_adc")
        return None if said is None else pmic_watts(said)

    return PowerSensor("rpi5_pmic", read, remark=at_the_wall) if read() is not None else None
