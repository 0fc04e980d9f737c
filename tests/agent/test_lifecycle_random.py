"""Any order of events, with a crash at every save and every effect, keeps the device safe."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.lifecycle import step
from tests.agent.world import WEIGHTED, World, act

actions = st.lists(
    st.tuples(st.sampled_from(WEIGHTED), st.integers(0, 59), st.integers(0, 59)), min_size=1, max_size=60
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(actions)
def test_whatever_happens_the_invariants_hold_and_the_device_comes_to_rest(
    happenings: list[tuple[str, int, int]],
) -> None:
    world = World(step)
    for happening in happenings:
        act(world, happening)
    world.settle()
    world.check()


@settings(max_examples=60, deadline=None)
@given(actions)
def test_a_device_that_only_restarts_does_not_restart_for_ever(
    happenings: list[tuple[str, int, int]],
) -> None:
    world = World(step)
    for happening in happenings:
        act(world, happening)
    for _ in range(20):
        world.boot()
    assert world.d.phase in {"idle", "reverting"}
    world.settle()
