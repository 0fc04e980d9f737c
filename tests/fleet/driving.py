"""Drives rollouts through a simulated fleet, and the rules that must hold at every step.

The rules of `Checker` are written anew from DESIGN.md, not with the code under test, and the machine that
is driven is a parameter: the mutants are driven through the very same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, TypeVar

import msgspec

from fleet.rollout_types import (
    ENDS,
    Deploy,
    Facts,
    FailureAction,
    Order,
    Request,
    Restore,
    Rollout,
    RolloutError,
    RolloutState,
)
from tests.fleet.simulator import FIRST, MODEL, NEW, OLD, SECOND, Scenario, World
from wire.messages import OrderOutcome, Phase

T = TypeVar("T")


class BrokenRuleError(AssertionError):
    """A rule of DESIGN.md does not hold."""


def must(condition: bool, rule: str) -> None:
    if not condition:
        raise BrokenRuleError(rule)


class Driver(Protocol):
    """What of `fleet.rollout` is driven; a mutant is another one."""

    @property
    def create(self) -> Callable[[str, Request, int, int, Facts, float, str], Rollout]: ...
    @property
    def advance(self) -> Callable[[Rollout, Facts, float], tuple[Rollout, tuple[Order, ...]]]: ...
    @property
    def pause(self) -> Callable[[Rollout, str], Rollout]: ...
    @property
    def resume(self) -> Callable[[Rollout, float], Rollout]: ...
    @property
    def approve(self) -> Callable[[Rollout, str, str], Rollout]: ...


Hook = Callable[[Rollout, Facts, float], None]


def drive(scenario: Scenario, machine: Driver, hook: Hook | None = None) -> tuple[Rollout, World]:
    """Runs the scenario to its end, checking every step.

    Raises:
        BrokenRuleError: a rule does not hold.
    """
    world = World(scenario)
    world.tick(0)
    rollout = machine.create("r", scenario.request, 10, 11, world.facts(), 0.0, scenario.started_by)
    checker, resumes = Checker(scenario), 0
    for tick in range(scenario.ticks_max):
        if tick:
            world.tick(tick)
        rollout = person(scenario, world, rollout, machine, tick)
        rollout = second_person(scenario, world, rollout, machine)
        rollout = step(world, rollout, machine, checker)
        if hook is not None:
            hook(rollout, world.facts(), world.now)
        if not quiet(scenario, rollout, tick):
            continue
        if rollout.state is not RolloutState.PAUSED or resumes >= scenario.resumes_max:
            return second_person(scenario, world, rollout, machine), world
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


def second_person(scenario: Scenario, world: World, rollout: Rollout, machine: Driver) -> Rollout:
    """Says yes as soon as a rollout waits for it; whoever started it must not get through with that."""
    who = scenario.approver
    if rollout.state is not RolloutState.UNAPPROVED or who is None:
        return rollout
    same = who.casefold() == scenario.started_by.casefold()
    try:
        approved = machine.approve(rollout, who, "")
    except RolloutError as refusal:
        must(same and refusal.code == "same_person", f"{who} was refused: {refusal}")
        return rollout
    must(not same, "whoever started it approved it")
    world.say(f"person: {who} approves")
    return approved


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
    held = rollout.state is RolloutState.UNAPPROVED and not second_comes(scenario)
    return rollout.ended or held or (rollout.state is RolloutState.PAUSED and not person_comes)


def second_comes(scenario: Scenario) -> bool:
    """Whether somebody else than who started it will approve."""
    who = scenario.approver
    return who is not None and who.casefold() != scenario.started_by.casefold()


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
        self._second_person(after, facts, now)
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
        may = {RolloutState.PENDING, RolloutState.RUNNING, RolloutState.UNAPPROVED}
        must(before.state in may, "an order while not running")
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

    def _second_person(self, after: Rollout, facts: Facts, now: float) -> None:
        """Where one is asked for, nothing beyond the first wave without them; held only if that passed."""
        asked, comes = self.scenario.request.approval, second_comes(self.scenario)
        must(not asked or not after.wave or comes, "beyond the first wave without a second person")
        if after.state is RolloutState.UNAPPROVED:
            must(asked and after.wave == 0, "held though nobody asked for that")
            must("approval" in after.waiting_for, "held without saying for what")
            self._promotable(after, facts, now)

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
