"""PURE. The report's two charts as places on paper.

For: the Pareto plot (accuracy against latency, size as the dot's area) and the accuracy cliff (precision
along x, accuracy with its interval along y): what is drawn where, and what could not be drawn.
Not for: markup (`templates/charts.html`), or colours (`templates/style.css`).

Rows keep the number that they have in the candidate table; a row without the figures that a chart needs
is named under it and never drawn at zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct, structs

from converter.candidates import Candidate, Report
from converter.recipe import RecipeNameError, parse
from converter.report.scale import Axis, axis
from converter.report.words import UNKNOWN, lower_is_better, metric_name, milliseconds, number, size, title

WIDTH, HEIGHT = 480, 360
"""Of a chart's own coordinates; on the page it grows and shrinks with its column."""
LEFT, RIGHT, TOP, BOTTOM = 58, 446, 24, 306

PRECISIONS = ("fp32", "fp16", "int16", "int8", "mixed", "int4")
"""Along the cliff, from the most bits to the fewest."""

_RADIUS_MAX = 17.0
_RADIUS_MIN = 4.5
_COLLAPSE = 0.1
"""A row this far below FP32 would flatten all others in the Pareto plot: it is drawn on the floor."""
_COLUMN_MIN = 3.0
"""Of the cliff, in places of a dot: room for its name."""
_LABELS_ROOM = 20
_COLLAPSE_ERRORS = 2.0
"""The same for a metric that is an error, as a factor."""
_CHAR_WIDTH, _LABEL_HEIGHT = 8.0, 13.0
_Box = tuple[float, float, float, float]


class Tick(Struct, frozen=True, kw_only=True):
    """A place along an axis with its figure."""

    at: float
    text: str


class Dot(Struct, frozen=True, kw_only=True):
    """One candidate.

    Attributes:
        label: its number in the candidate table.
        title: the figures, shown when it is pointed at.
        family: of its precision, which gives the colour.
        x_bar: ends of the interval along x; None where there is none.
        y_bar: the same along y.
        below: it lies below the chart's floor; `title` has the figure.
    """

    label: str
    title: str
    family: str
    x: float
    y: float
    radius: float
    chosen: bool
    label_x: float
    label_y: float
    x_bar: tuple[float, float] | None = None
    y_bar: tuple[float, float] | None = None
    below: bool = False


class Chart(Struct, frozen=True, kw_only=True):
    """What a chart shows.

    Attributes:
        path: an SVG path: the Pareto front, or the line over the best of each precision.
        limit: height of the SLA's accuracy limit; None where there is none or it lies outside.
        absent: recipes that could not be drawn, with the reason.
    """

    x_title: str
    y_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    dots: tuple[Dot, ...]
    path: str = ""
    limit: float | None = None
    absent: tuple[str, ...] = ()


def precision_of(row: Candidate) -> str:
    """One of `PRECISIONS`, or what the row itself says."""
    try:
        recipe = parse(row.recipe)
    except RecipeNameError:
        return row.precision
    if recipe.kind == "mixed":
        return "mixed"
    return "int16" if recipe.activation in {"i16", "u16"} else recipe.precision


def accuracy_bound(report: Report) -> float | None:
    """The accuracy that the SLA asks for, absolute; None where it asks for none."""
    limit = None if report.limits is None else report.limits.accuracy
    if limit is None:
        return None
    if limit.absolute is not None or limit.of_baseline is None:
        return limit.absolute
    base = report.baseline.accuracy
    return None if base is None else limit.of_baseline * base


def pareto(report: Report) -> Chart | None:
    """Accuracy against latency; against size where this host timed nothing. None without two figures."""
    numbered = tuple(enumerate(report.candidates, start=1))
    timed = [one for one in numbered if _ratio_or_none(one[1]) is not None]
    by_latency = bool(timed)
    shown = [
        (place, row)
        for place, row in numbered
        if row.accuracy is not None and (_ratio_or_none(row) if by_latency else row.size_bytes) is not None
    ]
    if not shown:
        return None
    across = _across([row for _, row in shown], by_latency=by_latency)
    up = _up([row for _, row in shown], report)
    largest = max((row.size_bytes or 0 for _, row in shown), default=0)
    dots = _labelled([_dot(place, row, report, across, up, largest, by_latency) for place, row in shown])
    drawn = {place for place, _ in shown}
    absent = tuple(f"{place} {title(row)}" for place, row in numbered if place not in drawn)
    bound = accuracy_bound(report)
    return Chart(
        x_title="latency, times FP32 (further left is faster)" if by_latency else "size in KB",
        y_title=metric_name(report),
        x_ticks=tuple(Tick(at=across.place(v), text=f"{v:g}") for v in across.ticks()),
        y_ticks=tuple(Tick(at=up.place(v), text=f"{v:.4g}") for v in up.ticks()),
        dots=dots,
        path=_front(dots),
        limit=up.place(bound) if bound is not None and up.low <= bound <= up.high else None,
        absent=absent,
    )


def _ratio_or_none(row: Candidate) -> float | None:
    return row.latency_ratio if row.latency_ratio is not None and row.latency_ratio > 0.0 else None


def _x_of(row: Candidate, *, by_latency: bool) -> float:
    return (row.latency_ratio or 0.0) if by_latency else (row.size_bytes or 0) / 1000.0


def _across(rows: Sequence[Candidate], *, by_latency: bool) -> Axis:
    values = [_x_of(row, by_latency=by_latency) for row in rows]
    if by_latency:
        values += [end for row in rows for end in row.latency_ratio_ci95 or () if end > 0.0]
    return axis(min(values), max(values), LEFT + _RADIUS_MAX, RIGHT - _RADIUS_MAX, positive=True)


def _up(rows: Sequence[Candidate], report: Report) -> Axis:
    """Rows that collapsed do not count, or the others could not be told apart."""
    worst = _collapsed_from(report, [row.accuracy for row in rows if row.accuracy is not None])
    lower = lower_is_better(report)

    def counts(value: float) -> bool:
        return value <= worst if lower else value >= worst

    kept = [row for row in rows if row.accuracy is not None and counts(row.accuracy)] or list(rows)
    ends = [end for row in kept for end in row.accuracy_ci95 or (row.accuracy or 0.0,)]
    bound = accuracy_bound(report)
    if bound is not None and counts(bound):
        ends.append(bound)
    return _upright(report, min(ends), max(ends), TOP)


def _collapsed_from(report: Report, values: Sequence[float]) -> float:
    base = report.baseline.accuracy
    if lower_is_better(report):
        return _COLLAPSE_ERRORS * (min(values) if base is None else base)
    return (max(values) if base is None else base) - _COLLAPSE


def _upright(report: Report, low: float, high: float, top: float) -> Axis:
    """Better lies higher, whichever way the metric points."""
    if lower_is_better(report):
        return axis(low, high, top, BOTTOM)
    return axis(low, high, BOTTOM, top)


def _dot(
    place: int, row: Candidate, report: Report, across: Axis, up: Axis, largest: int, by_latency: bool
) -> Dot:
    x, accuracy = _x_of(row, by_latency=by_latency), row.accuracy or 0.0
    share = 0.0 if not largest or row.size_bytes is None else row.size_bytes / largest
    timed = row.latency_ratio_ci95 if by_latency else None
    return Dot(
        label=str(place),
        title=_title(report, place, row),
        family=precision_of(row),
        x=across.place(x),
        y=up.place(accuracy),
        radius=max(_RADIUS_MIN, _RADIUS_MAX * math.sqrt(share)),
        chosen=row.id == report.chosen,
        label_x=0.0,
        label_y=0.0,
        x_bar=None if timed is None else (across.place(timed[0]), across.place(timed[1])),
        y_bar=_bar(row, up),
        below=accuracy > up.high if lower_is_better(report) else accuracy < up.low,
    )


def _bar(row: Candidate, up: Axis) -> tuple[float, float] | None:
    interval = row.accuracy_ci95
    return None if interval is None else (up.place(interval[0]), up.place(interval[1]))


def _title(report: Report, place: int, row: Candidate) -> str:
    ratio = UNKNOWN if row.latency_ratio is None else f"{row.latency_ratio:.2f} x FP32"
    return (
        f"{place} {title(row)}: {metric_name(report)} {number(row.accuracy, 4)}, latency {ratio}, "
        f"p50 {milliseconds(row.latency_ms_p50)}, size {size(row.size_bytes)}, {row.status}"
    )


def _labelled(dots: Sequence[Dot]) -> tuple[Dot, ...]:
    """Each label at the first side of its dot where it lies on no other dot or label.

    In the order of drawing: large dots first, so that none is hidden, and the chosen one on top.
    """
    taken: list[_Box] = [(d.x - d.radius, d.y - d.radius, d.x + d.radius, d.y + d.radius) for d in dots]
    placed = []
    for dot in dots:
        wide, out = _CHAR_WIDTH * len(dot.label), dot.radius + 7
        sides = [
            (dot.x + turn * (out + wide / 2) * across, dot.y + turn * (out + 3) * up)
            for across, up in ((1, 0), (0, -1), (0.75, -0.75), (0.75, 0.75))
            for turn in (1, -1)
        ]
        boxes = [(x - wide / 2, y - _LABEL_HEIGHT / 2, x + wide / 2, y + _LABEL_HEIGHT / 2) for x, y in sides]
        best = min(range(len(sides)), key=lambda i: (_overlaps(boxes[i], taken), i))
        taken.append(boxes[best])
        x, y = sides[best]
        placed.append(structs.replace(dot, label_x=x, label_y=y))
    return tuple(sorted(placed, key=lambda dot: (dot.chosen, -dot.radius)))


def _overlaps(box: _Box, taken: Sequence[_Box]) -> int:
    """How many boxes it lies on; beyond the chart's edge counts as many."""
    outside = box[0] < LEFT or box[2] > WIDTH or box[1] < 0 or box[3] > BOTTOM + _LABEL_HEIGHT
    return 100 * outside + sum(
        box[0] < one[2] and one[0] < box[2] and box[1] < one[3] and one[1] < box[3] for one in taken
    )


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of which none other is at least as good in both and better in one, from left to right.

    Args:
        points: (x, y); less is better in both, as on a screen whose y points down.
    """
    kept: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not kept or y < kept[-1][1]:
            kept.append((x, y))
    return kept


def _front(dots: Sequence[Dot]) -> str:
    """Steps: up to the next point's latency, the last one's accuracy is the best there is."""
    points = front([(dot.x, dot.y) for dot in dots if not dot.below])
    steps = [f"H{x:.1f}V{y:.1f}" for x, y in points[1:]]
    return "".join([f"M{points[0][0]:.1f} {points[0][1]:.1f}", *steps]) if len(points) > 1 else ""


def cliff(report: Report) -> Chart | None:
    """Accuracy by precision; None where no accuracy is known."""
    shown = [(i, row) for i, row in enumerate(report.candidates, start=1) if row.accuracy is not None]
    if not shown:
        return None
    columns = _columns([row for _, row in shown])
    ends = [end for _, row in shown for end in row.accuracy_ci95 or (row.accuracy or 0.0,)]
    bound = accuracy_bound(report)
    ends += [] if bound is None else [bound]
    up = _upright(report, min(ends), max(ends), TOP + _LABELS_ROOM)
    dots, ticks, tops = [], [], []
    for name, left, right in columns:
        mine = [(place, row) for place, row in shown if precision_of(row) == name]
        middle = (left + right) / 2
        step = (right - left) / (len(mine) + 1)
        dots += [
            _cliff_dot(place, row, report, up, left + step * (k + 1), raised=k % 2 == 1)
            for k, (place, row) in enumerate(mine)
        ]
        ticks.append(Tick(at=middle, text=name if mine else f"{name} \N{EN DASH}"))
        if mine:
            best = max(dots[-len(mine) :], key=lambda dot: -dot.y)
            tops.append((best.x, best.y))
    return Chart(
        x_title="precision",
        y_title=metric_name(report),
        x_ticks=tuple(ticks),
        y_ticks=tuple(Tick(at=up.place(v), text=f"{v:.4g}") for v in up.ticks()),
        dots=tuple(dots),
        path="".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(tops)),
        limit=None if bound is None else up.place(bound),
        absent=tuple(
            f"{i} {title(row)}" for i, row in enumerate(report.candidates, start=1) if row.accuracy is None
        ),
    )


def _columns(rows: Sequence[Candidate]) -> list[tuple[str, float, float]]:
    """All of `PRECISIONS`, then what else the rows name, each with its ends: wider where more stand."""
    names = list(dict.fromkeys([*PRECISIONS, *(precision_of(row) for row in rows)]))
    weights = [max(_COLUMN_MIN, 1.0 + sum(precision_of(row) == name for row in rows)) for name in names]
    ends = [LEFT + (RIGHT - LEFT) * sum(weights[:i]) / sum(weights) for i in range(len(names) + 1)]
    return list(zip(names, ends[:-1], ends[1:], strict=True))


def _cliff_dot(place: int, row: Candidate, report: Report, up: Axis, x: float, *, raised: bool) -> Dot:
    y, bar = up.place(row.accuracy or 0.0), _bar(row, up)
    top = y - _RADIUS_MIN if bar is None else bar[1]
    return Dot(
        label=str(place), title=_title(report, place, row), family=precision_of(row), x=x, y=y,
        radius=_RADIUS_MIN, chosen=row.id == report.chosen, label_x=x,
        label_y=top - (22 if raised else 9), y_bar=bar,
    )  # fmt: skip
