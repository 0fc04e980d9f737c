"""PURE. One frozen type per MQTT payload, each with its kind and version.

For: the words that agent and fleet say to each other; docs/protocol.md explains the conversation.
Not for: bytes (`wire.codec`), authority (`wire.trust`), where they are sent (`wire.topics`).

Every message carries `kind` (the struct's tag) and `version`. Unknown fields are ignored; an unknown
kind or a newer major version is refused by name. Times are RFC 3339 text and information only: nothing
is decided by another machine's clock.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from msgspec import Meta, Struct

from wire.certificates import Certificate, CertificateRefused, Renewal
from wire.deltas import HINTS_MAX, DeltaHint
from wire.measures import TrialResult
from wire.sla import Verdict
from wire.types import (
    Code,
    Count,
    DeviceId,
    Digest,
    Fraction,
    GroupName,
    InstallId,
    ModelName,
    Name,
    Positive,
    ReleaseName,
    Seconds,
    Text,
    VariantId,
)

VERSION = 1

MODELS_MAX = 64
"""Models on one device."""
BARRED_MAX = 1000
"""Releases in one list of barred ones."""


class Phase(StrEnum):
    """Where a deployment is on the device; see agent/lifecycle for the table."""

    IDLE = "idle"
    ADMITTING = "admitting"
    FETCHING = "fetching"
    VERIFYING = "verifying"
    TRIALING = "trialing"
    SWITCHING = "switching"
    SOAKING = "soaking"
    REVERTING = "reverting"


class OrderOutcome(StrEnum):
    """How an order ended on a device."""

    ACTIVE = "active"
    """The release ran through its soak and is the active one: the only success."""
    EVALUATED = "evaluated"
    """Mode evaluate: trialed and reported, not activated."""
    FAILED = "failed"
    """Refused before it was active; the incumbent never stopped."""
    FELL_BACK = "fell_back"
    """It was active and the device went back by itself."""
    ROLLED_BACK = "rolled_back"
    """It was active or in flight and a command took it back."""
    SUPERSEDED = "superseded"
    """A newer order came first."""


class Reason(Struct, frozen=True, kw_only=True):
    """Why something is as it is.

    Attributes:
        code: stable name, such as `disk_full`, `accuracy_below_limit`, `hash_mismatch`.
        detail: the same for a person, with figures.
        lasting: `retry` heals by itself (disk, network, window, thermal), `final` does not.
    """

    code: Code
    detail: Text = ""
    lasting: Literal["retry", "final"] = "final"


class Slot(Struct, frozen=True, kw_only=True):
    """What stands in a slot."""

    digest: Digest
    release: ReleaseName
    variant: VariantId
    order: Count = 0
    adopted: bool = False


class TrialSummary(Struct, frozen=True, kw_only=True):
    """A trial with its verdict."""

    result: TrialResult
    verdict: Verdict


# --- up: agent to fleet -----------------------------------------------------------------------------


class Up(Struct, frozen=True, kw_only=True):
    """What every message from a device carries.

    Attributes:
        device: the sender, equal to the topic's.
        install_id: random per state directory; alternating ids under one device are two machines.
        number: rises with every message of its kind from this install.
    """

    version: int = VERSION
    device: DeviceId
    install_id: InstallId
    number: Count


class Status(Up, frozen=True, kw_only=True, tag_field="kind", tag="status"):
    """Online or not; also the last will.

    `number` is the persisted connection counter: a will of an older connection that arrives late has a
    lower number and is ignored.
    """

    online: bool
    agent_version: Name
    at: Text = ""


class RuntimeInfo(Struct, frozen=True, kw_only=True):
    """An installed inference runtime."""

    name: Name
    version: Name


class Hardware(Struct, frozen=True, kw_only=True):
    """The machine as it was found; None or empty is unknown, and so is the 0 of an older agent."""

    arch: Name
    cpu: Name = "unknown"
    board: Name = "unknown"
    cpu_features: Annotated[tuple[Name, ...], Meta(max_length=512)] = ()
    cores: Count | None = None
    memory_bytes: Count | None = None
    power_sensor: Name | None = None


class Identity(Up, frozen=True, kw_only=True, tag_field="kind", tag="identity"):
    """What the device is; `labels` are suggestions, the registry's own labels decide."""

    hardware: Hardware
    runtimes: Annotated[tuple[RuntimeInfo, ...], Meta(max_length=32)] = ()
    agent_version: Name
    os: Name = "unknown"
    disk_free_bytes: Count | None = None
    labels: dict[str, str] = {}


class ModelState(Struct, frozen=True, kw_only=True):
    """One model on one device.

    Attributes:
        active: slot that `current` points to; None before the first good release.
        previous: slot that a rollback goes to.
        phase: of the deployment in flight, idle if there is none.
        order: the last order taken up (in flight or ended).
        order_highest: highest order seen in any message, refused ones too.
        in_flight: release of that order while it is in flight.
        outcome: how `order` ended; None while in flight.
        reason: why it ended or waits.
        trial: the last trial of that order.
        degraded: active on a variant that was not the first allowed one.
        blocked: releases refused until a higher order names them again.
        missing: digests that the broker does not hold though they are needed; publish them again.
    """

    active: Slot | None = None
    previous: Slot | None = None
    phase: Phase = Phase.IDLE
    order: Count = 0
    order_highest: Count = 0
    in_flight: Digest | None = None
    outcome: OrderOutcome | None = None
    reason: Reason | None = None
    trial: TrialSummary | None = None
    degraded: bool = False
    blocked: Annotated[tuple[Digest, ...], Meta(max_length=64)] = ()
    missing: Annotated[tuple[Digest, ...], Meta(max_length=64)] = ()


class Reported(Up, frozen=True, kw_only=True, tag_field="kind", tag="reported"):
    """The whole truth of a device, retained: a registry that was down reads this and is whole again."""

    models: Annotated[dict[ModelName, ModelState], Meta(max_length=MODELS_MAX)]


class PhaseChanged(Struct, frozen=True, kw_only=True, tag_field="type", tag="phase_changed"):
    """The deployment entered `phase`."""

    phase: Phase
    variant: VariantId | None = None
    reason: Reason | None = None


class TrialEnded(Struct, frozen=True, kw_only=True, tag_field="type", tag="trial_ended"):
    """A variant was trialed and judged."""

    trial: TrialSummary


class VariantRefused(Struct, frozen=True, kw_only=True, tag_field="type", tag="variant_refused"):
    """A variant could not be trialed or missed a limit; the next allowed one is tried, if any."""

    variant: VariantId
    reason: Reason


class DeltaUse(Struct, frozen=True, kw_only=True):
    """What became of a delta; without a `failure` the file came by it."""

    to_file_sha256: Digest
    from_file_sha256: Digest
    failure: Reason | None = None


class ContentFetched(Struct, frozen=True, kw_only=True, tag_field="type", tag="content_fetched"):
    """FETCHING is through.

    Attributes:
        bytes_received: of content since the phase was last entered; what was here already is not counted.
        took_s: since then.
        deltas: that were tried.
    """

    bytes_received: Count
    took_s: Seconds
    deltas: Annotated[tuple[DeltaUse, ...], Meta(max_length=64)] = ()


class LiveMeasured(Struct, frozen=True, kw_only=True, tag_field="type", tag="live_measured"):
    """What the application counted itself with the active release; its claim, not the agent's measurement.

    Attributes:
        variant: that it was counted with.
        window_s: over which: since the last such event that could tell of drift.
        latency_n: inferences with a latency.
        latency_ms_p50: median, as precise as the buckets: an eighth of an octave.
        latency_ms_p95: 95th percentile.
        confidence_n: inferences with a confidence.
        confidence_mean: from 0 to 1.
        drift: whether the window differs from the reference by more than the limits; None while there are
            too few counts to say so.
        drifted: in what.
        latency_ratio: p50 or p95, whichever grew more, to the reference's; None is unknown.
        latency_ratio_to_trial: p95 to that of the release's trial here, which ran the model alone.
        confidence_psi: population stability index of the confidence against the reference.
        reference_n: inferences that the reference holds: the soak's, or the first after it.
    """

    variant: VariantId
    window_s: Seconds
    latency_n: Count = 0
    latency_ms_p50: float | None = None
    latency_ms_p95: float | None = None
    confidence_n: Count = 0
    confidence_mean: Fraction | None = None
    drift: bool | None = None
    drifted: Annotated[tuple[Literal["latency", "confidence"], ...], Meta(max_length=2)] = ()
    latency_ratio: float | None = None
    latency_ratio_to_trial: float | None = None
    confidence_psi: float | None = None
    reference_n: Count = 0


class OrderEnded(Struct, frozen=True, kw_only=True, tag_field="type", tag="order_ended"):
    """The order ended; `active` is what runs now."""

    outcome: OrderOutcome
    reason: Reason | None = None
    active: Slot | None = None


class OrderRefused(Struct, frozen=True, kw_only=True, tag_field="type", tag="order_refused"):
    """An order or command was not taken up: `stale_order`, `not_applicable`, a signature ...

    `order_highest` lets a restored registry raise its counter above what the device has seen.
    """

    reason: Reason
    order_highest: Count = 0


class MessageRefused(Struct, frozen=True, kw_only=True, tag_field="type", tag="message_refused"):
    """Bytes on `channel` were not usable; the daemon lives on."""

    channel: Name
    reason: Reason


class ReleaseDamaged(Struct, frozen=True, kw_only=True, tag_field="type", tag="release_damaged"):
    """An installed release was found damaged on the device's disk.

    Attributes:
        slot: which.
        repaired: it is whole again; else the device goes back to the release before it, if it has one.
        reason: what was found, and why it could not be mended.
    """

    slot: Slot
    repaired: bool
    reason: Reason


ReportEvent = (
    PhaseChanged
    | TrialEnded
    | VariantRefused
    | ContentFetched
    | OrderEnded
    | OrderRefused
    | MessageRefused
    | LiveMeasured
    | ReleaseDamaged
)


class Report(Up, frozen=True, kw_only=True, tag_field="kind", tag="report"):
    """One event; kept on the device's disk until an `ack` covers its number."""

    model: ModelName | None = None
    order: Count = 0
    digest: Digest | None = None
    at: Text = ""
    event: ReportEvent


class Reply(Up, frozen=True, kw_only=True, tag_field="kind", tag="reply"):
    """The answer to a command, on the reply topic that the command named."""

    command: Name
    result: Literal["done", "accepted", "not_applicable", "refused"]
    reason: Reason | None = None
    order_highest: Count = 0
    models: dict[ModelName, ModelState] = {}


# --- down: fleet to agent ---------------------------------------------------------------------------


class DesiredModel(Struct, frozen=True, kw_only=True):
    """What one model on one device should be.

    Attributes:
        order: of this entry; repeated unchanged when another model's entry changes.
        digest: the release.
        release: its name, for people.
        variants: allowed variants, best first; empty means the manifest's order.
        mode: deploy, or evaluate: trial and report without activating.
        shards: validation shards for the trial, by index in the manifest; empty means all.
        soak_s: how long the application must stay healthy after the switch.
        deadline_s: from the order's arrival until the device gives up, as a duration.
        rollout: id of the rollout, for people and logs.
        deltas: shorter ways to files of the release from files that devices hold; hints.
    """

    order: Positive
    digest: Digest
    release: ReleaseName
    variants: Annotated[tuple[VariantId, ...], Meta(max_length=32)] = ()
    mode: Literal["deploy", "evaluate"] = "deploy"
    shards: Annotated[tuple[Count, ...], Meta(max_length=10_000)] = ()
    soak_s: Seconds = 60.0
    deadline_s: Seconds = 86400.0
    rollout: Name | None = None
    deltas: Annotated[tuple[DeltaHint, ...], Meta(max_length=HINTS_MAX)] = ()


class Desired(Struct, frozen=True, kw_only=True, tag_field="kind", tag="desired"):
    """Everything that one device should be; retained, the truth. Signed by the order role.

    Attributes:
        number: from the counter of orders; a device that checks signatures refuses a lower one than it
            has believed, so that no old document comes back. 0 where nothing is signed.
    """

    version: int = VERSION
    device: DeviceId
    number: Count = 0
    groups: Annotated[tuple[GroupName, ...], Meta(max_length=64)] = ()
    models: Annotated[dict[ModelName, DesiredModel], Meta(max_length=MODELS_MAX)]
    issued_at: Text = ""


class ToDevice(Struct, frozen=True, kw_only=True, tag_field="scope", tag="device"):
    """For one device."""

    device: DeviceId


class ToGroup(Struct, frozen=True, kw_only=True, tag_field="scope", tag="group"):
    """For the devices whose signed desired document names this group."""

    group: GroupName


class ToAll(Struct, frozen=True, kw_only=True, tag_field="scope", tag="all"):
    """For the whole fleet."""


class Rollback(Struct, frozen=True, kw_only=True, tag_field="type", tag="rollback", rename={"from_": "from"}):
    """Go back to the previous slot, but only where `from` is active or in flight."""

    model: ModelName
    from_: Digest
    order: Positive


class Evaluate(Struct, frozen=True, kw_only=True, tag_field="type", tag="evaluate"):
    """Trial a release without activating it."""

    model: ModelName
    desired: DesiredModel


class Diagnose(Struct, frozen=True, kw_only=True, tag_field="type", tag="diagnose"):
    """Answer with the state of every model, and publish status, identity and reported anew."""


class Command(Struct, frozen=True, kw_only=True, tag_field="kind", tag="command"):
    """A thing to do now. It only speeds up what the desired documents say, so it is never retained.

    Attributes:
        id: repeated in the reply.
        to: must match the topic it came on; a command for another device is refused.
        action: rollback, evaluate or diagnose.
        reply_to: topic below the root, `{device}` is replaced; must be the device's own `reply` topic.
    """

    version: int = VERSION
    id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}(?!\n)$")]
    to: ToDevice | ToGroup | ToAll
    action: Rollback | Evaluate | Diagnose
    reply_to: Name | None = None
    issued_at: Text = ""


class Ack(Struct, frozen=True, kw_only=True, tag_field="kind", tag="ack"):
    """Reports up to `number` of `install_id` are committed to the registry's database."""

    version: int = VERSION
    install_id: InstallId
    number: Count


class Bars(Struct, frozen=True, kw_only=True, tag_field="kind", tag="bars"):
    """Releases that no order may bring to a device any more, retained. Signed by the release role.

    So that whoever steals the order key cannot lead the fleet back to a release that is known to be bad.

    Attributes:
        number: of this list; a lower one is refused. Each list holds all that is barred.
        digests: of the releases.
    """

    version: int = VERSION
    number: Positive
    digests: Annotated[tuple[Digest, ...], Meta(max_length=BARRED_MAX)] = ()
    issued_at: Text = ""


class Seed(Struct, frozen=True, kw_only=True, tag_field="kind", tag="seed"):
    """How far the broker's memory of this registry goes.

    Rewritten after each batch of publications was acknowledged. A registry that finds a lower
    generation than its own, or none, publishes again all that is newer.
    """

    version: int = VERSION
    registry_id: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}(?!\n)$")]
    generation: Count


Message = (
    Status | Identity | Reported | Report | Reply | Renewal
    | Desired | Command | Ack | Seed | Bars | Certificate | CertificateRefused
)  # fmt: skip
