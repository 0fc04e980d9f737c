"""PURE. A second person: a rollout that asked for one opens no second wave before somebody else agreed.

For: when a rollout is held after its first wave, when that is taken back, and whose word counts.
Not for: the rest of a rollout's life (`fleet.rollout`), or who a person is: names come from tokens.

Held means: the first wave's gate passes and everybody in it was reached. If that ceases to be so (a device
falls back, another joins the wave), the rollout runs on until it is so again; a word given once stays.
"""

from __future__ import annotations

from msgspec.structs import replace

from fleet.audit import ANYBODY, REGISTRY
from fleet.rollout_types import Event, Rollout, RolloutError, RolloutState, transition

NOBODY = frozenset({"", ANYBODY, REGISTRY})
"""Names that stand for no person."""


def require_askable(approval: bool, waves: int, started_by: str) -> None:
    """Returns if a rollout of that many waves can be approved, or needs no approval.

    Raises:
        RolloutError: `approval_needs_waves`: with one wave there is nothing left to approve, and whoever
            may not go beyond a first wave alone must not call everything a first wave;
            `approval_needs_tokens`: nobody can be told from anybody.
    """
    if not approval:
        return
    if waves < 2:
        raise RolloutError(
            "approval_needs_waves",
            "this rollout needs the approval of a second person after its first wave, and it has only one; "
            "give it two or more, such as --waves 1,100%",
        )
    if started_by.casefold() in NOBODY:
        raise RolloutError(
            "approval_needs_tokens",
            "an approval is by another person than the one who starts, and without tokens the registry knows "
            "nobody; make them by `shallop-fleet tokens create NAME --scope operate`",
        )


def open_to_approval(rollout: Rollout) -> bool:
    """Whether a further wave needs a word that nobody gave yet."""
    return rollout.request.approval and not rollout.approved_by


def held(rollout: Rollout) -> Rollout:
    """The rollout, waiting for its second person. Requires: its wave may be followed."""
    state = rollout.state
    if state is not RolloutState.UNAPPROVED:
        state = transition(state, Event.HOLD)
    return replace(
        rollout,
        state=state,
        reason="the first wave passed its gate",
        waiting_for=f"the approval of another person than {rollout.started_by}: rollout approve or reject",
    )


def reconsidered(rollout: Rollout, may_follow: bool) -> Rollout:
    """The rollout, running again if it was held and its wave may not be followed as things stand now."""
    if may_follow or rollout.state is not RolloutState.UNAPPROVED:
        return rollout
    return replace(rollout, state=transition(rollout.state, Event.RECONSIDER))


def approve(rollout: Rollout, who: str, why: str) -> Rollout:
    """The rollout, running, with the word of a second person.

    Raises:
        RolloutError: `illegal_transition`: it is not held; `same_person`; `approver_unknown`: nobody.
    """
    state = transition(rollout.state, Event.APPROVE)
    if who.casefold() in NOBODY:
        raise RolloutError("approver_unknown", f"{who or 'nobody'} is no person; approve with your own token")
    if who.casefold() == rollout.started_by.casefold():
        raise RolloutError(
            "same_person",
            f"{rollout.started_by} started {rollout.id}, so somebody else must approve it; you may reject it",
        )
    said = f": {why}" if why else ""
    return replace(
        rollout, state=state, approved_by=who, reason=f"approved by {who}{said}", waiting_for="the next look"
    )
