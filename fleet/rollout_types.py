"""PURE. The types of a rollout: what is asked, remembered, known and ordered, and the table of its states.

For: plain frozen data that the registry stores and reads back, and `transition`, which reads the table.
Not for: deciding anything; `fleet.rollout` does.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from msgspec import Meta, Struct

from fleet.gates import Gate, GateVerdict
from fleet.inventory import Device
from fleet.selection import VariantNeeds
from wire.bundle import Manifest
from wire.errors import ShallopError
from wire.messages import DesiredModel, Slot
from wire.sla import Limits

HISTORY_MAX = 200
"""Verdicts kept; the oldest are dropped first."""

LEFT_OUT_MAX = 200
"""Devices named as left out, each with its reason."""


class RolloutError(ShallopError):
    """A rollout cannot be made as asked, or a verb does not fit its state."""


class RolloutState(StrEnum):
    """Where a rollout is."""

    PENDING = "pending"
    """Made; no device that is there matches yet."""
    RUNNING = "running"
    PAUSED = "paused"
    """By a person, or because a gate was inconclusive; devices that have orders go on."""
    UNAPPROVED = "unapproved"
    """Its first wave passed and it asked for a second person, who has said nothing yet."""
    COMPLETED = "completed"
    HALTED = "halted"
    """A gate failed; the failure action has been ordered."""
    ABORTED = "aborted"
    """By a person."""


ENDS = frozenset({RolloutState.COMPLETED, RolloutState.HALTED, RolloutState.ABORTED})
"""States from which `advance` does nothing more."""


class Event(StrEnum):
    """What moves a rollout between states."""

    OPEN = "open"
    COMPLETE = "complete"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
    HOLD = "hold"
    RECONSIDER = "reconsider"
    APPROVE = "approve"
    REJECT = "reject"


_S, _E = RolloutState, Event
TRANSITIONS: dict[tuple[RolloutState, Event], RolloutState] = {
    (_S.PENDING, _E.OPEN): _S.RUNNING,
    (_S.PENDING, _E.INCONCLUSIVE): _S.PAUSED,
    (_S.PENDING, _E.PAUSE): _S.PAUSED,
    (_S.PENDING, _E.ABORT): _S.ABORTED,
    (_S.RUNNING, _E.OPEN): _S.RUNNING,
    (_S.RUNNING, _E.COMPLETE): _S.COMPLETED,
    (_S.RUNNING, _E.FAIL): _S.HALTED,
    (_S.RUNNING, _E.INCONCLUSIVE): _S.PAUSED,
    (_S.RUNNING, _E.PAUSE): _S.PAUSED,
    (_S.RUNNING, _E.ABORT): _S.ABORTED,
    (_S.RUNNING, _E.HOLD): _S.UNAPPROVED,
    (_S.UNAPPROVED, _E.RECONSIDER): _S.RUNNING,
    (_S.UNAPPROVED, _E.APPROVE): _S.RUNNING,
    (_S.UNAPPROVED, _E.REJECT): _S.ABORTED,
    (_S.UNAPPROVED, _E.PAUSE): _S.PAUSED,
    (_S.UNAPPROVED, _E.ABORT): _S.ABORTED,
    (_S.PAUSED, _E.FAIL): _S.HALTED,
    (_S.PAUSED, _E.RESUME): _S.RUNNING,
    (_S.PAUSED, _E.ABORT): _S.ABORTED,
    (_S.HALTED, _E.ABORT): _S.ABORTED,
}
"""The whole table; a pair that is not in it is an error. An abort after a halt lets a person roll back
what `on_failure: halt` left on the devices."""


def transition(state: RolloutState, event: Event) -> RolloutState:
    """The state that follows.

    Raises:
        RolloutError: `illegal_transition`: the pair is not in the table; the message names what is.
    """
    after = TRANSITIONS.get((state, event))
    if after is None:
        possible = sorted(e.value for s, e in TRANSITIONS if s is state)
        raise RolloutError(
            "illegal_transition",
            f"a rollout that is {state.value} cannot {event.value}; "
            f"possible: {', '.join(possible) or 'nothing, it has ended'}",
        )
    return after


class FailureAction(StrEnum):
    """What is done with devices that have the release when a gate fails or a person aborts."""

    HALT = "halt"
    """Nothing more is ordered; devices keep what they have."""
    ROLLBACK_WAVE = "rollback_wave"
    """Devices ordered while the open wave was open go back."""
    ROLLBACK_ALL = "rollback_all"
    """All devices of the rollout go back."""


class Request(Struct, frozen=True, kw_only=True):
    """What a person asks for.

    Attributes:
        model: of the release.
        digest: of the release.
        release: its name.
        selector: text in the language of `fleet.selection`.
        waves: text such as `1,50%,100%` or `label.ring=canary,10%,100%`.
        gate: conditions between waves.
        soak_s: how long an application must stay healthy after the switch.
        deadline_s: from the order's arrival until a device gives up; also how long an empty wave waits.
        mode: deploy, or evaluate: trial and report without activating.
        on_failure: what a failed gate does.
        pace_per_minute: orders a minute at most; None: as many as the wave allows.
        seen_within_s: devices not heard of for longer do not count.
        shards_per_device: validation shards that each device's trial takes.
        approval: whether a second person must agree before the second wave.
    """

    model: str
    digest: str
    release: str
    selector: str = "all"
    waves: str = "1,50%,100%"
    gate: Gate = Gate()
    soak_s: Annotated[float, Meta(ge=0.0)] = 60.0
    deadline_s: Annotated[float, Meta(gt=0.0)] = 86400.0
    mode: Literal["deploy", "evaluate"] = "deploy"
    on_failure: FailureAction = FailureAction.ROLLBACK_ALL
    pace_per_minute: Annotated[int, Meta(ge=1)] | None = None
    seen_within_s: Annotated[float, Meta(gt=0.0)] = 7 * 86400.0
    shards_per_device: Annotated[int, Meta(ge=1)] = 1
    approval: bool = False


class Assignment(Struct, frozen=True, kw_only=True):
    """A device's place in a rollout; made once, with its order.

    Attributes:
        order: number of the order.
        variants: that the device may run, best first.
        shards: validation shards of its trial.
        wave: that was open.
        rank: 0 for the first device of the rollout.
        at: when, seconds on the registry's clock.
        before: what ran then, as far as known.
        failure: what went wrong, once anything did; it stays, whatever the device reports later.
    """

    order: int
    variants: tuple[str, ...]
    shards: tuple[int, ...]
    wave: int
    rank: int
    at: float
    before: Slot | None = None
    failure: str | None = None


class VerdictRecord(Struct, frozen=True, kw_only=True):
    """A verdict when it changed."""

    at: float
    wave: int
    decision: str
    reason: str


class Rollout(Struct, frozen=True, kw_only=True):
    """All that a rollout remembers; plain data that msgspec writes and reads back.

    Attributes:
        id: for people, logs and desired documents.
        request: what was asked for.
        salt: orders the devices; the id unless made otherwise.
        order: number of every order that this rollout gives; from the fleet-wide counter.
        rollback_order: number of every order that takes it back; higher than `order`.
        state: see RolloutState.
        created_at: seconds on the registry's clock, as all times here.
        wave: index of the open wave; None before the first.
        opened_at: when it opened.
        resumed_at: when a person last resumed; the silence of devices is counted anew from there.
        ended_at: when it reached an end.
        assignments: by device, in the order in which they were made.
        restored: devices that were told to go back.
        left_out: devices that match and are not counted, each with the reason; at most LEFT_OUT_MAX.
        reason: why the state is what it is.
        waiting_for: what it still waits for; empty at an end.
        verdict: the last one of the open wave's gate.
        history: verdicts when they changed.
        started_by: name of the person; empty where a registry of before knew none.
        approved_by: name of the second person; empty until one agreed.
    """

    id: str
    request: Request
    salt: str
    order: int
    rollback_order: int
    state: RolloutState = RolloutState.PENDING
    created_at: float
    wave: int | None = None
    opened_at: float | None = None
    resumed_at: float | None = None
    ended_at: float | None = None
    assignments: dict[str, Assignment] = {}
    restored: tuple[str, ...] = ()
    left_out: dict[str, str] = {}
    reason: str = ""
    waiting_for: str = ""
    verdict: GateVerdict | None = None
    history: tuple[VerdictRecord, ...] = ()
    started_by: str = ""
    approved_by: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.state in ENDS


class DesiredNow(Struct, frozen=True, kw_only=True):
    """What a device's desired document says about the rollout's model at this moment.

    Attributes:
        order: of the entry.
        rollout: that gave it; None for a person's own order.
    """

    order: int
    rollout: str | None = None


class ReleaseFacts(Struct, frozen=True, kw_only=True):
    """What a rollout needs to know of its release's manifest.

    Attributes:
        digest: of the release.
        variants: in the manifest's order, with what they require.
        shard_samples: samples of each validation shard.
        limits: the SLA.
    """

    digest: str
    variants: tuple[VariantNeeds, ...]
    shard_samples: tuple[int, ...] = ()
    limits: Limits = Limits()


class Facts(Struct, frozen=True, kw_only=True):
    """The world as the registry knows it, read in the transaction that stores the result.

    Attributes:
        devices: views of all devices, by id; forgotten ones are absent.
        desired: of each device, the entry for this rollout's model; absent where there is none.
        release: of the rollout.
    """

    devices: dict[str, Device]
    desired: dict[str, DesiredNow]
    release: ReleaseFacts


class Deploy(Struct, frozen=True, kw_only=True, tag="deploy"):
    """Put `desired` into the device's desired document under `model`."""

    device: str
    model: str
    desired: DesiredModel


class Restore(Struct, frozen=True, kw_only=True, tag="restore"):
    """Take `from_digest` back on the device, with the rollback order `order`.

    Attributes:
        device: whose desired order is this rollout's own.
        model: concerned.
        from_digest: the release taken back; for the rollback command's `from`.
        to: what its desired document names from now on, as the device will hold it; None: nothing good
            is known, the model's entry is removed.
        order: the rollout's `rollback_order`.
    """

    device: str
    model: str
    from_digest: str
    to: Slot | None
    order: int


Order = Deploy | Restore


def release_facts(digest: str, manifest: Manifest) -> ReleaseFacts:
    """What a rollout needs of a manifest."""
    variants = tuple(
        VariantNeeds(id=v.id, runtime=v.runtime, requires=v.requires, size_bytes=v.size_bytes)
        for v in manifest.variants
    )
    samples = tuple(shard.n_samples for shard in manifest.validation)
    return ReleaseFacts(digest=digest, variants=variants, shard_samples=samples, limits=manifest.sla)
