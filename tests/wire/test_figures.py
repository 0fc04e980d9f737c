"""Statistics against known values and their own laws."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import figures
from wire.figures import Interval, PairedCounts

FLOATS = st.floats(-1e9, 1e9, allow_nan=False)
COUNTS = st.builds(
    PairedCounts,
    both=st.integers(0, 500),
    candidate_only=st.integers(0, 500),
    reference_only=st.integers(0, 500),
    neither=st.integers(0, 500),
)


@given(st.lists(FLOATS, min_size=1, max_size=60), st.floats(0, 1))
def test_percentile_is_numpys(values: list[float], fraction: float) -> None:
    expected = float(np.quantile(values, fraction))
    assert figures.percentile(values, fraction) == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_the_constant_is_the_normal_distributions() -> None:
    assert statistics.NormalDist().inv_cdf(0.975) == figures._Z95


def test_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="0 values"):
        figures.percentile([], 0.5)


def test_wilson_matches_the_published_example() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I: 81 of 263, method 3: 0.2553 to 0.3662.
    interval = figures.wilson_interval(81, 263)
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)


@given(st.integers(1, 5000), st.data())
def test_wilson_holds_its_point(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    interval = figures.wilson_interval(successes, n)
    assert 0.0 <= interval.low <= successes / n <= interval.high <= 1.0


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_what_is_no_proportion_is_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="is not a proportion"):
        figures.wilson_interval(successes, n)


@given(COUNTS.filter(lambda c: c.n > 0))
def test_swapping_the_two_models_mirrors_the_interval(counts: PairedCounts) -> None:
    swapped = PairedCounts(
        both=counts.both,
        candidate_only=counts.reference_only,
        reference_only=counts.candidate_only,
        neither=counts.neither,
    )
    one, two = figures.paired_delta_interval(counts), figures.paired_delta_interval(swapped)
    assert (one.low, one.high) == pytest.approx((-two.high, -two.low))


def test_the_paired_interval_covers_the_truth() -> None:
    rng = random.Random(7)
    covered = 0
    for _ in range(600):
        draws = [rng.random() for _ in range(300)]
        up = sum(d < 0.05 for d in draws)
        down = sum(0.05 <= d < 0.13 for d in draws)
        counts = PairedCounts(both=300 - up - down, candidate_only=up, reference_only=down, neither=0)
        interval = figures.paired_delta_interval(counts)
        covered += interval.low <= -0.03 <= interval.high
    assert 0.92 <= covered / 600 <= 0.985


def test_equal_models_have_a_ratio_around_one() -> None:
    interval = figures.paired_ratio_interval(
        PairedCounts(both=180, candidate_only=2, reference_only=2, neither=16)
    )
    assert interval is not None
    assert interval.low < 1.0 < interval.high


def test_there_is_no_ratio_to_nothing() -> None:
    counts = PairedCounts(both=0, candidate_only=3, reference_only=0, neither=5)
    assert figures.paired_ratio_interval(counts) is None


@pytest.mark.parametrize(
    ("candidate_only", "reference_only", "expected"),
    [(0, 0, 1.0), (0, 5, 1 / 32), (5, 5, 0.623046875), (10, 0, 1.0), (1, 9, 11 / 1024)],
)
def test_the_sign_test_is_the_binomial_tail(
    candidate_only: int, reference_only: int, expected: float
) -> None:
    counts = PairedCounts(both=7, candidate_only=candidate_only, reference_only=reference_only, neither=1)
    assert figures.sign_test_p_value(counts) == pytest.approx(expected)


@given(COUNTS, COUNTS)
def test_counts_add_cell_by_cell(one: PairedCounts, two: PairedCounts) -> None:
    assert (one + two).n == one.n + two.n
    assert (one + two).reference_only == one.reference_only + two.reference_only


@given(st.lists(FLOATS, min_size=1, max_size=80))
def test_the_median_lies_in_its_interval(values: list[float]) -> None:
    interval = figures.median_interval(values)
    assert interval.low <= figures.percentile(values, 0.5) <= interval.high


def test_the_median_interval_of_ten_is_the_second_to_the_ninth() -> None:
    # Conover: for n = 10 the order statistics 2 and 9 give 97.9%.
    assert figures.median_interval([float(i) for i in range(1, 11)]) == Interval(2.0, 9.0)


def test_few_values_give_the_whole_range() -> None:
    assert figures.median_interval([3.0, 1.0, 2.0]) == Interval(1.0, 3.0)


def test_a_large_sign_test_does_not_overflow() -> None:
    counts = PairedCounts(both=0, candidate_only=5000, reference_only=5000, neither=0)
    assert math.isclose(figures.sign_test_p_value(counts), 0.5, abs_tol=0.01)
