"""PURE. What is done next in a rollout: `create()`, `advance()` and a person's verbs.

For: `create()` from a person's request; `advance(rollout, facts, now)`, level-triggered and idempotent:
it may be called at any moment, any number of times, and the same facts never give the same order twice;
`pause`, `resume` and `abort`, and `approve` from `fleet.approval`.
Not for: storing, publishing or signing; the conductor turns orders into desired documents and commands
in the transaction that stores the rollout. Whether a wave may be followed is `fleet.gates`' question,
what became of a device `fleet.evidence`'s; the types stand in `fleet.rollout_types` and are given on.

The rules (DESIGN.md sections 1 and 5):
- No order reaches a device beyond the open wave. A device holds its place once it was ordered.
- Only devices that are there (`seen_within_s`) and whose hardware may run a variant are counted; whoever
  appears later takes a place in the open wave as far as it has one. A device that has its order and is
  not heard of any more does not drop out of the count: it becomes silent.
- Success is what the device itself reports, and only as long as it does. A failure once seen stays.
- A failed gate is acted upon even while paused: a pause stops promotion, not caution.
- Every state that is not an end names in `waiting_for` what it waits for, and has a time-out: a device
  that gives no outcome becomes silent, and a wave without a device to judge pauses at its deadline.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from msgspec.structs import replace

from fleet.approval import approve, held, open_to_approval, reconsidered, require_askable
from fleet.evidence import Standing
from fleet.gates import Decision, Gate, GateVerdict, check_proofs, evaluate
from fleet.inventory import Device
from fleet.rollout_types import (
    ENDS,
    HISTORY_MAX,
    LEFT_OUT_MAX,
    TRANSITIONS,
    Assignment,
    Deploy,
    DesiredNow,
    Event,
    Facts,
    FailureAction,
    Order,
    ReleaseFacts,
    Request,
    Restore,
    Rollout,
    RolloutError,
    RolloutState,
    VerdictRecord,
    release_facts,
    transition,
)
from fleet.selection import (
    WAVES_MAX,
    Wave,
    allowed_variants,
    in_order,
    matches,
    parse_selector,
    parse_waves,
    shards_for,
    wave_size,
)
from fleet.witness import evidence_of, samples_of
from wire.messages import DesiredModel, Slot

__all__ = [
    "ENDS",
    "TRANSITIONS",
    "Assignment",
    "Deploy",
    "DesiredNow",
    "Event",
    "Facts",
    "FailureAction",
    "Gate",
    "GateVerdict",
    "Order",
    "ReleaseFacts",
    "Request",
    "Restore",
    "Rollout",
    "RolloutError",
    "RolloutState",
    "abort",
    "advance",
    "approve",
    "create",
    "pause",
    "release_facts",
    "resume",
    "transition",
]


def create(
    rollout_id: str,
    request: Request,
    order: int,
    rollback_order: int,
    facts: Facts,
    now: float,
    started_by: str = "",
) -> Rollout:
    """A new rollout, pending, nothing ordered yet.

    Args:
        rollout_id: unique.
        request: what was asked for.
        order: reserved from the fleet-wide counter.
        rollback_order: reserved too, above `order`.
        facts: of now; they decide whether requested proofs can be reached.
        now: seconds on the registry's clock.
        started_by: name of the person.

    Raises:
        SelectorError: selector or waves cannot be read.
        LimitsError: `proof_unreachable`: the fleet is too small for a requested proof.
        RolloutError: `orders_reversed`: `rollback_order` is not above `order`; `wrong_release`: the
            facts are of another release than the request; `approval_needs_waves`, `approval_needs_tokens`.
    """
    parse_selector(request.selector)
    waves = parse_waves(request.waves)
    require_askable(request.approval, len(waves), started_by)
    if rollback_order <= order:
        raise RolloutError(
            "orders_reversed",
            f"rollback order {rollback_order} must be above order {order}; reserve both in this sequence",
        )
    if request.digest != facts.release.digest:
        raise RolloutError(
            "wrong_release",
            f"asked for {request.digest[:12]}, the facts are of {facts.release.digest[:12]}",
        )
    rollout = Rollout(
        id=rollout_id,
        request=request,
        salt=rollout_id,
        order=order,
        rollback_order=rollback_order,
        created_at=now,
        started_by=started_by,
        waiting_for=_NOBODY.format(request.selector),
    )
    candidates, _ = _candidates(rollout, facts, now)
    reached = wave_size(waves, max(0, len(waves) - 2), candidates)
    check_proofs(request.gate, reached, samples_of(rollout, facts.release, reached))
    return rollout


_NOBODY = "a device that is there and matches {}"


def advance(rollout: Rollout, facts: Facts, now: float) -> tuple[Rollout, tuple[Order, ...]]:
    """What follows from the facts: the rollout as it is now, and the orders to give.

    Idempotent: `advance` of its own result, with the same facts and time, gives no orders and the same
    rollout.

    Ensures: orders go only to devices that have none from this rollout and that the open wave contains,
    or take back those whose desired order is this rollout's own.
    """
    orders: list[Order] = []
    # A round that asks for another one has opened a wave or reached devices, so there cannot be more.
    for _ in range(WAVES_MAX + len(facts.devices) + 1):
        if rollout.ended:
            break
        rollout, given, again = _round(rollout, facts, now)
        orders += given
        if not again:
            break
    return rollout, tuple(orders)


_Round = tuple[Rollout, tuple[Order, ...], bool]


def _round(rollout: Rollout, facts: Facts, now: float) -> _Round:
    """One look at the facts; whether another is needed because this one changed them."""
    candidates, left_out = _candidates(rollout, facts, now)
    rollout = replace(rollout, left_out=left_out)
    if rollout.wave is None:
        return _begin(rollout, facts, candidates, now)
    members = _members(rollout, rollout.wave, facts, candidates)
    rollout = _judged(rollout, facts, now, len(members))
    decision = Decision.WAIT if rollout.verdict is None else rollout.verdict.decision
    rollout = reconsidered(rollout, may_follow=decision is Decision.PASS)
    if decision is Decision.FAIL:
        return (*_failed(rollout, facts, now), False)
    if rollout.state is RolloutState.PAUSED or (decision is Decision.WAIT and not members):
        return rollout, (), False
    if decision is Decision.INCONCLUSIVE:
        return _inconclusive(rollout, rollout.reason), (), False
    if members:
        return _reach(rollout, facts, members, now)
    promoted = _promoted(rollout, now)
    return promoted, (), promoted.wave != rollout.wave


def _begin(rollout: Rollout, facts: Facts, candidates: Sequence[Device], now: float) -> _Round:
    """Opens the first wave as soon as it has a device."""
    if rollout.state is RolloutState.PAUSED:
        return rollout, (), False
    if _members(rollout, 0, facts, candidates):
        return _opened(rollout, 0, now), (), True
    since = rollout.created_at if rollout.resumed_at is None else rollout.resumed_at
    waiting_for = _NOBODY.format(rollout.request.selector)
    if candidates:
        first = parse_waves(rollout.request.waves)[0]
        waiting_for = _NOBODY.format(f"the first wave, {first}")
    if now - since >= rollout.request.deadline_s:
        return _inconclusive(rollout, f"waited until the deadline for {waiting_for}"), (), False
    return replace(rollout, waiting_for=waiting_for), (), False


# --- who is reached -----------------------------------------------------------------------------------


def _candidates(rollout: Rollout, facts: Facts, now: float) -> tuple[list[Device], dict[str, str]]:
    """Devices that may yet be reached, and those that match but may not, each with the reason."""
    selector = parse_selector(rollout.request.selector)
    candidates: list[Device] = []
    left_out: dict[str, str] = {}
    for device in facts.devices.values():
        if device.id in rollout.assignments or not matches(selector, device):
            continue
        why_not = _why_not(rollout, facts, device, now)
        if not why_not:
            candidates.append(device)
        else:
            left_out[device.id] = why_not
    return candidates, dict(islice(sorted(left_out.items()), LEFT_OUT_MAX))


def _why_not(rollout: Rollout, facts: Facts, device: Device, now: float) -> str:
    """Why a device that matches does not count; empty if it does."""
    desired = facts.desired.get(device.id)
    if device.duplicate_identity:
        return "two machines answer under this id"
    if not device.seen_within(rollout.request.seen_within_s, now):
        return f"not heard of for {rollout.request.seen_within_s:g} s"
    if device.hardware is None:
        return "has not said what machine it is"
    if not _allowed(facts, device):
        runtimes = ", ".join(_runtimes(device)) or "unknown runtimes"
        return f"no variant of the release runs on its {device.hardware.arch} with {runtimes}"
    if desired is not None and desired.order > rollout.order:
        return f"has a newer order, {desired.order}"
    return ""


def _members(rollout: Rollout, wave: int, facts: Facts, candidates: Sequence[Device]) -> list[Device]:
    """Devices that wave `wave` contains and that have no order yet, in their order.

    The wave's size counts all devices, those with an order included; forgotten devices left their place.
    """
    waves = parse_waves(rollout.request.waves)
    placed = [facts.devices[name] for name in rollout.assignments if name in facts.devices]
    room = wave_size(waves, wave, [*placed, *candidates]) - len(placed)
    return in_order(waves, rollout.salt, candidates)[: max(0, room)]


def _reach(rollout: Rollout, facts: Facts, members: Sequence[Device], now: float) -> _Round:
    """Gives the wave's next devices their order, as many as the pace allows."""
    pace = rollout.request.pace_per_minute
    recent = sum(now - assignment.at < 60.0 for assignment in rollout.assignments.values())
    taken = members if pace is None else members[: max(0, pace - recent)]
    if not taken:
        waiting_for = f"its pace of {pace} a minute: {len(members)} devices of the wave have no order yet"
        return replace(rollout, waiting_for=waiting_for), (), False
    first = len(rollout.assignments)
    made = {
        device.id: _assignment(rollout, facts, device, first + index, now)
        for index, device in enumerate(taken)
    }
    rollout = replace(rollout, assignments={**rollout.assignments, **made})
    return rollout, tuple(_deploy(rollout, name) for name in made), True


def _assignment(rollout: Rollout, facts: Facts, device: Device, rank: int, now: float) -> Assignment:
    state = device.models.get(rollout.request.model)
    return Assignment(
        order=rollout.order,
        variants=_allowed(facts, device),
        shards=shards_for(rank, len(facts.release.shard_samples), rollout.request.shards_per_device),
        wave=0 if rollout.wave is None else rollout.wave,
        rank=rank,
        at=now,
        before=None if state is None else state.active,
    )


def _allowed(facts: Facts, device: Device) -> tuple[str, ...]:
    """Variants that a device may run, in the manifest's order; none for one that has not said what it is."""
    if device.hardware is None:
        return ()
    return allowed_variants(facts.release.variants, device.hardware, _runtimes(device))


def _runtimes(device: Device) -> tuple[str, ...]:
    identity = device.identity
    return () if identity is None else tuple(runtime.name for runtime in identity.runtimes)


def _deploy(rollout: Rollout, device: str) -> Deploy:
    request, assignment = rollout.request, rollout.assignments[device]
    desired = DesiredModel(
        order=assignment.order,
        digest=request.digest,
        release=request.release,
        variants=assignment.variants,
        mode=request.mode,
        shards=assignment.shards,
        soak_s=request.soak_s,
        deadline_s=request.deadline_s,
        rollout=rollout.id,
    )
    return Deploy(device=device, model=request.model, desired=desired)


# --- what is judged -----------------------------------------------------------------------------------


def _judged(rollout: Rollout, facts: Facts, now: float, unreached: int) -> Rollout:
    """The rollout with failures noted, the gate's verdict, and the history if the verdict changed."""
    evidence = evidence_of(rollout, facts, now, unreached)
    verdict = evaluate(rollout.request.gate, evidence)
    noted = dict(rollout.assignments)
    for device in evidence.devices:
        if device.standing is Standing.FAILED and noted[device.device].failure is None:
            noted[device.device] = replace(noted[device.device], failure=device.detail)
    paused = rollout.state is RolloutState.PAUSED
    return replace(
        rollout,
        assignments=noted,
        verdict=verdict,
        reason=rollout.reason if paused else verdict.reason,
        waiting_for=rollout.waiting_for if paused else verdict.reason,
        history=_history(rollout, verdict, now),
    )


def _history(rollout: Rollout, verdict: GateVerdict, now: float) -> tuple[VerdictRecord, ...]:
    wave = rollout.wave or 0
    last = rollout.history[-1] if rollout.history else None
    if last is not None and (last.wave, last.decision) == (wave, verdict.decision.value):
        return rollout.history
    record = VerdictRecord(at=now, wave=wave, decision=verdict.decision.value, reason=verdict.reason)
    return (*rollout.history, record)[-HISTORY_MAX:]


# --- what follows -------------------------------------------------------------------------------------


def _opened(rollout: Rollout, wave: int, now: float) -> Rollout:
    state = transition(rollout.state, Event.OPEN)
    return replace(rollout, state=state, wave=wave, opened_at=now, verdict=None)


def _promoted(rollout: Rollout, now: float) -> Rollout:
    """The next wave open or waiting for a second person, or the rollout completed after the last."""
    waves: tuple[Wave, ...] = parse_waves(rollout.request.waves)
    following = 0 if rollout.wave is None else rollout.wave + 1
    if following < len(waves) and open_to_approval(rollout):
        return held(rollout)
    if following < len(waves):
        return _opened(rollout, following, now)
    state = transition(rollout.state, Event.COMPLETE)
    reason = f"{len(rollout.assignments)} devices were reached, {len(rollout.left_out)} were left out"
    return replace(rollout, state=state, ended_at=now, reason=reason, waiting_for="")


_PERSON = "a person: resume or abort"


def _inconclusive(rollout: Rollout, reason: str) -> Rollout:
    state = transition(rollout.state, Event.INCONCLUSIVE)
    return replace(rollout, state=state, reason=reason, waiting_for=_PERSON)


def _failed(rollout: Rollout, facts: Facts, now: float) -> tuple[Rollout, tuple[Order, ...]]:
    state = transition(rollout.state, Event.FAIL)
    reason = "" if rollout.verdict is None else rollout.verdict.reason
    ended = replace(rollout, state=state, ended_at=now, reason=reason, waiting_for="")
    return _taken_back(ended, rollout.request.on_failure, facts)


def _taken_back(rollout: Rollout, action: FailureAction, facts: Facts) -> tuple[Rollout, tuple[Order, ...]]:
    """The orders of a failure action, and the rollout with the devices noted that got one."""
    if action is FailureAction.HALT:
        return rollout, ()
    orders = []
    for name, assignment in rollout.assignments.items():
        if action is FailureAction.ROLLBACK_WAVE and assignment.wave != rollout.wave:
            continue
        if _is_ours_to_take_back(rollout, facts, name, assignment):
            orders.append(_restore(rollout, facts, name, assignment))
    restored = (*rollout.restored, *(order.device for order in orders))
    return replace(rollout, restored=restored), tuple(orders)


def _is_ours_to_take_back(rollout: Rollout, facts: Facts, name: str, assignment: Assignment) -> bool:
    """Its desired order is this rollout's own, and it did not run the release before."""
    desired = facts.desired.get(name)
    own = desired is not None and desired.order == rollout.order
    had_it_before = assignment.before is not None and assignment.before.digest == rollout.request.digest
    return own and not had_it_before and name not in rollout.restored


def _restore(rollout: Rollout, facts: Facts, name: str, assignment: Assignment) -> Restore:
    return Restore(
        device=name,
        model=rollout.request.model,
        from_digest=rollout.request.digest,
        to=_good(rollout, facts.devices.get(name), assignment),
        order=rollout.rollback_order,
    )


def _good(rollout: Rollout, device: Device | None, assignment: Assignment) -> Slot | None:
    """What the device holds once this release is taken back: by its own report, else as remembered.

    Where the release is active it goes back to its previous slot; else what is active stays. A blocked
    release is never a rollback's target.
    """
    state = None if device is None else device.models.get(rollout.request.model)
    slots = [assignment.before]
    if state is not None:
        slots = [state.active, state.previous, assignment.before]
    blocked = {rollout.request.digest, *(() if state is None else state.blocked)}
    return next((slot for slot in slots if slot is not None and slot.digest not in blocked), None)


# --- a person's verbs ---------------------------------------------------------------------------------


def pause(rollout: Rollout, why: str) -> Rollout:
    """The rollout, opening no further wave and reaching no further device until resumed.

    Devices that have their order go on, and a failed gate is still acted upon.

    Raises:
        RolloutError: `illegal_transition`: it is neither pending nor running.
    """
    state = transition(rollout.state, Event.PAUSE)
    return replace(rollout, state=state, reason=why or "paused by a person", waiting_for=_PERSON)


def resume(rollout: Rollout, now: float) -> Rollout:
    """The rollout, running again; devices that were silent have their time anew.

    A gate that is inconclusive for another reason pauses it again at the next `advance`.

    Raises:
        RolloutError: `illegal_transition`: it is not paused.
    """
    state = transition(rollout.state, Event.RESUME)
    return replace(rollout, state=state, resumed_at=now, reason="resumed", waiting_for="the next look")


def abort(
    rollout: Rollout,
    action: FailureAction,
    facts: Facts,
    now: float,
    event: Event = Event.ABORT,
    by: str = "a person",
) -> tuple[Rollout, tuple[Order, ...]]:
    """The rollout, ended by a person, and the orders that `action` asks for.

    Args:
        rollout: to end.
        action: what becomes of the devices that it reached.
        facts: of now.
        now: seconds.
        event: ABORT, or REJECT where it is held for approval.
        by: who ends it, and why.

    Raises:
        RolloutError: `illegal_transition`: it is completed or aborted already, or rejected and not held.
    """
    state = transition(rollout.state, event)
    reason = f"{'rejected' if event is Event.REJECT else 'aborted'} by {by} ({action.value})"
    ended = replace(rollout, state=state, ended_at=now, reason=reason, waiting_for="")
    return _taken_back(ended, action, facts)
