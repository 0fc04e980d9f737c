"""Counts of latency and confidence in buckets of a fixed number, so that years of them fit into a page.

For: `Live.record` to be a few additions. Latency has eight buckets in each doubling from 1/128 ms to 131 s
(each at most 12.5% wide, as in HdrHistogram with 3 bits), confidence a hundred equal ones from 0 to 1.
Not for: saying anything about the counts; the agent does (`agent/live.py` reads the same buckets).
"""

from __future__ import annotations

import math

SUB_BUCKETS = 8
EXPONENT_MIN, EXPONENT_MAX = -6, 17
"""Of `math.frexp`: 2**-7 ms up to 2**17 ms; what lies beyond goes into the first or the last bucket."""
LATENCY_BUCKETS = (EXPONENT_MAX - EXPONENT_MIN + 1) * SUB_BUCKETS
CONFIDENCE_BUCKETS = 100


def latency_bucket(latency_ms: float) -> int:
    """The bucket of a latency above 0."""
    mantissa, exponent = math.frexp(latency_ms)
    bucket = (exponent - EXPONENT_MIN) * SUB_BUCKETS + int((mantissa - 0.5) * 2 * SUB_BUCKETS)
    return min(max(bucket, 0), LATENCY_BUCKETS - 1)


def confidence_bucket(confidence: float) -> int:
    """The bucket of a confidence from 0 to 1."""
    return min(int(confidence * CONFIDENCE_BUCKETS), CONFIDENCE_BUCKETS - 1)


class Counts:
    """One release's counts since the application began to use it."""

    def __init__(self) -> None:
        self.latency = [0] * LATENCY_BUCKETS
        self.confidence = [0] * CONFIDENCE_BUCKETS
        self.refused = 0

    def add(self, latency_ms: float, confidence: float) -> None:
        """Counts one inference; NaN stands for what was not measured, an impossible value is refused."""
        latency_ms, confidence = float(latency_ms), float(confidence)
        if 0.0 < latency_ms < math.inf:
            self.latency[latency_bucket(latency_ms)] += 1
        elif latency_ms == latency_ms:  # noqa: PLR0124 - false for NaN only
            self.refused += 1
        if 0.0 <= confidence <= 1.0:
            self.confidence[confidence_bucket(confidence)] += 1
        elif confidence == confidence:  # noqa: PLR0124
            self.refused += 1

    def as_json(self) -> dict[str, object]:
        """Buckets that hold something, as pairs of number and count."""
        return {
            "latency": _pairs(self.latency),
            "confidence": _pairs(self.confidence),
            "refused": self.refused,
        }


def _pairs(counts: list[int]) -> list[list[int]]:
    return [[bucket, count] for bucket, count in enumerate(counts) if count]
