"""Whether an order may begin: what is judged, and mistakes in the judging, each of which is noticed."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent import preconditions
from agent.config import parse
from agent.deployment import Booted, Bounds, Deployment, Failed, Ordered
from agent.errors import ConfigError, NotYetError
from agent.lifecycle import step
from agent.metering import Hours, LocalTime
from agent.preconditions import Conditions, Rules, Supply, judge, require
from tests.agent.rig import ONE
from wire.messages import OrderOutcome, Phase, Reason

NIGHT = Hours(120, 300)
BATTERY = Supply(name="BAT0", kind="Battery", percent=23.0, status="Discharging")
MAINS = Supply(name="AC", kind="Mains", online=True)


def at(minute: int, *, synchronised: bool = True) -> LocalTime:
    return LocalTime(minute=minute, synchronised=synchronised)


# --- one by one, for the module and for mistaken copies of it ----------------------------------------


def hunt(module: ModuleType) -> None:
    """Everything that the judging promises, held against a plain account of it."""
    _batteries(module)
    _heat(module)
    _hours(module)
    _all_together(module)


def _batteries(m: ModuleType) -> None:
    levels = (None, 0.0, 39.9, 40.0, 100.0)
    feeds = ("Mains", "USB", "USB_PD", "Wireless", "UPS", "Battery")
    for one, two, kind, online in itertools.product(levels, levels, feeds, (None, False, True)):
        batteries = (
            m.Supply(name="BAT0", kind="Battery", percent=one),
            m.Supply(name="cw2015", kind="", percent=two),
        )
        feed = m.Supply(name="feed", kind=kind, online=online, percent=100.0)
        (found,) = m.judge(m.Rules(battery_percent_min=40.0), m.Conditions(supplies=(*batteries, feed)))
        on_mains = online and kind not in {"UPS", "Battery"}
        known = [percent for percent in (one, two) if percent is not None]
        known += [100.0] if kind == "Battery" else []
        expected = True if on_mains else (min(known) >= 40.0 if known else None)
        assert found.holds is expected, (one, two, kind, online)
    for supplies, expected in ((None, None), ((), True), ((m.Supply(name="AC", kind="Mains"),), True)):
        (found,) = m.judge(m.Rules(battery_percent_min=40.0), m.Conditions(supplies=supplies))
        assert found.holds is expected, supplies


def _heat(m: ModuleType) -> None:
    for found_c, expected in ((None, None), (-20.0, True), (75.0, True), (75.1, False)):
        (found,) = m.judge(m.Rules(temperature_c_max=75.0), m.Conditions(temperature_c=found_c))
        assert found.holds is expected, found_c


def _hours(m: ModuleType) -> None:
    """Who comes back when it is due finds a window open that no minute before was."""
    for hours in ((NIGHT,), (Hours(1380, 60),), (NIGHT, Hours(720, 721)), (Hours(0, 1),)):
        rules = m.Rules(window=hours)
        for minute in range(0, 1440, 7):
            (found,) = m.judge(rules, m.Conditions(local=at(minute)))
            inside = any(one.hold(minute) for one in hours)
            assert found.holds is inside
            assert found.code == "outside_window"
            if inside:
                assert found.again_s_max is None
                continue
            due_s = next(n for n in range(1, 1440) if any(o.hold((minute + n) % 1440) for o in hours)) * 60.0
            assert found.again_s_max == due_s
    for local in (None, at(150, synchronised=False)):
        (found,) = m.judge(m.Rules(window=(NIGHT,)), m.Conditions(local=local))
        assert (found.holds, found.code, found.again_s_max) == (False, "clock_unsynchronised", None)


def _held_up(m: ModuleType, judged: object) -> NotYetError | None:
    try:
        m.require(judged)
    except NotYetError as error:
        return error
    return None


def _all_together(m: ModuleType) -> None:
    rules = m.Rules(battery_percent_min=40.0, temperature_c_max=75.0, window=(NIGHT,))
    bad = {"supplies": (BATTERY,), "temperature_c": 80.0, "local": at(720)}
    good = {"supplies": (), "temperature_c": 40.0, "local": at(150)}
    codes = {"supplies": "battery_low", "temperature_c": "too_hot", "local": "outside_window"}
    for ill in itertools.product((False, True), repeat=3):
        now = {key: (bad if is_ill else good)[key] for key, is_ill in zip(codes, ill, strict=True)}
        expected = [code for code, is_ill in zip(codes.values(), ill, strict=True) if is_ill]
        error = _held_up(m, m.judge(rules, m.Conditions(**now)))
        if not expected:
            assert error is None, "it was held up for nothing"
            continue
        assert error is not None, f"it passed with {expected}"
        assert error.code == expected[0]
        assert str(error.args[0]).count(";") == len(expected) - 1
        assert error.again_s_max == (14 * 3600.0 if ill[2] else None)
    assert m.judge(m.Rules(), m.Conditions()) == ()
    m.require(m.judge(m.Rules(battery_percent_min=1.0, temperature_c_max=1.0), m.Conditions()))


def test_what_is_promised_holds() -> None:
    hunt(preconditions)


MUTANTS = {
    "a battery at the limit waits": ("percent >= least", "percent > least"),
    "the fullest battery counts": ("emptiest = min(", "emptiest = max("),
    "a feed that is offline counts": (".startswith(_MAINS) and one.online", ".startswith(_MAINS)"),
    "no feed counts": (".startswith(_MAINS) and one.online", ".startswith(_MAINS) and False"),
    "a battery that is online is a feed": ("one.kind.startswith(_MAINS) and one.online", "one.online"),
    "USB's many kinds are none": ("one.kind.startswith(_MAINS)", "one.kind in _MAINS"),
    "what cannot be read is no battery": ('in {"Battery", ""}', 'in {"Battery"}'),
    "an unknown charge blocks": ('return say(None, f"{batteries[0]', 'return say(False, f"{batteries[0]'),
    "unlisted supplies block": ('return say(None, "/sys', 'return say(False, "/sys'),
    "a machine without a battery waits": ("if not batteries:", "if False:"),
    "heat at the limit waits": ("found <= most", "found < most"),
    "unknown heat blocks": ('return say(None, "no thermal', 'return say(False, "no thermal'),
    "a wrong clock opens the window": ("(False, detail)\n    named", "(True, detail)\n    named"),
    "a wrong clock is believed": ("local is None or not local.synchronised", "local is None"),
    "every window has to be open": ("any(one.hold(local.minute)", "all(one.hold(local.minute)"),
    "the last window is waited for": ("wait_min = min(", "wait_min = max("),
    "the wait counts backwards": ("(one.start_min - local.minute)", "(local.minute - one.start_min)"),
    "minutes are taken for seconds": ("60.0 * wait_min", "1.0 * wait_min"),
    "the unknown holds up": ("one.holds is False]", "not one.holds]"),
    "nothing holds up": ("    if against:", "    if not against and judged is None:"),
    "the last reason is told": ("against[0].code", "against[-1].code"),
    "no hours are none of the day": ("    if rules.window:", "    if True:"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_killed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = MUTANTS[name]
    source = Path(str(preconditions.__file__)).read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{old!r} is not once in preconditions.py; the mutant is stale"
    module = ModuleType("agent.preconditions_mutant")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source.replace(old, new), name, "exec"), module.__dict__)
    with pytest.raises((AssertionError, NotYetError, ValueError, IndexError)):
        hunt(module)


# --- properties --------------------------------------------------------------------------------------

HOURS = st.builds(Hours, st.integers(0, 1439), st.integers(0, 1440)).filter(
    lambda hours: hours.start_min not in {hours.end_min, hours.end_min - 1440}
)


@given(st.lists(HOURS, min_size=1, max_size=4), st.integers(0, 1439), st.integers(0, 59))
def test_who_waits_until_it_is_due_comes_in_the_first_minute_of_a_window(
    hours: list[Hours], minute: int, second: int
) -> None:
    (found,) = judge(Rules(window=tuple(hours)), Conditions(local=at(minute)))
    if found.holds:
        assert any(one.hold(minute) for one in hours)
        return
    assert found.again_s_max is not None
    then_s = minute * 60 + second + found.again_s_max
    assert int(then_s // 60) % 1440 in {one.start_min for one in hours}


@given(
    st.floats(0.5, 100.0), st.floats(0.0, 100.0), st.floats(0.0, 150.0), st.floats(-50.0, 150.0),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_better_conditions_never_hold_up_what_worse_ones_let_pass(
    least: float, percent: float, most: float, heat_c: float, online: bool, asks_heat: bool
) -> None:
    rules = Rules(battery_percent_min=least, temperature_c_max=most if asks_heat else None)

    def passes(percent: float, heat_c: float, online: bool) -> bool:
        battery = Supply(name="b", kind="Battery", percent=percent)
        feed = Supply(name="ac", kind="Mains", online=online)
        judged = judge(rules, Conditions(supplies=(battery, feed), temperature_c=heat_c))
        return all(one.holds for one in judged)

    if passes(percent, heat_c, online):
        assert passes(min(100.0, percent + 1.0), heat_c - 1.0, online)
        assert passes(percent, heat_c, online=True)


def test_the_words_have_the_figures() -> None:
    rules = Rules(battery_percent_min=40.0, temperature_c_max=75.0, window=(NIGHT,))
    now = Conditions(supplies=(BATTERY,), temperature_c=81.25, local=at(754))
    with pytest.raises(NotYetError) as held:
        require(judge(rules, now))
    assert held.value.args[0] == (
        "BAT0 is at 23% (Discharging) and not on mains, admission.battery_percent_min is 40; "
        "81.2 degrees Celsius, admission.temperature_c_max is 75; "
        "it is 12:34 local time, admission.window is 02:00-05:00"
    )
    (on,) = judge(Rules(battery_percent_min=40.0), Conditions(supplies=(BATTERY, MAINS)))
    assert on.detail == "on mains (AC)"


# --- what the lifecycle makes of it --------------------------------------------------------------------

WAITS = Reason(code="outside_window", detail="it is noon", lasting="retry")


def admitting() -> Deployment:
    d, work = step(Deployment(model="digits"), Ordered(desired=ONE.order(1)))
    assert work is not None
    return d


@given(st.integers(0, 60), st.floats(0.0, 0.999), st.floats(60.0, 86400.0))
def test_the_next_look_comes_at_the_usual_pace_and_at_the_windows_beginning(
    tries: int, jitter: float, due_s: float
) -> None:
    d, bounds = admitting(), Bounds()
    for _ in range(tries):
        d, _ = step(d, Failed(serial=d.serial, reason=WAITS, jitter=jitter, not_yet=True), bounds)
    event = Failed(serial=d.serial, reason=WAITS, jitter=jitter, not_yet=True, again_s_max=due_s)
    after, work = step(d, event, bounds)
    assert work is not None
    assert (after.phase, after.reason, work.phase) == (Phase.ADMITTING, WAITS, Phase.ADMITTING)
    usual_s = jitter * min(300.0, 2.0 * 2.0 ** min(tries, 30))
    assert work.after_s == min(usual_s, due_s)


@pytest.mark.parametrize("phase", [Phase.ADMITTING, Phase.FETCHING])
def test_a_machine_that_is_switched_off_every_night_is_no_boot_loop(phase: Phase) -> None:
    d = replace(admitting(), phase=phase)
    for _ in range(20):
        d, _ = step(d, Booted())
        assert d.phase is phase
        d, _ = step(d, Failed(serial=d.serial, reason=WAITS, not_yet=True))
    for _ in range(Bounds().boots_max + 1):
        d, _ = step(d, Booted())
    assert d.outcome is OrderOutcome.FAILED, "one that starts again and again without a word still is"


def test_other_failures_of_admitting_count_starts_as_before() -> None:
    d = admitting()
    for _ in range(Bounds().boots_max + 1):
        assert d.phase is Phase.ADMITTING
        d, _ = step(d, Failed(serial=d.serial, reason=Reason(code="disk_full", lasting="retry")))
        d, _ = step(d, Booted())
    assert d.outcome is OrderOutcome.FAILED


# --- the configuration ---------------------------------------------------------------------------------


def test_nothing_is_asked_unless_it_is_written() -> None:
    assert not parse("").admission.asked
    assert not parse("admission: {}").admission.asked
    for text in ("battery_percent_min: 1", "temperature_c_max: 0", 'window: ["02:00-05:00"]'):
        assert parse(f"admission: {{{text}}}").admission.asked


def test_the_configuration_gives_the_rules() -> None:
    text = 'admission: {battery_percent_min: 40, temperature_c_max: 75, window: ["02:00-05:00"]}'
    assert parse(text).admission.rules() == Rules(
        battery_percent_min=40.0, temperature_c_max=75.0, window=(NIGHT,)
    )


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("battery_percent_min: 0", "battery_percent_min"),
        ("battery_percent_min: 101", "battery_percent_min"),
        ("battery_percent_min: yes", "battery_percent_min"),
        ("battery_percent_min: .nan", "battery_percent_min"),
        ("temperature_c_max: 151", "temperature_c_max"),
        ("temperature_c_max: -1", "temperature_c_max"),
        ("temperature_c_max: .nan", "temperature_c_max"),
        ("temperature_c_max: hot", "temperature_c_max"),
        ("window: 02:00-05:00", "window"),
        ('window: ["2-5"]', "admission.window"),
        ('window: ["05:00-05:00"]', "admission.window"),
        ('window: ["02:00-25:00"]', "admission.window"),
        ("windows: []", "windows"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse(f"admission: {{{text}}}")
