"""The report's charts: axes, ticks, the front, and where each row is drawn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.report import charts, scale
from converter.report.charts import BOTTOM, LEFT, RIGHT, TOP, cliff, front, pareto, precision_of
from converter.report.scale import Axis, axis
from tests.converter.reports import FLOAT, candidate, random_report, report
from wire.sla import AccuracyLimit, Limits

Point = tuple[float, float]
_FIGURES = st.floats(-1e6, 1e6)


def hold_axis(made: Axis, low: float, high: float) -> None:
    """Both ends lie within, in order; ticks are round, in order and within; beyond lies at the end."""
    assert made.low < made.high
    first, last = made.place(low), made.place(high)
    assert made.start <= first <= last <= made.end
    assert made.place(made.high + 1.0) == pytest.approx(made.end)
    assert made.place(made.low - 1.0) == pytest.approx(made.start)
    ticks = made.ticks()
    assert 1 <= len(ticks) <= 14
    assert list(ticks) == sorted(set(ticks))
    spread = made.high - made.low
    assert all(made.low - 1e-9 * spread <= tick <= made.high + 1e-9 * spread for tick in ticks)
    middle = (made.low * made.high) ** 0.5 if made.log else (made.low + made.high) / 2
    assert made.place(middle) == pytest.approx((made.start + made.end) / 2)


@given(_FIGURES, st.floats(0, 1e6))
def test_a_linear_axis_holds_its_figures(low: float, spread: float) -> None:
    hold_axis(axis(low, low + spread, 10.0, 200.0), low, low + spread)


@given(st.floats(1e-6, 1e6), st.floats(1.0, 1e5))
def test_an_axis_of_ratios_holds_its_figures(low: float, factor: float) -> None:
    made = axis(low, low * factor, 10.0, 200.0, positive=True)
    assert made.log == (low * factor / low >= 6.0)
    hold_axis(made, low, low * factor)


def test_an_axis_may_point_up_a_screen() -> None:
    made = axis(0.9, 0.95, 300.0, 20.0)
    assert 20.0 < made.place(0.95) < made.place(0.9) < 300.0


def hold_front(found: Callable[[Sequence[Point]], list[Point]], points: Sequence[Point]) -> None:
    """Exactly those that nothing beats, by the definition."""
    kept = found(points)
    unbeaten = {one for one in points if not any(_beats(other, one) for other in points)}
    assert set(kept) == unbeaten
    assert kept == sorted(kept)


def _beats(one: Point, other: Point) -> bool:
    return one[0] <= other[0] and one[1] <= other[1] and one != other


_POINTS = st.lists(st.tuples(st.integers(0, 6).map(float), st.integers(0, 6).map(float)), max_size=12)


@given(_POINTS)
def test_the_front_is_what_nothing_beats(points: list[Point]) -> None:
    hold_front(front, points)


MUTANTS = (
    (charts, "y < kept[-1][1]", "y <= kept[-1][1]"),
    (charts, "y < kept[-1][1]", "y > kept[-1][1]"),
    (charts, "in sorted(points)", "in points"),
    (scale, "min(max(value, self.low), self.high)", "value"),
    (scale, "(kept - self.low) / (self.high - self.low)", "(kept - self.low) / self.high"),
    (scale, "math.ceil(low / step), math", "math.floor(low / step), math"),
    (scale, "math.floor(high / step)", "math.ceil(high / step)"),
    (scale, "high=high * room", "high=high"),
    (scale, "if low <= value <= high", "if low <= value"),
    (scale, "power * one >= rough", "power * one <= rough"),
)


@pytest.mark.parametrize(("module", "old", "new"), MUTANTS)
def test_a_mutant_breaks_a_rule(module: ModuleType, old: str, new: str) -> None:
    source = Path(str(module.__file__)).read_text()
    assert old in source, "the mutant no longer applies: write another"
    mutant = ModuleType(f"mutant_{module.__name__}")
    sys.modules[mutant.__name__] = mutant
    try:
        exec(compile(source.replace(old, new), "mutant", "exec"), mutant.__dict__)
        with pytest.raises((AssertionError, ValueError, StopIteration)):
            (_hold_charts if module is charts else _hold_scale)(mutant)
    finally:
        del sys.modules[mutant.__name__]


def _hold_charts(module: ModuleType) -> None:
    hold_front(module.front, [(3.0, 1.0), (1.0, 3.0), (1.0, 4.0), (2.0, 3.0), (2.0, 2.0), (4.0, 1.0)])


def _hold_scale(module: ModuleType) -> None:
    for low, high in ((0.013, 0.77), (-5.0, 91.0), (3.0, 3.0), (0.902, 0.936)):
        hold_axis(module.axis(low, high, 10.0, 200.0), low, high)
    for low, high in ((0.3, 4.7), (0.2, 2.5), (0.01, 9000.0), (1.0, 6.5)):
        made = module.axis(low, high, 10.0, 200.0, positive=True)
        hold_axis(made, low, high)
        assert made.high > high


@settings(max_examples=300)
@given(st.integers(0, 2**32))
def test_every_row_is_drawn_within_the_chart_or_named_under_it(seed: int) -> None:
    one = random_report(seed)
    for chart in (pareto(one), cliff(one)):
        if chart is None:
            continue
        drawn = {dot.label for dot in chart.dots}
        absent = {text.split()[0] for text in chart.absent}
        assert drawn | absent == {str(i) for i in range(1, len(one.candidates) + 1)}
        assert not drawn & absent
        for dot in chart.dots:
            assert LEFT <= dot.x <= RIGHT
            assert TOP <= dot.y <= BOTTOM
            assert dot.chosen == (one.candidates[int(dot.label) - 1].id == one.chosen)
        assert all(LEFT <= tick.at <= RIGHT for tick in chart.x_ticks)
        assert chart.limit is None or TOP <= chart.limit <= BOTTOM


def test_faster_lies_left_better_lies_high_and_area_is_size() -> None:
    small = candidate("static_wi8_au8_pc_minmax", accuracy=0.915, latency_ratio=0.3, size_bytes=150_000)
    chart = pareto(report(FLOAT, small))
    assert chart is not None
    places = {dot.label: dot for dot in chart.dots}
    assert places["2"].x < places["1"].x
    assert places["1"].y < places["2"].y
    assert (places["2"].radius / places["1"].radius) ** 2 == pytest.approx(0.25)
    assert chart.path.startswith("M")


def test_a_row_that_collapsed_does_not_flatten_the_others() -> None:
    broken = candidate("static_wi8_au8_pt_minmax", accuracy=0.1, latency_ratio=0.3)
    chart = pareto(report(FLOAT, broken))
    assert chart is not None
    fallen = next(dot for dot in chart.dots if dot.label == "2")
    assert fallen.below
    assert fallen.y == BOTTOM
    assert "0.1000" in fallen.title
    assert min(float(tick.text) for tick in chart.y_ticks) > 0.8
    deep = cliff(report(FLOAT, broken))
    assert deep is not None
    assert min(float(tick.text) for tick in deep.y_ticks) <= 0.2


def test_a_smaller_error_lies_higher_and_a_collapse_below() -> None:
    errors = {"name": "mae", "direction": "lower"}
    base = candidate("float_wf32_af32", accuracy=3.0, latency_ratio=1.0)
    better = candidate("static_wi8_au8_pc_minmax", accuracy=2.9, latency_ratio=0.4)
    worse = candidate("static_wi8_au8_pt_minmax", accuracy=70.0, latency_ratio=0.3)
    for chart in (
        pareto(report(base, better, worse, metric=errors)),
        cliff(report(base, better, metric=errors)),
    ):
        assert chart is not None
        places = {dot.label: dot for dot in chart.dots}
        assert places["2"].y < places["1"].y
        assert chart.y_title == "mae"
    plot = pareto(report(base, better, worse, metric=errors))
    assert plot is not None
    assert [dot.label for dot in plot.dots if dot.below] == ["3"]
    assert all(dot.y == BOTTOM for dot in plot.dots if dot.below)


def test_without_latency_the_size_stands_in_its_place() -> None:
    rows = [
        candidate(name, accuracy=0.9, size_bytes=10_000) for name in ("float_wf32_af32", "dynamic_wi8_af32")
    ]
    chart = pareto(report(*rows))
    assert chart is not None
    assert chart.x_title.startswith("size")
    assert pareto(report(candidate("float_wf32_af32", accuracy=0.9))) is None


def test_the_limit_is_the_slas() -> None:
    share = Limits(accuracy=AccuracyLimit(min_fraction_of_baseline=0.5))
    assert charts.accuracy_bound(report(FLOAT, limits=share)) == pytest.approx(0.46)
    fixed = Limits(accuracy=AccuracyLimit(min=0.8))
    assert charts.accuracy_bound(report(FLOAT, limits=fixed)) == 0.8
    assert charts.accuracy_bound(report(FLOAT)) is None
    assert charts.accuracy_bound(report(FLOAT, limits=Limits())) is None


@pytest.mark.parametrize(
    ("recipe", "precision"),
    [
        ("float_wf32_af32", "fp32"), ("float_wf16_af16", "fp16"), ("static_wi8_ai16_pc_minmax", "int16"),
        ("static_wi8_au8_pc_minmax", "int8"), ("mixed_wi8_ai16", "mixed"), ("weight_wi4_af32_g32", "int4"),
        ("as_it_was_given", "qat"),
    ],
)  # fmt: skip
def test_a_recipe_has_its_place_along_the_cliff(recipe: str, precision: str) -> None:
    assert precision_of(candidate(recipe, precision="qat")) == precision
