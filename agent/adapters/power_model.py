"""What a board without a sensor would draw, estimated from how busy its processor is.

For: the Raspberry Pi 4, of which the ends are published: 3.04 W idle and 6.44 W with all cores at work
(JoularJX's model of the board; FACTS.md section 5). The line between them is ours; radio, USB and graphics
are not in it. The figure is for people to have an idea: it says that it is an estimate in its name and in
its `source`, and passes or fails no limit (`wire.sla`).
Not for: any board that has a sensor, or of which nobody published both ends.
"""

from __future__ import annotations

import re
from pathlib import Path

from agent.adapters.power_common import PowerSensor, Reader
from agent.adapters.sensors import read_text

_BOARDS = {"Raspberry Pi 4 Model B": (3.04, 6.44)}
"""By the beginning of the device tree's model: watts idle, watts at full load."""
_FIELDS = 8
"""Of a line of /proc/stat (proc(5)): user, nice, system, idle, iowait, irq, softirq, steal."""
_IDLE = (3, 4)
_TICKS = re.compile(r"[0-9]{1,18}", re.ASCII)


def board_model(root: Path) -> PowerSensor | None:
    """The board's model; None where the board has none, or /proc tells nothing of its load."""
    board = read_text(root / "proc/device-tree/model") or ""
    for name, (idle_w, load_w) in _BOARDS.items():
        load = ProcessorLoad(root / "proc/stat")
        if board.startswith(name) and load.ticks() is not None:
            return PowerSensor("rpi4_model_estimate", _line(load, idle_w, load_w), estimate=True)
    return None


class ProcessorLoad:
    """How busy all cores were since the last call, from 0 to 1."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: tuple[int, int] | None = None

    def ticks(self) -> tuple[int, int] | None:
        """Busy ticks and all ticks since the machine started; None where the file does not say."""
        first = (read_text(self._path) or "").partition("\n")[0].split()
        words = first[1 : _FIELDS + 1]
        if first[:1] != ["cpu"] or len(words) <= max(_IDLE) or not all(map(_TICKS.fullmatch, words)):
            return None
        counts = [int(word) for word in words]
        return sum(counts) - sum(counts[i] for i in _IDLE), sum(counts)

    def share(self) -> float | None:
        """None on the first call, and where no tick has passed."""
        now, last = self.ticks(), self._last
        self._last = now
        if now is None or last is None or now[1] <= last[1]:
            return None
        # The kernel's idle counts may step back a little (proc(5)).
        return min(1.0, max(0.0, (now[0] - last[0]) / (now[1] - last[1])))


def _line(load: ProcessorLoad, idle_w: float, load_w: float) -> Reader:
    def read() -> float | None:
        share = load.share()
        return None if share is None else idle_w + share * (load_w - idle_w)

    return read
