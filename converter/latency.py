"""Latency of a candidate, interleaved with the baseline.

For: timing single samples of both models turn by turn, so that whatever else the machine does falls on
both, and the ratio of the pairs with its interval.
Not for: judging; nor for a machine that is not of the target's class, where the figure says little.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence

from msgspec import Struct

from converter.dataset import Feeds
from converter.limits import (
    LATENCY_BLOCK_RUNS,
    LATENCY_RUNS_MIN,
    LATENCY_SECONDS_MAX,
    LATENCY_WARMUP_RUNS,
)
from converter.loading import Session, calls_of
from wire.figures import Interval, median_interval, percentile
from wire.measures import Latency

Clock = Callable[[], int]


class Pairs(Struct, frozen=True, kw_only=True):
    """Times of single inferences in milliseconds; equal places ran next to one another."""

    candidate_ms: tuple[float, ...]
    baseline_ms: tuple[float, ...]


class Ratio(Struct, frozen=True, kw_only=True):
    """Median of the paired ratios candidate over baseline, with its 95% interval."""

    value: float
    interval: Interval
    n: int


def measure_pairs(
    candidate: Session,
    baseline: Session,
    feeds: Sequence[Feeds],
    runs: int,
    clock: Clock = time.perf_counter_ns,
) -> Pairs:
    """Times `runs` pairs; the order within a pair turns with every block.

    Args:
        candidate: an open session; where it lays samples out, that is done before and not timed.
        baseline: the FP32 session, with equally many threads.
        feeds: single samples, used in turn; not empty.
        runs: pairs wanted; a slow model gets fewer, once `LATENCY_SECONDS_MAX` are spent, but never
            fewer than `LATENCY_RUNS_MIN`.
        clock: nanoseconds, monotonic.
    """
    calls = (calls_of(candidate, feeds), calls_of(baseline, feeds))
    for i in range(LATENCY_WARMUP_RUNS):
        for theirs in calls:
            theirs[i % len(feeds)]()
    times: tuple[list[float], list[float]] = ([], [])
    started, collecting = clock(), gc.isenabled()
    gc.disable()
    try:
        for i in range(runs):
            if i >= LATENCY_RUNS_MIN and clock() - started > LATENCY_SECONDS_MAX * 1e9:
                break
            first = (i // LATENCY_BLOCK_RUNS) % 2
            for which in (first, 1 - first):
                call = calls[which][i % len(feeds)]
                begun = clock()
                call()
                times[which].append((clock() - begun) / 1e6)
    finally:
        if collecting:
            gc.enable()
    return Pairs(candidate_ms=tuple(times[0]), baseline_ms=tuple(times[1]))


def ratio_of(pairs: Pairs) -> Ratio:
    """Median of the paired ratios; the interval is `wire.figures.median_interval`'s."""
    ratios = [
        mine / max(theirs, 1e-6) for mine, theirs in zip(pairs.candidate_ms, pairs.baseline_ms, strict=True)
    ]
    return Ratio(value=percentile(ratios, 0.5), interval=median_interval(ratios), n=len(ratios))


def latency_of(times_ms: Sequence[float], cold_load_ms: float | None = None) -> Latency:
    """Percentiles of single inferences; `times_ms` is not empty."""
    return Latency(
        ms_p50=percentile(times_ms, 0.50),
        ms_p95=percentile(times_ms, 0.95),
        ms_p99=percentile(times_ms, 0.99),
        n=len(times_ms),
        cold_load_ms=cold_load_ms,
    )
