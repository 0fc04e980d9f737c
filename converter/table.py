"""The candidate table for people.

For: one row per candidate, "unknown" where a figure was not measured, as wide as the terminal allows, and
below it each row's reason under its number.
Not for: machines; those read `candidates.json`.
"""

from __future__ import annotations

from collections.abc import Callable

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from converter.candidates import Candidate, Report
from converter.report import words

_STYLES = {"pass": "green", "fail": "red", "error": "yellow"}

_Cell = Callable[[Candidate], str]
_RUNTIME_COLUMN = 8
_WIDE_FROM, _FULL_FROM = 112, 140
"""Columns of a terminal from which the further figures fit, measured with the longest recipe names."""


def render(report: Report, width: int) -> RenderableType:
    """The table and the reasons; the chosen row is marked with an asterisk.

    Args:
        report: what to show.
        width: columns of the terminal; fewer of them show fewer figures, none of them cut.
    """
    table = Table(
        title=f"{report.model}@{report.release} for {report.target}",
        title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    several = words.several_runtimes(report)
    columns = _columns(width, words.metric_name(report), several=several)
    table.add_column("#", justify="right")
    table.add_column("candidate", overflow="fold")
    if several:
        table.add_column("in")
    for heading, _ in columns:
        table.add_column(heading, justify="right")
    table.add_column("status")
    for i, one in enumerate(report.candidates, start=1):
        mark = "*" if one.id == report.chosen else " "
        cells = [cell(one) for _, cell in columns]
        if several:
            cells.insert(0, words.runtime(one))
        table.add_row(f"{mark}{i}", one.recipe, *cells, Text(one.status, style=_STYLES[one.status]))
    common = words.deferred_by_all(report)
    said = [
        Text(f" {i}  {why}")
        for i, one in enumerate(report.candidates, start=1)
        if (why := words.reason(one, common))
    ]
    if common:
        said.append(Text(f" The device itself decides {words.limit_names(common)} of every row."))
    said.append(Text(f" Latency: {words.latency_label(report)}."))
    return Group(table, *said)


def _columns(width: int, metric: str, *, several: bool) -> list[tuple[str, _Cell]]:
    """Headings and their cells, those that decide most first; where a runtime stands too, less fits."""
    narrow: list[tuple[str, _Cell]] = [
        ("size", lambda one: words.size(one.size_bytes)),
        (f"{metric} (95%)", _accuracy),
        ("x FP32", lambda one: words.factor(one.latency_ratio)),
    ]
    left = width - _RUNTIME_COLUMN if several else width
    if left < _WIDE_FROM and several:
        return [narrow[0], (metric, lambda one: words.number(one.accuracy, 4)), narrow[2]]
    if left < _WIDE_FROM:
        return narrow
    wide = [
        *narrow[:2],
        ("agreement", lambda one: words.number(one.agreement, 4)),
        ("p50 ms", lambda one: words.number(one.latency_ms_p50, 3)),
        ("p95 ms", lambda one: words.number(one.latency_ms_p95, 3)),
        narrow[2],
    ]
    if left < _FULL_FROM:
        return wide
    return [*wide, ("(95%)", lambda one: words.span(one.latency_ratio_ci95, 2)), ("int/float", _kernels)]


def _kernels(one: Candidate) -> str:
    return words.UNKNOWN if one.fusion is None else f"{one.fusion.integer}/{one.fusion.float}"


def _accuracy(one: Candidate) -> str:
    if one.accuracy is None or one.accuracy_ci95 is None:
        return words.number(one.accuracy, 4)
    low, high = one.accuracy_ci95
    return f"{one.accuracy:.4f} {low:.3f}-{high:.3f}"
