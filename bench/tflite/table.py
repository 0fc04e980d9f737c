"""PURE. The figures as a table for people.

For: one Markdown table of a run.
Not for: measuring; what was not measured reads "unknown".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Row = Mapping[str, object]

UNKNOWN = "unknown"
_HEAD = (
    "model", "tool", "accuracy (95%)", "minus FP32", "Shallop minus it", "SQNR dB", "bytes", "operators",
    "transposes", "Q / DQ", "float", "time to Shallop's (95%)", "ms", "conversion s", "peak MiB", "note",
)  # fmt: skip


def table(figures: Mapping[str, Mapping[str, Row]]) -> str:
    """Markdown, one line for each model and tool.

    Args:
        figures: by model, by tool.
    """
    lines = [_line(_HEAD), _line(["---"] * len(_HEAD))]
    lines += [
        _line((model, tool, *_cells(row))) for model, rows in figures.items() for tool, row in rows.items()
    ]
    return "\n".join(lines)


def _cells(row: Row) -> Sequence[str]:
    counts = (row.get("quantizes"), row.get("dequantizes"))
    return (
        _with_interval(row, "accuracy"),
        _interval(row.get("this_minus_fp32_ci95")),
        _interval(row.get("shallop_minus_this_ci95")),
        _word(row.get("sqnr_db")),
        _thousands(row.get("size_bytes")),
        _word(row.get("operators")),
        _word(row.get("transposes")),
        UNKNOWN if None in counts else f"{counts[0]} / {counts[1]}",
        _word(row.get("float_operators")),
        _with_interval(row, "latency_ratio"),
        _word(row.get("latency_ms_p50")),
        _word(row.get("seconds")),
        _word(row.get("rss_mib_peak")),
        str(row.get("note") or "").replace("|", "/"),
    )


def _with_interval(row: Row, name: str) -> str:
    if row.get(name) is None:
        return UNKNOWN
    return f"{row[name]} {_interval(row.get(f'{name}_ci95'))}"


def _interval(value: object) -> str:
    return f"[{value[0]}, {value[1]}]" if isinstance(value, list | tuple) else UNKNOWN


def _thousands(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else UNKNOWN


def _word(value: object) -> str:
    return UNKNOWN if value is None else str(value)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
