"""What the power readers share: a named source of watts, and arithmetic in which None stays None.

For: `agent.adapters.power_*`.
Not for: knowing any sensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from agent.adapters.sensors import read_number

Reader = Callable[[], float | None]


class PowerSensor:
    """A named source of watts.

    Args:
        name: as it is reported.
        read: watts.
        estimate: a model of the board and no measurement.
        remark: what a person should know of a mean power that this source gave, in words.
    """

    def __init__(
        self, name: str, read: Reader, *, estimate: bool = False, remark: Callable[[float], str] | None = None
    ) -> None:
        self.name, self.estimate = name, estimate
        self._read, self._remark = read, remark

    def remark(self, watts: float) -> str | None:
        """What a person should know of this mean power; None where it is what it seems."""
        return None if self._remark is None else self._remark(watts)

    def watts(self) -> float | None:
        """Power now, or since the last reading where the hardware counts energy; None if it does not say."""
        found = self._read()
        return found if found is not None and math.isfinite(found) else None


def scaled(path: Path, scale: float) -> Reader:
    """The number in a file times `scale`."""

    def read() -> float | None:
        value = read_number(path)
        return None if value is None else value * scale

    return read


def product(one: Path, two: Path, scale: float) -> Reader:
    """Volts times amperes from two files; the sign of a current is its direction and is dropped."""

    def read() -> float | None:
        a, b = read_number(one), read_number(two)
        return None if a is None or b is None else abs(a * b) * scale

    return read


def summed(readers: Sequence[Reader]) -> Reader:
    """The sum of all; None as soon as one of them does not answer, for a part is not the whole."""

    def read() -> float | None:
        values = [reader() for reader in readers]
        known = [value for value in values if value is not None]
        return sum(known) if known and len(known) == len(values) else None

    return read
