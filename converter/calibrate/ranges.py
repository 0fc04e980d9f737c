"""From what was collected to the range of each tensor.

For: `ranges_of()`: the ranges that a recipe's method keeps, for its bits and symmetry; `range_candidates()`
and `choose_methods()`: what there is to choose from, tensor by tensor.
Not for: collecting, scales and zero points (`converter.quantize`), or the measured effect of a choice on the
model's outputs (`converter.repair`).

All ranges hold zero. `minmax` keeps all of all samples; the other methods start from the trusted extremes,
which leave out the samples that the inspection named as wild:

- `average`: mean over samples of their extremes.
- `percentile`: 99.99% of all values, half of the rest cut at each end.
- `mse`: least expected squared error (`converter.calibrate.expected`), low and high searched apart.
- `entropy`: least Kullback-Leibler divergence. Blind to how far clipped values lie; never chosen by `auto`.
- `auto`: by tensor, `minmax` of the trusted samples unless another of the above errs less by a tenth:
  ranges that clip are chosen where that buys something.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from converter.calibrate.expected import Grid, divergence, mean_squared_error
from converter.calibrate.histogram import Histogram
from converter.calibrate.statistics import Calibration, Ranges, TensorStatistics
from converter.errors import RecipeError
from converter.recipe import Method, Recipe
from wire.figures import Interval

Floats = NDArray[np.float64]

RANGE_METHODS: tuple[Method, ...] = ("minmax", "average", "percentile", "mse", "entropy")
"""Each gives one range; `auto` chooses among all but the last."""

PERCENTILE = 99.99
_FRACTIONS = np.geomspace(1 / 64, 1.0, 28)
"""Of an extreme that the searches try first: by a sixth each, down to what 6 bits more would resolve."""
_REFINED = np.linspace(0.86, 1.16, 13)
_ROUNDS = 2
_ENTROPY_ONE_SIDED, _ENTROPY_TWO_SIDED = 64, 20
"""Thresholds tried at each end; on fewer occupied bins each edge is tried."""
_SAME = 0.01
_GAIN_MIN = 0.1


def ranges_of(calibration: Calibration, recipe: Recipe) -> Ranges:
    """The ranges of every activation for that recipe; empty where it needs none.

    A tensor without statistics keeps its extremes.

    Raises:
        RecipeError: `recipe_method`: the method is none of ranges, or the calibration holds only extremes.
    """
    method = recipe.method
    if method is None or recipe.activation[0] == "f":
        return {}
    if method not in {*RANGE_METHODS, "auto"}:
        raise RecipeError("recipe_method", f"method {method} chooses no ranges of activations")
    if method != "minmax" and not calibration.tensors:
        raise RecipeError("recipe_method", f"method {method} needs histograms; this calibration has none")
    grid = _grid(recipe)
    ranges = {}
    for name, span in calibration.ranges.items():
        stats = calibration.tensors.get(name)
        if stats is None or method == "minmax":
            ranges[name] = _shaped(span, grid)
        elif method == "auto":
            ranges[name] = _best(_all(stats, grid, _AUTO), stats, grid)[1]
        else:
            ranges[name] = range_by(stats, method, grid)
    return ranges


def range_candidates(
    calibration: Calibration, bits: int, symmetric: bool
) -> dict[str, dict[Method, Interval]]:
    """For each tensor the ranges that really differ, by the first method that gives them.

    A range is left out where both ends lie within 1% of the span of one that is there already; `minmax` is
    always there.
    """
    grid = Grid(bits=bits, symmetric=symmetric)
    return {name: _distinct(_all(stats, grid, RANGE_METHODS)) for name, stats in calibration.tensors.items()}


def choose_methods(calibration: Calibration, recipe: Recipe) -> dict[str, Method]:
    """What `auto` takes for each tensor; `minmax` stands for the extremes of the trusted samples."""
    grid = _grid(recipe)
    return {
        name: _best(_all(stats, grid, _AUTO), stats, grid)[0] for name, stats in calibration.tensors.items()
    }


_AUTO: tuple[Method, ...] = ("minmax", "average", "percentile", "mse")


def range_by(stats: TensorStatistics, method: Method, grid: Grid) -> Interval:
    """One tensor's range by one of `RANGE_METHODS`."""
    histogram, trusted = stats.histogram, _shaped(stats.trusted, grid)
    if method == "minmax":
        return _shaped(stats.extremes, grid)
    if method == "average":
        return _shaped(stats.average, grid)
    if method == "percentile":
        tail = (1 - PERCENTILE / 100) / 2
        found = Interval(histogram.quantile(tail), histogram.quantile(1 - tail))
        return _shaped(_within(found, stats.trusted), grid)
    if trusted.low == trusted.high or not histogram.counts.any():
        return trusted
    if method == "mse":
        return _least_error(histogram, trusted, grid)
    return _shaped(_within(least_divergence(histogram, grid), stats.trusted), grid)


def _grid(recipe: Recipe) -> Grid:
    return Grid(bits=int(recipe.activation[1:]), symmetric=recipe.symmetric)


def _shaped(span: Interval, grid: Grid) -> Interval:
    """With zero in it, and as far to both sides where the grid is symmetric."""
    low, high = min(span.low, 0.0), max(span.high, 0.0)
    if grid.symmetric:
        reach = max(-low, high)
        return Interval(-reach, reach)
    return Interval(low, high)


def _within(span: Interval, limits: Interval) -> Interval:
    """Edges of bins lie up to a bin beyond the extremes."""
    low, high = max(span.low, min(limits.low, 0.0)), min(span.high, max(limits.high, 0.0))
    return Interval(min(low, high), high)


def _all(stats: TensorStatistics, grid: Grid, methods: tuple[Method, ...]) -> dict[Method, Interval]:
    return {method: range_by(stats, method, grid) for method in methods}


def _distinct(found: dict[Method, Interval]) -> dict[Method, Interval]:
    kept: dict[Method, Interval] = {}
    for method, span in found.items():
        near = (_SAME * (one.high - one.low) for one in kept.values())
        pairs = zip(kept.values(), near, strict=True)
        if not any(abs(one.low - span.low) <= e and abs(one.high - span.high) <= e for one, e in pairs):
            kept[method] = span
    return kept


def _best(found: dict[Method, Interval], stats: TensorStatistics, grid: Grid) -> tuple[Method, Interval]:
    """The method of least expected error; that of the trusted extremes unless beaten by a tenth."""
    spans = found | {"minmax": _shaped(stats.trusted, grid)}
    errors = dict(zip(spans, expected_errors(stats.histogram, list(spans.values()), grid), strict=True))
    best = min(errors, key=lambda method: errors[method])
    method = best if errors[best] < (1 - _GAIN_MIN) * errors["minmax"] else "minmax"
    return method, spans[method]


def expected_errors(histogram: Histogram, spans: list[Interval], grid: Grid) -> list[float]:
    """Mean squared error per value of each range."""
    low, high = np.array([s.low for s in spans]), np.array([s.high for s in spans])
    return [float(value) for value in mean_squared_error(histogram, low, high, grid)]


def _least_error(histogram: Histogram, widest: Interval, grid: Grid) -> Interval:
    """Both ends shrunk together first, then each by itself in turns, coarse and fine.

    Never worse than `widest`, which is tried too.
    """
    best = _least(histogram, widest.low * _FRACTIONS, widest.high * _FRACTIONS, grid)
    if grid.symmetric:
        reach = np.minimum(best.high * _REFINED, widest.high)
        return _least(histogram, np.append(-reach, best.low), np.append(reach, best.high), grid)
    for fractions in (*[_FRACTIONS] * _ROUNDS, *[None] * _ROUNDS):
        for end in ("low", "high"):
            limit, here = getattr(widest, end), getattr(best, end)
            if limit == 0.0:
                continue
            line = limit * fractions if fractions is not None else np.append(here, here * _REFINED)
            line = np.clip(line, min(limit, 0.0), max(limit, 0.0))
            line = np.append(here, line)
            other = np.full(len(line), best.high if end == "low" else best.low)
            low, high = (line, other) if end == "low" else (other, line)
            best = _least(histogram, low, high, grid)
    return best


def _least(histogram: Histogram, low: Floats, high: Floats, grid: Grid) -> Interval:
    errors = mean_squared_error(histogram, low, high, grid)
    i = int(np.argmin(errors))
    return Interval(float(low[i]), float(high[i]))


def least_divergence(histogram: Histogram, grid: Grid) -> Interval:
    """The kept bins of least divergence among the tried ones; ties go to the wider range."""
    pairs = entropy_pairs(histogram, grid)
    counts, first = histogram.counts, histogram.first
    if grid.symmetric:
        counts, first = _mirrored(histogram)
    scores = [divergence(counts, first, start - first, stop - first, grid) for start, stop in pairs]
    start, stop = pairs[int(np.argmin(scores))]
    return Interval(start * histogram.width, stop * histogram.width)


def entropy_pairs(histogram: Histogram, grid: Grid) -> list[tuple[int, int]]:
    """Ranges to try, as edges in widths (low at most 0, high at least 0), the widest first."""
    held = np.flatnonzero(histogram.counts)
    bottom = min(histogram.first + int(held[0]), 0)
    top = max(histogram.first + int(held[-1]) + 1, 0)
    if grid.symmetric:
        reach = max(-bottom, top)
        return [(-edge, edge) for edge in _edges(reach, _ENTROPY_ONE_SIDED)]
    tried = _ENTROPY_TWO_SIDED if bottom < 0 < top else _ENTROPY_ONE_SIDED
    return [(-low, high) for low in _edges(-bottom, tried) for high in _edges(top, tried)]


def _edges(extreme: int, tried: int) -> list[int]:
    """Distances from zero to try, the farthest first; `[0]` for a side without values."""
    if extreme <= tried:
        return list(range(extreme, 0, -1)) or [0]
    found = {round(fraction * extreme) for fraction in np.geomspace(1 / 64, 1.0, tried)}
    return sorted(found - {0}, reverse=True)


def _mirrored(histogram: Histogram) -> tuple[NDArray[np.int64], int]:
    """Counts with as many bins below zero as above."""
    above = histogram.first + histogram.bins
    reach = max(above, -histogram.first)
    counts = np.pad(histogram.counts, (reach + histogram.first, reach - above))
    return counts, -reach
