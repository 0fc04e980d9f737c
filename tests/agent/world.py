"""An in-memory device that runs `step` through crashes, and the invariants of DESIGN.md section 1.

The world holds only what a disk would hold (the saved deployment, the symlink, the installed slots), and
what a judge has to remember (which slots passed a trial, which releases are refused). It takes any `step`,
so that hand-made mutants of the lifecycle go through the very same checks.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal

from msgspec.structs import replace

from agent.deployment import (
    BEFORE_SWITCH,
    Admitted,
    Booted,
    Bounds,
    Cancelled,
    Damaged,
    DeadlinePassed,
    Deployment,
    Done,
    Event,
    Failed,
    Hurt,
    Ordered,
    Progressed,
    RollbackAsked,
    Ticked,
    Trialed,
    Work,
)
from wire.measures import TrialResult
from wire.messages import (
    DesiredModel,
    OrderOutcome,
    OrderRefused,
    Phase,
    Reason,
    Slot,
    TrialSummary,
)
from wire.sla import Finding, Outcome, Verdict

StepFunction = Callable[[Deployment, Event, Bounds], tuple[Deployment, Work | None]]
Crash = Literal["no", "before_save", "after_save", "before_effect", "after_effect"]

DIGESTS = tuple(letter * 64 for letter in "abc")
VARIANTS = ("onnxruntime/one", "onnxruntime/two")
BOUNDS = Bounds()
Key = tuple[str, str]


def key(slot: Slot | None) -> Key | None:
    return None if slot is None else (slot.digest, slot.variant)


def summary(variant: str, outcome: Outcome = Outcome.PASS) -> TrialSummary:
    result = TrialResult(
        variant=variant, runtime="onnxruntime", runtime_version="1", shards=(0,), n_samples=10
    )
    finding = Finding(limit="accuracy", outcome=outcome, bound=0.9, value=0.5, reason="because")
    return TrialSummary(result=result, verdict=Verdict(findings=(finding,)))


def desired(
    order: int,
    digest: str = DIGESTS[0],
    variants: tuple[str, ...] = VARIANTS,
    mode: Literal["deploy", "evaluate"] = "deploy",
    **fields: float,
) -> DesiredModel:
    return DesiredModel(
        order=order,
        digest=digest,
        release=digest[:3],
        variants=variants,
        mode=mode,
        **fields,  # type: ignore[arg-type]
    )


class World:
    """One device and one model."""

    def __init__(self, step: StepFunction) -> None:
        self._step = step
        self.d = Deployment(model="m")
        self.saved = self.d
        self.work: Work | None = None
        self.current: Key | None = None
        self.installed: set[Key] = set()
        self.trialed: set[Key] = set()
        self.refused: dict[str, int] = {}
        self.soaked: set[tuple[int, Key]] = set()
        self.was_good = False
        self.order = 0

    # --- driving

    def feed(self, event: Event, crash: Crash = "no") -> None:
        """Persist, then act: the crash falls before or after the save."""
        before = self.d
        after, work = self._step(before, event, BOUNDS)
        if crash == "before_save":
            self.boot()
            return
        self._judge_step(before, event, after)
        self.saved = self.d = replace(after, notices=())
        if work is not None or after.serial != before.serial:
            self.work = work
        self._tidy()
        self.check()
        if crash == "after_save":
            self.boot()

    def boot(self) -> None:
        """RAM is gone; the symlink is put where the journal says; the saved phase is entered again."""
        self.d = self.saved
        self.work = None
        self.current = key(self.d.current)
        self.check()
        before = self.d
        after, self.work = self._step(before, Booted(), BOUNDS)
        self._judge_step(before, Booted(), after)
        self.saved = self.d = replace(after, notices=())
        self._tidy()
        self.check()

    def perform(
        self,
        verdict: Outcome,
        fails: Literal["no", "retry", "final"],
        crash: Crash,
        *,
        mixed_up: bool = False,
    ) -> None:
        """Does the pending piece of work with the outcome that chance chose."""
        work = self.work
        if work is None:
            return
        if crash == "before_effect":
            self.boot()
            return
        candidate = self.d.candidate
        self._effect(work, failed=fails != "no")
        self.check()
        if crash == "after_effect":
            self.boot()
            return
        if fails != "no":
            reason = Reason(code="chance", lasting=fails)
            self.feed(Failed(serial=work.serial, reason=reason, jitter=0.1), crash)
            return
        self.feed(self._success(work, candidate, verdict, mixed_up=mixed_up), crash)

    def _success(self, work: Work, candidate: Slot | None, verdict: Outcome, *, mixed_up: bool) -> Event:
        if work.phase is Phase.ADMITTING:
            variants = self.d.variants or VARIANTS
            return Admitted(serial=work.serial, variants=variants)
        if work.phase is Phase.TRIALING and candidate is not None:
            if mixed_up:
                other = next(variant for variant in VARIANTS if variant != candidate.variant)
                return Trialed(serial=work.serial, trial=summary(other))
            trial = summary(candidate.variant, verdict)
            if trial.verdict.activatable:
                self.trialed.add((candidate.digest, candidate.variant))
            return Trialed(serial=work.serial, trial=trial)
        if work.phase is Phase.SOAKING and candidate is not None:
            self.soaked.add((self.d.order, (candidate.digest, candidate.variant)))
        return Done(serial=work.serial)

    def _effect(self, work: Work, *, failed: bool) -> None:
        candidate = key(self.d.candidate)
        restore = self.d.restore
        if work.phase is Phase.VERIFYING and not failed and candidate:
            self.installed.add(candidate)
        elif work.phase is Phase.SWITCHING:
            if work.undo and restore is not None:
                self.current = key(restore.active)
                self.check()
            # A switch that fails may have moved the symlink before its hook failed.
            self.current = candidate
        elif work.phase is Phase.REVERTING and restore is not None and not failed:
            self.current = key(restore.active)

    def _tidy(self) -> None:
        if self.d.phase in {Phase.IDLE, Phase.FETCHING}:
            self.installed &= {k for k in map(key, self.d.kept) if k} | (
                {self.current} if self.current else set()
            )

    def settle(self) -> None:
        """With everything going well from here, the device comes to rest."""
        for _ in range(40):
            if self.d.phase is Phase.IDLE:
                return
            assert self.work is not None, f"nothing is being done in {self.d.phase}"
            self.perform(Outcome.PASS, "no", "no")
        raise AssertionError(f"stuck in {self.d.phase}")

    def restart_only(self) -> None:
        """A device that does nothing but restart gives up to the last good release."""
        for _ in range(2 * BOUNDS.boots_max + 2):
            self.boot()
        assert self.d.phase in {Phase.IDLE, Phase.REVERTING}, "a boot loop is not given up"

    # --- judging

    def _judge_step(self, before: Deployment, event: Event, after: Deployment) -> None:
        assert after.order_highest >= before.order_highest
        new = after.notices[len(before.notices) :]
        refusals = [n.event for n in new if isinstance(n.event, OrderRefused)]
        if isinstance(event, RollbackAsked):
            self._judge_rollback(before, event, after, refused=bool(refusals))
        if isinstance(event, Damaged):
            self._judge_damage(before, event, after)
        if isinstance(event, Ordered):
            if event.desired.order > before.order_highest:
                self.refused.pop(event.desired.digest, None)
            else:
                assert after.phase is before.phase, "an order that is not newer changed something"
                assert after.active == before.active
        ended = before.phase is not Phase.IDLE or before.order != after.order
        if ended and after.phase is Phase.IDLE and after.outcome is OrderOutcome.ACTIVE:
            self._judge_success(before, event, after)
        if after.outcome is not None and after.outcome not in {OrderOutcome.ACTIVE, OrderOutcome.EVALUATED}:
            assert after.reason is not None, "an order ended without a reason"
        if isinstance(event, Done) and before.phase is Phase.SOAKING:
            self.was_good = True

    @staticmethod
    def _judge_damage(before: Deployment, event: Damaged, after: Deployment) -> None:
        if before.phase is not Phase.IDLE:
            assert after == before, "damage that was found at rest changed an order in flight"
            return
        lost = {hurt.slot for hurt in event.hurts if not hurt.repaired}
        way_back = before.previous if before.previous not in lost else None
        if before.active not in lost:
            assert (after.phase, after.active) == (Phase.IDLE, before.active), "a whole release was left"
            assert after.previous == way_back
        elif way_back is not None:
            assert after.current == way_back, "a lost release stays active beside a whole one"
            again = after.waiting.desired if after.waiting else None
            assert again is not None, "a lost release does not come again"
            assert before.active is not None
            assert (again.digest, again.variants) == (before.active.digest, (before.active.variant,))
        else:
            assert (after.phase, after.active, after.previous is None or after.previous == way_back) == (
                Phase.IDLE, before.active, True,
            ), "a device left its release for nothing better"  # fmt: skip

    def _judge_rollback(
        self, before: Deployment, event: RollbackAsked, after: Deployment, *, refused: bool
    ) -> None:
        slots = (
            before.active,
            before.restore.active if before.phase is Phase.SWITCHING and before.restore else None,
        )
        named = {slot.digest for slot in slots if slot}
        named |= {before.desired.digest} if before.desired else set()
        named |= {before.waiting.desired.digest} if before.waiting else set()
        if event.digest not in named or event.order < before.order_highest:
            assert refused, "a rollback of something that does not run was not refused"
        if refused:
            same = replace(after, order_highest=before.order_highest, notices=before.notices)
            assert same == before, "a refused rollback changed something"
        elif not (after.current and after.current.digest == event.digest and not after.blocks(event.digest)):
            # The only release of a device stays active even if its other variant was taken back.
            self.refused[event.digest] = event.order
            assert after.blocks(event.digest), "a release that was taken back is not refused from now on"

    def _judge_success(self, before: Deployment, event: Event, after: Deployment) -> None:
        active = after.active
        assert active is not None
        if before.phase is Phase.SOAKING:
            assert isinstance(event, Done), "success without the end of a soak"
        soaked = {k for _, k in self.soaked}
        assert (active.digest, active.variant) in soaked, "success without a soak"

    def check(self) -> None:
        """What must be true at every moment, also between two steps."""
        d = self.d
        if self.was_good:
            assert self.current is not None, "a device that had a good release has nothing active"
        if self.current is not None:
            assert self.current in self.trialed, "something is active that passed no trial here"
            assert self.current in self.installed, "the active release was removed"
        for slot in (d.active, d.previous, d.restore.active if d.restore else None):
            assert slot is None or key(slot) in self.installed, "a way back was removed"
        if d.phase is Phase.IDLE:
            assert self.current == key(d.active), "the symlink is not what the state says"
            assert d.desired is None
            assert d.restore is None
            assert d.waiting is None
            for slot in (d.active, d.previous):
                assert slot is None or slot.digest not in self.refused, "a refused release came back"
        else:
            assert d.left_s >= 0
            assert d.desired is not None or d.phase is Phase.REVERTING
        if d.phase in BEFORE_SWITCH:
            assert self.current == key(d.active), "something was touched before SWITCHING"
        if d.phase in {Phase.SWITCHING, Phase.SOAKING, Phase.REVERTING}:
            assert d.restore is not None, "there is no way back"
        if d.phase is Phase.SOAKING:
            assert d.active is not None
            assert d.active.digest not in self.refused, "a refused release is soaking"
        if d.desired is not None and d.desired.mode == "evaluate":
            assert d.phase in BEFORE_SWITCH, "an evaluation went on to switch"
        assert d.boots <= BOUNDS.boots_max or d.phase is Phase.REVERTING


def order(
    world: World, digest: str, variants: tuple[str, ...], mode: Literal["deploy", "evaluate"]
) -> Ordered:
    """A newer order."""
    world.order = max(world.order, world.d.order_highest) + 1
    return Ordered(desired=desired(world.order, digest, variants, mode, soak_s=60, deadline_s=1000))


VERDICTS = (*(Outcome.PASS,) * 5, Outcome.INCONCLUSIVE, Outcome.FAIL, Outcome.UNMEASURED)
CRASHES: tuple[Crash, ...] = (*("no",) * 12, "before_save", "after_save", "before_effect", "after_effect")


def _order(world: World, a: int, b: int, _: Crash) -> None:
    variants = (VARIANTS, VARIANTS[:1], VARIANTS[::-1], ())[b % 4]
    world.feed(order(world, DIGESTS[a % 3], variants, "evaluate" if a % 7 == 6 else "deploy"))


def _old_order(world: World, a: int, b: int, _: Crash) -> None:
    world.feed(Ordered(desired=desired(max(1, world.d.order_highest - a % 3), DIGESTS[b % 3])))


def _rollback(world: World, a: int, b: int, _: Crash) -> None:
    d, chosen = world.d, DIGESTS[b % 3]
    active = d.active.digest if d.active else chosen
    flying = d.desired.digest if d.desired else chosen
    asked = RollbackAsked(digest=(active, flying, chosen)[a % 3], order=max(0, d.order_highest + b % 4 - 1))
    world.feed(asked)


def _work(world: World, a: int, b: int, crash: Crash) -> None:
    world.perform(VERDICTS[a % len(VERDICTS)], "no", crash, mixed_up=b % 20 == 0)


def _fail(world: World, a: int, _b: int, crash: Crash) -> None:
    world.perform(Outcome.PASS, "retry" if a % 2 else "final", crash)


def _progress(world: World, a: int, b: int, crash: Crash) -> None:
    if world.work is not None and world.d.phase in {Phase.ADMITTING, Phase.FETCHING}:
        missing = (DIGESTS[0],) if a % 2 else ()
        world.feed(Progressed(serial=world.work.serial, missing=missing, stored=b % 2 == 0), crash)


def _unfit(world: World, a: int, _b: int, crash: Crash) -> None:
    if world.work is not None and world.d.phase is Phase.ADMITTING:
        why = tuple((variant, Reason(code="incompatible")) for variant in VARIANTS[: 1 + a % 2])
        world.feed(Admitted(serial=world.work.serial, variants=VARIANTS, refused=why), crash)


def _damage(world: World, a: int, b: int, crash: Crash) -> None:
    slots = [slot for n, slot in enumerate((world.d.active, world.d.previous)) if slot and (a >> n) & 1]
    hurts = tuple(Hurt(slot=slot, detail="a bit", repaired=(b >> n) & 1 == 1) for n, slot in enumerate(slots))
    world.feed(Damaged(hurts=hurts), crash)


def _time(world: World, a: int, b: int, crash: Crash) -> None:
    if world.d.phase is not Phase.IDLE:
        world.feed(Ticked(elapsed_s=float(a)))
        if world.d.left_s <= 0 or b % 4 == 0:
            world.feed(DeadlinePassed(), crash)


HAPPENINGS: dict[str, Callable[[World, int, int, Crash], None]] = {
    "order": _order,
    "old_order": _old_order,
    "cancel": lambda world, _a, _b, crash: world.feed(Cancelled(), crash),
    "rollback": _rollback,
    "work": _work,
    "fail": _fail,
    "progress": _progress,
    "unfit": _unfit,
    "boot": lambda world, _a, _b, _crash: world.boot(),
    "time": _time,
    "damage": _damage,
}


def act(world: World, action: tuple[str, int, int]) -> None:
    """One random thing that happens to a device; unknown numbers wrap around."""
    name, a, b = action
    HAPPENINGS[name](world, a, b, CRASHES[(a + 7 * b) % len(CRASHES)])


WEIGHTED = (
    "order", "order", "rollback", "rollback", *("work",) * 30, "fail", "boot", "old_order", "cancel", "time",
    "progress", "unfit", "damage",
)  # fmt: skip


def hunt(step: StepFunction, seeds: range, length: int = 150) -> None:
    """Drives devices by seeded chance; the first broken rule is an AssertionError that names the seed."""
    for seed in seeds:
        chance = random.Random(seed)
        world = World(step)
        try:
            for _ in range(length):
                act(world, (chance.choice(WEIGHTED), chance.randrange(60), chance.randrange(60)))
            if seed % 3 == 0:
                world.restart_only()
            world.settle()
            world.check()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
