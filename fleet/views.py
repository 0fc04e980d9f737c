"""PURE. What the API answers and the commands print: one typed shape for each table.

For: turning rows and views into figures for people, in one place for JSON and for tables.
Not for: printing (`fleet.cli`), or deciding anything.

A figure that was not measured is None here and prints "unknown".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from fleet.enrolment_views import DeviceTrust
from fleet.inventory import Device, LiveSeen
from fleet.ports import ReleaseRow, RollbackRow
from fleet.publish.content import blob_sizes
from fleet.rollout import Assignment, Rollout
from wire.bundle import Manifest
from wire.measures import Measure, TrialResult
from wire.messages import (
    ModelState,
    OrderEnded,
    OrderOutcome,
    Reason,
    Report,
    Slot,
    TrialEnded,
    TrialSummary,
    VariantRefused,
)
from wire.types import Digest


class ReleaseView(Struct, frozen=True, kw_only=True):
    """A release; `size_bytes` is what one full copy of its distinct content takes."""

    digest: str
    model: str
    release: str
    state: str
    created_at: float
    target: str
    variants: tuple[str, ...]
    size_bytes: int
    blobs: int


def release_view(row: ReleaseRow, manifest: Manifest) -> ReleaseView:
    """A release for people."""
    sizes = blob_sizes(manifest)
    return ReleaseView(
        digest=row.digest,
        model=row.model,
        release=row.name,
        state=row.state,
        created_at=row.created_at,
        target=manifest.target,
        variants=tuple(variant.id for variant in manifest.variants),
        size_bytes=sum(sizes.values()),
        blobs=len(sizes),
    )


class DeviceView(Struct, frozen=True, kw_only=True):
    """A device; `models` is what it last reported of each; None is unknown.

    `live` is what its applications count, which nobody measured.
    """

    device: str
    online: bool
    seen_at: float | None
    duplicate_identity: bool
    arch: str | None
    board: str | None
    cores: int | None
    memory_bytes: int | None
    agent_version: str | None
    runtimes: tuple[str, ...]
    labels: dict[str, str]
    groups: tuple[str, ...]
    disk_free_bytes: int | None
    models: dict[str, ModelState]
    live: dict[str, LiveSeen] = {}
    trust: DeviceTrust = DeviceTrust()


def device_view(device: Device, trust: DeviceTrust | None = None) -> DeviceView:
    """A device for people; a revoked one is offline, whatever it said last."""
    trust = trust or DeviceTrust()
    identity = device.identity
    return DeviceView(
        device=device.id,
        online=device.online and trust.revoked_at is None,
        seen_at=device.seen_at,
        duplicate_identity=device.duplicate_identity,
        arch=None if identity is None else identity.hardware.arch,
        board=None if identity is None else identity.hardware.board,
        # Agents used to say 0 where it did not know.
        cores=None if identity is None else identity.hardware.cores or None,
        memory_bytes=None if identity is None else identity.hardware.memory_bytes or None,
        agent_version=None if identity is None else identity.agent_version,
        runtimes=() if identity is None else tuple(f"{r.name} {r.version}" for r in identity.runtimes),
        labels=device.labels,
        groups=device.groups,
        disk_free_bytes=None if identity is None else identity.disk_free_bytes,
        models=device.models,
        live=device.live,
        trust=trust,
    )


class DeviceLine(Struct, frozen=True, kw_only=True):
    """One device of a rollout.

    Attributes:
        wave: index of the wave that reached it, from 0.
        phase: of this rollout's order; None if the device has not taken it up or a newer one came.
        outcome: how this rollout's order ended; None while it has not.
        accuracy: on the device's shard, or inherited from the host where the device conforms.
        power_watts: under load.
        power_source: of watts and energy; an estimate is a model's of the board, and decides nothing.
        throttled: held back while latency and energy were measured, which then prove nothing.
        reason: why it is so, in words.
    """

    device: str
    wave: int
    online: bool
    phase: str | None = None
    outcome: str | None = None
    variant: str | None = None
    latency_ms_p50: float | None = None
    latency_ms_p95: float | None = None
    latency_ratio_to_incumbent: float | None = None
    accuracy: float | None = None
    accuracy_source: str | None = None
    agreement: float | None = None
    power_watts: float | None = None
    energy_mj: float | None = None
    power_source: str | None = None
    throttled: bool | None = None
    memory_bytes_peak: int | None = None
    verdict: str | None = None
    active: Slot | None = None
    reason: str = ""


class RolloutView(Struct, frozen=True, kw_only=True):
    """A rollout in one line."""

    id: str
    model: str
    release: str
    digest: str
    state: str
    wave: int | None
    waves: str
    selector: str
    devices: int
    created_at: float
    ended_at: float | None
    reason: str
    waiting_for: str
    started_by: str = ""
    approval: bool = False
    approved_by: str = ""


class ReadyRollback(Struct, frozen=True, kw_only=True):
    """The ready payload that takes a rollout back: `mosquitto_pub BROKER -q 1 -t TOPIC -f FILE`.

    Attributes:
        order: that the rollback carries.
        broker: options of `mosquitto_pub` by which it finds the fleet's broker, on the registry's machine.
        topic: for the whole fleet.
        file: on the registry's machine.
        url: a path on the registry; the client puts the server before it.
        url_per_device: the same, with `DEVICE` to be replaced.
    """

    order: int
    broker: tuple[str, ...] = ()
    topic: str
    file: str
    url: str
    url_per_device: str


class RolloutShow(Struct, frozen=True, kw_only=True):
    """A rollout with its devices."""

    rollout: RolloutView
    devices: tuple[DeviceLine, ...]
    left_out: dict[str, str]
    gate: tuple[tuple[str, str, str], ...]
    rollback: ReadyRollback


def rollout_view(rollout: Rollout) -> RolloutView:
    """A rollout in one line."""
    request = rollout.request
    return RolloutView(
        id=rollout.id,
        model=request.model,
        release=request.release,
        digest=request.digest,
        state=rollout.state.value,
        wave=rollout.wave,
        waves=request.waves,
        selector=request.selector,
        devices=len(rollout.assignments),
        created_at=rollout.created_at,
        ended_at=rollout.ended_at,
        reason=rollout.reason,
        waiting_for=rollout.waiting_for,
        started_by=rollout.started_by,
        approval=request.approval,
        approved_by=rollout.approved_by,
    )


def device_lines(
    rollout: Rollout, devices: dict[str, Device], reports: Iterable[Report]
) -> tuple[DeviceLine, ...]:
    """The rollout's devices in the order in which it reached them.

    Args:
        rollout: whose devices are meant.
        devices: views by id.
        reports: about the rollout's order, oldest first; they tell what a newer order has covered up.
    """
    told: dict[str, list[Report]] = {}
    for report in reports:
        told.setdefault(report.device, []).append(report)
    return tuple(
        _line(rollout, device, assignment, devices.get(device), told.get(device, []))
        for device, assignment in rollout.assignments.items()
    )


def _line(
    rollout: Rollout, device: str, assignment: Assignment, view: Device | None, told: list[Report]
) -> DeviceLine:
    now = None if view is None else view.models.get(rollout.request.model)
    state = now if now is not None and now.order == assignment.order else None
    trial = _trial(state, told)
    result = None if trial is None else trial.result
    outcome, reason = _ending(state, told)
    return DeviceLine(
        device=device,
        wave=assignment.wave,
        online=view is not None and view.online,
        phase=None if state is None else state.phase.value,
        outcome=None if outcome is None else outcome.value,
        variant=None if result is None else result.variant,
        active=None if now is None else now.active,
        verdict=None if trial is None else trial.verdict.status.value,
        reason=assignment.failure or _words(reason, trial),
        **_figures(result),
    )


def _trial(state: ModelState | None, told: list[Report]) -> TrialSummary | None:
    if state is not None and state.trial is not None:
        return state.trial
    trials = [report.event.trial for report in told if isinstance(report.event, TrialEnded)]
    return trials[-1] if trials else None


def _ending(state: ModelState | None, told: list[Report]) -> tuple[OrderOutcome | None, Reason | None]:
    if state is not None:
        return state.outcome, state.reason
    for report in reversed(told):
        if isinstance(report.event, OrderEnded):
            return report.event.outcome, report.event.reason
    refused = [report.event.reason for report in told if isinstance(report.event, VariantRefused)]
    return None, refused[-1] if refused else None


def _words(reason: Reason | None, trial: TrialSummary | None) -> str:
    if reason is not None:
        return f"{reason.code}: {reason.detail}" if reason.detail else reason.code
    return "" if trial is None else trial.verdict.reason


def _figures(result: TrialResult | None) -> dict[str, Any]:
    if result is None:
        return {}
    latency = result.latency
    return {
        "latency_ms_p50": None if latency is None else latency.ms_p50,
        "latency_ms_p95": None if latency is None else latency.ms_p95,
        "latency_ratio_to_incumbent": _value(result.latency_ratio_to_incumbent),
        "accuracy": _value(result.accuracy),
        "accuracy_source": None if result.accuracy is None else result.accuracy.source.value,
        "agreement": _value(result.agreement),
        "power_watts": result.power_watts_load,
        "energy_mj": _value(result.energy_mj),
        "power_source": None if result.energy_mj is None else result.energy_mj.source.value,
        "throttled": result.throttled,
        "memory_bytes_peak": result.memory_bytes_peak,
    }


def _value(measure: Measure | None) -> float | None:
    return None if measure is None else measure.value


class RollbackLine(Struct, frozen=True, kw_only=True):
    """One device of a rollback."""

    device: str
    model: str
    from_digest: str
    order: int
    state: str
    detail: str


class BundleView(Struct, frozen=True, kw_only=True):
    """A bundle that is given to the registry, and the blobs that it still needs of it."""

    digest: Digest
    model: str
    release: str
    state: str
    missing: list[Digest]


class RollbackShow(Struct, frozen=True, kw_only=True):
    """A rollback; ended once every device has."""

    id: str
    ended: bool
    devices: tuple[RollbackLine, ...]


def rollback_show(rows: list[RollbackRow]) -> RollbackShow:
    """A rollback for people. Requires: at least one row."""
    lines = tuple(
        RollbackLine(
            device=row.device,
            model=row.model,
            from_digest=row.from_digest,
            order=row.order,
            state=row.state,
            detail=row.detail,
        )
        for row in rows
    )
    ended = all(row.state not in {"commanded", "by_desired"} for row in rows)
    return RollbackShow(id=rows[0].id, ended=ended, devices=lines)
