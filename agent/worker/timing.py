"""How long an inference takes, candidate and incumbent run by turns on the same samples.

For: percentiles of warm single-sample latency, and the paired ratio of the two. Taking turns cancels what
changes during the trial: heat, frequency, other processes.
Not for: accuracy, or telling whether a latency is good enough.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from agent.worker.job import TrialSettings
from agent.worker.runtimes import Session
from agent.worker.shards import Arrays, Samples
from wire.figures import median_interval, percentile
from wire.measures import Latency, Measure


def one(samples: Samples, index: int) -> dict[str, NDArray[Any]]:
    """A single sample as the model's inputs, first axis kept."""
    return {name: values[index : index + 1] for name, values in samples.inputs.items()}


def all_outputs(session: Session, samples: Samples) -> Arrays:
    """The outputs on every sample, one inference a sample, as the device will run it."""
    import numpy as np  # noqa: PLC0415 - beside its one use; the worker has it loaded

    runs = [session.run(one(samples, index)) for index in range(samples.n)]
    return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}


def interleaved(sessions: Sequence[Session], samples: Samples, settings: TrialSettings) -> list[list[float]]:
    """Milliseconds of each timed inference, one list a session; the same sample for all in each turn."""
    took_ms: list[list[float]] = [[] for _ in sessions]
    for turn in range(settings.warmup + settings.latency_runs):
        inputs = one(samples, turn % samples.n)
        # Who goes first changes, so that neither always finds the caches the other left.
        order = range(len(sessions)) if turn % 2 == 0 else range(len(sessions) - 1, -1, -1)
        for index in order:
            started = time.perf_counter_ns()
            sessions[index].run(inputs)
            if turn >= settings.warmup:
                took_ms[index].append((time.perf_counter_ns() - started) / 1e6)
    return took_ms


def latency_of(took_ms: Sequence[float], cold_load_ms: float | None) -> Latency:
    """The figures of one session."""
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
