"""The soak's fold: what trips it, what it bears, and that hand-made mutants of it are caught."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import soak
from agent.soak import Baseline, Look, Rules, UnitState, Verdict, Watch, begin

RULES = Rules(health_failures_max=3, restarts_max=2)
UNKNOWN = Baseline()
UP = UnitState(active="active", result="success", restarts=0, invocation="a" * 32)


def unit(
    active: str = "active", restarts: int | None = 0, invocation: str = "a", result: str = ""
) -> UnitState:
    return UnitState(active=active, result=result, restarts=restarts, invocation=invocation)


def run(
    looks: list[Look], baseline: Baseline = UNKNOWN, rules: Rules = RULES, module: ModuleType = soak
) -> list[str]:
    """What each look came to: go_on, good, or the code of the failure, which ends it."""
    watch: Watch = module.begin(baseline)
    words = []
    for seen in looks:
        verdict: Verdict
        watch, verdict = module.look(watch, seen, rules)
        words.append(verdict.word if verdict.reason is None else verdict.reason.code)
        if verdict.word != "go_on":
            break
    return words


def units(*states: UnitState, left_s: float = 10.0) -> list[Look]:
    return [Look(left_s=left_s, unit=state) for state in states]


WELL, ILL = Look(left_s=1.0), Look(left_s=1.0, ill="no camera")
OVER = Look(left_s=0.0)
WAS_UP = Baseline(flags=(), unit=UP)
Case = tuple[str, list[Look], Baseline, Rules, list[str]]

CASES: list[Case] = [
    ("over and well", [WELL, OVER], Baseline(), RULES, ["go_on", "good"]),
    ("at once", [OVER], Baseline(), RULES, ["good"]),
    ("not a moment early", [Look(left_s=0.001)], Baseline(), RULES, ["go_on"]),
    ("thrice ill", [ILL, ILL, ILL], Baseline(), RULES, ["go_on", "go_on", "health_failed"]),
    ("well in between", [ILL, ILL, WELL, ILL, ILL, OVER], Baseline(), RULES, ["go_on"] * 5 + ["good"]),
    ("over but ill", [Look(left_s=-1, ill="x"), Look(left_s=-2)], Baseline(), RULES, ["go_on", "good"]),
    ("three restarts", units(unit(restarts=1), unit(restarts=2), unit(restarts=3)), WAS_UP, RULES,
     ["go_on", "go_on", "unit_crash_loop"]),
    ("two are borne", [*units(unit(restarts=2)), Look(left_s=0, unit=unit(restarts=2))], WAS_UP, RULES,
     ["go_on", "good"]),
    ("only what came since counts", units(unit(restarts=42)), Baseline(unit=unit(restarts=40)), RULES,
     ["go_on"]),
    ("what came since counts", units(unit(restarts=43)), Baseline(unit=unit(restarts=40)), RULES,
     ["unit_crash_loop"]),
    ("started by hand", units(unit(restarts=0), unit(restarts=2), unit(restarts=3)),
     Baseline(unit=unit(restarts=40)), RULES, ["go_on", "go_on", "unit_crash_loop"]),
    ("crashes on both sides of a start by hand", units(unit(restarts=2), unit(restarts=1)), WAS_UP, RULES,
     ["go_on", "unit_crash_loop"]),
    ("a count without a beginning", units(unit(restarts=40), unit(restarts=42), unit(restarts=43)),
     Baseline(), RULES, ["go_on", "go_on", "unit_crash_loop"]),
    ("a look that nobody answered loses no count", [*units(unit(restarts=1)), WELL, *units(unit(restarts=3))],
     WAS_UP, RULES, ["go_on", "go_on", "unit_crash_loop"]),
    ("none is borne", units(unit(restarts=1)), WAS_UP, Rules(restarts_max=0), ["unit_crash_loop"]),
    ("an old systemd does not count", units(unit(restarts=None), unit(restarts=None)), WAS_UP, RULES,
     ["go_on", "go_on"]),
    ("failed", units(unit("failed", result="start-limit-hit")), WAS_UP, RULES, ["unit_crash_loop"]),
    ("failed before", units(unit("failed", invocation="b")), Baseline(unit=unit("failed", invocation="b")),
     RULES, ["go_on"]),
    ("failed before and again", units(unit("failed", invocation="c")),
     Baseline(unit=unit("failed", invocation="b")), RULES, ["unit_crash_loop"]),
    ("failed, nobody knows since when", units(unit("failed")), Baseline(), RULES, ["unit_crash_loop"]),
    ("stopped", units(unit("inactive"), unit("deactivating"), unit("inactive")), WAS_UP, RULES,
     ["go_on", "go_on", "unit_stopped"]),
    ("stopped and back",
     units(unit("inactive"), unit("inactive"), unit(), unit("inactive"), unit("inactive")), WAS_UP, RULES,
     ["go_on"] * 5),
    ("it did not run before", units(unit("inactive"), unit("inactive"), unit("inactive"), left_s=0.0),
     Baseline(unit=unit("inactive")), RULES, ["good"]),
    ("it did not run before, and need not", units(unit("inactive"), unit("inactive"), unit("inactive")),
     Baseline(unit=unit("inactive")), RULES, ["go_on"] * 3),
    ("not good while it starts", units(unit("activating"), unit("activating"), unit(), left_s=0.0),
     Baseline(unit=unit("inactive")), RULES, ["go_on", "go_on", "good"]),
    ("not good while it is stopped", units(unit("inactive"), unit(), left_s=0.0), WAS_UP, RULES,
     ["go_on", "good"]),
    ("reloading is running", units(unit("reloading"), left_s=0.0), WAS_UP, RULES, ["good"]),
    ("a flag rises", [Look(left_s=9, flags=()), Look(left_s=8, flags=("throttled",))], WAS_UP, RULES,
     ["go_on", "throttled"]),
    ("a flag that was raised", [Look(left_s=0, flags=("throttled",))], Baseline(flags=("throttled",)), RULES,
     ["good"]),
    ("another flag", [Look(left_s=0, flags=("throttled", "under_voltage"))], Baseline(flags=("throttled",)),
     RULES, ["throttled"]),
    ("nobody could tell before", [Look(left_s=0, flags=("throttled",))], Baseline(), RULES, ["good"]),
    ("nobody can tell now", [Look(left_s=0)], WAS_UP, RULES, ["good"]),
    ("throttling is no matter", [Look(left_s=0, flags=("throttled",))], WAS_UP, Rules(throttling=False),
     ["good"]),
    ("slow", [Look(left_s=9, latency_ms_p95=30.1, latency_n=200)], Baseline(), Rules(latency_ms_p95_max=30.0),
     ["live_latency_above_limit"]),
    ("at the limit", [Look(left_s=0, latency_ms_p95=30.0, latency_n=200)], Baseline(),
     Rules(latency_ms_p95_max=30.0), ["good"]),
    ("too few to say so", [Look(left_s=0, latency_ms_p95=99.0, latency_n=199)], Baseline(),
     Rules(latency_ms_p95_max=30.0), ["good"]),
    ("not asked for", [Look(left_s=0, latency_ms_p95=99.0, latency_n=9999)], Baseline(), RULES, ["good"]),
    ("the loop is the cause, ill health its effect", [
        Look(left_s=1, ill="x", unit=unit(restarts=3), flags=("throttled",))], WAS_UP,
     Rules(health_failures_max=1), ["unit_crash_loop"]),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_a_soak(case: Case) -> None:
    _, looks, baseline, rules, expected = case
    assert run(looks, baseline, rules) == expected


def test_the_reasons_carry_figures_and_names() -> None:
    def detail(seen: Look, baseline: Baseline, rules: Rules = RULES) -> str:
        _, verdict = soak.look(begin(baseline), seen, rules)
        assert verdict.reason is not None
        return verdict.reason.detail

    assert "3 times" in detail(Look(left_s=1, unit=unit(restarts=3, result="oom-kill")), WAS_UP)
    assert "oom-kill" in detail(Look(left_s=1, unit=unit(restarts=3, result="oom-kill")), WAS_UP)
    assert "start-limit-hit" in detail(Look(left_s=1, unit=unit("failed", result="start-limit-hit")), WAS_UP)
    ends = unit("activating", restarts=2, result="signal"), unit(restarts=3, result="success")
    watch, _ = soak.look(begin(WAS_UP), Look(left_s=1, unit=ends[0]), RULES)
    watch, verdict = soak.look(watch, Look(left_s=1, unit=ends[1]), RULES)
    assert verdict.reason is not None
    assert "how it ended: signal" in verdict.reason.detail
    assert "under_voltage" in detail(Look(left_s=1, flags=("under_voltage",)), WAS_UP)
    assert "no camera" in detail(ILL, Baseline(), Rules(health_failures_max=1))
    long = detail(Look(left_s=1, ill="x" * 5000), Baseline(), Rules(health_failures_max=1))
    assert len(long) == soak.DETAIL_CHARS_MAX


# --- against an oracle ------------------------------------------------------------------------------

STATES = ("active", "reloading", "activating", "inactive", "failed")
looked = st.builds(
    Look,
    left_s=st.sampled_from([5.0, 0.0]),
    ill=st.sampled_from([None, None, "ill"]),
    unit=st.one_of(
        st.none(), st.builds(unit, st.sampled_from(STATES), st.integers(0, 4), st.sampled_from("ab"))
    ),
    flags=st.sampled_from([None, (), ("throttled",), ("under_voltage",)]),
)
based = st.builds(
    Baseline,
    flags=st.sampled_from([None, (), ("throttled",)]),
    unit=st.one_of(st.none(), st.builds(unit, st.sampled_from(STATES), st.integers(0, 4), st.just("a"))),
)


@given(st.lists(looked, min_size=1, max_size=12), based)
def test_what_is_good_was_well_and_what_failed_was_not(looks: list[Look], baseline: Baseline) -> None:
    words = run(looks, baseline)
    assert words[:-1] == ["go_on"] * (len(words) - 1)
    last, word = looks[len(words) - 1], words[-1]
    if word == "good":
        assert last.left_s <= 0
        assert last.ill is None
        assert last.unit is None or last.unit.active != "activating"
        if baseline.flags is not None and last.flags is not None:
            assert set(last.flags) <= set(baseline.flags)
    seen_restarts = [seen.unit.restarts or 0 for seen in looks[: len(words)] if seen.unit]
    if word == "unit_crash_loop":
        assert last.unit is not None
        assert last.unit.active == "failed" or sum(seen_restarts) > RULES.restarts_max
    if word == "health_failed":
        assert [seen.ill for seen in looks[len(words) - 3 : len(words)]] == ["ill"] * 3
    if word == "throttled":
        assert baseline.flags is not None
        assert set(last.flags or ()) - set(baseline.flags)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 11))
def test_a_restart_of_the_daemon_forgives_no_restart_of_the_unit(counts: list[int], at: int) -> None:
    """The fold begins anew from the journaled baseline, and systemd's count goes on."""
    looks = units(*(unit(restarts=count, invocation="b") for count in sorted(counts)))
    whole, cut = run(looks, WAS_UP), run(looks[:at], WAS_UP)
    if "unit_crash_loop" not in cut and looks[at:]:
        assert run(looks[at:], WAS_UP)[-1] == whole[-1]


# --- mutants ----------------------------------------------------------------------------------------

MUTANTS = [
    ("seen.left_s <= 0 and", "seen.left_s < 0 and"),
    ("seen.left_s <= 0 and not watch.ill", "seen.left_s <= 0"),
    (" and not _unsettled(watch, seen)", ""),
    ("watch.ill + 1 if seen.ill else 0", "watch.ill + 1 if seen.ill else watch.ill"),
    ("watch.gone + 1 if _gone(watch, unit) else 0", "watch.gone + 1 if _gone(watch, unit) else watch.gone"),
    ("unit.restarts if counted is None else counted", "0 if counted is None else counted"),
    ("(known if known <= unit.restarts else 0)", "known"),
    ("(known if known <= unit.restarts else 0)", "0"),
    ("counted = unit.restarts\n", "pass\n"),
    ("baseline.unit.restarts if baseline.unit else None", "None"),
    ("watch.restarts > rules.restarts_max", "watch.restarts >= rules.restarts_max"),
    ("and not failed_before", ""),
    ("and before.invocation == unit.invocation", ""),
    ("watch.ill < rules.health_failures_max", "watch.ill <= rules.health_failures_max"),
    ("watch.gone < rules.health_failures_max", "watch.gone <= rules.health_failures_max"),
    ("not rules.throttling or", ""),
    ("set(seen.flags) - set(watch.baseline.flags)", "set(seen.flags)"),
    ("if risen else None", "if False else None"),
    ("measured <= limit", "measured < limit"),
    ("seen.latency_n < rules.latency_n_min", "seen.latency_n <= rules.latency_n_min"),
    ('before.active == "active" and unit.active in GONE', "unit.active in GONE"),
    ('return unit.active == "activating" or (before is not None and before.active == "active")',
     'return unit.active == "activating"'),
    ('return unit.active == "activating" or', "return"),
    ('GONE = frozenset({"inactive", "deactivating"})', 'GONE = frozenset({"inactive"})'),
    ("baseline.boot == now.boot", "False"),
    ("baseline.boot == now.boot", "True"),
    ("replace(baseline.unit, restarts=0)", "baseline.unit"),
    ("boot=now.boot, flags=now.flags, unit", "boot=now.boot, unit"),
    ('    ("unit_crash_loop", _crash_loop),\n', ""),
    ('    ("unit_stopped", _stopped),\n', ""),
    ('    ("health_failed", _unhealthy),\n', ""),
    ('    ("throttled", _throttled),\n', ""),
    ('    ("live_latency_above_limit", _slow),\n', ""),
]  # fmt: skip


def mutant(old: str, new: str) -> ModuleType:
    source = inspect.getsource(soak)
    assert source.count(old) >= 1, f"there is nothing to mutate: {old}"
    made = ModuleType("agent.soak_mutant")
    exec(compile(source.replace(old, new), "mutant", "exec"), made.__dict__)
    return made


def begins_anew(module: ModuleType) -> bool:
    """Only a start of the machine changes the baseline, and of it only what the machine forgot."""
    then = Baseline(boot="a", flags=("throttled",), unit=unit("failed", restarts=40, invocation="x"))
    now = Baseline(boot="a", flags=("under_voltage",), unit=unit(restarts=41))
    same = module.resumed(then, now)
    other = module.resumed(then, Baseline(boot="b", flags=("under_voltage",), unit=unit(restarts=2)))
    bare = module.resumed(Baseline(boot="a"), Baseline(boot="b"))
    return bool(
        same == then
        and other == Baseline(boot="b", flags=("under_voltage",), unit=unit("failed", 0, "x"))
        and bare == Baseline(boot="b")
    )


def test_a_soak_that_goes_on_begins_where_the_machine_did() -> None:
    assert begins_anew(soak)


def holds(module: ModuleType) -> bool:
    return begins_anew(module) and all(
        run(looks, baseline, rules, module) == words for _, looks, baseline, rules, words in CASES
    )


def survives(old: str, new: str) -> bool:
    try:
        return holds(mutant(old, new))
    except (AttributeError, TypeError, UnboundLocalError):
        return False


def test_every_mutant_is_caught(record_property: Callable[[str, object], None]) -> None:
    assert holds(soak)
    assert [pair for pair in MUTANTS if survives(*pair)] == []
    record_property("mutants", len(MUTANTS))
