"""Calibration: one pass over the calibration set, and what is made of it.

For: `calibrate()` and the types that it gives.
Not for: quantizing (`converter.quantize`), or repairing (`converter.repair`).
"""

from __future__ import annotations

from converter.calibrate.collect import calibrate
from converter.calibrate.findings import compare_sets, outliers
from converter.calibrate.ranges import choose_methods, range_candidates, ranges_of
from converter.calibrate.statistics import (
    Calibration,
    Channels,
    Finding,
    Outlier,
    Ranges,
    TensorStatistics,
)

__all__ = [
    "Calibration",
    "Channels",
    "Finding",
    "Outlier",
    "Ranges",
    "TensorStatistics",
    "calibrate",
    "choose_methods",
    "compare_sets",
    "outliers",
    "range_candidates",
    "ranges_of",
]
