"""PURE. The configuration of a model's life with its application: hooks, the soak, live figures.

For: three sections of `agent.config.Config`, each key with its unit and its bounds.
Not for: reading the file (`agent.config`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from agent.drift import DriftRules
from agent.soak import Rules

Above0 = Annotated[float, Meta(gt=0.0, le=366 * 86400.0)]
Command = Annotated[tuple[str, ...], Meta(max_length=64)]
UnitName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9:_\\][A-Za-z0-9:_.\\@-]{0,240}\.service(?!\n)$")]
Verb = Literal["reload", "restart", "try-restart", "reload-or-restart", "try-reload-or-restart"]


class HookConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model's application.

    Attributes:
        activate: command that makes it take up what `current` points to now.
        activate_unit: the same without a command: what `systemctl` shall do with `unit`.
        health: command that exits 0 while it is well.
        unit: its systemd service; a crash loop of it ends the soak.
        timeout_s: for either command.
        health_interval_s: between two looks during the soak.
    """

    activate: Command = ()
    activate_unit: Verb | None = None
    health: Command = ()
    unit: UnitName | None = None
    timeout_s: Above0 = 30.0
    health_interval_s: Above0 = 5.0

    def __post_init__(self) -> None:
        """Refuses what contradicts itself.

        Raises:
            ValueError: with the keys' names.
        """
        if self.activate_unit is not None and self.unit is None:
            raise ValueError("activate_unit needs unit, the service that it acts on")
        if self.activate_unit is not None and self.activate:
            raise ValueError("activate and activate_unit are two ways to one end; leave one of them out")


class SoakConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The soak.

    Attributes:
        health_failures_max: failed looks in a row that end it; so many looks at a stopped unit, too.
        restarts_max: automatic restarts of the unit during the soak that are still borne.
        throttling: whether a throttling flag that rises after the switch ends it.
        live_latency_factor_max: ends it where the application's own latency p95 is above this many times
            the release's limit; none where it is left out, because any program of this machine may write
            such figures.
        grace_s: on top of the ordered length, after which it counts as hanging.
    """

    health_failures_max: Annotated[int, Meta(ge=1, le=100)] = 3
    restarts_max: Annotated[int, Meta(ge=0, le=1000)] = 2
    throttling: bool = True
    live_latency_factor_max: Annotated[float, Meta(ge=1.0, le=1000.0)] | None = None
    grace_s: Above0 = 300.0

    def rules(self) -> Rules:
        """The same for `agent.soak`, without the release's own limit."""
        return Rules(
            health_failures_max=self.health_failures_max,
            restarts_max=self.restarts_max,
            throttling=self.throttling,
        )


class LiveConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Live figures after the switch, which `shallop_client.Live` writes into `live_dir`.

    Attributes:
        look_s: between two looks.
        report_s: between two reports of one model.
        flip_s: the same where the drift flag changes.
        n_min: counts in window and reference, below which nothing is said about drift.
        latency_ratio_max: how much slower than in the soak is borne.
        confidence_psi_max: population stability index of the confidence that is borne.
    """

    look_s: Annotated[float, Meta(ge=1.0, le=86400.0)] = 30.0
    report_s: Annotated[float, Meta(ge=1.0, le=366 * 86400.0)] = 900.0
    flip_s: Annotated[float, Meta(ge=1.0, le=366 * 86400.0)] = 300.0
    n_min: Annotated[int, Meta(ge=50, le=10**9)] = 200
    latency_ratio_max: Annotated[float, Meta(gt=1.0, le=1000.0)] = 1.5
    confidence_psi_max: Annotated[float, Meta(gt=0.0, le=1000.0)] = 0.25

    def rules(self) -> DriftRules:
        """The same for `agent.drift`."""
        return DriftRules(
            n_min=self.n_min,
            latency_ratio_max=self.latency_ratio_max,
            index_max=self.confidence_psi_max,
            report_s=self.report_s,
            flip_s=self.flip_s,
        )
