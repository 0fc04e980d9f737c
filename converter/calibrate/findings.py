"""Looks at the calibration set before anything is made of it.

For: naming samples that alone stretch a range, with what they cost, and sets that are too small, constant,
repeated, or distributed unlike the validation set (wrong scale or layout).
Not for: refusing what does not fit the model by shape or type, or is not finite (`converter.dataset`).
"""

from __future__ import annotations

import hashlib
import math
from statistics import median

import numpy as np
from msgspec import Struct

from converter.calibrate.statistics import Finding, Floats, Outlier, TensorStatistics
from converter.dataset import Samples
from converter.errors import InputError
from converter.limits import CALIBRATION_SAMPLES_ADVISED, FINDINGS_MAX, PREPROCESS_BATCH

_OUTLIER_FACTOR = 4.0
"""A sample this many times above the median sample's largest value is named; one such image of 256 cost
77 points of accuracy (FACTS.md, trap 7, with a factor of 40)."""
_WILD_SHARE_MAX = 0.05
"""More samples than this beyond the factor are no outliers: the set has two scales, and all of it counts."""
_STRETCH_BITS = 1.0
"""A sample that alone doubles an inner tensor's range is named."""
_SCALE_FACTOR = 4.0
_SHIFT_STDS = 2.0
_COMPARED_SAMPLES_MAX = 512
"""Of each set, evenly spaced, when calibration and validation are compared."""


class Seen(Struct, frozen=True, kw_only=True):
    """What the inputs alone say.

    Attributes:
        outliers: samples far beyond the others, the worst 20.
        wild: positions of the samples to keep out of histograms, ascending.
        findings: about the set.
    """

    outliers: tuple[Outlier, ...]
    wild: tuple[int, ...]
    findings: tuple[Finding, ...]


class _Spread(Struct, kw_only=True):
    """Extremes of one input and the largest absolute value of each sample."""

    low: float = math.inf
    high: float = -math.inf
    largest: list[float]


def inspect_inputs(samples: Samples) -> Seen:
    """Reads the set once, in blocks.

    Raises:
        InputError: `calibration_not_finite`: preprocessing gave NaN or infinity; input and sample are named.
    """
    spreads: dict[str, _Spread] = {}
    size = samples.together(PREPROCESS_BATCH)
    for start in range(0, samples.n, size):
        for name, tensor in samples.feeds(start, min(start + size, samples.n)).items():
            if tensor.dtype == np.float32 and name in samples.arrays:
                rows = tensor[None] if samples.whole else tensor
                _spread(spreads.setdefault(name, _Spread(largest=[])), name, rows, start)
    found = _outliers({name: one.largest for name, one in spreads.items()})
    reach = tuple(sorted({one.sample for one in found}))
    wild = reach if len(reach) <= _WILD_SHARE_MAX * samples.n else ()
    findings = [*_size(samples.n), *_duplicates(samples)]
    findings += [_constant(name, one.low) for name, one in spreads.items() if one.low == one.high]
    if len(reach) > len(wild):
        findings.append(_two_scales(reach, samples.n))
    return Seen(outliers=found[:FINDINGS_MAX], wild=wild, findings=tuple(findings))


def outliers(largest: dict[str, list[float]]) -> tuple[Outlier, ...]:
    """Samples whose largest absolute value is far above the median sample's, the worst 20, worst first."""
    return _outliers(largest)[:FINDINGS_MAX]


def _outliers(largest: dict[str, list[float]]) -> tuple[Outlier, ...]:
    found = []
    for name, values in largest.items():
        middle = median(values)
        if middle <= 0.0:
            continue
        for i, value in enumerate(values):
            if value > _OUTLIER_FACTOR * middle:
                found.append(Outlier(input=name, sample=i, largest=value, times_median=value / middle))
    return tuple(sorted(found, key=lambda one: -one.times_median))


def _spread(spread: _Spread, name: str, tensor: Floats, start: int) -> None:
    flat = tensor.reshape(tensor.shape[0], -1)
    if not flat.size:
        return
    bad = np.flatnonzero(~np.isfinite(flat).all(axis=1))
    if bad.size:
        raise InputError(
            "calibration_not_finite",
            f"input {name} holds NaN or infinity after preprocessing, first in sample {start + int(bad[0])}; "
            "remove such samples, or correct the preprocessing in dataset.yaml",
        )
    spread.low, spread.high = min(spread.low, float(flat.min())), max(spread.high, float(flat.max()))
    spread.largest.extend(np.abs(flat).max(axis=1).tolist())


def _size(n: int) -> list[Finding]:
    if n == 1:
        words = "the calibration set is one sample; ranges fit that sample alone"
    elif n < CALIBRATION_SAMPLES_ADVISED:
        words = f"the calibration set has {n} samples; ranges still move below {CALIBRATION_SAMPLES_ADVISED}"
    else:
        return []
    code = "one_sample" if n == 1 else "too_few_samples"
    return [Finding(code=code, severity="warning", words=f"{words}; give 100 to 500 of all kinds")]


def _constant(name: str, value: float) -> Finding:
    return Finding(
        code="constant_input",
        severity="warning",
        tensor=name,
        words=f"input {name} is {value:g} in every sample; its range cannot be known: give real samples",
    )


def _two_scales(reach: tuple[int, ...], n: int) -> Finding:
    return Finding(
        code="input_scale",
        severity="warning",
        samples=reach[:FINDINGS_MAX],
        words=f"{len(reach)} of {n} samples reach more than {_OUTLIER_FACTOR:g} times the median sample: "
        "the set has two scales; check that all samples went through the same preprocessing",
    )


def _duplicates(samples: Samples) -> list[Finding]:
    """Samples that are equal to an earlier one, byte by byte, in every input."""
    seen: set[bytes] = set()
    again = []
    for i in range(samples.n):
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(samples.arrays):
            digest.update(np.ascontiguousarray(samples.arrays[name][i]).tobytes())
        if digest.digest() in seen:
            again.append(i)
        seen.add(digest.digest())
    if not again:
        return []
    return [
        Finding(
            code="duplicate_samples",
            severity="note",
            samples=tuple(again[:FINDINGS_MAX]),
            words=f"{len(again)} of {samples.n} samples repeat an earlier one and add nothing; "
            f"the first is sample {again[0]}",
        )
    ]


def inspect_tensors(tensors: dict[str, TensorStatistics], seen: Seen) -> tuple[Finding, ...]:
    """What single samples cost, by the extremes of every sample."""
    followed = {name: one for name, one in tensors.items() if one.sample_low is not None}
    found = [_outlier(one, seen, followed) for one in seen.outliers if one.sample in seen.wild]
    stretching = [
        finding
        for name, one in followed.items()
        if (finding := _stretching(name, one, frozenset(seen.wild))) is not None
    ]
    stretching.sort(key=lambda finding: -(finding.cost_bits or 0.0))
    return (*found, *stretching[:FINDINGS_MAX])


def _outlier(one: Outlier, seen: Seen, tensors: dict[str, TensorStatistics]) -> Finding:
    """The cost is told for the tensor that the sample stretches most, beside the trusted samples."""
    costs = {
        name: _bits(
            min(stats.trusted.low, float(stats.sample_low[one.sample])),
            max(stats.trusted.high, float(stats.sample_high[one.sample])),
            stats.trusted.low,
            stats.trusted.high,
        )
        for name, stats in tensors.items()
        if stats.sample_low is not None and stats.sample_high is not None
    }
    worst = max(costs, key=lambda name: costs[name], default=None)
    bits = None if worst is None else costs[worst]
    cost = "" if bits is None else f"; it alone costs tensor {worst} {bits:.1f} bits of its min-max range"
    return Finding(
        code="outlier_sample",
        severity="warning",
        samples=(one.sample,),
        tensor=worst,
        cost_bits=bits,
        words=f"sample {one.sample} reaches {one.largest:g} in input {one.input}, {one.times_median:.1f} "
        f"times the median sample{cost}; remove it, or take no minmax: the other methods leave "
        f"such samples out ({len(seen.wild)} here)",
    )


def _bits(low: float, high: float, low_without: float, high_without: float) -> float:
    """Resolution lost, in bits, by a range against a smaller one; both with zero in them."""
    span = max(high, 0.0) - min(low, 0.0)
    without = max(high_without, 0.0) - min(low_without, 0.0)
    return math.log2(span / without) if without > 0.0 and span > without else 0.0


def _stretching(name: str, stats: TensorStatistics, wild: frozenset[int]) -> Finding | None:
    """The sample that stretches this tensor most among those whose input is like the others'."""
    if stats.sample_low is None or stats.sample_high is None:
        return None
    kept = np.array([i for i in range(len(stats.sample_low)) if i not in wild], dtype=np.int64)
    if len(kept) < 2:
        return None
    lows, highs = stats.sample_low[kept], stats.sample_high[kept]
    by_low, by_high = np.argsort(lows, kind="stable"), np.argsort(-highs, kind="stable")
    best, sample = 0.0, -1
    for i in {int(by_low[0]), int(by_high[0])}:
        low = lows[by_low[1] if by_low[0] == i else by_low[0]]
        high = highs[by_high[1] if by_high[0] == i else by_high[0]]
        bits = _bits(float(lows.min()), float(highs.max()), float(low), float(high))
        if bits > best:
            best, sample = bits, int(kept[i])
    if best < _STRETCH_BITS:
        return None
    return Finding(
        code="stretching_sample",
        severity="note",
        samples=(sample,),
        tensor=name,
        cost_bits=best,
        words=f"sample {sample} alone stretches tensor {name} by {best:.1f} bits, though its input is like "
        "the others'; look at it, or let the range be clipped (percentile, mse, auto)",
    )


def compare_sets(calibration: Samples, validation: Samples) -> tuple[Finding, ...]:
    """Whether both sets come from the same preprocessing: spread, mean, and means by channel.

    At most 512 evenly spaced samples of each are read. Medians over samples, so that an outlier, which is
    named elsewhere, does not look like another scale.
    """
    mine, theirs = _moments(calibration), _moments(validation)
    found = []
    for name in sorted(mine.keys() & theirs.keys()):
        (mean, std, channels), (their_mean, their_std, their_channels) = mine[name], theirs[name]
        ratio = std / their_std if their_std > 0.0 else math.inf
        shift = abs(mean - their_mean) / their_std if their_std > 0.0 else 0.0
        if not 1 / _SCALE_FACTOR < ratio < _SCALE_FACTOR or shift > _SHIFT_STDS:
            words = (
                f"input {name} has mean {mean:g} and spread {std:g} in the calibration set, {their_mean:g} "
                f"and {their_std:g} in the validation set; one misses a step of preprocessing (a scale of "
                "1/255, a normalization)"
            )
            found.append(Finding(code="input_scale", severity="warning", tensor=name, words=words))
        elif float(np.abs(channels - their_channels).max(initial=0.0)) > their_std:
            words = (
                f"the channel means of input {name} differ from the validation set's by more than its spread "
                f"{their_std:g}; check the order of axes and of channels"
            )
            found.append(Finding(code="channel_mismatch", severity="warning", tensor=name, words=words))
    return tuple(found)


def _moments(samples: Samples) -> dict[str, tuple[float, float, Floats]]:
    """By float32 input: median over samples of mean and spread, and of the means along axis 1."""
    n = min(samples.n, _COMPARED_SAMPLES_MAX)
    means: dict[str, list[float]] = {}
    stds: dict[str, list[float]] = {}
    channels: dict[str, list[Floats]] = {}
    for i in np.linspace(0, samples.n - 1, n).astype(int).tolist():
        for name, tensor in samples.feeds(i, i + 1).items():
            if tensor.dtype != np.float32 or not tensor.size:
                continue
            means.setdefault(name, []).append(float(tensor.mean(dtype=np.float64)))
            stds.setdefault(name, []).append(float(tensor.std(dtype=np.float64)))
            if tensor.ndim > 2:
                by_channel = tensor.mean(axis=tuple(range(2, tensor.ndim)), dtype=np.float64)[0]
                channels.setdefault(name, []).append(by_channel)
    none = np.zeros(0)
    return {
        name: (
            median(means[name]),
            median(stds[name]),
            np.median(channels[name], axis=0) if name in channels else none,
        )
        for name in means
    }
