"""The deployments that the crash matrices run, as data: what lies there before, what happens, how it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from tests.agent.deltas import NEW, OLD, Delta
from tests.agent.rig import DEVICE, ONE, TWO, command
from tests.agent.twins import SECOND, VARIANT, Release, release, until
from tests.crash.checks import incomplete
from tests.crash.device import Device, Drive
from wire.deltas import DeltaHint
from wire.messages import OrderOutcome, Phase, Rollback

DELTA = Delta()
THREE = release("3", changes=b"three")
BOTH = release("4", changes=b"four", variants=(VARIANT, SECOND))


def _nothing(_: Device) -> None:
    return


class Ordered(Struct, frozen=True, kw_only=True):
    """One order of a scenario."""

    which: Release
    number: int
    soak_s: float = 0.0
    deltas: tuple[DeltaHint, ...] = ()


class Scenario(Struct, frozen=True, kw_only=True):
    """One deployment, from start to rest.

    Attributes:
        before: orders that are through when it begins.
        order: the desired document's last word.
        first: an earlier order, given on an uninterrupted run and superseded at `supersede_in`.
        supersede_in: the phase of `first` in which `order` comes.
        world: how trials and the application behave.
        rolls_back: a command that leaves this release comes (again after a crash, as the registry sends it).
        by_delta: whether the model's file has to come by a delta where nothing is killed.
        harm: what happens to the disk of the device, at rest and switched off, before it all begins.
        running: what runs at the end; None where nothing does.
        ends: how `order` has ended.
    """

    name: str
    before: tuple[Ordered, ...] = ()
    order: Ordered
    first: Ordered | None = None
    supersede_in: Phase = Phase.TRIALING
    world: Drive = _nothing
    rolls_back: Release | None = None
    by_delta: bool = False
    harm: Callable[[Path], None] | None = None
    running: Release | None
    ends: OrderOutcome = OrderOutcome.ACTIVE

    def prepare(self, device: Device) -> None:
        """What the broker holds, and how the world behaves."""
        device.broker.hold(*{o.which.digest: o.which for o in self._orders()}.values())
        self.world(device)

    def _orders(self) -> tuple[Ordered, ...]:
        return (*self.before, *((self.first,) if self.first else ()), self.order)

    def drive(self, device: Device) -> None:
        """The uninterrupted run."""
        if self.first is not None:
            if self.supersede_in is Phase.TRIALING:
                device.slow_trials.slow.add(self.first.which.digest)
            desire(device, self.first)
            until(
                lambda: (s := device.reported()) and s.phase is self.supersede_in, "the first order's phase"
            )
            if self.supersede_in is Phase.TRIALING:
                until(lambda: device.trials.jobs, "the first order's trial")
                device.slow_trials.slow.clear()
        self.recover(device)

    def recover(self, device: Device) -> None:
        """The same after a crash: the broker holds the last word alone."""
        desire(device, self.order)
        if self.harm is not None:
            self._healed(device)
        if self.rolls_back is not None:
            until(lambda: self._idle(device) and device.broker.heard("identity"), "a device that listens")
            action = Rollback(model="digits", from_=self.rolls_back.digest, order=self.order.number + 1)
            command(device, action, reply_to=f"device/{DEVICE}/up/reply/c1")
            until(lambda: device.broker.heard("reply"), "the answer")
        device.wait(self.order.number, self.ends)
        until(lambda: self._idle(device), "rest")
        until(lambda: not list((device.root / "reports").glob("*.json")), "the reports' acknowledgement")

    def _healed(self, device: Device) -> None:
        """Waits for a whole release in `current`; a soak on the way is over at once."""

        def healed() -> bool:
            if (s := device.reported()) and s.phase is Phase.SOAKING and device.hooks.looks:
                device.clock.ahead_s += 1
            wanted = self.running is not None and device.running == self.running.digest
            return wanted and self._idle(device) and incomplete(device.current.resolve()) is None

        until(healed, "a whole release")
        looked, runner = threading.Event(), device.runner
        # On the loop's thread, so after its start, and behind the look on the model's lane.
        runner.post(lambda: runner._lanes["digits"].append(lambda _cancel: runner.post(looked.set)))
        until(looked.is_set, "the end of the look, and of what it gave rise to")

    def settle(self, device: Device) -> None:
        """The desired document, and rest, however the order ends."""
        desire(device, self.order)
        until(lambda: self._through(device), "rest")

    def _through(self, device: Device) -> bool:
        """At rest, and the order was seen."""
        known = device.runner.models.get("digits")
        return self._idle(device) and known is not None and known.order_highest >= self.order.number

    @staticmethod
    def _idle(device: Device) -> bool:
        known = device.runner.models.get("digits")
        return known is not None and known.phase is Phase.IDLE


def desire(device: Device, order: Ordered) -> None:
    """Writes the desired document."""
    wanted = order.which.order(order.number, soak_s=order.soak_s, deltas=order.deltas)
    device.broker.desire(DEVICE, {"digits": wanted})


def _poor(device: Device) -> None:
    device.slow_trials.poor = {TWO.digest}


def _half_poor(device: Device) -> None:
    device.slow_trials.poor = {BOTH.digest}


def _sick(device: Device) -> None:
    device.app.sick = {TWO.digest}


def _refusing(device: Device) -> None:
    device.app.refused = {ONE.digest}


def _offered(device: Device) -> None:
    DELTA.hold_at(device.broker)


def _harmed(which: Release) -> Callable[[Path], None]:
    """A byte of the one chunk of its model that no other release has."""

    def harm(state: Path) -> None:
        model = next((state / "models" / "digits" / "releases").glob(f"{which.digest}-*")) / "model.onnx"
        model.write_bytes(b"?" + model.read_bytes()[1:])

    return harm


FIRST = Ordered(which=ONE, number=1)
SECOND_ORDER = Ordered(which=TWO, number=2)
THIRD = Ordered(which=THREE, number=3)

SCENARIOS: dict[str, Scenario] = {
    s.name: s
    for s in (
        Scenario(name="first_install", order=FIRST, running=ONE),
        Scenario(
            name="first_install_fails", order=FIRST, world=_refusing, running=None,
            ends=OrderOutcome.FELL_BACK,
        ),
        Scenario(name="update", before=(FIRST,), order=SECOND_ORDER, running=TWO),
        Scenario(
            name="update_by_delta", before=(Ordered(which=OLD, number=1),), world=_offered, by_delta=True,
            order=Ordered(which=NEW, number=2, deltas=(DELTA.hint,)), running=NEW,
        ),
        Scenario(
            name="second_update", before=(FIRST, SECOND_ORDER), order=THIRD, running=THREE
        ),
        Scenario(
            name="refused_trial", before=(FIRST,), order=SECOND_ORDER, world=_poor, running=ONE,
            ends=OrderOutcome.FAILED,
        ),
        Scenario(
            name="two_variants_refused", before=(FIRST,), order=Ordered(which=BOTH, number=2),
            world=_half_poor, running=ONE, ends=OrderOutcome.FAILED,
        ),
        Scenario(
            name="falls_back", before=(FIRST,), order=SECOND_ORDER, world=_sick, running=ONE,
            ends=OrderOutcome.FELL_BACK,
        ),
        Scenario(
            name="rollback", before=(FIRST, SECOND_ORDER), order=SECOND_ORDER, rolls_back=TWO, running=ONE,
            ends=OrderOutcome.ROLLED_BACK,
        ),
        Scenario(
            name="superseded_in_trial", before=(FIRST,), first=SECOND_ORDER, order=THIRD, running=THREE
        ),
        Scenario(
            name="superseded_in_soak", before=(FIRST,), first=Ordered(which=TWO, number=2, soak_s=3600.0),
            supersede_in=Phase.SOAKING, order=THIRD, running=THREE,
        ),
        Scenario(name="mended_in_place", before=(FIRST,), order=FIRST, harm=_harmed(ONE), running=ONE),
        Scenario(
            name="left_and_installed_again", before=(FIRST, SECOND_ORDER), order=SECOND_ORDER,
            harm=_harmed(TWO), running=TWO,
        ),
    )
}  # fmt: skip
