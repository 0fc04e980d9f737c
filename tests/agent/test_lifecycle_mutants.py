"""Hand-made mistakes in the lifecycle, each of which the same invariants must notice.

A mutant is a source text with one piece replaced, loaded as a fresh set of modules; the unmutated source
goes through the same loading and the same hunt, and must pass.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

import agent
from agent.errors import LifecycleError
from tests.agent.world import StepFunction, hunt

ROOMS = ("moves", "steering", "outcomes", "repair", "lifecycle")
SEEDS = range(250)

MUTANTS = {
    "a failed verdict is activated": ("outcomes", "if not verdict.activatable:", "if False:"),
    "a trial of another variant counts": (
        "outcomes",
        "event.trial.result.variant != candidate.variant",
        "False",
    ),
    "a rollback does not block": ("steering", "blocked=kept,", "blocked=d.blocked,"),
    "a stale order is taken up": ("steering", "if order <= d.order_highest:", "if False:"),
    "a stale rollback is obeyed": ("steering", "if event.order < d.order_highest:", "if False:"),
    "a rollback goes anywhere": (
        "steering",
        "if _is(d.active, event.digest):\n        return _rollback_active",
        "if d.active:\n        return _rollback_active",
    ),
    "the way back is forgotten": (
        "outcomes",
        "standing = Standing(active=d.active, previous=d.previous, degraded=d.degraded)",
        "standing = Standing()",
    ),
    "a failed soak stays": (
        "lifecycle",
        "(SOAKING, Failed): Row(outcomes.failed_running, (REVERTING,))",
        "(SOAKING, Failed): Row(outcomes.soaked, (IDLE,))",
    ),
    "a switch is not undone for a newer order": ("outcomes", "if d.ending is not None:", "if False:"),
    "boots are not counted": (
        "outcomes",
        "d = replace(d, boots=d.boots + 1)\n    if d.boots > bounds.boots_max:\n        return end",
        "if d.boots > bounds.boots_max:\n        return end",
    ),
    "an evaluation switches": ("outcomes", 'if desired.mode == "evaluate":', "if False:"),
    "the soak is skipped": (
        "outcomes",
        "return enter(replace(d, left_s=desired.soak_s + bounds.soaking_s_grace), Phase.SOAKING)",
        "return end(replace(d, restore=None), OrderOutcome.ACTIVE, None)",
    ),
    "reverting restores the wrong slot": (
        "outcomes",
        "active=restore.active, previous=previous",
        "active=d.active, previous=previous",
    ),
    "a blocked release stays a way back": (
        "steering",
        "previous = None if d.previous and d.previous.digest == event.digest else d.previous",
        "previous = d.previous",
    ),
    "a lost way back stays one": ("repair", "d = replace(d, previous=None)", "pass"),
    "a lost release stays active": (
        "repair",
        "    d = replace(\n        d, desired=None",
        "    return d, None\n    d = replace(\n        d, desired=None",
    ),
    "a lost release does not come again": ("repair", "waiting=_again(d.active)", "waiting=None"),
    "a mended release is left": ("repair", "for hurt in hurts if not hurt.repaired}", "for hurt in hurts}"),
    "a release is left for one that is lost, too": (
        "repair", "if d.previous in lost:", "if d.previous in lost and d.active not in lost:"
    ),
    "work is not begun again after a boot": (
        "outcomes",
        "return again(d)\n\n\ndef booted_switching",
        "return d, None\n\n\ndef booted_switching",
    ),
}  # fmt: skip


def load(mutations: dict[str, tuple[str, str]]) -> StepFunction:
    """`step` of a fresh set of the modules, some of them changed."""
    names = [f"agent.{room}" for room in ROOMS]
    kept = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    attributes = {room: getattr(agent, room) for room in ROOMS if hasattr(agent, room)}
    try:
        for room in ROOMS:
            source = Path(agent.__file__).with_name(f"{room}.py").read_text(encoding="utf-8")
            if room in mutations:
                old, new = mutations[room]
                assert source.count(old) == 1, f"{old!r} is not once in {room}.py; the mutant is stale"
                source = source.replace(old, new)
            spec = importlib.util.spec_from_loader(f"agent.{room}", loader=None)
            assert spec is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[f"agent.{room}"] = module
            setattr(agent, room, module)
            exec(compile(source, f"mutant of {room}.py", "exec"), module.__dict__)
        step: StepFunction = sys.modules["agent.lifecycle"].step
        return step
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(kept)
        for room, module in attributes.items():
            setattr(agent, room, module)


def test_the_unmutated_source_passes() -> None:
    hunt(load({}), SEEDS)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_killed(name: str) -> None:
    room, old, new = MUTANTS[name]
    step = load({room: (old, new)})
    with pytest.raises((AssertionError, LifecycleError)):
        hunt(step, SEEDS)
