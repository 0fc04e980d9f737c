"""Rollouts driven through random fleets, and the table of their states."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fleet.rollout as machine
from fleet.gates import Gate, Proofs, Silence
from fleet.inventory import Device, fold
from fleet.rollout import (
    ENDS,
    TRANSITIONS,
    DesiredNow,
    Event,
    Facts,
    FailureAction,
    Request,
    Rollout,
    RolloutError,
    RolloutState,
    transition,
)
from fleet.selection import SelectorError
from tests.fleet.driving import drive
from tests.fleet.simulator import (
    NEW,
    OLD,
    RELEASE,
    Fate,
    Plan,
    Scenario,
    World,
    install_of,
    slot,
)
from wire.errors import LimitsError
from wire.messages import ModelState, OrderOutcome, Reported


def asked(**fields: object) -> Request:
    base = Request(model="cats", digest=NEW, release="r2", deadline_s=200.0, soak_s=20.0)
    return msgspec.structs.replace(base, **fields)


def good(n: int, **fields: object) -> dict[str, Plan]:
    return {f"d{i}": msgspec.structs.replace(Plan(), **fields) for i in range(n)}


healthy = st.builds(
    Plan,
    arch=st.sampled_from(["aarch64", "aarch64", "aarch64", "x86_64", "armv7l"]),
    ring=st.sampled_from(["canary", "none", "none"]),
    appears=st.sampled_from([0, 0, 0, 3, 9, 30]),
    pace=st.sampled_from([1, 1, 2, 5]),
)


def troubled(plan: Plan) -> st.SearchStrategy[Plan]:
    """The same device with one thing that goes wrong in its life."""

    def at(field: str) -> st.SearchStrategy[Plan]:
        return st.integers(0, 25).map(lambda tick: msgspec.structs.replace(plan, **{field: tick}))

    def of(fate: Fate, after: int) -> Plan:
        return msgspec.structs.replace(plan, fate=fate, falls_back_after=after)

    fates = st.sampled_from([fate for fate in Fate if fate is not Fate.GOOD])
    return st.one_of(
        st.builds(of, fates, st.integers(1, 8)), *map(at, ("vanishes", "taken_over", "forgotten"))
    )


@st.composite
def fleets(draw: st.DrawFn) -> dict[str, Plan]:
    """Up to nine devices, at most two of them in trouble."""
    drawn = draw(st.lists(healthy, min_size=1, max_size=9))
    for index in draw(st.sets(st.integers(0, len(drawn) - 1), max_size=2)):
        drawn[index] = draw(troubled(drawn[index]))
    return {f"d{index}": plan for index, plan in enumerate(drawn)}


requests = st.builds(
    asked,
    waves=st.sampled_from(["1,50%,100%", "100%", "2,3,100%", "label.ring=canary,50%,100%", "10%,20%,100%"]),
    on_failure=st.sampled_from(list(FailureAction)),
    mode=st.sampled_from(["deploy", "deploy", "deploy", "evaluate"]),
    pace_per_minute=st.sampled_from([None, None, 1, 3]),
    seen_within_s=st.sampled_from([50.0, 1e6]),
    gate=st.sampled_from([Gate(), Gate(), Gate(silence=Silence(max=1))]),
)

scenarios = st.builds(
    Scenario,
    plans=fleets(),
    request=requests,
    paused=st.sampled_from([None, None, 0, 2, 7]),
    resumed=st.sampled_from([10, 20]),
)


@settings(max_examples=150, deadline=None)
@given(scenario=scenarios)
def test_random_fleets_keep_the_rules_and_end(scenario: Scenario) -> None:
    drive(scenario, machine)


def test_good_fleet_completes() -> None:
    rollout, world = drive(Scenario(plans=good(5), request=asked()), machine)
    assert rollout.state is RolloutState.COMPLETED
    assert rollout.waiting_for == ""
    assert {
        machine_.state.active.digest for machine_ in world.machines.values() if machine_.state.active
    } == {NEW}


def test_every_pair_of_state_and_event_is_in_the_table_or_refused() -> None:
    for state in RolloutState:
        for event in Event:
            if (state, event) in TRANSITIONS:
                assert transition(state, event) is TRANSITIONS[state, event]
            else:
                with pytest.raises(RolloutError, match="illegal_transition"):
                    transition(state, event)


def test_every_state_that_is_no_end_can_be_left_and_an_end_only_by_abort() -> None:
    for state in RolloutState:
        events = {event for origin, event in TRANSITIONS if origin is state}
        if state in ENDS:
            assert events <= {Event.ABORT}
        else:
            assert Event.ABORT in events
            assert len(events) > 1


def made(scenario: Scenario) -> tuple[Rollout, World]:
    world = World(scenario)
    world.tick(0)
    return machine.create("r", scenario.request, 10, 11, world.facts(), 0.0), world


def looked(rollout: Rollout, world: World) -> Rollout:
    rollout, orders = machine.advance(rollout, world.facts(), world.now)
    world.obey(orders)
    return rollout


def test_verbs_refuse_what_does_not_fit() -> None:
    rollout, world = made(Scenario(plans=good(2), request=asked()))
    with pytest.raises(RolloutError, match="pending cannot resume"):
        machine.resume(rollout, 0.0)
    aborted, orders = machine.abort(rollout, FailureAction.ROLLBACK_ALL, world.facts(), 5.0)
    assert (aborted.state, orders, aborted.ended_at) == (RolloutState.ABORTED, (), 5.0)
    with pytest.raises(RolloutError, match="nothing, it has ended"):
        machine.pause(aborted, "")
    with pytest.raises(RolloutError, match="nothing, it has ended"):
        machine.resume(aborted, 6.0)


def test_abort_takes_back_who_has_the_order_and_again_nobody() -> None:
    rollout, world = made(Scenario(plans=good(3), request=asked(waves="2,100%")))
    rollout = looked(rollout, world)
    assert len(rollout.assignments) == 2
    rollout, orders = machine.abort(rollout, FailureAction.ROLLBACK_ALL, world.facts(), 1.0)
    assert {order.device for order in orders} == set(rollout.assignments)
    assert machine.advance(rollout, world.facts(), 2.0) == (rollout, ())


def test_a_halt_that_left_the_release_can_still_be_taken_back_by_a_person() -> None:
    plans = {f"d{i}": Plan(fate=Fate.FALLS_BACK, falls_back_after=1) for i in range(2)}
    request = asked(waves="100%", on_failure=FailureAction.HALT, gate=Gate(min_fraction=1.0))
    rollout, world = drive(Scenario(plans={**plans, "slow": Plan(pace=9)}, request=request), machine)
    assert rollout.state is RolloutState.HALTED
    aborted, orders = machine.abort(rollout, FailureAction.ROLLBACK_ALL, world.facts(), world.now)
    assert aborted.state is RolloutState.ABORTED
    assert {order.device for order in orders} == {"d0", "d1", "slow"}


def test_devices_of_a_newer_rollout_are_left_out_and_named() -> None:
    rollout, world = made(Scenario(plans=good(2), request=asked(waves="100%")))
    world.desired["d0"] = DesiredNow(order=99, rollout="newer")
    rollout = looked(rollout, world)
    assert set(rollout.assignments) == {"d1"}
    assert "newer order, 99" in rollout.left_out["d0"]


def carried_again() -> tuple[Rollout, World]:
    """Two devices run the release; a second rollout of it has reached the first wave."""
    rollout, world = made(Scenario(plans=good(2), request=asked(waves="100%")))
    rollout = looked(rollout, world)
    for tick in (1, 2, 3):
        world.tick(tick)
    again = machine.create("r", asked(waves="1,100%"), 20, 21, world.facts(), world.now)
    return looked(again, world), world


def test_a_device_that_runs_the_release_already_is_not_taken_below_it() -> None:
    again, world = carried_again()
    assert len(again.assignments) == 1
    _, orders = machine.abort(again, FailureAction.ROLLBACK_ALL, world.facts(), world.now)
    assert orders == ()


def test_devices_that_run_the_release_already_need_no_trial() -> None:
    again, world = carried_again()
    for tick in (4, 5):
        world.tick(tick)
        again = looked(again, world)
    world.tick(6)
    assert all(view.models["cats"].trial is None for view in world.views.values())
    assert looked(again, world).state is RolloutState.COMPLETED


def test_paused_rollout_still_acts_on_a_failure() -> None:
    plans = good(3, fate=Fate.FALLS_BACK, falls_back_after=1)
    scenario = Scenario(plans=plans, request=asked(waves="100%"), paused=1, resumed=50)
    rollout, world = drive(scenario, machine)
    assert rollout.state is RolloutState.HALTED
    assert set(world.restores) == {"d0", "d1", "d2"}


def test_empty_first_wave_asks_a_person_and_names_what_is_missing() -> None:
    scenario = Scenario(plans=good(3), request=asked(waves="label.ring=canary,100%"), resumes_max=0)
    rollout, _ = drive(scenario, machine)
    assert rollout.state is RolloutState.PAUSED
    assert "label.ring=canary" in rollout.reason
    assert not rollout.assignments


def test_late_devices_join_while_it_runs() -> None:
    plans = {**good(2), "late": Plan(appears=4), "slow": Plan(pace=9)}
    rollout, _ = drive(Scenario(plans=plans, request=asked(waves="100%")), machine)
    assert rollout.state is RolloutState.COMPLETED
    assert rollout.assignments["late"].rank == 3


def test_a_reinstalled_device_has_to_succeed_again() -> None:
    rollout, world = made(Scenario(plans={**good(1), "d1": Plan(pace=9)}, request=asked(waves="100%")))
    rollout = looked(rollout, world)
    for tick in range(1, 4):
        world.tick(tick)
        rollout = looked(rollout, world)
    assert rollout.verdict is not None
    assert "1 of 2 ended" in rollout.waiting_for
    fresh = next(iter(world.machines["d0"].births()))
    fresh = msgspec.structs.replace(fresh, install_id="f" * 32)
    world.views["d0"] = fold(world.views["d0"], fresh, world.now)
    rollout = looked(rollout, world)
    assert "no device has ended its soak" in rollout.waiting_for


def test_creation_refuses_what_cannot_work() -> None:
    facts = Facts(devices={}, desired={}, release=RELEASE)
    with pytest.raises(SelectorError):
        machine.create("r", asked(selector="label="), 1, 2, facts, 0.0)
    with pytest.raises(SelectorError):
        machine.create("r", asked(waves="1,50%"), 1, 2, facts, 0.0)
    with pytest.raises(RolloutError, match="orders_reversed"):
        machine.create("r", asked(), 2, 2, facts, 0.0)
    with pytest.raises(RolloutError, match="wrong_release"):
        machine.create("r", asked(digest=OLD), 1, 2, facts, 0.0)
    with pytest.raises(LimitsError, match="takes 43 devices"):
        machine.create("r", asked(gate=Gate(proofs=Proofs(success_rate=0.9))), 1, 2, facts, 0.0)


def test_proof_is_accepted_where_the_wave_before_the_last_can_reach_it() -> None:
    gate = Gate(proofs=Proofs(success_rate=0.9))
    scenario = Scenario(plans=good(90), request=asked(waves="1,50%,100%", gate=gate))
    rollout, _ = drive(scenario, machine)
    assert rollout.state is RolloutState.COMPLETED
    with pytest.raises(LimitsError, match="has 42"):
        made(Scenario(plans=good(84), request=asked(waves="1,50%,100%", gate=gate)))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_orders_do_not_depend_on_the_order_of_reports(seed: int) -> None:
    rollout, world = made(Scenario(plans=good(6), request=asked(waves="3,100%")))
    names = list(world.views)
    random.Random(seed).shuffle(names)
    shuffled = Facts(devices={n: world.views[n] for n in names}, desired={}, release=RELEASE)
    assert machine.advance(rollout, shuffled, 0.0) == machine.advance(rollout, world.facts(), 0.0)


def test_a_device_never_heard_of_is_not_counted() -> None:
    rollout, world = made(Scenario(plans=good(1), request=asked()))
    world.views["ghost"] = Device(id="ghost")
    rollout = looked(rollout, world)
    assert "ghost" in rollout.left_out
    assert "ghost" not in rollout.assignments


def test_the_rollouts_own_rollback_by_hand_counts_as_a_failure() -> None:
    """A person with mosquitto_pub took one device back while the registry was away."""
    rollout, world = made(Scenario(plans=good(2, pace=3), request=asked(waves="100%")))
    rollout = looked(rollout, world)
    world.tick(1)
    state = ModelState(active=slot(OLD), order=11, outcome=OrderOutcome.ROLLED_BACK)
    said = Reported(device="d0", install_id=install_of("d0"), number=50, models={"cats": state})
    world.views["d0"] = fold(world.views["d0"], said, world.now)
    rollout, orders = machine.advance(rollout, world.facts(), world.now)
    assert rollout.state is RolloutState.HALTED
    assert "rolled_back" in rollout.reason
    assert {order.device for order in orders} == {"d0", "d1"}
