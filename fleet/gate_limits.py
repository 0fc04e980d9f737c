"""PURE. The limits of a gate: what a GATE.yaml may say, read once when a rollout is made.

For: `parse_gate()`, which refuses what it does not know, and `check_proofs()`, which refuses a proof that
this fleet is too small to reach. What the keys are for stands at each type.
Not for: judging by them (`fleet.gates`).

Example; every key is optional. Without `failures_max`, `degraded_max`, `latency_ratio_max` and `proofs`
the rules in the types' own words apply; the other values are the defaults:

    min_fraction: 1.0
    failures_max: 0
    degraded_max: 0
    latency_ratio_max: 1.2
    success: {min_rate: 0.95, false_alarm: 0.05}
    accuracy: {incumbent_drop_max: 0.0, baseline_drop_max: 0.01, false_alarm: 0.05}
    silence: {after_s: 3600, max: 0}
    proofs: {success_rate: 0.9, accuracy_drop_max: 0.02, confidence: 0.95}
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from fleet.evalues import proof_devices_min, proof_samples_min
from wire.errors import LimitsError
from wire.types import Count, Seconds

SMALL_FLEET = 40
"""Below so many judged devices one failure is one too many, unless `failures_max` says otherwise: to show
at most 10% failures takes 39 to 69 devices without any (DESIGN.md section 5)."""

_Rate = Annotated[float, Meta(gt=0.0, lt=1.0)]
_Share = Annotated[float, Meta(gt=0.0, le=1.0)]
_Drop = Annotated[float, Meta(ge=0.0, lt=1.0)]
_Ratio = Annotated[float, Meta(gt=0.0, le=1000.0)]


class SuccessTest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Harm test on the share of devices that fail.

    Attributes:
        min_rate: fires once it is shown that fewer than this share succeed.
        false_alarm: bound on the probability that it ever fires on a fleet that meets `min_rate`,
            however often it is looked at.
    """

    min_rate: _Rate = 0.95
    false_alarm: _Rate = 0.05


class AccuracyTest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Harm tests on accuracy, paired by sample, pooled per variant, runtime and CPU class.

    Attributes:
        incumbent_drop_max: fires once a larger drop against the release that ran before is shown; a
            fraction of all samples (0.01 is one point). 0: any shown drop fires.
        baseline_drop_max: the same against the bundle's own FP32; None takes what the SLA's
            `min_fraction_of_baseline` leaves, or 0.01 if it has none.
        false_alarm: bound per variant, runtime and CPU class on ever firing on a release that keeps the
            margin.
    """

    incumbent_drop_max: _Drop = 0.0
    baseline_drop_max: _Drop | None = None
    false_alarm: _Rate = 0.05


class Silence(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Devices that got an order and gave no outcome.

    Attributes:
        after_s: from the order (or from a person's resume) until a device counts as silent; None: the
            rollout's deadline and soak together, by when an awake device has answered or given up.
        max: silent devices that a gate tolerates.
    """

    after_s: Seconds | None = None
    max: Count = 0


class Proofs(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What must be shown, not only not refuted, before the last wave opens. Opt-in.

    Attributes:
        success_rate: to be shown as the least share of devices that succeed.
        accuracy_drop_max: to be shown as the largest drop against the incumbent (the baseline on a
            first install), by the paired 95% interval.
        confidence: of `success_rate`.
    """

    success_rate: _Rate | None = None
    accuracy_drop_max: Annotated[float, Meta(gt=0.0, lt=1.0)] | None = None
    confidence: _Rate = 0.95


class Gate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The conditions for opening the next wave, and for being complete after the last.

    Attributes:
        min_fraction: of the devices that neither failed nor are silent, the share that must have ended
            its soak.
        failures_max: devices that may fail, over the whole rollout; None: 0 while fewer than
            SMALL_FLEET are judged, above that `success` decides.
        degraded_max: devices that may run another than their first allowed variant; None: 0 in the
            first wave, then a tenth of those that succeeded, rounded up.
        latency_ratio_max: latency against the incumbent, median over devices; None: not asked.
        success: harm test on failures.
        accuracy: harm tests on accuracy; None (`accuracy: null`) for a release without labels.
        silence: when a device counts as silent, and how many may.
        proofs: opt-in.
    """

    min_fraction: _Share = 1.0
    failures_max: Count | None = None
    degraded_max: Count | None = None
    latency_ratio_max: _Ratio | None = None
    success: SuccessTest = SuccessTest()
    accuracy: AccuracyTest | None = AccuracyTest()
    silence: Silence = Silence()
    proofs: Proofs = Proofs()


def parse_gate(mapping: object) -> Gate:
    """Reads a gate from what a YAML or JSON file held; nothing at all gives the defaults.

    Raises:
        LimitsError: `gate_malformed`: an unknown key, a wrong type or a limit out of range; the message
            names the key. A gate that cannot be read never opens: the rollout is refused.
    """
    try:
        return msgspec.convert({} if mapping is None else mapping, Gate)
    except msgspec.ValidationError as error:
        raise LimitsError(
            "gate_malformed", f"the gate cannot be read: {error}; its keys are {', '.join(_KEYS)}"
        ) from None


_KEYS = Gate.__struct_fields__
# Looked at by the thread that imports this, as in `wire.codec`; gates come in on threads of the API.
msgspec.json.Decoder(Gate)


def check_proofs(gate: Gate, devices: int, samples: int) -> None:
    """Refuses a requested proof that cannot be reached before the last wave opens.

    The arithmetic is that of the best case: every device succeeds, and candidate and reference agree on
    every sample, all of them of one variant and CPU class. See `proof_devices_min` (43 devices for 90%)
    and `proof_samples_min` (about 460 samples for one point).

    Args:
        gate: as parsed.
        devices: of the largest wave before the last, or of the only one.
        samples: distinct validation samples that so many devices trial.

    Raises:
        LimitsError: `proof_unreachable`, with what would be needed.
    """
    proofs = gate.proofs
    if proofs.success_rate is not None:
        needed = proof_devices_min(proofs.success_rate, proofs.confidence)
        if devices < needed:
            raise LimitsError(
                "proof_unreachable",
                f"to show a success rate of {proofs.success_rate:.4g} takes {needed} devices without a "
                f"failure, the largest wave before the last has {devices}; make that wave larger, ask for "
                "less, or leave the proof out",
            )
    if proofs.accuracy_drop_max is not None:
        needed = proof_samples_min(proofs.accuracy_drop_max, proofs.confidence)
        if samples < needed:
            raise LimitsError(
                "proof_unreachable",
                f"to show an accuracy drop below {proofs.accuracy_drop_max:.4g} takes {needed} distinct "
                f"samples, the devices of the largest wave before the last trial {samples}; give each "
                "device more shards, make that wave larger, or leave the proof out",
            )
