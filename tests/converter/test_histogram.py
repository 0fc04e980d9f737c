"""A histogram that re-bins loses no count and keeps every value in its bin."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.calibrate.histogram import Histogram

_VALUES = st.lists(
    st.one_of(st.just(0.0), st.floats(width=32, allow_nan=False, allow_infinity=False), st.floats(-4, 4)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=200)
@given(batches=st.lists(_VALUES, min_size=1, max_size=5), bins=st.sampled_from([4, 16, 64]))
def test_counts_are_those_of_all_values_at_once(batches: list[list[float]], bins: int) -> None:
    """Re-binning by powers of two at edges that are multiples of the width is exact."""
    found = Histogram(bins)
    for batch in batches:
        found.add(np.array(batch, dtype=np.float32))
    values = np.array([value for batch in batches for value in batch], dtype=np.float32).astype(np.float64)
    assert found.total == len(values)
    assert found.zeros == int((values == 0).sum())
    some = values[values != 0]
    places = np.floor(some / found.width) - found.first
    expected = np.bincount(places.astype(np.int64), minlength=bins)
    assert found.counts.tolist() == expected.tolist()


@given(values=_VALUES)
def test_zero_is_an_edge_within_the_bins(values: list[float]) -> None:
    found = Histogram(16)
    found.add(np.array(values, dtype=np.float32))
    assert found.first <= 0 <= found.first + found.bins
    assert math.log2(found.width) == int(math.log2(found.width))


def test_bins_are_no_wider_than_needed() -> None:
    """Half of the bins are used at least, so that a range is resolved."""
    found = Histogram(1024)
    found.add(np.linspace(-1.0, 3.0, 10_001))
    used = np.flatnonzero(found.counts)
    assert used[-1] - used[0] >= 511


def test_the_shape_of_the_values_does_not_matter() -> None:
    one, other = Histogram(64), Histogram(64)
    array = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    one.add(array)
    other.add(array.reshape(-1))
    assert one.counts.tolist() == other.counts.tolist()


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_quantile_is_the_values_own_within_a_bin(share: float) -> None:
    values = np.random.default_rng(1).normal(size=20_000)
    found = Histogram()
    found.add(values)
    assert found.quantile(share) == pytest.approx(np.quantile(values, share), abs=2 * found.width + 1e-3)


def test_quantiles_see_the_zeros() -> None:
    values = np.concatenate([np.zeros(900), np.linspace(-1, -0.5, 50), np.linspace(0.5, 1, 50)])
    found = Histogram()
    found.add(values)
    assert found.quantile(0.5) == 0.0
    assert found.quantile(0.94) == 0.0
    assert found.quantile(0.025) == pytest.approx(-0.75, abs=0.02)
    assert found.quantile(0.975) == pytest.approx(0.75, abs=0.02)


@given(values=_VALUES, shares=st.lists(st.floats(0, 1), min_size=2, max_size=2))
def test_quantiles_rise_with_the_share(values: list[float], shares: list[float]) -> None:
    found = Histogram(32)
    found.add(np.array(values, dtype=np.float32))
    assert found.quantile(min(shares)) <= found.quantile(max(shares))


def test_only_zeros_and_nothing_at_all() -> None:
    found = Histogram()
    found.add(np.zeros(0))
    assert (found.total, found.quantile(0.5)) == (0, 0.0)
    found.add(np.zeros(7))
    assert (found.total, found.quantile(0.5)) == (7, 0.0)
