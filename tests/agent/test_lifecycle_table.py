"""The table: every row is reached, every declared way is taken, unknown pairs are refused, rules by name."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Literal, get_args

import pytest
from msgspec.structs import replace

from agent.deployment import (
    BEFORE_SWITCH,
    Admitted,
    Block,
    Booted,
    Bounds,
    Cancelled,
    Damaged,
    DeadlinePassed,
    Deployment,
    Done,
    Ending,
    Event,
    Failed,
    Ordered,
    Progressed,
    RollbackAsked,
    Standing,
    Ticked,
    Trialed,
    Waiting,
    Work,
    model_state,
)
from agent.errors import LifecycleError
from agent.lifecycle import TABLE, diagram, step
from agent.moves import backoff_s, failure_of
from tests.agent.world import DIGESTS, VARIANTS, desired, hunt, summary
from wire.messages import (
    OrderEnded,
    OrderOutcome,
    OrderRefused,
    Phase,
    PhaseChanged,
    Reason,
    Slot,
    VariantRefused,
)
from wire.sla import Outcome

A, B, C = DIGESTS
SLOT_A = Slot(digest=A, release="a", variant=VARIANTS[0], order=1)
SLOT_B = Slot(digest=B, release="b", variant=VARIANTS[0], order=2)
SLOT_C = Slot(digest=C, release="c", variant=VARIANTS[0], order=3)
RUNNING = Deployment(model="m", active=SLOT_B, previous=SLOT_A, order=2, order_highest=2)
RETRY = Reason(code="disk_full", lasting="retry")
FINAL = Reason(code="model_load_failed")


def in_phase(phase: Phase, **changes: object) -> Deployment:
    """Release C under order 3 in `phase`, over B with A before it."""
    d = Deployment(
        model="m", active=SLOT_B, previous=SLOT_A, phase=phase, order=3, order_highest=3, serial=7,
        desired=None if phase is Phase.IDLE else desired(3, C), variants=VARIANTS, left_s=100.0,
    )  # fmt: skip
    if phase in {Phase.SWITCHING, Phase.SOAKING, Phase.REVERTING}:
        d = replace(d, restore=Standing(active=SLOT_B, previous=SLOT_A))
    if phase in {Phase.SOAKING, Phase.REVERTING}:
        d = replace(d, active=SLOT_C, previous=SLOT_B)
    if phase is Phase.REVERTING:
        d = replace(d, ending=Ending(outcome=OrderOutcome.FELL_BACK, reason=FINAL))
    return replace(d, **changes)


def sample(kind: type) -> Event:
    samples: dict[type, Event] = {
        Ordered: Ordered(desired=desired(9, A)),
        Cancelled: Cancelled(),
        RollbackAsked: RollbackAsked(digest=C, order=9),
        Admitted: Admitted(serial=7, variants=VARIANTS),
        Progressed: Progressed(serial=7),
        Done: Done(serial=7),
        Trialed: Trialed(serial=7, trial=summary(VARIANTS[0])),
        Failed: Failed(serial=7, reason=RETRY),
        Booted: Booted(),
        Ticked: Ticked(elapsed_s=1.0),
        DeadlinePassed: DeadlinePassed(),
        Damaged: Damaged(hurts=()),
    }
    return samples[kind]


EVENTS: tuple[type, ...] = get_args(Event)
PAIRS = list(itertools.product(Phase, EVENTS))


@pytest.mark.parametrize(("phase", "kind"), PAIRS, ids=lambda x: getattr(x, "__name__", str(x)))
def test_every_pair_is_a_row_or_refused_by_name(phase: Phase, kind: type) -> None:
    d = in_phase(phase)
    if (phase, kind) in TABLE:
        after, work = step(d, sample(kind))
        assert work is None or (work.phase is after.phase and work.serial == after.serial)
        return
    with pytest.raises(LifecycleError) as refused:
        step(d, sample(kind))
    assert refused.value.code == "unexpected_event"
    assert kind.__name__ in str(refused.value)


def test_chance_reaches_every_row_and_every_declared_way() -> None:
    rows: set[tuple[Phase, type]] = set()
    ways: set[tuple[Phase, type, Phase]] = set()

    def watched(d: Deployment, event: Event, bounds: Bounds) -> tuple[Deployment, Work | None]:
        after, work = step(d, event, bounds)
        rows.add((d.phase, type(event)))
        ways.add((d.phase, type(event), after.phase))
        return after, work

    hunt(watched, range(900))
    assert rows >= set(TABLE)
    declared = {(phase, kind, target) for (phase, kind), row in TABLE.items() for target in row.targets}
    assert declared - ways == set()


@pytest.mark.parametrize("phase", [p for p in Phase if p is not Phase.IDLE])
def test_the_outcome_of_older_work_changes_nothing(phase: Phase) -> None:
    d = in_phase(phase)
    for event in (Done(serial=6), Failed(serial=6, reason=FINAL), Admitted(serial=6, variants=())):
        assert step(d, event) == (d, None)


def test_a_newer_order_goes_through_all_phases_to_active() -> None:
    d, work = step(RUNNING, Ordered(desired=desired(3, C, soak_s=5)))
    seen = [d.phase]
    while work is not None:
        event: Event = Done(serial=work.serial)
        if work.phase is Phase.ADMITTING:
            event = Admitted(serial=work.serial, variants=VARIANTS)
        if work.phase is Phase.TRIALING:
            event = Trialed(serial=work.serial, trial=summary(VARIANTS[0]))
        d, work = step(d, event)
        seen.append(d.phase)
    assert seen == ["admitting", "fetching", "verifying", "trialing", "switching", "soaking", "idle"]
    assert d.outcome is OrderOutcome.ACTIVE
    assert (d.active, d.previous) == (replace(SLOT_C, release=C[:3]), SLOT_B)
    assert not d.degraded


def test_an_order_for_what_runs_already_ends_at_once() -> None:
    d, work = step(RUNNING, Ordered(desired=desired(5, B)))
    assert work is None
    assert d.outcome is OrderOutcome.ACTIVE
    assert d.active == replace(SLOT_B, order=5)


def test_the_second_variant_is_degraded() -> None:
    d = in_phase(Phase.SWITCHING, refused=(VARIANTS[0],))
    d, _ = step(d, Done(serial=7))
    assert d.phase is Phase.SOAKING
    assert d.degraded
    assert d.active is not None
    assert d.active.variant == VARIANTS[1]


@pytest.mark.parametrize("order", [1, 2])
def test_a_stale_order_is_refused_with_the_highest_seen(order: int) -> None:
    d, work = step(replace(RUNNING, order=1 if order == 2 else 2), Ordered(desired=desired(order, C)))
    assert work is None
    refusal = d.notices[-1].event
    assert isinstance(refusal, OrderRefused)
    assert (refusal.reason.code, refusal.order_highest) == ("stale_order", 2)


def test_the_same_order_again_is_ignored() -> None:
    assert step(RUNNING, Ordered(desired=desired(2, B))) == (RUNNING, None)


@pytest.mark.parametrize("phase", BEFORE_SWITCH)
def test_before_the_switch_a_newer_order_drops_the_work(phase: Phase) -> None:
    d, work = step(in_phase(phase), Ordered(desired=desired(9, A)))
    assert d.phase is Phase.ADMITTING
    assert work is not None
    ended = [n.event for n in d.notices if isinstance(n.event, OrderEnded)]
    assert [e.outcome for e in ended] == [OrderOutcome.SUPERSEDED]
    assert d.active == SLOT_B


def test_a_switch_completes_before_it_is_superseded() -> None:
    d, work = step(in_phase(Phase.SWITCHING), Ordered(desired=desired(9, A)))
    assert (d.phase, work) == (Phase.SWITCHING, None)
    d, work = step(d, Done(serial=7))
    assert d.phase is Phase.REVERTING
    assert work is not None
    d, _ = step(d, Done(serial=work.serial))
    assert (d.phase, d.active, d.previous, d.order) == (Phase.ADMITTING, SLOT_B, SLOT_A, 9)


@pytest.mark.parametrize(("phase", "then"), [(Phase.SOAKING, Phase.REVERTING), (Phase.FETCHING, Phase.IDLE)])
def test_a_cleared_order_is_cancelled(phase: Phase, then: Phase) -> None:
    d, _ = step(in_phase(phase), Cancelled())
    assert d.phase is then
    assert d.reason is not None
    assert d.reason.code == "cancelled"


def test_a_document_does_not_cancel_what_a_command_asked_for() -> None:
    d = in_phase(Phase.FETCHING, source="command")
    assert step(d, Cancelled()) == (d, None)


def test_a_rollback_goes_to_the_previous_release_and_blocks_the_one_it_leaves() -> None:
    d, work = step(RUNNING, RollbackAsked(digest=B, order=4))
    assert d.phase is Phase.REVERTING
    assert d.current == SLOT_A
    assert work is not None
    d, _ = step(d, Done(serial=work.serial))
    assert (d.active, d.previous, d.outcome, d.order) == (SLOT_A, None, OrderOutcome.ROLLED_BACK, 2)
    assert d.blocked == (Block(digest=B, order=4),)
    again, work = step(d, RollbackAsked(digest=B, order=4))
    assert work is None, "a redelivery must not swap anything"
    assert again.active == SLOT_A


def test_a_blocked_release_comes_back_only_by_a_higher_order() -> None:
    d = replace(RUNNING, active=SLOT_A, previous=None, blocked=(Block(digest=B, order=4),), order_highest=4)
    same, work = step(d, Ordered(desired=desired(4, B)))
    assert (work, same.blocked) == (None, d.blocked)
    higher, work = step(d, Ordered(desired=desired(5, B)))
    assert higher.blocked == ()
    assert work is not None


def test_a_blocked_release_is_nobodys_way_back() -> None:
    d = replace(RUNNING, blocked=(Block(digest=A, order=2),))
    after, work = step(d, RollbackAsked(digest=B, order=4))
    assert work is None
    refusal = after.notices[-1].event
    assert isinstance(refusal, OrderRefused)
    assert refusal.reason.code == "no_previous"


@pytest.mark.parametrize("phase", list(Phase))
def test_a_rollback_of_something_else_is_not_applicable(phase: Phase) -> None:
    d = in_phase(phase)
    after, work = step(d, RollbackAsked(digest="f" * 64, order=9))
    refusal = after.notices[-1].event
    assert isinstance(refusal, OrderRefused)
    assert refusal.reason.code == "not_applicable"
    assert work is None
    assert replace(after, notices=(), order_highest=3) == d


def test_leaving_the_active_release_lets_the_order_in_flight_begin_again() -> None:
    d, work = step(in_phase(Phase.TRIALING), RollbackAsked(digest=B, order=9))
    assert d.waiting == Waiting(desired=desired(3, C), left_s=100.0)
    assert work is not None
    d, _ = step(d, Done(serial=work.serial))
    assert (d.phase, d.active, d.left_s) == (Phase.ADMITTING, SLOT_A, 100.0)


def test_during_a_switch_the_release_that_is_left_stops_being_the_way_back() -> None:
    d, _ = step(in_phase(Phase.SWITCHING), RollbackAsked(digest=B, order=9))
    assert d.restore == Standing(active=SLOT_A)


@pytest.mark.parametrize("phase", [Phase.FETCHING, Phase.TRIALING])
def test_a_variant_that_fails_for_good_gives_way_to_the_next(phase: Phase) -> None:
    d, work = step(in_phase(phase), Failed(serial=7, reason=FINAL))
    assert (d.phase, d.refused) == (Phase.FETCHING, VARIANTS[:1])
    assert work is not None
    assert any(isinstance(n.event, VariantRefused) for n in d.notices)
    d, _ = step(replace(d, phase=phase), Failed(serial=work.serial, reason=FINAL))
    assert (d.phase, d.outcome, d.reason) == (Phase.IDLE, OrderOutcome.FAILED, FINAL)


@pytest.mark.parametrize(
    ("outcome", "phase"),
    [
        (Outcome.PASS, Phase.SWITCHING),
        (Outcome.INCONCLUSIVE, Phase.SWITCHING),
        (Outcome.FAIL, Phase.FETCHING),
        (Outcome.UNMEASURED, Phase.FETCHING),
    ],
)
def test_only_an_activatable_verdict_leads_to_the_switch(outcome: Outcome, phase: Phase) -> None:
    d, _ = step(in_phase(Phase.TRIALING), Trialed(serial=7, trial=summary(VARIANTS[0], outcome)))
    assert d.phase is phase


def test_a_trial_of_another_variant_does_not_count() -> None:
    d, _ = step(in_phase(Phase.TRIALING), Trialed(serial=7, trial=summary(VARIANTS[1])))
    assert d.phase is Phase.FETCHING
    assert d.refused == VARIANTS[:1]


def test_an_evaluation_tries_every_variant_and_switches_to_none() -> None:
    d = in_phase(Phase.TRIALING, desired=desired(3, C, mode="evaluate"))
    d, work = step(d, Trialed(serial=7, trial=summary(VARIANTS[0], Outcome.FAIL)))
    assert d.phase is Phase.FETCHING
    assert work is not None
    d, _ = step(replace(d, phase=Phase.TRIALING), Trialed(serial=work.serial, trial=summary(VARIANTS[1])))
    assert (d.phase, d.outcome, d.active) == (Phase.IDLE, OrderOutcome.EVALUATED, SLOT_B)


@pytest.mark.parametrize("phase", [*BEFORE_SWITCH, Phase.SWITCHING, Phase.SOAKING])
def test_a_boot_loop_is_given_up_to_the_last_good(phase: Phase) -> None:
    d = in_phase(phase)
    for _ in range(3):
        d, work = step(d, Booted())
        assert d.phase is phase
        assert work is not None
        assert work.undo is (phase is Phase.SWITCHING)
    d, work = step(d, Booted())
    assert d.reason is not None
    assert d.reason.code == "boot_loop"
    if phase in BEFORE_SWITCH:
        assert (d.phase, d.outcome, d.active) == (Phase.IDLE, OrderOutcome.FAILED, SLOT_B)
    else:
        assert d.phase is Phase.REVERTING
        assert d.current == SLOT_B


def test_progress_begins_the_count_of_boots_anew() -> None:
    d, _ = step(in_phase(Phase.FETCHING, boots=3), Progressed(serial=7, stored=True))
    assert d.boots == 0
    d, _ = step(in_phase(Phase.FETCHING, boots=3), Progressed(serial=7, missing=(A,), stored=False))
    assert (d.boots, d.missing) == (3, (A,))


def test_the_soak_goes_on_where_it_was() -> None:
    d, _ = step(in_phase(Phase.SOAKING, soaked_s=10.0), Ticked(elapsed_s=5.0))
    d, work = step(d, Booted())
    assert d.soaked_s == 15.0
    assert work is not None
    assert work.phase is Phase.SOAKING


@pytest.mark.parametrize("waits", [True, False])
def test_a_deadline_ends_an_order_with_the_reason_it_waited_for(*, waits: bool) -> None:
    d = in_phase(Phase.FETCHING, reason=RETRY if waits else None)
    d, _ = step(d, DeadlinePassed())
    assert (d.phase, d.outcome) == (Phase.IDLE, OrderOutcome.FAILED)
    assert d.reason is not None
    assert d.reason.code == ("disk_full" if waits else "deadline_passed")


@pytest.mark.parametrize("phase", [Phase.SWITCHING, Phase.REVERTING])
def test_from_the_switch_on_a_deadline_is_renewed(phase: Phase) -> None:
    d, _ = step(in_phase(phase, left_s=0.0), DeadlinePassed())
    assert (d.phase, d.left_s > 0) == (phase, True)
    assert d.reason is not None


def test_a_full_disk_in_a_switch_is_waited_for_and_each_try_undone() -> None:
    d, work = step(in_phase(Phase.SWITCHING, attempts=2), Failed(serial=7, reason=RETRY, jitter=1.0))
    assert (d.phase, d.attempts, d.reason, d.ending) == (Phase.SWITCHING, 3, RETRY, None)
    assert work == Work(phase=Phase.SWITCHING, serial=8, after_s=8.0, undo=True)


def test_a_switch_that_is_undone_anyway_is_not_waited_for() -> None:
    ending = Ending(outcome=OrderOutcome.SUPERSEDED)
    d, _ = step(in_phase(Phase.SWITCHING, ending=ending), Failed(serial=7, reason=RETRY))
    assert (d.phase, d.ending) == (Phase.REVERTING, ending)


def test_a_switch_that_can_never_succeed_goes_back_at_once() -> None:
    d, _ = step(in_phase(Phase.SWITCHING), Failed(serial=7, reason=FINAL))
    assert (d.phase, d.ending) == (Phase.REVERTING, Ending(outcome=OrderOutcome.FELL_BACK, reason=FINAL))


def test_a_disk_that_stays_full_ends_the_switch_and_is_named() -> None:
    d, _ = step(in_phase(Phase.SWITCHING), Failed(serial=7, reason=RETRY))
    d, work = step(d, DeadlinePassed())
    assert (d.phase, work) == (Phase.SWITCHING, None)
    d, _ = step(d, Failed(serial=8, reason=RETRY))
    assert d.phase is Phase.REVERTING
    assert d.reason is not None
    assert d.reason.code == "switch_timeout"
    assert RETRY.code in d.reason.detail


def test_a_first_install_that_fails_leaves_the_slot_empty() -> None:
    d = in_phase(Phase.SOAKING, previous=None, restore=Standing())
    d, work = step(d, Failed(serial=7, reason=Reason(code="health_failed", detail="down")))
    assert work is not None
    d, _ = step(d, Done(serial=work.serial))
    assert (d.active, d.outcome) == (None, OrderOutcome.FELL_BACK)
    assert d.reason is not None
    assert d.reason.code == "no_previous"
    assert "health_failed" in d.reason.detail


@pytest.mark.parametrize(
    ("attempts", "jitter", "wait_s"), [(0, 0.5, 1.0), (3, 1.0, 16.0), (60, 1.0, 300.0), (5, 0.0, 0.0)]
)
def test_the_wait_grows_is_random_and_is_capped(attempts: int, jitter: float, wait_s: float) -> None:
    assert backoff_s(attempts, jitter, Bounds()) == wait_s


def test_a_retry_waits_and_says_what_for() -> None:
    d, work = step(in_phase(Phase.FETCHING, attempts=2), Failed(serial=7, reason=RETRY, jitter=1.0))
    assert work is not None
    assert (d.phase, d.attempts, d.reason, work.after_s) == (Phase.FETCHING, 3, RETRY, 8.0)


def test_what_did_not_survive_on_the_disk_is_fetched_again() -> None:
    d, work = step(in_phase(Phase.VERIFYING, attempts=1), Failed(serial=7, reason=RETRY, jitter=1.0))
    assert work is not None
    assert (d.phase, d.attempts, work.after_s) == (Phase.FETCHING, 2, 4.0)


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome.FAIL, "accuracy_below_limit"),
        (Outcome.UNMEASURED, "accuracy_unmeasured"),
        (Outcome.PASS, "not_activatable"),
    ],
)
def test_a_refused_variant_names_the_limit(outcome: Outcome, code: str) -> None:
    assert failure_of(summary(VARIANTS[0], outcome).verdict).code == code


def test_each_phase_that_is_entered_is_told_once() -> None:
    d, _ = step(RUNNING, Ordered(desired=desired(3, C)))
    phases: list[Literal["admitting"] | Phase] = [
        n.event.phase for n in d.notices if isinstance(n.event, PhaseChanged)
    ]
    assert phases == ["admitting"]


def test_the_reported_state_says_what_is_in_flight() -> None:
    state = model_state(in_phase(Phase.FETCHING, missing=(A,), blocked=(Block(digest=B, order=1),)))
    assert (state.in_flight, state.missing, state.blocked, state.phase) == (C, (A,), (B,), Phase.FETCHING)
    assert state.active == SLOT_B


def test_the_drawing_is_in_step_with_the_table() -> None:
    page = Path(__file__).parents[2] / "docs" / "lifecycle.md"
    assert f"```mermaid\n{diagram()}```" in page.read_text(encoding="utf-8"), (
        "run `python -m agent.lifecycle` and put its output into docs/lifecycle.md"
    )
