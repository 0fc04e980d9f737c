"""The soak: looks at the application after a switch until it may be believed.

For: gathering what `agent.soak` folds, in the rhythm of the configuration, before the switch and after it.
Not for: judging it (`agent.soak`), or deciding what follows from a failure (`agent.lifecycle`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from agent import soak
from agent.deployment import Deployment, Done, Event, Work
from agent.errors import Cancelled, FinalError, RetryError
from agent.ports import Clock, Hooks, Units
from agent.slots import Slots, directory_name
from wire.bundle import MANIFEST_BYTES_MAX, Manifest
from wire.codec import decode
from wire.sla import Maximum

log = logging.getLogger(__name__)

ILL_WAIT_S = 0.5
"""Between two looks at an application whose time is over and that is not well."""

Flags = Callable[[], tuple[str, ...] | None]
"""Names of the throttling flags that are raised; None where nothing here can tell."""

Live = Callable[[str, str], tuple[float | None, int]]
"""From model and slot directory: the application's own latency p95 in ms, and of how many inferences."""


class Soaking:
    """The work of SOAKING, and what SWITCHING has to see for it."""

    def __init__(  # noqa: PLR0913 - it is built once, in agent.app, and each is a port
        self,
        *,
        hooks: Hooks,
        units: Units,
        flags: Flags,
        clock: Clock,
        slots: Slots,
        models_dir: Path,
        rules: soak.Rules,
        boot: str = "",
        live: Live | None = None,
        live_latency_factor_max: float | None = None,
    ) -> None:
        self._hooks = hooks
        self._units = units
        self._flags = flags
        self._clock = clock
        self._models_dir = models_dir
        self._slots = slots
        self._boot = boot
        self._rules = rules
        self._live = live
        self._factor = live_latency_factor_max

    def admit(self, model: str) -> None:
        """Names what the soak will not see, while nothing has been fetched yet.

        Raises:
            RetryError: `unit_unknown`: the application is told of a switch by its unit alone, and systemd
                does not know it. That is no release's fault, and may be mended before the deadline.
        """
        problem = self._units.problem(model)
        if problem is None:
            return
        if self._units.activates(model):
            detail = f"the application cannot be told of a switch: {problem}; see hooks.{model}.unit"
            raise RetryError("unit_unknown", detail)
        log.warning("%s: the soak will not see a crash loop of the application: %s", model, problem)

    def baseline(self, model: str) -> soak.Baseline:
        """How things stand before the switch."""
        return soak.Baseline(boot=self._boot, flags=self._flags(), unit=self._units.state(model))

    def run(self, d: Deployment, work: Work, cancel: threading.Event) -> Event:
        """Watches the release that runs until its soak is over.

        Raises:
            FinalError: what `agent.soak` calls failed, by the name of its guard.
            Cancelled: `cancel` was set.
        """
        if d.desired is None:
            raise FinalError("no_order", "a soak without an order")
        end_s = self._clock.boot_s() + max(0.0, d.desired.soak_s - d.soaked_s)
        rules = replace(self._rules, latency_ms_p95_max=self._latency_limit_ms(d))
        now = self.baseline(d.model)
        watch = soak.begin(now if d.baseline is None else soak.resumed(d.baseline, now))
        while True:
            seen = self._look(d, end_s, cancel)
            watch, verdict = soak.look(watch, seen, rules)
            if verdict.reason is not None:
                raise FinalError(verdict.reason.code, verdict.reason.detail)
            if verdict.word == "good":
                return Done(serial=work.serial)
            left_s = end_s - self._clock.boot_s()
            wait_s = left_s if left_s > 0 else ILL_WAIT_S
            if cancel.wait(min(wait_s, self._hooks.interval_s(d.model))):
                raise Cancelled

    def _look(self, d: Deployment, end_s: float, cancel: threading.Event) -> soak.Look:
        """The time that is left is read last: a look that took long is one at its end."""
        ill = self._hooks.healthy(d.model, self._models_dir / d.model / "current", cancel)
        unit, flags = self._units.state(d.model), self._flags()
        p95, n = None, 0
        if self._live is not None and d.active is not None:
            p95, n = self._live(d.model, directory_name(d.active))
        left_s = end_s - self._clock.boot_s()
        return soak.Look(left_s=left_s, ill=ill, unit=unit, flags=flags, latency_ms_p95=p95, latency_n=n)

    def _latency_limit_ms(self, d: Deployment) -> float | None:
        """What the application's own latency p95 may be; None where that is not asked for or not limited."""
        data = self._slots.manifest_bytes(d.model, d.active) if self._factor and d.active else None
        if data is None or self._factor is None:
            return None
        limit = decode(data, Manifest, MANIFEST_BYTES_MAX).sla.latency_ms_p95_max
        value = limit.max if isinstance(limit, Maximum) else limit
        return None if value is None else value * self._factor
