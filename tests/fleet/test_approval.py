"""A second person: driven through fleets, over the API, and each rule by a mutant that breaks it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import fleet.rollout as machine
from fleet.adapters.broker_process import free_port
from fleet.audit import ANYBODY, REGISTRY
from fleet.cli import main
from fleet.gates import Gate, Silence
from fleet.rollout_types import Event, FailureAction, Request, RolloutError, RolloutState
from fleet.scopes import Scope
from tests.fleet.bundles import write_bundle
from tests.fleet.driving import BrokenRuleError, Driver, drive, must
from tests.fleet.processes import RegistryProcess
from tests.fleet.simulator import NEW, RELEASE, Fate, Plan, Scenario, World
from tests.fleet.site import Site, site_with_a_release
from tests.fleet.test_rollout import fleets
from tests.fleet.test_rollout_mutants import mutant


def asked(waves: str = "1,50%,100%", **fields: object) -> Request:
    request = Request(
        model="cats", digest=NEW, release="r2", deadline_s=200.0, soak_s=20.0, approval=True, waves=waves
    )
    return replace(request, **fields)


def scenario(approver: str | None, plans: dict[str, Plan] | None = None, **fields: object) -> Scenario:
    four = {f"d{n}": Plan() for n in range(4)}
    return Scenario(plans=plans or four, request=asked(**fields), started_by="ada", approver=approver)  # type: ignore[arg-type]


# --- driven


def test_it_waits_after_its_first_wave_and_names_whom_it_waits_for() -> None:
    rollout, _ = drive(scenario(None), machine)
    assert (rollout.state, rollout.wave, len(rollout.assignments)) == (RolloutState.UNAPPROVED, 0, 1)
    assert rollout.waiting_for == "the approval of another person than ada: rollout approve or reject"


def test_another_person_lets_it_through_to_its_end() -> None:
    rollout, _ = drive(scenario("bob"), machine)
    assert (rollout.state, rollout.approved_by) == (RolloutState.COMPLETED, "bob")
    assert {assignment.wave for assignment in rollout.assignments.values()} == {0, 1, 2}, "asked once"


@pytest.mark.parametrize("same", ["ada", "ADA", "Ada"])
def test_the_same_person_does_not(same: str) -> None:
    rollout, _ = drive(scenario(same), machine)
    assert rollout.state is RolloutState.UNAPPROVED
    with pytest.raises(RolloutError, match="ada started r, so somebody else must approve it"):
        machine.approve(rollout, same, "please")


@pytest.mark.parametrize("nobody", ["", ANYBODY, REGISTRY])
def test_nobody_is_no_second_person(nobody: str) -> None:
    rollout, _ = drive(scenario(None), machine)
    with pytest.raises(RolloutError, match="approver_unknown"):
        machine.approve(rollout, nobody, "")


def test_a_canary_that_falls_back_while_it_waits_halts_it() -> None:
    plans = {"d0": Plan(fate=Fate.FALLS_BACK, falls_back_after=8)}
    rollout, _ = drive(scenario(None, plans, waves="1,100%"), machine)
    assert rollout.state is RolloutState.UNAPPROVED
    world = World(scenario(None, plans, waves="1,100%"))
    seen = []
    for tick in range(30):
        world.tick(tick)
        if tick == 0:
            rollout = machine.create("r", asked("1,100%"), 10, 11, world.facts(), 0.0, "ada")
        rollout, orders = machine.advance(rollout, world.facts(), world.now)
        world.obey(orders)
        seen.append(rollout.state)
    assert RolloutState.UNAPPROVED in seen
    assert seen[-1] is RolloutState.HALTED


def test_a_device_that_joins_the_held_wave_is_waited_for() -> None:
    plans = {"d0": Plan(), "d1": Plan(appears=12), "d2": Plan(appears=12)}
    world = World(scenario(None, plans, waves="50%,100%"))
    seen = []
    for tick in range(30):
        world.tick(tick)
        if tick == 0:
            rollout = machine.create("r", asked("50%,100%"), 10, 11, world.facts(), 0.0, "ada")
        rollout, orders = machine.advance(rollout, world.facts(), world.now)
        world.obey(orders)
        seen.append((rollout.state, len(rollout.assignments)))
    held, runs = RolloutState.UNAPPROVED, RolloutState.RUNNING
    moved = [one for n, one in enumerate(seen) if n == 0 or one != seen[n - 1]]
    assert moved == [(runs, 1), (held, 1), (runs, 2), (held, 2)]


def test_one_wave_cannot_be_approved_and_nobody_cannot_ask() -> None:
    world = World(scenario(None))
    world.tick(0)
    for request, who, code in (
        (asked("100%"), "ada", "approval_needs_waves"),
        (asked(), "", "approval_needs_tokens"),
        (asked(), ANYBODY, "approval_needs_tokens"),
    ):
        with pytest.raises(RolloutError) as caught:
            machine.create("r", request, 10, 11, world.facts(), 0.0, who)
        assert caught.value.code == code
    machine.create("r", replace(asked("100%"), approval=False), 10, 11, world.facts(), 0.0)


def test_a_reject_takes_back_what_the_first_wave_got() -> None:
    rollout, world = drive(scenario(None), machine)
    facts = world.facts()
    after, orders = machine.abort(
        rollout, FailureAction.ROLLBACK_ALL, facts, world.now, Event.REJECT, "bob: too slow"
    )
    assert (after.state, len(orders)) == (RolloutState.ABORTED, 1)
    assert after.reason == "rejected by bob: too slow (rollback_all)"
    running = replace(rollout, state=RolloutState.RUNNING)
    with pytest.raises(RolloutError, match="illegal_transition"):
        machine.abort(running, FailureAction.HALT, facts, world.now, Event.REJECT)


def test_a_pause_while_it_waits_is_no_way_around() -> None:
    rollout, world = drive(scenario(None), machine)
    resumed = machine.resume(machine.pause(rollout, ""), world.now)
    after, orders = machine.advance(resumed, world.facts(), world.now)
    assert (after.state, orders) == (RolloutState.UNAPPROVED, ())


@settings(max_examples=60, deadline=None)
@given(
    plans=fleets(),
    waves=st.sampled_from(["1,50%,100%", "2,3,100%", "label.ring=canary,50%,100%", "50%,100%"]),
    approver=st.sampled_from([None, "ada", "Ada", "bob"]),
    gate=st.sampled_from([Gate(), Gate(silence=Silence(max=1))]),
    action=st.sampled_from(list(FailureAction)),
    paused=st.sampled_from([None, 2, 7]),
)
def test_random_fleets_never_go_beyond_their_first_wave_alone(
    plans: dict[str, Plan],
    waves: str,
    approver: str | None,
    gate: Gate,
    action: FailureAction,
    paused: int | None,
) -> None:
    request = asked(waves, gate=gate, on_failure=action)
    drive(
        Scenario(
            plans=plans, request=request, started_by="ada", approver=approver, paused=paused, resumed=12
        ),
        machine,
    )


# --- mutants

MUTANTS: dict[str, tuple[str, str, str]] = {
    "whoever started it approves": (
        "approval", "if who.casefold() == rollout.started_by.casefold():", "if False:",
    ),
    "capitals make another person": (
        "approval", "who.casefold() == rollout.started_by.casefold()", "who == rollout.started_by",
    ),
    "nobody approves": ("approval", "if who.casefold() in NOBODY:", "if False:"),
    "nobody starts what must be approved": ("approval", "if started_by.casefold() in NOBODY:", "if False:"),
    "one wave is enough": ("approval", "if waves < 2:", "if waves < 1:"),
    "what asked for it is not held": ("approval", "rollout.request.approval and not", "False and not"),
    "everything is held": ("approval", "rollout.request.approval and not", "True and not"),
    "it is asked again and again": ("approval", " and not rollout.approved_by", ""),
    "the word is forgotten": ("approval", "approved_by=who", 'approved_by=""'),
    "held whatever happens": ("approval", "if may_follow or", "if True or"),
    "approved in any state": (
        "approval", "state = transition(rollout.state, Event.APPROVE)", "state = RolloutState.RUNNING",
    ),
    "the second wave opens by itself": (
        "rollout", "if following < len(waves) and open_to_approval(rollout):", "if False:",
    ),
    "a gate that waits holds": ("rollout", "may_follow=decision is Decision.PASS", "may_follow=True"),
    "held before the wave passed": ("rollout", "if decision is Decision.INCONCLUSIVE:", "if False:"),
}  # fmt: skip


def scenarios() -> Iterator[Scenario]:
    for approver in (None, "ada", "Ada", "bob"):
        yield scenario(approver)
        for fate in Fate:
            yield scenario(approver, {"d0": Plan(fate=fate), "d1": Plan(), "d2": Plan()}, waves="1,100%")
        late = {"d0": Plan(), "d1": Plan(appears=12), "d2": Plan(appears=12, pace=6)}
        yield scenario(approver, late, waves="50%,100%")
        yield Scenario(
            plans=late, request=asked("50%,100%"), started_by="ada", approver=approver, paused=5, resumed=20
        )
        silent = {"d0": Plan(), "d1": Plan(appears=12, fate=Fate.SILENT), "d2": Plan(appears=12)}
        yield scenario(approver, silent, waves="50%,100%")
    plain = replace(asked(), approval=False)
    yield Scenario(plans={f"d{n}": Plan() for n in range(3)}, request=plain)


def keeps(made: Driver) -> None:
    """All rules.

    Raises:
        BrokenRuleError: one does not hold.
    """
    for one in scenarios():
        rollout, _ = drive(one, made)
        _advances_while_held(one, made)
        if rollout.state is RolloutState.UNAPPROVED:
            for who in ("", ANYBODY):
                must(_code(made.approve, rollout, who, "") == "approver_unknown", "nobody approved")
        running = replace(rollout, state=RolloutState.RUNNING)
        must(_code(made.approve, running, "bob", "") == "illegal_transition", "approved too early")
    world = World(scenario(None))
    world.tick(0)
    for request, who in ((asked("100%"), "ada"), (asked(), ""), (asked(), ANYBODY)):
        code = _code(made.create, "r", request, 10, 11, world.facts(), 0.0, who)
        must(code.startswith("approval_needs"), "started though nobody can approve it")


def _advances_while_held(one: Scenario, made: Driver) -> None:
    """Nobody approves: the world goes on, and whatever happens then is seen."""
    if one.approver is not None or not one.request.approval:
        return
    world = World(one)
    world.tick(0)
    rollout = made.create("r", one.request, 10, 11, world.facts(), 0.0, "ada")
    for tick in range(60):
        if tick:
            world.tick(tick)
        rollout, orders = made.advance(rollout, world.facts(), world.now)
        must(not rollout.wave, "beyond the first wave without a second person")
        if rollout.state is RolloutState.UNAPPROVED:
            placed = [world.facts().devices[name] for name in rollout.assignments]
            going = [d.id for d in placed if d.models["cats"].order != 10 or d.models["cats"].outcome is None]
            must(not going, f"held while {going} are under way")
        world.obey(orders)


def _code(act: Callable[..., object], *arguments: object) -> str:
    try:
        act(*arguments)
    except RolloutError as error:
        return error.code
    return ""


def test_the_original_keeps_every_rule() -> None:
    assert RELEASE.digest == NEW
    keeps(mutant("rollout", "def advance(", "def advance("))


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_killed(name: str) -> None:
    made = mutant(*MUTANTS[name])
    with pytest.raises((BrokenRuleError, RolloutError)):
        keeps(made)


# --- over the API


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with site_with_a_release(tmp_path) as made:
        yield made


ASK = {"model": "camera", "release": "v1", "waves": "1,100%", "soak_s": 0, "approval": True}


def _held(site: Site) -> str:
    site.token = site.made("ada", Scope.OPERATE)
    status, begun = site.ask("POST", "/api/rollouts", json=ASK)
    assert status == 200, begun
    site.harness.settle()
    assert site.ask("GET", f"/api/rollouts/{begun['id']}")[1]["rollout"]["state"] == "unapproved"
    return str(begun["id"])


def test_a_second_person_approves_over_the_api(site: Site) -> None:
    rollout = _held(site)
    path = f"/api/rollouts/{rollout}/approve"
    assert site.code("POST", path, json={"why": "me too"}) == (400, "same_person")
    site.token = site.made("eve", Scope.VIEW)
    assert site.code("POST", path, json={"why": "yes"}) == (403, "scope_missing")
    site.token = site.made("bob", Scope.OPERATE)
    assert site.code("POST", path) == (400, "why_missing")
    status, view = site.ask("POST", path, json={"why": "ran all night"})
    assert (status, view["approved_by"], view["started_by"]) == (200, "bob", "ada")
    assert site.code("POST", path, json={"why": "again"}) == (400, "illegal_transition")
    site.harness.settle()
    shown = site.ask("GET", f"/api/rollouts/{rollout}")[1]["rollout"]
    assert (shown["state"], shown["devices"]) == ("completed", 2)
    said = [(e.who, e.what, e.why) for e in site.entries() if e.subject == rollout]
    assert said == [
        ("ada", "rollout.start", ""),
        (REGISTRY, "rollout.running", said[1][2]),
        (REGISTRY, "rollout.unapproved", "the first wave passed its gate"),
        ("bob", "rollout.approve", "ran all night"),
        (REGISTRY, "rollout.wave", said[4][2]),
        (REGISTRY, "rollout.completed", "2 devices were reached, 0 were left out"),
    ]


def test_two_tokens_of_one_name_are_one_person(site: Site) -> None:
    rollout = _held(site)
    site.token = site.made("Ada", Scope.ADMINISTER)
    assert site.code("POST", f"/api/rollouts/{rollout}/approve", json={"why": "x"}) == (400, "same_person")


def test_a_reject_ends_it(site: Site) -> None:
    rollout = _held(site)
    site.token = site.made("bob", Scope.OPERATE)
    body = {"why": "too slow", "action": "halt"}
    status, view = site.ask("POST", f"/api/rollouts/{rollout}/reject", json=body)
    assert (status, view["state"], view["reason"]) == (200, "aborted", "rejected by bob: too slow (halt)")
    assert (site.entries()[-1].what, site.entries()[-1].who) == ("rollout.reject", "bob")


def test_a_registry_without_tokens_knows_no_second_person(site: Site) -> None:
    assert site.code("POST", "/api/rollouts", json=ASK) == (400, "approval_needs_tokens")


def test_the_configuration_asks_for_all(tmp_path: Path) -> None:
    """A real registry with `approval: true`: one wave for all is refused, two are held."""
    config = tmp_path / "fleet.yaml"
    config.write_text("approval: true\n")
    data = tmp_path / "data"
    data.mkdir()
    runner, tokens = CliRunner(), {}
    for name in ("ada", "bob"):
        made = runner.invoke(
            main,
            [
                "tokens",
                "create",
                name,
                "--scope",
                "operate",
                "--scope",
                "publish",
                "--data",
                str(data),
                "--json",
            ],
        )
        tokens[name] = json.loads(made.stdout)["token"]
    registry = RegistryProcess(data, free_port(), "--insecure-unsigned", "--config", str(config))
    registry.start()
    try:
        env = {"SHALLOP_SERVER": registry.url, "SHALLOP_TOKEN": tokens["ada"]}
        write_bundle(tmp_path / "b", "v1", size_bytes=20_000)
        assert runner.invoke(main, ["publish", str(tmp_path / "b")], env=env).exit_code == 0
        one = runner.invoke(main, ["rollout", "start", "camera@v1", "--waves", "100%"], env=env)
        assert (one.exit_code, "[approval_needs_waves]" in one.output) == (2, True)
        two = runner.invoke(main, ["rollout", "start", "camera@v1", "--json"], env=env)
        rollout = json.loads(two.stdout)["id"]
        early = runner.invoke(
            main, ["rollout", "approve", rollout, "--why", "x"], env={**env, "SHALLOP_TOKEN": tokens["bob"]}
        )
        assert (early.exit_code, "[illegal_transition]" in early.output) == (2, True)
        page = runner.invoke(main, ["rollout", "show", rollout], env=env).output
        assert "ada started it, nobody yet approved" in page
    finally:
        registry.stop()
