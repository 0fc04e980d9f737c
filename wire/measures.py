"""What was measured, where, and how well it is known.

For: the figures that a candidate on the host, a trial on a device and a pooled wave all share.
Not for: judging them (`wire.sla`) or computing them (`wire.figures` and whoever measures).

A figure that was not measured is `None` and reads "unknown", never zero. An estimate says so in its
`source`, and never passes or fails a limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Literal

from msgspec import Struct

from wire.figures import PairedCounts
from wire.types import Count, Digest, Fraction, Name, Text, VariantId


class Source(StrEnum):
    """Where a figure comes from."""

    MEASURED = "measured"
    INHERITED = "inherited"
    """Measured on the host by the same variant, which this device reproduces exactly."""
    ESTIMATED = "estimated"


class Measure(Struct, frozen=True, kw_only=True):
    """One figure with its 95% interval where there is one.

    Attributes:
        value: the point estimate, in the unit of the field that holds it.
        low: lower end of the 95% interval; None where no interval is known.
        high: upper end.
        n: samples behind it; 0 where that has no meaning.
        source: measured, inherited or estimated.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: Count = 0
    source: Source = Source.MEASURED


def pooled_mean(measures: Sequence[Measure]) -> Measure:
    """Means of distinct samples as one, each weighted by its samples.

    The standard errors are read from the intervals, taken to be normal; without samples behind a figure
    it counts as one, and without all intervals there is none.

    Raises:
        ValueError: nothing to pool.
    """
    if not measures:
        raise ValueError("no figures to pool")
    weights = [max(1, measure.n) for measure in measures]
    whole = sum(weights)
    value = math.fsum(m.value * w for m, w in zip(measures, weights, strict=True)) / whole
    n = sum(measure.n for measure in measures)
    if any(measure.low is None or measure.high is None for measure in measures):
        return Measure(value=value, n=n)
    halves = [((m.high or 0.0) - (m.low or 0.0)) / 2 for m in measures]
    half = math.sqrt(math.fsum((h * w) ** 2 for h, w in zip(halves, weights, strict=True))) / whole
    return Measure(value=value, low=value - half, high=value + half, n=n)


class Latency(Struct, frozen=True, kw_only=True):
    """Latency of single inferences, warm, in milliseconds."""

    ms_p50: float
    ms_p95: float
    ms_p99: float
    n: Count
    cold_load_ms: float | None = None


class Divergence(Struct, frozen=True, kw_only=True):
    """Where a device's outputs part from the host's.

    It is the first output that does, in the manifest's order, and in it the element that is furthest away.

    Attributes:
        output: its name.
        sample: counted through the trial's shards, from 0.
        element: its place in that sample.
        device: what the device gives; None where that is no finite number.
        host: what the host gave.
        difference: absolute.
        steps: the same in quantization steps; None where the output has none.
    """

    output: Name
    sample: Count
    element: tuple[Count, ...] = ()
    device: float | None = None
    host: float | None = None
    difference: float
    steps: float | None = None


class Conformance(Struct, frozen=True, kw_only=True):
    """A device's outputs against the host's outputs of the same variant on the same samples.

    Attributes:
        n: samples compared.
        equal: fraction whose raw outputs are bit-equal.
        within_step: fraction of which every output element lies within one quantization step of the host's;
            None where some differ and an output does not look quantized, so that it has no step.
        same_answer: fraction whose task answer (the argmax) is the same.
        worst: largest absolute difference of any output element.
        conforms: the device gives the host's answer on every sample; it then inherits the accuracy
            that the host measured on the full validation set.
        divergence: the worst place where there is more than a step between them (anything at all where
            there is no step); None where there is none.
    """

    n: Count
    equal: Fraction
    same_answer: Fraction
    worst: float
    conforms: bool
    within_step: Fraction | None = None
    divergence: Divergence | None = None

    @property
    def grade(self) -> Literal["equal", "within_step", "diverges"]:
        """In a word."""
        if self.equal == 1.0:
            return "equal"
        return "within_step" if self.divergence is None else "diverges"


class TrialResult(Struct, frozen=True, kw_only=True):
    """What one trial of one variant measured on one device.

    `baseline` is this bundle's FP32 (its outputs travel with the shard); `incumbent` is the release
    that was active when the trial ran, run interleaved on the same samples, None on a first install.

    Attributes:
        energy_mj: per inference, the idle power subtracted; None too where the machine was held back.
        energy_mj_gross: per inference, nothing subtracted.
        throttled: held back by heat or a weak supply while latency and energy were measured, in the run that
            is told here; those figures then prove nothing.
        runs_void: runs before that one, measured again for the same reason.
        cpu: class of the processor, machines of which give the same answers (`x86-64-vnni`).
        temperature_c_before: hottest processor zone when the trial began, degrees Celsius.
        temperature_c_after: the same when it ended.
        cpu_mhz_before: of the fastest core, once warm and before the first timed inference.
        cpu_mhz_after: the same after the last one.
    """

    variant: VariantId
    runtime: Name
    runtime_version: Name
    shards: tuple[Count, ...]
    n_samples: Count
    accuracy: Measure | None = None
    accuracy_ratio: Measure | None = None
    agreement: Measure | None = None
    against_baseline: PairedCounts | None = None
    against_incumbent: PairedCounts | None = None
    conformance: Conformance | None = None
    latency: Latency | None = None
    incumbent_latency: Latency | None = None
    latency_ratio_to_incumbent: Measure | None = None
    memory_bytes_peak: Count | None = None
    energy_mj: Measure | None = None
    energy_mj_gross: Measure | None = None
    power_watts_idle: float | None = None
    power_watts_load: float | None = None
    power_sensor: Name | None = None
    throttled: bool | None = None
    runs_void: Count = 0
    temperature_c_before: float | None = None
    temperature_c_after: float | None = None
    cpu_mhz_before: float | None = None
    cpu_mhz_after: float | None = None
    cpu: Name | None = None
    incumbent: Digest | None = None
    notes: tuple[Text, ...] = ()
