"""Statistics of every activation, in one pass with bounded memory.

For: running the whole set through the probed graph (`converter.calibrate.probes`) and summing up; memory is
that of one batch, however large the set.
Not for: choosing how much of a range to keep (`converter.calibrate.ranges`), or quantizing.

The inputs are inspected first. Samples that reach far beyond the others (`outliers`) are run by themselves:
their extremes count, so that min-max is exact, but histograms, means and averages leave them out, and a
finding says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import groupby

import numpy as np
import onnx

from converter.calibrate.findings import inspect_inputs, inspect_tensors
from converter.calibrate.histogram import Histogram
from converter.calibrate.probes import PARTS, Probe, activation_bytes, augmented
from converter.calibrate.statistics import Calibration, Channels, Floats, TensorStatistics
from converter.dataset import Feeds, Samples
from converter.errors import InputError
from converter.limits import ACTIVATION_BYTES_MAX, CALIBRATION_BATCH_MAX, SAMPLE_EXTREMES_MAX
from converter.model import Signature
from converter.runtime import open_session
from wire.figures import Interval


def calibrate(
    model: onnx.ModelProto,
    samples: Samples,
    signature: Signature,
    progress: Callable[[int, int], None] | None = None,
    batch: int = CALIBRATION_BATCH_MAX,
) -> Calibration:
    """Runs the whole set through the model once.

    Args:
        model: cleaned FP32 graph.
        samples: the calibration set.
        signature: of the model; without a free first axis samples run one by one.
        progress: told (samples done, samples in all).
        batch: samples whose activations live at once at most; fewer where they would be more than
            `ACTIVATION_BYTES_MAX`.

    Raises:
        InputError: `calibration_not_finite`: an input or a tensor reached NaN or infinity; the message
            names it and the sample.
    """
    seen = inspect_inputs(samples)
    graph, probes = augmented(model)
    session = open_session(graph.SerializeToString(), threads=2, optimization="BASIC")
    fitting = max(1, ACTIVATION_BYTES_MAX // max(activation_bytes(model), 1))
    size = min(batch, fitting) if signature.batch_free else 1
    followed = SAMPLE_EXTREMES_MAX // samples.n
    tallies = [_Tally(probe, samples.n, follow=i < followed) for i, probe in enumerate(probes)]
    wild = frozenset(seen.wild)
    done = 0
    for places, feeds in _runs(samples, size, wild):
        found = session.run(None, feeds)
        for i, tally in enumerate(tallies):
            tally.add(places, found[len(PARTS) * i : len(PARTS) * (i + 1)], trusted=places[0] not in wild)
        done += len(places)
        if progress is not None:
            progress(done, samples.n)
    tensors = {tally.probe.tensor: tally.statistics() for tally in tallies}
    findings = (*seen.findings, *inspect_tensors(tensors, seen))
    return Calibration(
        ranges={name: one.extremes for name, one in tensors.items()},
        n_samples=done,
        outliers=seen.outliers,
        tensors=tensors,
        findings=tuple(sorted(findings, key=lambda one: one.severity != "warning")),
        left_out=seen.wild,
    )


def _runs(samples: Samples, size: int, wild: frozenset[int]) -> Iterator[tuple[range, Feeds]]:
    """All samples in order, at most `size` in a run; a run is wholly wild or holds no wild sample."""
    size = samples.together(size)
    for start in range(0, samples.n, size):
        block = range(start, min(start + size, samples.n))
        feeds = samples.feeds(block.start, block.stop)
        for _, group in groupby(block, key=lambda i: i in wild):
            places = list(group)
            run = range(places[0], places[-1] + 1)
            inside = slice(run.start - start, run.stop - start)
            # A whole sample is a run of its own, and its first axis counts no samples.
            part = feeds if samples.whole else {name: tensor[inside] for name, tensor in feeds.items()}
            yield run, part


class _Tally:
    """Sums up one tensor."""

    def __init__(self, probe: Probe, n: int, *, follow: bool) -> None:
        self.probe = probe
        self.histogram = Histogram()
        self.lowest = self.trusted_low = math.inf
        self.highest = self.trusted_high = -math.inf
        self.low_sum = self.high_sum = self.sum = self.value_sum = self.square_sum = 0.0
        self.rows = self.count = self.values = 0
        self.by_sample = probe.by_sample
        self.sample_low = np.zeros(n if follow else 0, dtype=np.float32)
        self.sample_high = np.zeros(n if follow else 0, dtype=np.float32)
        self.channels: list[Floats] = []

    def add(self, places: range, found: list[Floats], *, trusted: bool) -> None:
        """One run's four outputs, see `PARTS`."""
        low, high, mean, values = found
        if not values.size:
            return
        _require_finite(self.probe.tensor, places, low, high, mean)
        # An axis that is not as long as the batch does not count samples, whatever its place.
        self.by_sample = self.by_sample and low.shape[0] == len(places)
        rows = low.shape[0] if self.by_sample else 1
        lows, highs = low.reshape(rows, -1).min(axis=1), high.reshape(rows, -1).max(axis=1)
        if self.by_sample and self.sample_low.size:
            self.sample_low[places.start : places.stop] = lows
            self.sample_high[places.start : places.stop] = highs
        self.lowest, self.highest = min(self.lowest, float(lows.min())), max(self.highest, float(highs.max()))
        if trusted:
            self._add_trusted(lows, highs, (low, high, mean), values)

    def _add_trusted(
        self, lows: Floats, highs: Floats, reduced: tuple[Floats, Floats, Floats], values: Floats
    ) -> None:
        self.trusted_low = min(self.trusted_low, float(lows.min()))
        self.trusted_high = max(self.trusted_high, float(highs.max()))
        self.low_sum += float(lows.sum(dtype=np.float64))
        self.high_sum += float(highs.sum(dtype=np.float64))
        self.rows += len(lows)
        self.sum += float(reduced[2].mean(dtype=np.float64)) * len(lows)
        self.values += values.size
        self.value_sum += float(values.sum(dtype=np.float64))
        self.square_sum += float(np.square(values, dtype=np.float64).sum())
        self.histogram.add(values)
        if self.probe.axis is not None:
            self._add_channels(*(part.reshape(-1, part.shape[-1]).astype(np.float64) for part in reduced))

    def _add_channels(self, low: Floats, high: Floats, mean: Floats) -> None:
        here = [low.min(axis=0), high.max(axis=0), mean.mean(axis=0) * len(mean), np.float64(len(mean))]
        if not self.channels:
            self.channels = [np.asarray(part) for part in here]
            return
        before = self.channels
        self.channels = [
            np.minimum(before[0], here[0]), np.maximum(before[1], here[1]),
            before[2] + here[2], before[3] + here[3],
        ]  # fmt: skip

    def statistics(self) -> TensorStatistics:
        """What was summed up; all zero for a tensor that held no value."""
        followed = self.by_sample and self.sample_low.size > 0
        rows, values = max(self.rows, 1), max(self.values, 1)
        middle = self.value_sum / values
        channels = None
        if self.channels and self.probe.axis is not None:
            low, high, total, n = self.channels
            channels = Channels(axis=self.probe.axis, low=low, high=high, mean=total / n)
        return TensorStatistics(
            extremes=_interval(self.lowest, self.highest),
            trusted=_interval(self.trusted_low, self.trusted_high),
            average=Interval(self.low_sum / rows, self.high_sum / rows),
            mean=self.sum / rows,
            std=math.sqrt(max(self.square_sum / values - middle * middle, 0.0)),
            count=self.values,
            histogram=self.histogram,
            channels=channels,
            sample_low=self.sample_low if followed else None,
            sample_high=self.sample_high if followed else None,
        )


def _interval(low: float, high: float) -> Interval:
    return Interval(low, high) if low <= high else Interval(0.0, 0.0)


def _require_finite(tensor: str, places: range, *reduced: Floats) -> None:
    for part in reduced:
        bad = ~np.isfinite(part)
        if bad.any():
            by_sample = part.ndim > 0 and part.shape[0] == len(places)
            first = places[int(np.argwhere(bad)[0][0])] if by_sample else places.start
            where = f"sample {first}" if by_sample else f"samples {places.start} to {places.stop - 1}"
            raise InputError(
                "calibration_not_finite",
                f"tensor {tensor} reaches NaN or infinity on the calibration set, first in {where}; "
                "check the preprocessing, or the model itself in FP32",
            )
