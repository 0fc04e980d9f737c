"""What calibration knows: the types.

For: statistics of a tensor, of the whole set, and findings about the set itself.
Not for: collecting them (`converter.calibrate.collect`), or judging (`converter.calibrate.findings`).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from converter.calibrate.histogram import Histogram
from wire.figures import Interval

Ranges = dict[str, Interval]
Floats = NDArray[np.floating[Any]]
Severity = Literal["note", "warning"]


class Outlier(Struct, frozen=True, kw_only=True):
    """A calibration sample whose input reaches far beyond the others'."""

    input: str
    sample: int
    largest: float
    times_median: float


class Finding(Struct, frozen=True, kw_only=True):
    """Something about the calibration set that its owner should know.

    Attributes:
        code: `outlier_sample`, `stretching_sample`, `too_few_samples`, `one_sample`, `constant_input`,
            `duplicate_samples`, `input_scale`, `channel_mismatch`.
        severity: a warning costs accuracy, a note may.
        words: what it is, what it costs, what to do.
        samples: their positions in the set, from 0; at most 20.
        tensor: that it shows in, None for the set as a whole.
        cost_bits: resolution that the tensor's min-max range loses by it, in bits; None where not known.
    """

    code: str
    severity: Severity
    words: str
    samples: tuple[int, ...] = ()
    tensor: str | None = None
    cost_bits: float | None = None


class Channels(Struct, frozen=True, kw_only=True):
    """Extremes and means by entry of one axis, float64 `[C]` each; wild samples are left out."""

    axis: int
    low: Floats
    high: Floats
    mean: Floats


class TensorStatistics(Struct, frozen=True, kw_only=True):
    """One float32 activation.

    Attributes:
        extremes: smallest and largest value of all samples, exact.
        trusted: the same without the wild samples, exact.
        average: mean over samples of each one's smallest and largest value: a moving average whose
            window is the whole set, so that the order of samples does not matter. Over runs where the
            first axis does not count samples. Without the wild samples, as all that follows.
        mean: exact.
        std: of the values in the histogram.
        count: of values that were seen.
        histogram: of at most `HISTOGRAM_VALUES_PER_SAMPLE` evenly spaced values a sample.
        channels: None where no axis of fixed size is followed.
        sample_low, sample_high: float32 `[n_samples]`; None where samples cannot be told apart.
    """

    extremes: Interval
    trusted: Interval
    average: Interval
    mean: float
    std: float
    count: int
    histogram: Histogram
    channels: Channels | None = None
    sample_low: Floats | None = None
    sample_high: Floats | None = None


class Calibration(Struct, frozen=True, kw_only=True):
    """What the calibration set said.

    Attributes:
        ranges: exact extremes by tensor name.
        n_samples: that were run.
        outliers: the worst ones by name.
        tensors: statistics by tensor name.
        findings: about the set, warnings first.
        left_out: samples whose values reached no histogram, mean or average, only the exact extremes.
    """

    ranges: Ranges
    n_samples: int
    outliers: tuple[Outlier, ...] = ()
    tensors: dict[str, TensorStatistics] = {}
    findings: tuple[Finding, ...] = ()
    left_out: tuple[int, ...] = ()
