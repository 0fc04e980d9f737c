"""PURE. Findings for people.

For: one line for each finding, its remedy below it, problems counted at the end.
Not for: JSON, which is the findings themselves.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from agent.doctor.finding import Finding, Status

_MARKS = {Status.OK: ("ok", "32"), Status.WARNING: ("warning", "33"), Status.PROBLEM: ("PROBLEM", "1;31"),
          Status.UNKNOWN: ("unknown", "36")}  # fmt: skip
_ORDER = (Status.PROBLEM, Status.WARNING, Status.UNKNOWN, Status.OK)
NAME_COLUMNS_MAX = 26


def table(findings: Sequence[Finding], columns: int, *, colour: bool) -> str:
    """Findings as they came, wrapped to `columns`; a terminal's colours only where asked for."""
    name_columns = min(NAME_COLUMNS_MAX, max((len(f.name) for f in findings), default=0))
    lines = [line for finding in findings for line in _lines(finding, name_columns, max(60, columns), colour)]
    counts = [(status, sum(f.status is status for f in findings)) for status in _ORDER]
    words = [_paint(_counted(count, status), status, colour) for status, count in counts if count]
    return "\n".join([*lines, "", ", ".join(words)]) + "\n"


def _counted(count: int, status: Status) -> str:
    plural = "s" if count > 1 and status in {Status.WARNING, Status.PROBLEM} else ""
    return f"{count} {_MARKS[status][0].lower()}{plural}"


def _paint(text: str, status: Status, colour: bool) -> str:
    return f"\x1b[{_MARKS[status][1]}m{text}\x1b[0m" if colour else text


def _lines(finding: Finding, name_columns: int, columns: int, colour: bool) -> list[str]:
    mark = _MARKS[finding.status][0]
    indent = 9 + name_columns + 1
    name = finding.name if len(finding.name) <= name_columns else finding.name[: name_columns - 1] + "…"
    detail = _wrapped(finding.detail, columns - indent)
    lines = [f"{_paint(f'{mark:<8}', finding.status, colour)} {name:<{name_columns}} {detail[0]}"]
    lines += [" " * indent + line for line in detail[1:]]
    if finding.remedy:
        remedy = _wrapped(finding.remedy, columns - indent - 3)
        lines += [" " * indent + ("-> " if i == 0 else "   ") + line for i, line in enumerate(remedy)]
    return lines


def _wrapped(text: str, columns: int) -> list[str]:
    """Lines of at most `columns`; control characters, which a broker's words may hold, are shown as such."""
    plain = "".join(c if c.isprintable() else "?" for c in text.replace("\n", " "))
    return textwrap.wrap(plain, columns, break_on_hyphens=False) or [""]
