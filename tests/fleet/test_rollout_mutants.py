"""The rules of the simulator bite: each hand-made mutant of the machine breaks one, the original none.

A mutant is the module's source with one text replaced; the whole chain of modules that decide is executed
anew around it, and driven through the same scenarios.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from fleet.gates import Gate, Silence
from fleet.rollout_types import FailureAction, Request, RolloutError
from tests.fleet.driving import BrokenRuleError, drive
from tests.fleet.simulator import NEW, Fate, Plan, Scenario

FLEET = Path(__file__).parents[2] / "fleet"
CHAIN = ("approval", "evidence", "gates", "witness", "rollout")


@contextmanager
def replaced_modules() -> Iterator[None]:
    """Puts the real modules back afterwards."""
    before = {name: sys.modules[name] for name in sys.modules if name.startswith("fleet")}
    try:
        yield
    finally:
        sys.modules.update(before)


def mutant(module: str, old: str, new: str) -> ModuleType:
    """`fleet.rollout` as it would be if `old` in `module` read `new`."""
    with replaced_modules():
        made = ModuleType("fleet.none")
        for name in CHAIN:
            source = (FLEET / f"{name}.py").read_text()
            if name == module:
                assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {module}"
                source = source.replace(old, new)
            made = ModuleType(f"fleet.{name}")
            sys.modules[made.__name__] = made
            exec(compile(source, f"{name}.py", "exec"), made.__dict__)
        return made


def scenarios() -> Iterator[Scenario]:
    """Few and pointed: every way in which a device can disappoint, in each place of a small fleet."""
    request = Request(model="cats", digest=NEW, release="r2", deadline_s=200.0, soak_s=20.0)

    def asked(**fields: object) -> Request:
        return msgspec.structs.replace(request, **fields)

    for action in FailureAction:
        mixed = {"d0": Plan(fate=Fate.FALLS_BACK), "d1": Plan(), "d2": Plan(taken_over=6), "d3": Plan()}
        for waves in ("1,100%", "2,3,100%", "100%"):
            yield Scenario(plans=mixed, request=asked(waves=waves, on_failure=action))
    yield Scenario(plans={"d0": Plan(arch="armv7l")}, request=request)
    many = {f"d{i}": Plan(appears=i % 3) for i in range(7)}
    yield Scenario(plans=many, request=asked(waves="2,100%", pace_per_minute=2))
    yield Scenario(plans=many, request=asked(waves="10%,50%,100%", gate=Gate(silence=Silence(max=1))))
    two = {"d0": Plan(fate=Fate.SILENT), "d1": Plan(fate=Fate.SILENT), "d2": Plan()}
    yield Scenario(plans=two, request=asked(waves="2,100%", gate=Gate(silence=Silence(max=1))))
    offline = {"d0": Plan(appears=4), "d1": Plan(vanishes=1), "d2": Plan()}
    yield Scenario(plans=offline, request=asked(waves="1,2,100%", on_failure=FailureAction.HALT))
    troubles = [Plan(fate=fate) for fate in Fate]
    troubles += [Plan(vanishes=2), Plan(taken_over=0), Plan(taken_over=3), Plan(taken_over=4, appears=3)]
    troubles += [Plan(forgotten=3), Plan(appears=9), Plan(vanishes=1, appears=0, arch="x86_64")]
    troubles += [Plan(fate=Fate.FALLS_BACK, falls_back_after=1), Plan(arch="armv7l"), Plan(pace=6)]
    for trouble in troubles:
        for place in range(4):
            plans = {f"d{i}": trouble if i == place else Plan() for i in range(4)}
            yield Scenario(plans=plans, request=request)
            yield Scenario(plans=plans, request=asked(waves="100%", on_failure=FailureAction.ROLLBACK_WAVE))
            yield Scenario(
                plans=plans, request=asked(waves="2,100%", seen_within_s=15.0), paused=2, resumed=9
            )


SCENARIOS = tuple(scenarios())

MUTANTS: dict[str, tuple[str, str, str]] = {
    "a wave reaches beyond its size": ("rollout", "[: max(0, room)]", "[: max(0, room) and room + 1]"),
    "a device is ordered twice": ("rollout", "device.id in rollout.assignments or not", "not"),
    "a pause does not stop orders": (
        "rollout",
        "rollout.state is RolloutState.PAUSED or (decision is Decision.WAIT and not members)",
        "decision is Decision.WAIT and not members",
    ),
    "inconclusive promotes": ("rollout", "if decision is Decision.INCONCLUSIVE:", "if False:"),
    "a failed gate is passed over": ("rollout", "if decision is Decision.FAIL:", "if False:"),
    "others' devices are taken back": ("rollout", "return own and not had", "return not had"),
    "earlier waves are taken back too": (
        "rollout",
        "FailureAction.ROLLBACK_WAVE and assignment.wave != rollout.wave",
        "FailureAction.ROLLBACK_WAVE and assignment.wave > (rollout.wave or 0)",
    ),
    "halt takes back": ("rollout", "if action is FailureAction.HALT:", "if False:"),
    "a newer order is overridden": ("rollout", "desired.order > rollout.order:", "desired.order < 0:"),
    "the pace is ignored": ("rollout", "max(0, pace - recent)", "pace"),
    "an empty first wave waits for ever": (
        "rollout",
        "if now - since >= rollout.request.deadline_s:",
        "if now < since:",
    ),
    "a device goes back to the bad release": (
        "rollout",
        "blocked = {rollout.request.digest, *(() if state is None else state.blocked)}",
        "blocked: set[str] = set()",
    ),
    "the best part decides": ("gates", "return max((part.decision", "return min((part.decision"),
    "failures are not limited": ("gates", "if failures > limit:", "if failures > limit + 99:"),
    "soaks are not waited for": (
        "gates",
        "if done < view.gate.min_fraction * (done + going):",
        "if done < 0:",
    ),
    "what cannot be evaluated passes": (
        "gates",
        "return (Decision.WAIT if under_way else Decision.INCONCLUSIVE), what",
        "return Decision.PASS, what",
    ),
    "silence is consent": ("gates", "if silent > limit:", "if silent > limit + 99:"),
    "success is believed while the old model runs": (
        "evidence",
        "active is None or active.digest != terms.digest",
        "active is None",
    ),
    "any variant will do": ("evidence", "if active.variant not in terms.variants:", "if False:"),
    "a fallback is no failure": ("evidence", "    wrong = _failure(state, terms)", '    wrong = ""'),
    "success before the order ended": (
        "evidence",
        'return _unsettled(terms, f"is {state.phase.value}{_because(state)}")',
        'return Standing.SUCCEEDED, "surely soon"',
    ),
    "no device is ever silent": (
        "evidence",
        "Standing.SILENT if terms.time_is_up else Standing.IN_FLIGHT",
        "Standing.IN_FLIGHT",
    ),
}


def test_the_original_keeps_every_rule() -> None:
    original = mutant("rollout", "def advance(", "def advance(")
    for scenario in SCENARIOS:
        drive(scenario, original)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_killed(name: str) -> None:
    killed = _breaks(mutant(*MUTANTS[name]))
    assert killed, f"no rule noticed that {name}"


def _breaks(machine: ModuleType) -> str:
    """The rule that the machine breaks; empty if none."""
    for scenario in SCENARIOS:
        try:
            drive(scenario, machine)
        except (BrokenRuleError, RolloutError) as rule:
            return str(rule)
    return ""
