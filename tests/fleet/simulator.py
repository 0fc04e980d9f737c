"""A small fleet in memory, to drive rollouts through, and the rules that must hold at every step.

For: the tests of `fleet.rollout`: devices that succeed, refuse, lie, fall back, fall silent, come late,
are forgotten or taken over; their messages go through `fleet.inventory.fold` as real ones do.
Not for: the agent's own behaviour, which `agent.lifecycle` decides and its own tests drive.

The rules of `Checker` are written anew from DESIGN.md, not with the code under test, and the machine that
is driven is a parameter: the mutants are run through the very same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Protocol, TypeVar

import msgspec
from msgspec import Struct

from fleet.inventory import Device, fold
from fleet.rollout_types import (
    ENDS,
    Deploy,
    DesiredNow,
    Facts,
    FailureAction,
    Order,
    ReleaseFacts,
    Request,
    Restore,
    Rollout,
    RolloutState,
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

T = TypeVar("T")
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
        head = {"device": self.name, "install_id": install_of(self.name), "number": 1}
        yield Status(**head, online=True, agent_version="1")
        yield Identity(**head, hardware=hardware, agent_version="1", labels=labels)

    def live(self, tick: int, desired: DesiredNow | None, deploy: Deploy | None, to: Slot | None) -> None:
        """One tick: take up a newer order, or go on with the one at hand."""
        if desired is None or (self.plan.fate is Fate.SILENT and desired.rollout == "r"):
            return
        if desired.order > self.state.order:
            self.since = tick
            if desired.rollout == "r" and deploy is not None:
                self.state = change(self.state, order=desired.order, phase=Phase.TRIALING, outcome=None)
            else:
                held = to if desired.rollout == "r-back" else slot(OTHER, order=desired.order)
                self.state = ModelState(active=held, order=desired.order, outcome=OrderOutcome.ACTIVE)
        elif deploy is not None and desired.order == deploy.desired.order:
            self._go_on(tick, deploy)

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
        elif fate is Fate.FALLS_BACK and step >= 2 + self.plan.falls_back_after:
            if self.state.outcome is OrderOutcome.ACTIVE:
                self.state = change(self.state, active=slot(OLD))
                self._end(OrderOutcome.FELL_BACK, Reason(code="health_failed"))

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


class BrokenRuleError(AssertionError):
    """A rule of DESIGN.md does not hold."""


def must(condition: bool, rule: str) -> None:
    if not condition:
        raise BrokenRuleError(rule)


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


class Driver(Protocol):
    """What of `fleet.rollout` is driven; a mutant is another one."""

    @property
    def create(self) -> Callable[[str, Request, int, int, Facts, float], Rollout]: ...
    @property
    def advance(self) -> Callable[[Rollout, Facts, float], tuple[Rollout, tuple[Order, ...]]]: ...
    @property
    def pause(self) -> Callable[[Rollout, str], Rollout]: ...
    @property
    def resume(self) -> Callable[[Rollout, float], Rollout]: ...


Hook = Callable[[Rollout, Facts, float], None]


def drive(scenario: Scenario, machine: Driver, hook: Hook | None = None) -> tuple[Rollout, World]:
    """Runs the scenario to its end, checking every step.

    Raises:
        BrokenRuleError: a rule does not hold.
    """
    world = World(scenario)
    world.tick(0)
    rollout = machine.create("r", scenario.request, 10, 11, world.facts(), 0.0)
    checker, resumes = Checker(scenario), 0
    for tick in range(scenario.ticks_max):
        if tick:
            world.tick(tick)
        rollout = person(scenario, world, rollout, machine, tick)
        rollout = step(world, rollout, machine, checker)
        if hook is not None:
            hook(rollout, world.facts(), world.now)
        if not quiet(scenario, rollout, tick):
            continue
        if rollout.state is not RolloutState.PAUSED or resumes >= scenario.resumes_max:
            return rollout, world
        resumes += 1
        rollout = machine.resume(rollout, world.now)
        world.say("person: resume")
    raise BrokenRuleError("the rollout never ended, and no person was asked")


def person(scenario: Scenario, world: World, rollout: Rollout, machine: Driver, tick: int) -> Rollout:
    """What the scenario's person does at this tick."""
    if scenario.paused == tick and rollout.state in {RolloutState.PENDING, RolloutState.RUNNING}:
        world.say("person: pause")
        return machine.pause(rollout, "")
    if scenario.resumed == tick and rollout.state is RolloutState.PAUSED:
        world.say("person: resume")
        return machine.resume(rollout, world.now)
    return rollout


def step(world: World, before: Rollout, machine: Driver, checker: Checker) -> Rollout:
    """One look at the facts, checked, stored and read back, and obeyed."""
    facts, now = world.facts(), world.now
    rollout, orders = machine.advance(before, facts, now)
    checker.step(before, rollout, orders, facts, now)
    again, none = machine.advance(rollout, facts, now)
    must(again == rollout and none == (), "the same facts gave another order or another state")
    stored = msgspec.json.decode(msgspec.json.encode(rollout), type=Rollout)
    must(msgspec.json.encode(stored) == msgspec.json.encode(rollout), "the rollout is not what was stored")
    turned = Facts(devices=backwards(facts.devices), desired=backwards(facts.desired), release=facts.release)
    must(machine.advance(before, turned, now) == (rollout, orders), "the order of the facts' keys decided")
    note(world, before, rollout)
    world.obey(orders)
    return stored


def backwards(mapping: dict[str, T]) -> dict[str, T]:
    return dict(reversed(mapping.items()))


def quiet(scenario: Scenario, rollout: Rollout, tick: int) -> bool:
    """Whether nothing more will happen but by a person."""
    person_comes = scenario.resumed is not None and tick < scenario.resumed
    return rollout.ended or (rollout.state is RolloutState.PAUSED and not person_comes)


def note(world: World, before: Rollout, after: Rollout) -> None:
    """What became of the rollout in one step, for people."""
    if (before.state, before.wave, before.reason) == (after.state, after.wave, after.reason):
        return
    wave = "no wave" if after.wave is None else f"wave {after.wave}"
    world.say(f"rollout {after.state.value}, {wave}: {after.reason}")
    if after.waiting_for not in {"", after.reason}:
        world.say(f"    waits for {after.waiting_for}")


class Checker:
    """The rules of DESIGN.md sections 1 and 5, on one step at a time."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.ordered: set[str] = set()
        self.restored: set[str] = set()

    def step(
        self, before: Rollout, after: Rollout, orders: tuple[Order, ...], facts: Facts, now: float
    ) -> None:
        must(after.ended or bool(after.waiting_for), "a state that is no end names nothing it waits for")
        if before.ended:
            must(after == before and not orders, "something happened after the end")
        deploys = [order for order in orders if isinstance(order, Deploy)]
        restores = [order for order in orders if isinstance(order, Restore)]
        counted = {name for name in facts.devices if self._counts(name, facts, now)}
        for deploy in deploys:
            self._deploy(deploy, counted, before)
        self._waves(before, after, facts, counted, now)
        for restore in restores:
            self._restore(restore, before, after, facts)
        self._failures(after, facts)
        if after.state is RolloutState.COMPLETED and before.state is not RolloutState.COMPLETED:
            self._promotable(after, facts, now)

    def _counts(self, name: str, facts: Facts, now: float) -> bool:
        """Ordered already, or there, matching, able, and nobody else's."""
        if name in self.ordered:
            return True
        plan, view = self.scenario.plans[name], facts.devices[name]
        desired = facts.desired.get(name)
        heard = view.online or (
            view.seen_at is not None and now - view.seen_at <= self.scenario.request.seen_within_s
        )
        return plan.arch in {"aarch64", "x86_64"} and heard and (desired is None or desired.order < 10)

    def _deploy(self, deploy: Deploy, counted: set[str], before: Rollout) -> None:
        name, desired = deploy.device, deploy.desired
        must(before.state in {RolloutState.PENDING, RolloutState.RUNNING}, "an order while not running")
        must(name not in self.ordered, f"{name} was ordered twice")
        must(name in counted, f"{name} does not count and was ordered")
        self.ordered.add(name)
        able = {"aarch64": (FIRST, SECOND), "x86_64": (SECOND,)}[self.scenario.plans[name].arch]
        must(desired.variants == able, f"{name} may run {able}, was given {desired.variants}")
        must(desired.order == 10 and desired.digest == NEW, "an order that is not the rollout's")

    def _waves(self, before: Rollout, after: Rollout, facts: Facts, counted: set[str], now: float) -> None:
        opened = after.wave != before.wave
        if after.wave is None:
            must(not self.ordered, "an order before any wave")
            return
        waves = self.scenario.request.waves.split(",")
        size = max(self._size(wave, counted) for wave in waves[: after.wave + 1])
        present = self.ordered & set(facts.devices)
        must(len(present) <= max(size, len(set(before.assignments) & set(facts.devices))), "beyond the wave")
        pace = self.scenario.request.pace_per_minute
        recent = sum(now - assignment.at < 60 for assignment in after.assignments.values())
        must(pace is None or recent <= pace, "faster than its pace")
        if opened and before.wave is not None:
            waved = [name for name in before.assignments if name in facts.devices]
            must(bool(waved), "a wave without a device was followed by another")
            self._promotable(before, facts, now)

    def _size(self, wave: str, counted: set[str]) -> int:
        if "=" in wave:
            return sum(self.scenario.plans[name].ring == "canary" for name in counted)
        if wave.endswith("%"):
            return math.ceil(len(counted) * int(wave[:-1]) / 100)
        return min(int(wave), len(counted))

    def _promotable(self, rollout: Rollout, facts: Facts, now: float) -> None:
        """Every device that had its order runs what was ordered, as it says itself, and one at least."""
        fates = {name: self._fate(rollout, name, facts, now) for name in rollout.assignments}
        good = [name for name, fate in fates.items() if fate == "good"]
        bad = {name: fate for name, fate in fates.items() if fate in {"bad", "open"}}
        must(bool(good), f"promoted without any success: {fates}")
        must(not bad, f"promoted over {bad}")
        silent = sum(fate == "silent" for fate in fates.values())
        must(silent <= rollout.request.gate.silence.max, f"promoted over {silent} silent devices")

    def _fate(self, rollout: Rollout, name: str, facts: Facts, now: float) -> str:
        view, desired = facts.devices.get(name), facts.desired.get(name)
        if view is None:
            return "gone"
        state = view.models[MODEL]
        if state.order > 10 or (desired is not None and desired.order > 10):
            return "other"
        assignment, request = rollout.assignments[name], rollout.request
        since = max(assignment.at, rollout.resumed_at or 0.0)
        if state.order < 10 or state.outcome is None:
            return "silent" if now - since >= request.deadline_s + request.soak_s else "open"
        if request.mode == "evaluate":
            return "good" if state.outcome is OrderOutcome.EVALUATED else "bad"
        active = state.active
        runs = active is not None and active.digest == NEW and active.variant in {FIRST, SECOND}
        done = state.outcome is OrderOutcome.ACTIVE and state.phase is Phase.IDLE
        return "good" if runs and done else "bad"

    def _failures(self, after: Rollout, facts: Facts) -> None:
        """A failure that a device reports under this order is acted upon at once (small fleets)."""
        for name in after.assignments:
            view = facts.devices.get(name)
            state = None if view is None else view.models[MODEL]
            failed = {OrderOutcome.FAILED, OrderOutcome.FELL_BACK}
            if state is not None and state.order == 10 and state.outcome in failed:
                must(after.state in ENDS, f"{name} says {state.outcome} and the rollout is {after.state}")

    def _restore(self, restore: Restore, before: Rollout, after: Rollout, facts: Facts) -> None:
        name = restore.device
        must(after.state in {RolloutState.HALTED, RolloutState.ABORTED}, "taken back without a failure")
        must(self.scenario.request.on_failure is not FailureAction.HALT, "taken back though told to halt")
        must(name in before.assignments and name not in self.restored, f"{name} taken back wrongly")
        must(facts.desired[name].order == 10, f"{name} belongs to another order and was taken back")
        must(restore.order == 11 and restore.from_digest == NEW, "not the rollback order")
        must(restore.to is not None and restore.to.digest == OLD, f"{name} goes back to {restore.to}")
        if self.scenario.request.on_failure is FailureAction.ROLLBACK_WAVE:
            must(before.assignments[name].wave == before.wave, f"{name} is of an earlier wave")
        self.restored.add(name)
