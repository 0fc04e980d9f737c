"""PURE. Gathers the evidence of a rollout for its gate.

For: joining what a rollout ordered with what the devices report of it, one `DeviceEvidence` each.
Not for: judging it (`fleet.gates`) or acting on it (`fleet.rollout`).
"""

from __future__ import annotations

from fleet.evidence import DeviceEvidence, Evidence, Standing, Terms, standing_of
from fleet.rollout_types import Assignment, Facts, ReleaseFacts, Rollout
from fleet.selection import parse_waves
from wire.messages import ModelState


def evidence_of(rollout: Rollout, facts: Facts, now: float, unreached: int) -> Evidence:
    """What a gate looks at: every device that has an order from this rollout, in that order.

    Args:
        rollout: with its assignments.
        facts: the world.
        now: seconds on the registry's clock.
        unreached: devices of the open wave that have no order yet.
    """
    judged = tuple(
        _device_evidence(rollout, facts, name, assignment, now)
        for name, assignment in rollout.assignments.items()
    )
    reach = len(judged) + unreached
    return Evidence(
        devices=judged,
        unreached=unreached,
        wave=rollout.wave or 0,
        waves=len(parse_waves(rollout.request.waves)),
        limits=facts.release.limits,
        size_bytes={variant.id: variant.size_bytes for variant in facts.release.variants},
        proof_devices=reach,
        proof_samples=samples_of(rollout, facts.release, reach),
    )


def samples_of(rollout: Rollout, release: ReleaseFacts, devices: int) -> int:
    """Distinct validation samples that the first `devices` devices trial."""
    shards = min(len(release.shard_samples), devices * rollout.request.shards_per_device)
    return sum(release.shard_samples[:shards])


def _device_evidence(
    rollout: Rollout, facts: Facts, name: str, assignment: Assignment, now: float
) -> DeviceEvidence:
    """One device's fate; a failure that was seen stays, a newer order of somebody else takes it out."""
    device, desired = facts.devices.get(name), facts.desired.get(name)
    if device is None:
        return DeviceEvidence(device=name, standing=Standing.GONE, detail="was forgotten")
    state = device.models.get(rollout.request.model)
    standing, detail = standing_of(device, state, _terms(rollout, assignment, now))
    if assignment.failure is not None:
        standing, detail = Standing.FAILED, assignment.failure
    elif desired is not None and desired.order > assignment.order and standing is not Standing.FAILED:
        standing, detail = Standing.TAKEN_OVER, f"has a newer order, {desired.order}"
    ours = state is not None and state.order == assignment.order
    return DeviceEvidence(
        device=name,
        standing=standing,
        detail=detail,
        degraded=standing is Standing.SUCCEEDED and _is_degraded(state, assignment),
        held=assignment.before is not None and assignment.before.digest == rollout.request.digest,
        trial=state.trial.result if state is not None and ours and state.trial is not None else None,
        arch="unknown" if device.hardware is None else device.hardware.arch,
    )


def _terms(rollout: Rollout, assignment: Assignment, now: float) -> Terms:
    request = rollout.request
    patience_s = request.gate.silence.after_s
    if patience_s is None:
        patience_s = request.deadline_s + request.soak_s
    since = assignment.at if rollout.resumed_at is None else max(assignment.at, rollout.resumed_at)
    return Terms(
        order=assignment.order,
        rollback_order=rollout.rollback_order,
        digest=request.digest,
        variants=assignment.variants,
        evaluate=request.mode == "evaluate",
        time_is_up=now - since >= patience_s,
    )


def _is_degraded(state: ModelState | None, assignment: Assignment) -> bool:
    """On another than its first allowed variant, by its own word or by what it runs."""
    if state is None or state.active is None:
        return False
    return state.degraded or state.active.variant != assignment.variants[0]
