"""Damage where a publisher has barred a release: it is not brought again, unless there is no other.

An enrolled device with real journal, slots, store and loop on real files; broker and trial are twins.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.adapters.ed25519 import verify
from agent.slots import directory_name
from agent.trust import Trust
from tests.agent.rig import ONE, TWO, Rig
from tests.agent.test_trust_orders import Fleet
from tests.agent.twins import TOPICS, MemoryBroker, Release, until
from tests.crash.checks import incomplete
from tests.crash.test_repair import HARMS, slot_of
from tests.keys import RELEASE, root_of, root_sha256, sealed_root
from wire import topics, trust
from wire.codec import encode
from wire.messages import Bars, OrderOutcome, Phase, ReleaseDamaged

OWN = "byte of its own"


class House:
    """An enrolled device that is switched off, harmed, and switched on again."""

    def __init__(self, root: Path) -> None:
        self.root, self.broker = root, MemoryBroker()
        self.fleet = Fleet(self.broker)
        root.mkdir()
        Trust(root, verify).pin(sealed_root(root_of()), root_sha256(root_of()))
        for which in (ONE, TWO):
            self.fleet.publish(which)
        self.rig = self.on()

    def on(self) -> Rig:
        self.broker.said.clear()
        self.broker.fetched.clear()
        self.rig = Rig(self.root, self.broker, unsigned=False)
        self.rig.start()
        return self.rig

    def run(self, which: Release, order: int) -> None:
        self.fleet.order(which, order)
        self.rig.wait(order, OrderOutcome.ACTIVE)

    def bar(self, *which: Release) -> None:
        digests = tuple(one.digest for one in which)
        bars = trust.seal("bars", encode(Bars(number=1, digests=digests)), [RELEASE])
        self.broker.tell(TOPICS.topic(topics.BARS), bars, retain=True)
        until(lambda: self.rig.trust.state.barred == digests, "the list")

    def harm(self, which: Release, name: str = OWN) -> None:
        HARMS[name](self.root / "models" / "digits" / "releases" / directory_name(slot_of(which)))

    def lose_blobs(self) -> None:
        self.broker.retained = {t: p for t, p in self.broker.retained.items() if "/blob/" not in t}

    def told(self, *, repaired: bool) -> set[str]:
        events = {report.number: report.event for report in self.rig.reports()}.values()
        return {e.slot.digest for e in events if isinstance(e, ReleaseDamaged) and e.repaired == repaired}

    def whole(self, which: Release) -> bool:
        self.rig.clock.ahead_s += 1
        return self.rig.running == which.digest and incomplete(self.rig.current.resolve()) is None


def own_chunk(which: Release) -> str:
    return which.manifest.variants[0].files[0].chunks[0].sha256


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "state")
    made.run(ONE, 1)
    try:
        yield made
    finally:
        made.rig.stop()


def test_the_only_release_is_mended_though_it_is_barred(house: House) -> None:
    house.bar(ONE)
    house.rig.stop()
    house.harm(ONE)
    house.on()
    until(lambda: house.told(repaired=True) == {ONE.digest}, "the mending")
    assert house.whole(ONE)
    assert house.broker.fetched == [own_chunk(ONE)]


def test_a_barred_release_that_is_lost_is_left_and_not_brought_again(house: House) -> None:
    house.run(TWO, 2)
    house.bar(TWO)
    house.rig.stop()
    house.harm(TWO)
    rig = house.on()
    state = rig.wait(2, OrderOutcome.FAILED)
    assert state.reason is not None
    assert state.reason.code == "release_barred"
    assert house.whole(ONE)
    assert own_chunk(TWO) not in house.broker.fetched
    assert rig.trials.jobs == []


def test_what_lies_here_mends_a_barred_release(house: House) -> None:
    """Nothing is brought, and what runs goes on."""
    house.run(TWO, 2)
    house.bar(TWO)
    house.rig.stop()
    house.harm(TWO, "bit in the labels")
    house.on()
    until(lambda: house.told(repaired=True) == {TWO.digest}, "the mending")
    assert house.whole(TWO)
    assert house.broker.fetched == []


def test_the_one_before_is_mended_rather_than_the_barred_one(house: House) -> None:
    house.run(TWO, 2)
    house.bar(TWO)
    house.rig.stop()
    house.harm(ONE)
    house.harm(TWO)
    rig = house.on()
    rig.wait(2, OrderOutcome.FAILED)
    assert house.whole(ONE)
    assert own_chunk(ONE) in house.broker.fetched
    assert own_chunk(TWO) not in house.broker.fetched
    assert house.told(repaired=True) == {ONE.digest}


def test_a_barred_release_is_fetched_where_the_one_before_cannot_be_had(house: House) -> None:
    house.run(TWO, 2)
    house.bar(TWO)
    house.rig.stop()
    house.harm(ONE)
    house.harm(TWO)
    del house.broker.retained[TOPICS.topic(topics.BLOB, digest=own_chunk(ONE))]
    house.on()
    until(lambda: house.whole(TWO) and house.told(repaired=True) == {TWO.digest}, "the mending")


def test_a_whole_barred_way_back_is_not_taken_where_the_active_one_can_be_had(house: House) -> None:
    house.run(TWO, 2)
    house.bar(ONE)
    house.rig.stop()
    house.harm(TWO)
    rig = house.on()
    until(lambda: house.told(repaired=True) == {TWO.digest}, "the mending")
    assert house.whole(TWO)
    assert rig.hooks.activated == [TWO.digest]


def test_a_whole_barred_way_back_is_taken_in_need(house: House) -> None:
    house.run(TWO, 2)
    house.bar(ONE)
    house.rig.stop()
    house.harm(TWO)
    house.lose_blobs()
    house.on()
    until(lambda: house.whole(ONE), "the way back")


def test_a_barred_release_before_is_not_fetched_for_a_way_back(house: House) -> None:
    house.run(TWO, 2)
    house.bar(ONE)
    house.rig.stop()
    house.harm(ONE)
    rig = house.on()
    until(lambda: (s := rig.reported()) and s.previous is None, "the end of a way back")
    assert house.whole(TWO)
    assert house.broker.fetched == []
    assert house.told(repaired=False) == {ONE.digest}


def test_a_bar_that_comes_in_a_trial_stops_the_switch(house: House) -> None:
    rig = house.rig
    rig.trials.hangs = True
    house.fleet.order(TWO, 2)
    until(lambda: (s := rig.reported()) and s.phase is Phase.TRIALING, "the trial")
    until(lambda: len(rig.trials.jobs) == 2, "the trial's start")
    house.bar(TWO)
    rig.trials.hangs = False
    state = rig.wait(2, OrderOutcome.FELL_BACK)
    assert state.reason is not None
    assert state.reason.code == "release_barred"
    assert house.whole(ONE)
    assert TWO.digest not in rig.hooks.activated
