"""The soak: looks at the application after a switch until it may be believed.

For: asking hooks, in the rhythm of the configuration, until the ordered time is over or something is wrong.
Not for: deciding what follows from a failure (`agent.lifecycle`).
"""

from __future__ import annotations

import threading
from pathlib import Path

from agent.deployment import Deployment, Done, Event, Work
from agent.errors import Cancelled, FinalError
from agent.ports import Clock, Hooks

ILL_WAIT_S = 0.5
"""Between two looks at an ill application whose time is over."""


class Soaking:
    """The work of SOAKING."""

    def __init__(self, *, hooks: Hooks, clock: Clock, models_dir: Path, health_failures_max: int) -> None:
        self._hooks = hooks
        self._clock = clock
        self._models_dir = models_dir
        self._health_failures_max = health_failures_max

    def run(self, d: Deployment, work: Work, cancel: threading.Event) -> Event:
        """Watches the release that runs until its soak is over.

        Raises:
            FinalError: `health_failed`.
            Cancelled: `cancel` was set.
        """
        if d.desired is None:
            raise FinalError("no_order", "a soak without an order")
        current = self._models_dir / d.model / "current"
        end_s = self._clock.boot_s() + max(0.0, d.desired.soak_s - d.soaked_s)
        failures = 0
        while True:
            ill = self._hooks.healthy(d.model, current, cancel)
            failures = failures + 1 if ill else 0
            if ill and failures >= self._health_failures_max:
                raise FinalError("health_failed", f"the application is not well: {ill}")
            left_s = end_s - self._clock.boot_s()
            if left_s <= 0 and not ill:
                return Done(serial=work.serial)
            wait_s = max(left_s, ILL_WAIT_S if ill else 0.0)
            if cancel.wait(min(wait_s, self._hooks.interval_s(d.model))):
                raise Cancelled
