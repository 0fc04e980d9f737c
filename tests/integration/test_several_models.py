"""Two models on one device: what happens to one is nothing to the other, and trials come one at a time.

Real Mosquitto, the real agent as a process with real hooks, real ONNX models in real trials.
"""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest

from examples.demo.house import House, wait_for
from tests.integration.bundles import make_bundle
from tests.integration.hand import Hand
from wire import codec, messages, topics, trust
from wire.messages import OrderOutcome, Phase, TrialEnded, VariantRefused

pytestmark = [pytest.mark.broker, pytest.mark.slow]
DEVICE = "roof-1"
ILL, WELL = "ill", "well"


class Both:
    """A device with the models `ill`, to which everything happens, and `well`, to which nothing may."""

    def __init__(self, house: House, hand: Hand, tmp_path: Path) -> None:
        self.house = house
        self.hand = hand
        self.tmp_path = tmp_path
        self.orders: dict[str, messages.DesiredModel] = {}
        self.activated = tmp_path / "activated"

    def start(self, **extra: Any) -> None:  # noqa: ANN401
        """Starts the agent and brings release 1 of both models to it."""
        told = f"echo $SHALLOP_MODEL $(readlink $SHALLOP_CURRENT | cut -c10-17) >> {self.activated}"
        hook = {"activate": ["sh", "-c", told], "health_interval_s": 0.2}
        ill = f"! grep -q . {self.tmp_path}/broken-$SHALLOP_MODEL 2>/dev/null"
        hooks = {model: {**hook, "health": ["sh", "-c", ill]} for model in (ILL, WELL)}
        self.house.agent(DEVICE, hooks=hooks, **extra)
        for number, model in enumerate((ILL, WELL)):
            self.order(model, 1 + number, self.publish(model, 1))
        for number, model in enumerate((ILL, WELL)):
            assert self.ended(model, 1 + number) is OrderOutcome.ACTIVE

    def publish(self, model: str, seed: int, **fields: Any) -> str:  # noqa: ANN401
        folder = self.tmp_path / f"{model}-{seed}"
        make_bundle(folder, model=model, release=str(seed), seed=seed, **fields)
        return self.hand.publish_bundle(folder)

    def order(self, model: str, order: int, digest: str, soak_s: float = 0.0) -> str:
        """Rewrites the desired document: this model's entry anew, the other one's as it was."""
        self.orders[model] = messages.DesiredModel(
            order=order, digest=digest, release="x", soak_s=soak_s, deadline_s=120.0
        )
        document = messages.Desired(device=DEVICE, models=self.orders)
        topic = self.hand.topics.topic(topics.DESIRED, device=DEVICE)
        self.hand.raw(topic, trust.seal("desired", codec.encode(document)), retain=True)
        return digest

    def ended(self, model: str, order: int) -> OrderOutcome | None:
        return self.hand.wait_ended(DEVICE, model, order).outcome

    def runs(self, model: str) -> str:
        """Digest of what runs, from the disk."""
        current = self.house.current(DEVICE, model)
        assert current is not None
        return current.name[:64]

    def phase(self, model: str, phase: Phase) -> None:
        self.hand.wait_state(DEVICE, model, lambda state: state.phase is phase)

    def activations(self, model: str) -> list[str]:
        """First letters of the digests that the model's application was told of."""
        told = [line.split() for line in self.activated.read_text().splitlines()]
        return [digest for name, digest in told if name == model]


@pytest.fixture
def both(bare_house: House, hand: Hand, tmp_path: Path) -> Both:
    return Both(bare_house, hand, tmp_path)


def test_a_trial_that_hangs_is_waited_for_and_then_the_other_model_has_its_turn(both: Both) -> None:
    # The limit is of wall time: the loop of the hanging model cannot be left otherwise.
    both.start(trial={"wall_s_max": 12.0, "lock_file": str(both.tmp_path / "trial.lock")})
    before = both.runs(ILL)
    both.order(ILL, 3, both.publish(ILL, 2, harm="hang"))
    both.phase(ILL, Phase.TRIALING)
    wait_for("the hanging trial to have the lock", lambda: _workers(both) == 1)
    two = both.order(WELL, 4, both.publish(WELL, 2), soak_s=1.0)
    both.phase(WELL, Phase.TRIALING)
    assert _workers(both) == 1, "two trials at once"
    assert both.ended(WELL, 4) is OrderOutcome.ACTIVE
    assert both.ended(ILL, 3) is OrderOutcome.FAILED
    reports = [report for report in both.hand.reports if report.order in {3, 4}]
    refused = next(r.number for r in reports if r.model == ILL and isinstance(r.event, VariantRefused))
    trialed = next(r.number for r in reports if r.model == WELL and isinstance(r.event, TrialEnded))
    assert refused < trialed, "the trials were not one after the other"
    assert (both.runs(ILL), both.runs(WELL)) == (before, two)
    assert both.activations(ILL) == [before[:8]], "its application was told of a release that never ran"


def _workers(both: Both) -> int:
    """Trials below this agent, whatever they are wrapped in; other agents of this machine are not meant."""
    agent = both.house.agents[DEVICE].pid
    found = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            command = (status.parent / "cmdline").read_bytes()
        except OSError:
            continue
        found += parent == agent and b"agent.worker" in command
    return found


def test_ill_health_and_a_broken_disk_of_one_model_are_nothing_to_the_other(both: Both) -> None:
    both.start(soak={"health_failures_max": 2})
    one_ill, one_well = both.runs(ILL), both.runs(WELL)

    # Both soak at once; one application falls ill.
    both.order(ILL, 3, both.publish(ILL, 2), soak_s=60.0)
    both.phase(ILL, Phase.SOAKING)
    two_well = both.order(WELL, 4, both.publish(WELL, 2), soak_s=4.0)
    both.phase(WELL, Phase.SOAKING)
    (both.tmp_path / f"broken-{ILL}").write_text("no camera\n")
    assert both.ended(ILL, 3) is OrderOutcome.FELL_BACK
    assert both.ended(WELL, 4) is OrderOutcome.ACTIVE
    assert (both.runs(ILL), both.runs(WELL)) == (one_ill, two_well)
    state = both.hand.state(DEVICE, ILL)
    assert state is not None
    assert state.reason is not None
    assert state.reason.code == "health_failed"
    (both.tmp_path / f"broken-{ILL}").unlink()

    # A disk that takes no large file: that model waits, by name; the other deploys and rolls back meanwhile.
    three = both.publish(ILL, 3, ballast_bytes=1_000_000)
    agent = both.house.agents[DEVICE].pid
    whole = resource.prlimit(agent, resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
    both.order(ILL, 5, three)
    both.hand.wait_state(DEVICE, ILL, lambda s: s.reason is not None and s.reason.code == "disk_failed")
    three_well = both.order(WELL, 6, both.publish(WELL, 3), soak_s=0.5)
    assert both.ended(WELL, 6) is OrderOutcome.ACTIVE
    both.hand.rollback(DEVICE, WELL, three_well, order=7)
    both.hand.wait_state(DEVICE, WELL, lambda s: s.outcome is OrderOutcome.ROLLED_BACK)
    assert (both.runs(ILL), both.runs(WELL)) == (one_ill, two_well)
    resource.prlimit(agent, resource.RLIMIT_FSIZE, whole)
    assert both.ended(ILL, 5) is OrderOutcome.ACTIVE
    assert (both.runs(ILL), both.runs(WELL)) == (three, two_well)
    assert both.activations(WELL) == [d[:8] for d in (one_well, two_well, three_well, two_well)]
