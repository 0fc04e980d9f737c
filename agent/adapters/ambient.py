"""Reads temperature, throttling, power and free disk now and then, on a thread of its own.

For: Home Assistant's state document. A thread of its own because a firmware's tool may take seconds to
answer, and the agent's main loop feeds the watchdog.
Not for: trials, which read the same sensors themselves.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from agent.adapters.power import find_sensor
from agent.adapters.thermal import temperature_c, throttling
from agent.home_assistant import Ambient

log = logging.getLogger(__name__)


class AmbientReader:
    """Tells a reading at once and then every `interval_s`, until stopped.

    Args:
        tell: is given each reading.
        interval_s: between two.
        state_dir: on the disk whose room counts.
        root: below which /proc and /sys are looked for.
    """

    def __init__(
        self, tell: Callable[[Ambient], None], interval_s: float, state_dir: Path, root: Path = Path("/")
    ) -> None:
        self._tell, self._interval_s, self._state_dir, self._root = tell, interval_s, state_dir, root
        self._sensor = find_sensor(root)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ambient", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends; a tool that is just being asked is not waited for."""
        self._ended.set()

    def read(self) -> Ambient:
        """One reading."""
        held = throttling(self._root)
        return Ambient(
            temperature_c=temperature_c(self._root),
            throttled=held.now if held else None,
            power_w=self._sensor.watts() if self._sensor else None,
            disk_free_bytes=self._free_bytes(),
        )

    def _free_bytes(self) -> int | None:
        try:
            status = os.statvfs(self._state_dir)
        except OSError:
            return None
        return status.f_bavail * status.f_frsize

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._tell(self.read())
            except Exception:
                # A sensor's surprise must not end the readings.
                log.exception("a reading could not be told")
            self._ended.wait(self._interval_s)
