"""PURE. The state of one model on this device, and the events that may change it.

For: the nouns of the lifecycle. `Deployment` is also the form on disk (`agent.journal` puts a version
and a checksum around it), so a field may be added with a default and never change its meaning.
Not for: what follows from an event (`agent.lifecycle`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

from agent.soak import Baseline
from wire.messages import (
    ContentFetched,
    DesiredModel,
    ModelState,
    OrderOutcome,
    Phase,
    Reason,
    ReportEvent,
    Slot,
    TrialSummary,
)
from wire.types import Count, Digest, ModelName, VariantId

BLOCKED_MAX = 64
MISSING_MAX = 64

BEFORE_SWITCH = (Phase.ADMITTING, Phase.FETCHING, Phase.VERIFYING, Phase.TRIALING)
"""Phases that have not touched what runs: work in them can simply be dropped."""


class Block(Struct, frozen=True, kw_only=True):
    """A release that a rollback refused, until an order above `order` names it again."""

    digest: Digest
    order: Count


class Standing(Struct, frozen=True, kw_only=True):
    """What REVERTING restores."""

    active: Slot | None = None
    previous: Slot | None = None
    degraded: bool = False


class Ending(Struct, frozen=True, kw_only=True):
    """How the order will have ended once REVERTING is through."""

    outcome: OrderOutcome
    reason: Reason | None = None


class Waiting(Struct, frozen=True, kw_only=True):
    """An order that begins when SWITCHING and REVERTING are through.

    Attributes:
        left_s: what is left of its deadline where it had begun before; None for a new order.
    """

    desired: DesiredModel
    source: Literal["desired", "command"] = "desired"
    left_s: float | None = None


class Notice(Struct, frozen=True, kw_only=True):
    """Something to report; journaled with the change that caused it, cleared once it is in the outbox."""

    order: Count = 0
    digest: Digest | None = None
    event: ReportEvent


class Deployment(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model on this device.

    Attributes:
        model: its name.
        active: slot that `current` points to (during SWITCHING: the one that is being left).
        previous: slot that a rollback goes to.
        phase: piece of work that is being done.
        desired: the order in flight; None while idle and while an earlier release is rolled back.
        source: whether the order came in the desired document or in a command.
        variants: allowed variants, best first; known after ADMITTING where the order left it open.
        refused: variants of this order that were refused.
        order: last order taken up, in flight or ended.
        order_highest: highest order seen in any message, refused ones too.
        outcome: how `order` ended; None while in flight.
        reason: why it ended or waits.
        trial: last trial of the order.
        degraded: `active` runs on a variant that was not the first allowed one.
        blocked: releases refused by rollbacks.
        missing: digests that the broker does not seem to hold.
        restore: what REVERTING goes back to; set from SWITCHING on.
        ending: how the order ends after REVERTING; set in SWITCHING when the order is already lost.
        waiting: a newer order that begins when this one is through.
        left_s: seconds until the phase's deadline, on a clock that runs while the device runs.
        soaked_s: seconds of the soak that are done.
        baseline: what the soak compares with, from before the switch.
        boots: starts of the daemon without progress.
        attempts: failures in a row of this piece of work.
        serial: number of the piece of work; outcomes of an older one are ignored.
        notices: reports not yet in the outbox.
    """

    model: ModelName
    active: Slot | None = None
    previous: Slot | None = None
    phase: Phase = Phase.IDLE
    desired: DesiredModel | None = None
    source: Literal["desired", "command"] = "desired"
    variants: tuple[VariantId, ...] = ()
    refused: tuple[VariantId, ...] = ()
    order: Count = 0
    order_highest: Count = 0
    outcome: OrderOutcome | None = None
    reason: Reason | None = None
    trial: TrialSummary | None = None
    degraded: bool = False
    blocked: tuple[Block, ...] = ()
    missing: tuple[Digest, ...] = ()
    restore: Standing | None = None
    ending: Ending | None = None
    waiting: Waiting | None = None
    left_s: float = 0.0
    soaked_s: float = 0.0
    baseline: Baseline | None = None
    boots: int = 0
    attempts: int = 0
    serial: int = 0
    notices: tuple[Notice, ...] = ()

    @property
    def candidate(self) -> Slot | None:
        """The slot that the order in flight would fill: its first variant that is not refused."""
        if self.desired is None:
            return None
        left = [variant for variant in self.variants if variant not in self.refused]
        if not left:
            return None
        wanted = self.desired
        return Slot(digest=wanted.digest, release=wanted.release, variant=left[0], order=wanted.order)

    def blocks(self, digest: str) -> bool:
        """Whether a rollback refused this release."""
        return any(block.digest == digest for block in self.blocked)

    @property
    def kept(self) -> tuple[Slot, ...]:
        """Slots that pruning must not touch."""
        restore = self.restore or Standing()
        slots: Iterable[Slot | None] = (
            self.active,
            self.previous,
            restore.active,
            restore.previous,
            self.candidate,
        )
        return tuple(slot for slot in slots if slot is not None)

    @property
    def current(self) -> Slot | None:
        """The slot that `current` must point to when the daemon starts in this state."""
        if self.phase is Phase.REVERTING and self.restore is not None:
            return self.restore.active
        return self.active


def model_state(deployment: Deployment) -> ModelState:
    """The deployment as it is reported."""
    d = deployment
    return ModelState(
        active=d.active,
        previous=d.previous,
        phase=d.phase,
        order=d.order,
        order_highest=d.order_highest,
        in_flight=d.desired.digest if d.desired else None,
        outcome=d.outcome,
        reason=d.reason,
        trial=d.trial,
        degraded=d.degraded,
        blocked=tuple(block.digest for block in d.blocked),
        missing=d.missing[:MISSING_MAX],
    )


# --- events -----------------------------------------------------------------------------------------


class Ordered(Struct, frozen=True, kw_only=True):
    """The signed desired document, or an evaluate command, names this model."""

    desired: DesiredModel
    source: Literal["desired", "command"] = "desired"


class Cancelled(Struct, frozen=True, kw_only=True):
    """The desired document was cleared or no longer names this model."""


class RollbackAsked(Struct, frozen=True, kw_only=True):
    """Leave release `digest`, if it is active or in flight."""

    digest: Digest
    order: Count


class Admitted(Struct, frozen=True, kw_only=True):
    """ADMITTING went well.

    Attributes:
        variants: all allowed ones, best first.
        refused: those that this machine cannot run, each with the reason.
    """

    serial: int
    variants: tuple[VariantId, ...]
    refused: tuple[tuple[VariantId, Reason], ...] = ()


class Progressed(Struct, frozen=True, kw_only=True):
    """FETCHING stored chunks, or learned what the broker lacks."""

    serial: int
    missing: tuple[Digest, ...] = ()
    stored: bool = True


class Done(Struct, frozen=True, kw_only=True):
    """The piece of work went well.

    Attributes:
        fetched: what FETCHING has to tell.
        baseline: what was so before SWITCHING.
        untold: why the application could not be told that REVERTING went back.
    """

    serial: int
    fetched: ContentFetched | None = None
    baseline: Baseline | None = None
    untold: str | None = None


class Trialed(Struct, frozen=True, kw_only=True):
    """The candidate was trialed and judged."""

    serial: int
    trial: TrialSummary


class Failed(Struct, frozen=True, kw_only=True):
    """The piece of work failed, or may not begin yet.

    Attributes:
        jitter: random number in [0, 1) for the wait before the next try.
        not_yet: a precondition does not hold, or it is no time to fetch: nothing failed.
        again_s_max: the next try is no later than this.
    """

    serial: int
    reason: Reason
    jitter: float = 0.5
    not_yet: bool = False
    again_s_max: float | None = None


class Booted(Struct, frozen=True, kw_only=True):
    """The daemon started and found this state."""


class Ticked(Struct, frozen=True, kw_only=True):
    """Time passed while the device ran."""

    elapsed_s: float


class DeadlinePassed(Struct, frozen=True, kw_only=True):
    """`left_s` is used up."""


class Hurt(Struct, frozen=True, kw_only=True):
    """An installed release that is not what was installed.

    Attributes:
        slot: which.
        detail: what was found, and why it could not be mended.
        repaired: it is whole again.
    """

    slot: Slot
    detail: str
    repaired: bool = False


class Damaged(Struct, frozen=True, kw_only=True):
    """A look at what is installed found damage."""

    hurts: tuple[Hurt, ...]


Event = (
    Ordered
    | Cancelled
    | RollbackAsked
    | Admitted
    | Progressed
    | Done
    | Trialed
    | Failed
    | Booted
    | Ticked
    | DeadlinePassed
    | Damaged
)


class Work(Struct, frozen=True, kw_only=True):
    """One idempotent piece of work: that of `phase`.

    Attributes:
        phase: which piece.
        serial: to be named in its outcome.
        after_s: to wait before it begins.
        undo: SWITCHING after a crash: put `current` back before switching again.
    """

    phase: Phase
    serial: int
    after_s: float = 0.0
    undo: bool = False


class Bounds(Struct, frozen=True, kw_only=True):
    """The limits that the lifecycle itself keeps.

    Attributes:
        boots_max: starts without progress before it gives up to the last good release.
        backoff_s_base: mean-free ceiling of the first wait.
        backoff_s_max: ceiling of every wait.
        switching_s_max: for SWITCHING, the application's hook included.
        soaking_s_grace: on top of the soak itself.
        reverting_s_max: after which REVERTING begins again.
    """

    boots_max: int = 3
    backoff_s_base: float = 2.0
    backoff_s_max: float = 300.0
    switching_s_max: float = 300.0
    soaking_s_grace: float = 300.0
    reverting_s_max: float = 300.0
