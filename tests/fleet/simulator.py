"""A small fleet in memory, to drive rollouts through.

Devices succeed, refuse, lie, fall back, fall silent, come late, are forgotten or taken over; what they say
goes through `fleet.inventory.fold` as real messages do.

For: the tests of `fleet.rollout`; `tests.fleet.driving` drives rollouts through it.
Not for: the agent's own behaviour, which `agent.lifecycle` decides and its own tests drive.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

import msgspec
from msgspec import Struct

from fleet.inventory import Device, fold
from fleet.rollout_types import (
    Deploy,
    DesiredNow,
    Facts,
    Order,
    ReleaseFacts,
    Request,
    Restore,
)
from fleet.selection import VariantNeeds
from wire.bundle import Requirements
from wire.figures import PairedCounts
from wire.measures import Latency, Measure, Source, TrialResult
from wire.messages import (
    Hardware,
    Identity,
    ModelState,
    OrderOutcome,
    Phase,
    Reason,
    Reported,
    Slot,
    Status,
    TrialSummary,
)
from wire.sla import AccuracyLimit, Limits, Measures, Scope, judge

MODEL = "cats"
OLD, NEW, OTHER = "a" * 64, "b" * 64, "c" * 64
FIRST, SECOND = "onnxruntime/static_wi8_au8", "onnxruntime/dynamic_wi8_af32"
TICK_S = 10.0
LIMITS = Limits(accuracy=AccuracyLimit(min_fraction_of_baseline=0.98), latency_ms_p95_max=30.0)
RELEASE = ReleaseFacts(
    digest=NEW,
    variants=(
        VariantNeeds(id=FIRST, requires=Requirements(arch=("aarch64",)), size_bytes=1000),
        VariantNeeds(id=SECOND, requires=Requirements(arch=("aarch64", "x86_64")), size_bytes=2000),
    ),
    shard_samples=(200, 200, 200, 100),
    limits=LIMITS,
)


class Fate(StrEnum):
    """What a device makes of its order."""

    GOOD = "good"
    REFUSES = "refuses"
    FALLS_BACK = "falls_back"
    SILENT = "silent"
    LIES = "lies"
    OTHER_VARIANT = "other_variant"
    DEGRADED = "degraded"


class Plan(Struct, frozen=True, kw_only=True):
    """One device's life, in ticks."""

    fate: Fate = Fate.GOOD
    arch: str = "aarch64"
    ring: str = "none"
    appears: int = 0
    pace: int = 1
    falls_back_after: int = 3
    vanishes: int | None = None
    taken_over: int | None = None
    forgotten: int | None = None


class Scenario(Struct, frozen=True, kw_only=True):
    """A fleet and a rollout over it."""

    plans: dict[str, Plan]
    request: Request
    paused: int | None = None
    resumed: int | None = None
    resumes_max: int = 1
    started_by: str = ""
    approver: str | None = None
    """Who tries to approve as soon as the rollout is held for it."""
    ticks_max: int = 400


def slot(digest: str, variant: str = FIRST, order: int = 1) -> Slot:
    name = {OLD: "r1", NEW: "r2", OTHER: "r3"}[digest]
    return Slot(digest=digest, release=name, variant=variant, order=order)


def trial(variant: str, shards: tuple[int, ...], cpu: str = "a76") -> TrialResult:
    n = sum(RELEASE.shard_samples[shard] for shard in shards)
    counts = PairedCounts(both=n - 8, candidate_only=2, reference_only=2, neither=4)
    return TrialResult(
        variant=variant,
        runtime="onnxruntime",
        runtime_version="1.31",
        shards=shards,
        n_samples=n,
        accuracy=Measure(value=0.97, n=2000, source=Source.INHERITED),
        accuracy_ratio=Measure(value=0.995, n=2000, source=Source.INHERITED),
        against_baseline=counts,
        against_incumbent=counts,
        incumbent=OLD,
        latency=Latency(ms_p50=5.0, ms_p95=6.0, ms_p99=7.0, n=100),
        latency_ratio_to_incumbent=Measure(value=0.9),
        cpu=cpu,
    )


def summary(result: TrialResult) -> TrialSummary:
    p95 = None if result.latency is None else Measure(value=result.latency.ms_p95)
    measures = Measures(accuracy_ratio=result.accuracy_ratio, latency_ms_p95=p95)
    return TrialSummary(result=result, verdict=judge(LIMITS, measures, Scope.DEVICE))


class Machine:
    """A device: it takes up what is desired, lives its plan, and says so."""

    def __init__(self, name: str, plan: Plan) -> None:
        self.name, self.plan = name, plan
        self.number = 0
        self.since = 0
        self.said: ModelState | None = None
        self.state = ModelState(active=slot(OLD), phase=Phase.IDLE, order=1, outcome=OrderOutcome.ACTIVE)

    def there(self, tick: int) -> bool:
        gone = self.plan.vanishes is not None and tick >= self.plan.vanishes
        return tick >= self.plan.appears and not gone

    def births(self) -> Iterator[Status | Identity]:
        hardware = Hardware(arch=self.plan.arch, cpu="a76")
        labels = {"ring": self.plan.ring}
        install = install_of(self.name)
        yield Status(device=self.name, install_id=install, number=1, online=True, agent_version="1")
        yield Identity(
            device=self.name,
            install_id=install,
            number=1,
            hardware=hardware,
            agent_version="1",
            labels=labels,
        )

    def live(self, tick: int, desired: DesiredNow | None, deploy: Deploy | None, to: Slot | None) -> None:
        """One tick: take up a newer order, or go on with the one at hand."""
        if desired is None or (self.plan.fate is Fate.SILENT and desired.rollout == "r"):
            return
        if desired.order > self.state.order:
            self.since = tick
            if desired.rollout == "r" and deploy is not None:
                self._start(deploy)
            else:
                held = to if desired.rollout == "r-back" else slot(OTHER, order=desired.order)
                self.state = ModelState(active=held, order=desired.order, outcome=OrderOutcome.ACTIVE)
        elif deploy is not None and desired.order == deploy.desired.order:
            self._go_on(tick, deploy)

    def _start(self, deploy: Deploy) -> None:
        """A release that runs already needs no trial: the order ends at once."""
        runs = self.state.active is not None and self.state.active.digest == deploy.desired.digest
        outcome = OrderOutcome.ACTIVE if runs and deploy.desired.mode == "deploy" else None
        phase = Phase.IDLE if outcome else Phase.TRIALING
        self.state = change(self.state, order=deploy.desired.order, phase=phase, outcome=outcome, trial=None)

    def _go_on(self, tick: int, deploy: Deploy) -> None:
        step, fate, desired = (tick - self.since) // self.plan.pace, self.plan.fate, deploy.desired
        allowed = desired.variants
        variant = SECOND if fate is Fate.DEGRADED and SECOND in allowed else allowed[0]
        tried = summary(trial(variant, desired.shards))
        if self.state.outcome is None and step == 1 and fate is Fate.REFUSES:
            self._end(OrderOutcome.FAILED, Reason(code="accuracy_below_limit", detail="0.61"))
        elif self.state.outcome is None and step == 1:
            self.state = change(self.state, phase=Phase.SOAKING, trial=tried, active=slot(NEW, variant))
            if desired.mode == "evaluate":
                self.state = change(self.state, active=slot(OLD))
        elif self.state.outcome is None and step >= 2:
            self._finish(desired.mode)
        elif self._falls_back(step):
            self.state = change(self.state, active=slot(OLD))
            self._end(OrderOutcome.FELL_BACK, Reason(code="health_failed"))

    def _falls_back(self, step: int) -> bool:
        due = self.plan.fate is Fate.FALLS_BACK and step >= 2 + self.plan.falls_back_after
        return due and self.state.outcome is OrderOutcome.ACTIVE

    def _finish(self, mode: str) -> None:
        if mode == "evaluate":
            self._end(OrderOutcome.EVALUATED, None)
            return
        self.state = change(self.state, previous=slot(OLD))
        if self.plan.fate is Fate.LIES:
            self.state = change(self.state, active=slot(OLD), previous=None)
        if self.plan.fate is Fate.OTHER_VARIANT:
            self.state = change(self.state, active=slot(NEW, "onnxruntime/float_wf32"))
        self._end(OrderOutcome.ACTIVE, None)

    def _end(self, outcome: OrderOutcome, reason: Reason | None) -> None:
        self.state = change(self.state, phase=Phase.IDLE, outcome=outcome, reason=reason)

    def says(self) -> Iterator[Reported]:
        if self.state != self.said:
            self.said = self.state
            self.number += 1
            yield Reported(
                device=self.name,
                install_id=install_of(self.name),
                number=self.number,
                models={MODEL: self.state},
            )


def change(state: ModelState, **fields: object) -> ModelState:
    return msgspec.structs.replace(state, **fields)


def install_of(name: str) -> str:
    return name.encode().hex().ljust(32, "0")[:32]


class World:
    """Registry and fleet: facts, desired entries, and what was ordered."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.machines = {name: Machine(name, plan) for name, plan in scenario.plans.items()}
        self.views: dict[str, Device] = {}
        self.desired: dict[str, DesiredNow] = {}
        self.deploys: dict[str, Deploy] = {}
        self.restores: dict[str, Restore] = {}
        self.now = 0.0
        self.log: list[str] = []

    def say(self, text: str) -> None:
        self.log.append(f"t={self.now:g}  {text}")

    def facts(self) -> Facts:
        return Facts(devices=dict(self.views), desired=dict(self.desired), release=RELEASE)

    def tick(self, tick: int) -> None:
        self.now = tick * TICK_S
        for name, machine in self.machines.items():
            if machine.plan.forgotten is not None and tick >= machine.plan.forgotten:
                self.views.pop(name, None)
                self.desired.pop(name, None)
                continue
            if machine.plan.taken_over == tick:
                self.desired[name] = DesiredNow(order=900, rollout="other")
            if machine.there(tick):
                self._lives(machine, tick)

    def _lives(self, machine: Machine, tick: int) -> None:
        name, now = machine.name, self.now
        if name not in self.views:
            self.views[name] = Device(id=name)
            for message in machine.births():
                self.views[name] = fold(self.views[name], message, now)
        restore = self.restores.get(name)
        to = None if restore is None else restore.to
        machine.live(tick, self.desired.get(name), self.deploys.get(name), to)
        for reported in machine.says():
            self.views[name] = fold(self.views[name], reported, now)
            state = reported.models[MODEL]
            if state.order > 1:
                self.say(f"{name}: {said(state)}")

    def obey(self, orders: tuple[Order, ...]) -> None:
        for order in orders:
            if isinstance(order, Deploy):
                self.deploys[order.device] = order
                self.desired[order.device] = DesiredNow(order=order.desired.order, rollout="r")
            else:
                self.restores[order.device] = order
                self.desired[order.device] = DesiredNow(order=order.order, rollout="r-back")
            self.say(f"-> {ordered(order)}")


def said(state: ModelState) -> str:
    active = "nothing" if state.active is None else f"{state.active.release} {state.active.variant}"
    outcome = "under way" if state.outcome is None else state.outcome.value
    reason = "" if state.reason is None else f" ({state.reason.code})"
    return f"order {state.order} {state.phase.value}, {outcome}{reason}; active {active}"


def ordered(order: Order) -> str:
    if isinstance(order, Deploy):
        shards = ",".join(map(str, order.desired.shards))
        return (
            f"deploy {order.desired.release} on {order.device}, order {order.desired.order}, shards {shards}"
        )
    to = "nothing" if order.to is None else order.to.release
    return f"restore {order.device} to {to}, order {order.order}"
