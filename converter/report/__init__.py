"""The report: what was chosen and why, on one page.

For: `render()`, the page, and `read_report()`, a bundle's `candidates.json` from any version.
Not for: the table on the terminal (`converter.table`).
"""

from __future__ import annotations

from converter.report.page import PAGE_NAME, render
from converter.report.read import CANDIDATES_NAME, read_report

__all__ = ["CANDIDATES_NAME", "PAGE_NAME", "read_report", "render"]
