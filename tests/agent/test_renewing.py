"""When a certificate is renewed: the table, and properties over any course of events."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent import renewing
from agent.renewing import (
    ANSWER_S_MAX,
    ATTEMPTS_EACH,
    LASTING,
    SELDOM_S,
    TABLE,
    WAIT_S,
    WAIT_S_MAX,
    Accepted,
    Act,
    Barred,
    Connected,
    Event,
    Failed,
    Granted,
    Looked,
    Phase,
    Rejected,
    Renewing,
    prefers_new,
    step,
    wait_s,
)
from wire.messages import Reason

DAY_S = 86400.0
LIFE_S = 90 * DAY_S
START_S = 1_800_000_000.0
NEW = Renewing(not_before_s=START_S, not_after_s=START_S + LIFE_S, place=0.25)
WHY = Reason(code="registry_unreachable", detail="x", lasting="retry")
EVENTS: tuple[Event, ...] = (
    Looked(now_s=START_S, boot_s=0.0, connected=True, quiet=True),
    Granted(),
    Failed(reason=WHY, boot_s=0.0, unit=0.5),
    Accepted(not_before_s=0.0, not_after_s=1.0, place=0.0, boot_s=0.0),
    Rejected(reason=WHY, boot_s=0.0, unit=0.5),
    Connected(),
    Barred(reason=WHY),
)


def look(now_s: float, *, boot_s: float = 0.0, connected: bool = True, quiet: bool = True) -> Looked:
    return Looked(now_s=START_S + now_s, boot_s=boot_s, connected=connected, quiet=quiet)


def asking(**fields: object) -> Renewing:
    return replace(NEW, phase=Phase.ASKING, until_boot_s=ANSWER_S_MAX, **fields)


# --- when ---------------------------------------------------------------------------------------------


def test_it_is_due_at_two_thirds_and_its_own_place_in_a_twelfth() -> None:
    assert NEW.due_s - START_S == pytest.approx(60 * DAY_S + 7.5 * DAY_S * 0.25)
    assert step(NEW, look(NEW.due_s - START_S - 1)) == (NEW, None)
    after, act = step(NEW, look(NEW.due_s - START_S, boot_s=7.0))
    assert (after.phase, after.until_boot_s, act) == (Phase.ASKING, 7.0 + ANSWER_S_MAX, Act.ASK_BROKER)


def test_a_fleet_that_was_enrolled_at_once_does_not_ask_at_once() -> None:
    """Ten thousand devices: no hour of the 7.5 days sees more than twice its even share."""
    due = sorted(replace(NEW, place=n / 10_000).due_s for n in range(10_000))
    assert due[0] - START_S == pytest.approx(60 * DAY_S)
    assert due[-1] - START_S < 67.5 * DAY_S
    hours: dict[int, int] = {}
    for at_s in due:
        hours[int(at_s // 3600)] = hours.get(int(at_s // 3600), 0) + 1
    assert max(hours.values()) <= 2 * 10_000 / (7.5 * 24)


def test_without_a_connection_it_waits_until_the_certificate_has_ended() -> None:
    assert step(NEW, look(LIFE_S - 1, connected=False)) == (NEW, None)
    after, act = step(NEW, look(LIFE_S, connected=False))
    assert (after.phase, act) == (Phase.ASKING, Act.ASK_REGISTRY)


def test_an_ended_certificate_is_renewed_over_a_connection_that_still_stands() -> None:
    assert step(NEW, look(LIFE_S + DAY_S))[1] is Act.ASK_BROKER


def test_a_refusal_by_the_broker_leads_to_the_registry() -> None:
    barred, act = step(NEW, Barred(reason=WHY))
    assert (barred.refused, barred.why, act) == (True, WHY, None)
    assert step(barred, look(0.0, connected=False))[1] is Act.ASK_REGISTRY
    assert step(barred, look(0.0))[1] is None
    again, _ = step(barred, Connected())
    assert (again.refused, again.why) == (False, None)


def test_why_the_registry_refused_outlives_the_brokers_words() -> None:
    refused, _ = step(
        asking(refused=True), Failed(reason=Reason(code="revoked", detail=""), boot_s=0.0, unit=0.0)
    )
    assert step(refused, Barred(reason=WHY))[0].why == Reason(code="revoked", detail="")
    passing = Reason(code="too_many", detail="")
    failed, _ = step(asking(), Failed(reason=passing, boot_s=0.0, unit=0.0))
    assert step(failed, Barred(reason=WHY))[0].why == WHY
    standing, _ = step(replace(refused, refused=False), Connected())
    assert standing.why == Reason(code="revoked", detail="")


# --- answers ------------------------------------------------------------------------------------------


def test_no_answer_is_a_failure_after_its_time() -> None:
    assert step(asking(), look(0.0, boot_s=ANSWER_S_MAX - 1)) == (asking(), None)
    after, act = step(asking(), look(0.0, boot_s=ANSWER_S_MAX))
    assert act is None
    assert after.why is not None
    assert (after.phase, after.failures, after.why.code) == (Phase.RESTING, 1, "no_answer")
    assert after.again_boot_s > ANSWER_S_MAX


def test_nothing_is_asked_before_the_wait_is_over() -> None:
    after, _ = step(asking(), Failed(reason=WHY, boot_s=100.0, unit=0.0))
    assert after.again_boot_s == 100.0 + WAIT_S / 2
    due_s = NEW.due_s - START_S
    assert step(after, look(due_s, boot_s=after.again_boot_s - 0.1)) == (after, None)
    assert step(after, look(due_s, boot_s=after.again_boot_s))[1] is Act.ASK_BROKER


def test_a_new_certificate_waits_for_a_quiet_moment() -> None:
    holding, act = step(asking(why=WHY), Granted())
    assert (holding.phase, holding.why, act) == (Phase.HOLDING, None, None)
    assert step(holding, look(0.0, quiet=False)) == (holding, None)
    for event in (look(0.0), look(0.0, quiet=False, connected=False), look(LIFE_S, quiet=False)):
        after, act = step(holding, event)
        assert (after.phase, act) == (Phase.PROVING, Act.RECONNECT)


def test_an_accepted_one_begins_anew() -> None:
    accepted = Accepted(not_before_s=5.0, not_after_s=9.0, place=0.5, boot_s=3.0)
    for phase in (Phase.HOLDING, Phase.PROVING):
        before = replace(NEW, phase=phase, failures=3, again_boot_s=9.0, refused=True, why=WHY)
        after, act = step(before, accepted)
        new = Renewing(not_before_s=5.0, not_after_s=9.0, place=0.5, again_boot_s=3.0 + WAIT_S)
        assert (after, act) == (new, None)


def test_certificates_that_are_due_at_once_do_not_chase_one_another() -> None:
    brief = Accepted(not_before_s=START_S, not_after_s=START_S + 60.0, place=0.0, boot_s=3.0)
    accepted, _ = step(replace(NEW, phase=Phase.PROVING), brief)
    assert step(accepted, look(50.0, boot_s=2.9 + WAIT_S)) == (accepted, None)
    assert step(accepted, look(50.0, boot_s=3.0 + WAIT_S))[1] is Act.ASK_BROKER


def test_a_rejected_one_is_asked_for_anew_after_a_while() -> None:
    after, act = step(
        replace(NEW, phase=Phase.PROVING, failures=2), Rejected(reason=WHY, boot_s=9.0, unit=0.0)
    )
    assert (after.phase, after.failures, after.why, act) == (Phase.RESTING, 3, WHY, None)
    assert after.again_boot_s == 9.0 + WAIT_S * 4 / 2


def test_waits_double_up_to_an_hour_and_lasting_refusals_take_a_day() -> None:
    assert [wait_s(n, "x", 0.0) for n in (1, 2, 3)] == [WAIT_S / 2, WAIT_S, WAIT_S * 2]
    assert wait_s(1, "x", 1.0) == WAIT_S
    assert wait_s(40, "x", 1.0) == WAIT_S_MAX
    assert {wait_s(1, code, 1.0) for code in LASTING} == {SELDOM_S}


def test_new_and_old_certificate_take_turns() -> None:
    turns = "".join("n" if prefers_new(attempt) else "o" for attempt in range(3 * ATTEMPTS_EACH))
    assert turns == "n" * ATTEMPTS_EACH + "o" * ATTEMPTS_EACH + "n" * ATTEMPTS_EACH


# --- the whole table ----------------------------------------------------------------------------------


# Each phase, and where an event leads from it; "." changes nothing at all. The look is one at the end of the
# certificate's life, connected, with all waits over.
GRID = """
         Looked   Granted  Failed   Accepted  Rejected  Connected  Barred
resting  asking   .        .        resting   resting   resting    resting
asking   resting  holding  resting  resting   .         asking     asking
holding  proving  .        .        resting   resting   holding    holding
proving  .        .        .        resting   resting   resting    proving
"""


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_event_in_every_phase(phase: Phase, event: Event) -> None:
    head, *rows = [line.split() for line in GRID.strip().splitlines()]
    row = next(row for row in rows if row[0] == phase)
    expected = row[1 + head.index(type(event).__name__)]
    state = replace(NEW, phase=phase, until_boot_s=10.0, refused=not isinstance(event, Barred))
    if isinstance(event, Looked):
        event = look(LIFE_S, boot_s=10.0)
    after, _ = step(state, event)
    assert ((phase, type(event)) not in TABLE) == (expected == "." and not isinstance(event, Looked))
    assert after == state if expected == "." else after.phase == expected and after != state


KINDS = ("look", "look", "look", "granted", "failed", "accepted", "rejected", "connected", "barred")


def events() -> st.SearchStrategy[tuple[str, float, bool, bool, float, str]]:
    return st.tuples(
        st.sampled_from(KINDS),
        st.floats(0.0, 20 * DAY_S), st.booleans(), st.booleans(), st.floats(0.0, 1.0, exclude_max=True),
        st.sampled_from(["registry_unreachable", "revoked", "too_many"]),
    )  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(events(), max_size=60), st.floats(0.0, 1.0, exclude_max=True))
def test_whatever_happens(course: list[tuple[str, float, bool, bool, float, str]], place: float) -> None:
    """Asked when due, ended or refused only; never twice at once; with a pause after every failure."""
    state = replace(NEW, place=place)
    boot_s = failed_at_s = float("-inf")
    boot_s = 0.0
    for kind, passed_s, connected, quiet, unit, code in course:
        boot_s += passed_s
        now_s, before = START_S + boot_s, state
        reason = Reason(code=code, detail="")
        event: Event = {
            "look": Looked(now_s=now_s, boot_s=boot_s, connected=connected, quiet=quiet),
            "granted": Granted(),
            "failed": Failed(reason=reason, boot_s=boot_s, unit=unit),
            "accepted": Accepted(not_before_s=now_s, not_after_s=now_s + LIFE_S, place=place, boot_s=boot_s),
            "rejected": Rejected(reason=reason, boot_s=boot_s, unit=unit),
            "connected": Connected(),
            "barred": Barred(reason=reason),
        }[kind]  # type: ignore[assignment]
        state, act = step(state, event)
        if act in {Act.ASK_BROKER, Act.ASK_REGISTRY}:
            assert before.phase is Phase.RESTING or (before.phase is Phase.PROVING and not connected)
            assert before.phase is not Phase.RESTING or boot_s >= failed_at_s + WAIT_S / 2
            assert (act is Act.ASK_BROKER) == connected
            assert now_s >= before.due_s if connected else before.refused or now_s >= before.not_after_s
        if act is Act.RECONNECT:
            assert before.phase is Phase.HOLDING
            assert quiet or not connected or now_s >= before.not_after_s
        if state.failures > before.failures:
            failed_at_s = boot_s
            longest_s = SELDOM_S if state.why is not None and state.why.code in LASTING else WAIT_S_MAX
            assert boot_s + WAIT_S / 2 <= state.again_boot_s <= boot_s + longest_s
        if (state.not_before_s, state.not_after_s) != (before.not_before_s, before.not_after_s):
            assert isinstance(event, Accepted)
            failed_at_s = boot_s
        assert state.phase is not Phase.ASKING or state.until_boot_s > 0


def test_it_never_stays_where_it_is_for_ever() -> None:
    """From every phase, with time and a connection alone, it comes to ask again."""
    for phase in Phase:
        state = replace(NEW, phase=phase)
        boot_s, seen = 0.0, set()
        for _ in range(5):
            boot_s += 2 * DAY_S
            state, act = step(state, look(LIFE_S, boot_s=boot_s))
            seen.add(act)
            if act is Act.RECONNECT:
                state, _ = step(state, Rejected(reason=WHY, boot_s=boot_s, unit=0.5))
        assert phase is Phase.PROVING or Act.ASK_BROKER in seen


@pytest.mark.parametrize("phase", Phase)
def test_cut_off_it_comes_to_ask_the_registry(phase: Phase) -> None:
    """From every phase, refused by the broker or with an ended certificate."""
    for ended in (True, False):
        state, seen = replace(NEW, phase=phase), set()
        for n in range(6):
            state, _ = step(state, Barred(reason=WHY))
            state, act = step(state, look(LIFE_S if ended else 0.0, boot_s=n * 2 * DAY_S, connected=False))
            seen.add(act)
        assert Act.ASK_REGISTRY in seen


def test_while_two_certificates_take_turns_nobody_is_asked() -> None:
    holding = replace(NEW, phase=Phase.HOLDING)
    proving, _ = step(holding, look(0.0, boot_s=5.0))
    barred, _ = step(proving, Barred(reason=WHY))
    limit_s = 5.0 + renewing.PROVING_S_MAX
    assert step(barred, look(LIFE_S, boot_s=limit_s - 1, connected=False)) == (barred, None)
    asking_now, act = step(barred, look(0.0, boot_s=limit_s, connected=False))
    assert (asking_now.until_boot_s, act) == (limit_s + ANSWER_S_MAX, Act.ASK_REGISTRY)
    assert step(barred, look(0.0, boot_s=limit_s)) == (barred, None)
    assert step(proving, look(0.0, boot_s=limit_s, connected=False)) == (proving, None)
    assert step(proving, look(LIFE_S, boot_s=limit_s, connected=False))[1] is Act.ASK_REGISTRY
    assert step(barred, Connected())[0] == replace(NEW, until_boot_s=limit_s)


def test_the_docstring_draws_the_phases() -> None:
    assert all(phase in str(renewing.__doc__) for phase in Phase)
