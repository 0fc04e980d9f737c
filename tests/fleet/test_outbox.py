"""The registry is killed at every effect it has, started again, and nothing is lost or done twice.

An effect is a commit (killed just before it or just after it) or a publication. The same story is told
with a kill at the n-th effect, for every n, and its end is compared with the end of the untouched story.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fleet.people import RollbackAsk, RolloutAsk
from fleet.ports import Outgoing
from tests.fleet.bundles import write_bundle
from tests.fleet.twins import TOPICS, Harness, Killed
from wire import topics as wt

REFUSED = "dev-3"


class Saboteur:
    """Counts effects and kills at one of them, once."""

    def __init__(self, harness: Harness, at: int | None) -> None:
        self.count = 0
        self.at = at
        harness.store.before_commit = self.effect
        harness.store.after_commit = self.effect
        harness.broker.before_publish = self.publication

    def effect(self) -> None:
        self.count += 1
        if self.count == self.at:
            raise Killed

    def publication(self, _message: Outgoing) -> None:
        self.effect()


def survive(harness: Harness, step: Callable[[], object], done: Callable[[], bool]) -> None:
    """A person's step: repeated after a kill, unless it is seen to have happened."""
    try:
        step()
    except Killed:
        harness.restart()
        if not done():
            step()


def settle(harness: Harness, seconds: float) -> None:
    for _ in range(2):
        try:
            harness.settle(seconds)
        except Killed:
            harness.restart()
            harness.settle(seconds)
        for device in harness.broker.devices:
            device.resend()


def story(tmp_path: Path, at: int | None) -> tuple[dict[str, object], int]:
    """One release to four devices of which one refuses, in two waves, then a rollback; its end."""
    harness = Harness()
    devices = [harness.device(f"dev-{i}") for i in range(4)]
    harness.settle(2)
    saboteur = Saboteur(harness, at)
    for release, gate in (("v1", {}), ("v2", {"failures_max": 1})):
        if release == "v2":
            devices[3].refuses = frozenset({"v2"})

        def has_release(name: str = release) -> bool:
            return any(r.release == name and r.state == "published" for r in harness.people.releases())

        def has_rollout(name: str = release) -> bool:
            return any(r.release == name for r in harness.people.rollouts())

        def publish(name: str = release) -> None:
            harness.publish(tmp_path / name)

        def start(name: str = release, limits: dict[str, object] = gate) -> None:  # type: ignore[assignment]
            ask = RolloutAsk(model="camera", release=name, waves="device=dev-1,100%", gate=limits, soak_s=0.0)
            harness.people.start(ask)

        survive(harness, publish, has_release)
        survive(harness, start, has_rollout)
        settle(harness, 8)

    def rolled_back() -> bool:
        with harness.store.begin() as tx:
            return bool(tx.rollback_rows())

    survive(
        harness,
        lambda: harness.people.roll_back(RollbackAsk(model="camera", devices=("dev-0",))),
        rolled_back,
    )
    settle(harness, 8)
    saboteur.at = None
    assert not harness.conductor.failures
    with harness.store.begin() as tx:
        pending = tx.pending_count()
        reports = {d.device: len(tx.reports(d.device, 1000)) for d in devices}
        rollbacks = [row.state for row in tx.rollback_rows()]
    held = harness.broker.retained
    end = {
        "rollouts": [(r.release, r.state, r.devices) for r in harness.people.rollouts()],
        "active": {d.device: d.states["camera"].active.release for d in devices},  # type: ignore[union-attr]
        "orders taken up": {d.device: len(d.received) for d in devices},
        "an order twice": {d.device: len(d.received) != len(set(d.received)) for d in devices},
        "unacknowledged": {d.device: len(d.unacknowledged) for d in devices},
        "reports": reports,
        "rollbacks": rollbacks,
        "pending": pending,
        "blobs": {t for t in held if "/blob/" in t},
        "releases": {t for t in held if "/release/" in t},
        "desired": {d.device: TOPICS.topic(wt.DESIRED, device=d.device) in held for d in devices},
        "payload files": len(harness.files.files) >= 2,
    }
    harness.store.close()
    return end, saboteur.count


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    for seed, release in enumerate(("v1", "v2")):
        write_bundle(
            root / release, release, seed=seed + 1, size_bytes=20_000, chunk_bytes_max=10_000, shards=1
        )
    return root


@pytest.fixture(scope="module")
def untouched(bundles: Path) -> tuple[dict[str, object], int]:
    return story(bundles, None)


def test_the_untouched_story_ends_as_told(untouched: tuple[dict[str, object], int]) -> None:
    end, effects = untouched
    assert end["rollouts"] == [("v1", "completed", 4), ("v2", "completed", 4)]
    assert end["active"] == {"dev-0": "v1", "dev-1": "v2", "dev-2": "v2", "dev-3": "v1"}
    assert end["unacknowledged"] == dict.fromkeys(end["active"], 0)
    assert (end["pending"], end["rollbacks"]) == (0, ["done"])
    assert effects > 60


# Every effect is killed once, in twelve portions so that a failure says where.
@pytest.mark.parametrize("portion", range(12))
def test_a_kill_at_any_effect_changes_nothing_of_the_end(
    portion: int, bundles: Path, untouched: tuple[dict[str, object], int]
) -> None:
    end, effects = untouched
    for at in range(1 + portion, effects + 1, 12):
        told, _ = story(bundles, at)
        assert told == end, f"killed at effect {at} of {effects}"
