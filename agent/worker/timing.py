"""How long an inference takes, candidate and incumbent run by turns on the same samples.

For: percentiles of warm single-sample latency, and the paired ratio of the two. Taking turns cancels what
changes during the trial: heat, frequency, other processes.
Not for: accuracy, or telling whether a latency is good enough.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence

import numpy as np
from msgspec import Struct

from agent.errors import FinalError
from agent.worker.job import TrialSettings
from agent.worker.runtimes import Session
from agent.worker.shards import Arrays
from wire.figures import median_interval, percentile
from wire.measures import Latency, Measure


class Runner(Struct, frozen=True, kw_only=True):
    """A loaded model with the samples as it takes them; first axis samples.

    Attributes:
        whole: inputs of which a sample is the model's whole tensor.
        axes: by output name: the model's tensor is the release's, transposed by these.
        stacked: samples have no axis of their own in the outputs (`wire.bundle.InputData.whole`), so that one
            is made.
    """

    session: Session
    inputs: Arrays
    whole: frozenset[str] = frozenset()
    axes: dict[str, tuple[int, ...]] = {}
    stacked: bool = False

    def one(self, index: int) -> Arrays:
        """A single sample, first axis kept unless it is whole; past the end it begins again."""
        i = index % len(next(iter(self.inputs.values())))
        return {
            name: values[i, ...] if name in self.whole else values[i : i + 1]
            for name, values in self.inputs.items()
        }

    def infer(self, index: int) -> Arrays:
        """One inference, and nothing besides: the outputs on one sample as the model holds them."""
        return self.session.run(self.one(index))

    def answer(self, index: int) -> Arrays:
        """The outputs on one sample as the release describes them.

        Raises:
            FinalError: `model_run_failed`, `output_mismatch`.
        """
        outputs = self.session.finish(self.infer(index))
        for name in self.axes.keys() & outputs.keys():
            outputs[name] = _put_back(name, outputs[name], self.axes[name])
        return outputs


def _put_back(name: str, values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    if values.ndim != len(axes):
        raise FinalError(
            "output_mismatch",
            f"output {name} is {list(values.shape)}, the variant names {len(axes)} axes of it",
        )
    return values.transpose(np.argsort(axes))


def all_outputs(runner: Runner, names: Sequence[str]) -> Arrays:
    """These outputs on every sample, one inference a sample, as the device will run it.

    Raises:
        FinalError: `model_run_failed`, or `output_mismatch` where the outputs of two samples differ in shape.
    """
    n = len(next(iter(runner.inputs.values())))
    runs: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for index in range(n):
        outputs = runner.answer(index)
        for name, kept in runs.items():
            kept.append(outputs[name][None] if runner.stacked else outputs[name])
    try:
        return {name: np.concatenate(_filled(kept)) for name, kept in runs.items()}
    except ValueError as error:
        raise FinalError("output_mismatch", f"the model's outputs change their shape: {error}") from None


def _filled(rows: list[np.ndarray]) -> list[np.ndarray]:
    """Rows `[1,k,...]` of one `k`, as the host fills them: a detector's count of boxes may vary."""
    if any(row.ndim < 2 for row in rows) or len({row.shape[1] for row in rows}) == 1:
        return rows
    longest = max(row.shape[1] for row in rows)
    return [
        np.pad(row, [(0, 0), (0, longest - row.shape[1]), *[(0, 0)] * (row.ndim - 2)])
        if row.shape[1] < longest
        else row
        for row in rows
    ]


def warm_up(runners: Sequence[Runner], settings: TrialSettings) -> None:
    """Inferences that are not counted: caches fill, and the processor reaches its frequency."""
    for turn in range(settings.warmup):
        for runner in runners:
            runner.infer(turn)


def interleaved(
    runners: Sequence[Runner], settings: TrialSettings, between: Callable[[], None] = lambda: None
) -> list[list[float]]:
    """Milliseconds of each timed inference, one list a model; the same sample for all in each turn.

    Args:
        runners: warm.
        settings: how many.
        between: called after each turn, outside of what is timed.
    """
    took_ms: list[list[float]] = [[] for _ in runners]
    gc.collect()
    gc.disable()  # a collection would be counted as somebody's inference
    try:
        for turn in range(settings.latency_runs):
            # Who goes first changes, so that neither always finds the caches the other left.
            order = range(len(runners)) if turn % 2 == 0 else range(len(runners) - 1, -1, -1)
            for index in order:
                inputs = runners[index].one(turn)
                started = time.perf_counter_ns()
                runners[index].session.run(inputs)
                took_ms[index].append(max(1, time.perf_counter_ns() - started) / 1e6)
            between()
    finally:
        gc.enable()
    return took_ms


def latency_of(took_ms: Sequence[float], cold_load_ms: float | None) -> Latency:
    """The figures of one model."""
    return Latency(
        ms_p50=percentile(took_ms, 0.5),
        ms_p95=percentile(took_ms, 0.95),
        ms_p99=percentile(took_ms, 0.99),
        n=len(took_ms),
        cold_load_ms=cold_load_ms,
    )


def ratio_of(candidate_ms: Sequence[float], reference_ms: Sequence[float]) -> Measure:
    """Median of the ratios of neighbouring inferences, with the median's own interval."""
    ratios = [a / b for a, b in zip(candidate_ms, reference_ms, strict=True)]
    interval = median_interval(ratios)
    return Measure(value=percentile(ratios, 0.5), low=interval.low, high=interval.high, n=len(ratios))
