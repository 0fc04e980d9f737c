"""Each range method keeps what it says, by brute force where that is small enough."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from converter.calibrate import Calibration, choose_methods, range_candidates, ranges_of
from converter.calibrate.expected import Grid, divergence, mean_squared_error
from converter.calibrate.histogram import Histogram
from converter.calibrate.ranges import (
    RANGE_METHODS,
    entropy_pairs,
    expected_errors,
    least_divergence,
    range_by,
)  # fmt: skip
from converter.calibrate.statistics import TensorStatistics
from converter.errors import RecipeError
from converter.recipe import Method, parse
from wire.figures import Interval

_GRIDS = [Grid(bits=bits, symmetric=symmetric) for bits in (4, 8, 16) for symmetric in (False, True)]


def _statistics(values: NDArray[np.float64], bins: int = 4096) -> TensorStatistics:
    histogram = Histogram(bins)
    histogram.add(values)
    span = Interval(float(values.min()), float(values.max()))
    inner = Interval(0.8 * span.low, 0.8 * span.high)
    return TensorStatistics(
        extremes=span, trusted=span, average=inner, mean=float(values.mean()), std=float(values.std()),
        count=values.size, histogram=histogram,
    )  # fmt: skip


def _calibration(values: NDArray[np.float64]) -> Calibration:
    stats = _statistics(values)
    return Calibration(ranges={"t": stats.extremes}, n_samples=9, tensors={"t": stats})


def _heavy(seed: int = 0, n: int = 20_000) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_t(3, n)


@settings(max_examples=40)
@given(
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=60),
    grid=st.sampled_from(_GRIDS),
    method=st.sampled_from(RANGE_METHODS),
)
def test_ranges_hold_zero_and_stay_within_the_extremes(
    values: list[float], grid: Grid, method: Method
) -> None:
    array = np.array(values, dtype=np.float64)
    span = range_by(_statistics(array, 256), method, grid)
    low, high = min(array.min(), 0.0), max(array.max(), 0.0)
    if grid.symmetric:
        assert span.low == -span.high
        low, high = -max(-low, high), max(-low, high)
    assert low <= span.low <= 0.0 <= span.high <= high


def _quantized(values: NDArray[np.float64], span: Interval, grid: Grid) -> NDArray[np.float64]:
    step = (span.high - span.low) / (grid.levels - 1)
    bottom = round(span.low / step)
    return np.clip(np.round(values / step), bottom, bottom + grid.levels - 1) * step


@pytest.mark.parametrize("grid", _GRIDS[:4])
@pytest.mark.parametrize("keep", [0.2, 0.6, 1.0])
def test_the_expected_error_is_the_error(grid: Grid, keep: float) -> None:
    values = _heavy()
    stats = _statistics(values)
    reach = keep * float(np.abs(values).max())
    span = Interval(-reach, reach) if grid.symmetric else Interval(keep * values.min(), keep * values.max())
    real = float(np.square(values - _quantized(values, span, grid)).mean())
    found = mean_squared_error(stats.histogram, np.array([span.low]), np.array([span.high]), grid)[0]
    assert found == pytest.approx(real, rel=0.05)


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), grid=st.sampled_from(_GRIDS), shift=st.floats(-3, 3))
def test_least_error_errs_no_more_than_any_other_method(seed: int, grid: Grid, shift: float) -> None:
    stats = _statistics(_heavy(seed, 500) + shift)
    errors = expected_errors(stats.histogram, [range_by(stats, m, grid) for m in ("mse", "minmax")], grid)
    assert errors[0] <= errors[1]


def test_least_error_is_close_to_the_best_of_a_fine_grid() -> None:
    stats, grid = _statistics(_heavy(3)), Grid(bits=8, symmetric=False)
    lows, highs = np.meshgrid(
        np.linspace(stats.extremes.low, 0, 120)[:-1], np.linspace(stats.extremes.high, 0, 120)[:-1]
    )
    best = mean_squared_error(stats.histogram, lows.reshape(-1), highs.reshape(-1), grid).min()
    found = expected_errors(stats.histogram, [range_by(stats, "mse", grid)], grid)[0]
    assert found <= 1.03 * best


def _plain_divergence(counts: list[int], first: int, start: int, stop: int, levels: int) -> float:
    """The same by loops, from the definition."""
    kept = counts[start:stop]
    if not sum(kept):
        return math.inf
    p = [float(c) for c in kept]
    p[0] += sum(counts[:start])
    p[-1] += sum(counts[stop:])
    step = (stop - start) / (levels - 1)
    level = [int(np.round((first + i + 0.5) / step)) for i in range(start, stop)]
    q = []
    for i, count in enumerate(kept):
        together = [kept[j] for j in range(len(kept)) if level[j] == level[i]]
        mean = sum(together) / sum(1 for c in together if c) if count else 0.0
        q.append(max(mean / sum(kept), 1e-6 / len(kept)))
    return sum(a / sum(p) * math.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q, strict=True) if a)


@settings(max_examples=40)
@given(
    counts=st.lists(st.integers(0, 50), min_size=16, max_size=16).filter(any),
    bits=st.sampled_from([1, 2, 3]),
    first=st.sampled_from([0, -8, -16]),
)
def test_entropy_finds_the_least_divergence_by_brute_force(counts: list[int], bits: int, first: int) -> None:
    histogram, grid = Histogram(16), Grid(bits=bits, symmetric=False)
    histogram.counts, histogram.first, histogram.exponent = np.array(counts), first, 0
    scores = {
        (start, stop): _plain_divergence(counts, first, start - first, stop - first, grid.levels)
        for start, stop in entropy_pairs(histogram, grid)
    }
    for (start, stop), score in scores.items():
        mine = divergence(np.array(counts), first, start - first, stop - first, grid)
        assert mine == pytest.approx(score, rel=1e-6, abs=1e-9)
    held = [first + i for i, count in enumerate(counts) if count]
    lows = range(min(held[0], 0), 0) or [0]
    highs = range(1, max(held[-1] + 1, 0) + 1) or [0]
    assert set(scores) == {(low, high) for low in lows for high in highs}
    span = least_divergence(histogram, grid)
    assert scores[round(span.low), round(span.high)] == pytest.approx(min(scores.values()), abs=1e-9)


@pytest.mark.parametrize("symmetric", [False, True])
def test_entropy_differs_from_minmax_where_tails_are_long(symmetric: bool) -> None:
    """FACTS.md trap 1: the runtime's own gave byte-identical models."""
    stats, grid = _statistics(_heavy()), Grid(bits=8, symmetric=symmetric)
    entropy, minmax = range_by(stats, "entropy", grid), range_by(stats, "minmax", grid)
    assert entropy.high - entropy.low < 0.7 * (minmax.high - minmax.low)


def test_percentiles_cut_both_ends() -> None:
    values = np.linspace(-1.0, 2.0, 100_001)
    span = range_by(_statistics(values), "percentile", Grid(bits=8, symmetric=False))
    assert span.low == pytest.approx(np.quantile(values, 0.00005), abs=2e-3)
    assert span.high == pytest.approx(np.quantile(values, 0.99995), abs=2e-3)


def test_minmax_keeps_wild_samples_and_the_others_do_not() -> None:
    stats = _statistics(_heavy())
    wild = TensorStatistics(
        extremes=Interval(-4000.0, 4000.0), trusted=stats.trusted, average=stats.average, mean=0.0, std=1.0,
        count=stats.count, histogram=stats.histogram,
    )  # fmt: skip
    calibration = Calibration(ranges={"t": wild.extremes}, n_samples=9, tensors={"t": wild})
    for method in (*RANGE_METHODS, "auto"):
        span = ranges_of(calibration, parse(f"static_wi8_au8_pc_{method}"))["t"]
        assert (span.high == 4000.0) is (method == "minmax")


def test_auto_clips_tails_and_leaves_even_values_alone() -> None:
    recipe = parse("static_wi8_au8_pc_auto")
    even = _calibration(np.linspace(-1.0, 1.0, 5001))
    assert choose_methods(even, recipe) == {"t": "minmax"}
    assert ranges_of(even, recipe) == even.ranges
    assert choose_methods(_calibration(_heavy()), parse("static_wi8_au4_pc_auto"))["t"] == "mse"


def test_more_bits_keep_more() -> None:
    calibration = _calibration(_heavy())
    four = ranges_of(calibration, parse("static_wi8_au4_pc_mse"))["t"]
    eight = ranges_of(calibration, parse("static_wi8_au8_pc_mse"))["t"]
    assert eight.high - eight.low > 1.1 * (four.high - four.low)


def test_candidates_that_are_alike_are_one() -> None:
    even = range_candidates(_calibration(np.linspace(-1.0, 1.0, 5001)), 8, symmetric=False)["t"]
    assert set(even) == {"minmax", "average"}
    heavy = range_candidates(_calibration(_heavy()), 8, symmetric=False)["t"]
    assert {"minmax", "mse", "percentile", "entropy"} <= set(heavy)


def test_what_chooses_no_ranges() -> None:
    bare = Calibration(ranges={"t": Interval(0.0, 1.0)}, n_samples=1)
    assert ranges_of(bare, parse("dynamic_wi8_af32")) == {}
    assert ranges_of(bare, parse("static_wi8_au8_pc_minmax")) == bare.ranges
    with pytest.raises(RecipeError, match="histograms"):
        ranges_of(bare, parse("static_wi8_au8_pc_mse"))
