"""The candidate table for people.

For: one row per candidate, "unknown" where a figure was not measured.
Not for: machines; those read `candidates.json`.
"""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from converter.candidates import Candidate, Report

UNKNOWN = "unknown"
_STYLES = {"pass": "green", "fail": "red", "error": "yellow"}


def render(report: Report) -> Table:
    """The table; the chosen row is marked with an asterisk."""
    table = Table(title=f"{report.model}@{report.release} for {report.target}", title_justify="left")
    table.add_column("candidate", overflow="fold")
    for heading in ("size KB", "accuracy (95%)", "agreement", "p50 ms", "p95 ms", "to FP32", "int/float"):
        table.add_column(heading, justify="right")
    table.add_column("status")
    table.add_column("reason", overflow="fold")
    for one in report.candidates:
        mark = "* " if one.id == report.chosen else "  "
        status = Text(one.status, style=_STYLES[one.status])
        table.add_row(f"{mark}{one.recipe}", *_figures(one), status, _reason(one))
    return table


def _figures(one: Candidate) -> tuple[str, ...]:
    kernels = UNKNOWN if one.fusion is None else f"{one.fusion.integer}/{one.fusion.float}"
    return (
        UNKNOWN if one.size_bytes is None else f"{one.size_bytes / 1000:.1f}",
        _accuracy(one),
        _number(one.agreement, 4),
        _number(one.latency_ms_p50, 3),
        _number(one.latency_ms_p95, 3),
        _ratio(one),
        kernels,
    )


def _accuracy(one: Candidate) -> str:
    if one.accuracy is None or one.accuracy_ci95 is None:
        return UNKNOWN
    low, high = one.accuracy_ci95
    return f"{one.accuracy:.4f} ({low:.3f}-{high:.3f})"


def _ratio(one: Candidate) -> str:
    ratio = _number(one.latency_ratio, 2)
    return f"{ratio} (host)" if one.latency_scope == "host" else ratio


def _number(value: float | None, digits: int) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def _reason(one: Candidate) -> str:
    """Why it failed; else what is left to the device, and how sure its accuracy is."""
    parts = [one.reason] if one.reason else []
    if one.deferred:
        parts.append(f"device decides {', '.join(one.deferred)}")
    if one.status == "pass" and one.accuracy_evidence == "unproven":
        needed = f"; about {one.samples_needed} samples would prove it" if one.samples_needed else ""
        parts.append(f"accuracy limit met, not proven{needed}")
    return "; ".join(parts)
