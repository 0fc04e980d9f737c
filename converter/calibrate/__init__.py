"""Calibration: one pass over the calibration set, and what is made of it.

For: `calibrate()` and the types that it gives.
Not for: quantizing (`converter.quantize`), or repairing (`converter.repair`).
"""

from __future__ import annotations

from converter.calibrate.collect import Calibration, Outlier, Ranges, augmented, calibrate, outliers
from converter.calibrate.ranges import ranges_of

__all__ = ["Calibration", "Outlier", "Ranges", "augmented", "calibrate", "outliers", "ranges_of"]
