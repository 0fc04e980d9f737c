"""PURE. What applications count themselves: the file's form, the figures, and whether they drift.

For: `shallop_client`'s file read strictly, counts since the last look added up over an application's
processes, and a comparison with what the same release did at first.
Not for: reading the directory (`agent.adapters.live_files`), or acting on it: after the soak nothing here
takes a release back; that is a person's or the fleet's to say. Nothing that an application claims is a
measurement of the agent's.

Confidence: the population stability index, sum of (a - r) ln(a / r) over groups of about a tenth of the
reference each. Above 0.25 is the usual rule for a significant change; without any change the index times
1 / (1/n + 1/m) is close to chi-square with one degree of freedom less than groups (B. Yurdakul, Statistical
Properties of Population Stability Index, 2018, https://scholarworks.wmich.edu/dissertations/3208), so that
few counts ask for more: the limit is the larger of 0.25 and that distribution's 99.9% point.
Latency: the ratio of the medians and of the 95th percentiles, the larger of the two: what matters is how
much slower it became, which an index of shapes does not say.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from agent.errors import UNREADABLE, FinalError
from wire.types import Count, ModelName, Positive

VERSION = 1
SUB_BUCKETS = 8
EXPONENT_MIN, EXPONENT_MAX = -6, 17
LATENCY_BUCKETS = (EXPONENT_MAX - EXPONENT_MIN + 1) * SUB_BUCKETS
"""Eight in each doubling from 1/128 ms on; `shallop_client.histogram` counts into the same."""
CONFIDENCE_BUCKETS = 100
GROUPS = 10
Z_999 = 3.0902
"""99.9% point of the normal distribution."""

_LatencyBucket = Annotated[int, Meta(ge=0, lt=LATENCY_BUCKETS)]
_ConfidenceBucket = Annotated[int, Meta(ge=0, lt=CONFIDENCE_BUCKETS)]


class LiveFile(Struct, frozen=True, kw_only=True, tag_field="kind", tag="shallop-live"):
    """What one process of an application counted since it began to use a release.

    Attributes:
        epoch: rises when its counts begin anew.
        release: directory name of the release it uses; None where the application did not say.
        latency: pairs of bucket and count.
        confidence: the same.
        refused: values that were no latency or no confidence.
    """

    version: int
    model: ModelName
    pid: Count = 0
    epoch: Count = 0
    release: Annotated[str, Meta(max_length=300)] | None = None
    latency: Annotated[tuple[tuple[_LatencyBucket, Positive], ...], Meta(max_length=LATENCY_BUCKETS)] = ()
    confidence: Annotated[
        tuple[tuple[_ConfidenceBucket, Positive], ...], Meta(max_length=CONFIDENCE_BUCKETS)
    ] = ()
    refused: Count = 0

    def counts(self) -> Counts:
        """Its counts."""
        return Counts(latency=dict(self.latency), confidence=dict(self.confidence))


class Counts(Struct, frozen=True, kw_only=True):
    """Inferences by bucket."""

    latency: dict[int, int] = {}
    confidence: dict[int, int] = {}

    @property
    def latency_n(self) -> int:
        """Inferences with a latency."""
        return sum(self.latency.values())

    @property
    def confidence_n(self) -> int:
        """Inferences with a confidence."""
        return sum(self.confidence.values())

    @property
    def n(self) -> int:
        """Inferences."""
        return max(self.latency_n, self.confidence_n)

    def plus(self, other: Counts) -> Counts:
        """Both together."""
        return Counts(
            latency=_added(self.latency, other.latency, 1),
            confidence=_added(self.confidence, other.confidence, 1),
        )

    def since(self, earlier: Counts) -> Counts | None:
        """What came after `earlier`; None where a count fell, which none does."""
        latency = _added(self.latency, earlier.latency, -1)
        confidence = _added(self.confidence, earlier.confidence, -1)
        if any(count < 0 for count in (*latency.values(), *confidence.values())):
            return None
        return Counts(latency=latency, confidence=confidence)

    def confidence_mean(self) -> float | None:
        """Mean of the buckets' middles; None without any."""
        total = sum((bucket + 0.5) * count for bucket, count in self.confidence.items())
        return total / CONFIDENCE_BUCKETS / self.confidence_n if self.confidence_n else None


def _added(one: dict[int, int], other: dict[int, int], sign: Literal[1, -1]) -> dict[int, int]:
    both = {bucket: one.get(bucket, 0) + sign * other.get(bucket, 0) for bucket in one.keys() | other.keys()}
    return {bucket: count for bucket, count in both.items() if count}


# Made by the thread that imports this, as in `wire.codec`.
_FILE = msgspec.json.Decoder(LiveFile)


def parse(data: bytes, model: str) -> LiveFile:
    """A file's content.

    Raises:
        FinalError: `live_malformed`, `live_version` or `live_wrong_model`.
    """
    try:
        found = _FILE.decode(data)
    except UNREADABLE as error:
        raise FinalError("live_malformed", f"no file of live figures: {error}") from None
    if found.version != VERSION:
        raise FinalError("live_version", f"live figures of version {found.version}; {VERSION} is read here")
    if found.model != model:
        raise FinalError("live_wrong_model", f"live figures of {found.model} under the name of {model}")
    buckets = [bucket for bucket, _ in found.latency], [bucket for bucket, _ in found.confidence]
    if any(len(set(told)) != len(told) for told in buckets):
        raise FinalError("live_malformed", "live figures name a bucket twice")
    return found


# --- figures ----------------------------------------------------------------------------------------


def latency_edge_ms(bucket: int) -> float:
    """Lower edge of a latency bucket."""
    octave, step = divmod(bucket, SUB_BUCKETS)
    return math.ldexp(0.5 + step / (2 * SUB_BUCKETS), octave + EXPONENT_MIN)


def latency_quantile_ms(counts: Counts, share: float) -> float | None:
    """The latency that `share` of the inferences stay below, linear within a bucket; None without any."""
    total = counts.latency_n
    if not total:
        return None
    wanted, passed = share * total, 0
    bucket = 0
    for bucket, count in sorted(counts.latency.items()):
        if passed + count >= wanted:
            low, high = latency_edge_ms(bucket), latency_edge_ms(bucket + 1)
            return low + (high - low) * (wanted - passed) / count
        passed += count
    return latency_edge_ms(bucket + 1)


def latency_ratio(window: Counts, reference: Counts) -> float | None:
    """How much slower: the larger ratio of the two medians and of the two 95th percentiles."""
    ratios = []
    for share in (0.5, 0.95):
        now, then = latency_quantile_ms(window, share), latency_quantile_ms(reference, share)
        if now is not None and then is not None:
            ratios.append(now / then)
    return max(ratios, default=None)


def groups_of(reference: dict[int, int]) -> list[int]:
    """Upper ends (exclusive) of groups of confidence buckets, each of about a tenth of the reference.

    A bucket that holds a tenth by itself is a group by itself: confidences crowd at 1, and a group that
    spanned all would never differ.
    """
    tenth = sum(reference.values()) / GROUPS
    ends: list[int] = []
    held = begun = 0
    for bucket in range(CONFIDENCE_BUCKETS):
        count = reference.get(bucket, 0)
        if count >= tenth and bucket > begun:
            ends.append(bucket)
            held, begun = 0, bucket
        held += count
        if held >= tenth:
            ends.append(bucket + 1)
            held, begun = 0, bucket + 1
    return ends if begun == CONFIDENCE_BUCKETS else [*ends, CONFIDENCE_BUCKETS]


def stability_index(window: dict[int, int], reference: dict[int, int]) -> tuple[float, int]:
    """The population stability index and its number of groups; half a count is added to each group."""
    ends = groups_of(reference)
    shares = []
    for counts in (window, reference):
        grouped, start = [], 0
        for end in ends:
            grouped.append(0.5 + sum(counts.get(bucket, 0) for bucket in range(start, end)))
            start = end
        shares.append([held / sum(grouped) for held in grouped])
    return sum((a - r) * math.log(a / r) for a, r in zip(*shares, strict=True)), len(ends)


def index_limit(n: int, m: int, groups: int, index_max: float) -> float:
    """Above which an index is no chance: Wilson and Hilferty's approximation of chi-square's 99.9% point."""
    freedom = max(1, groups - 1)
    spread = 2 / (9 * freedom)
    point = freedom * (1 - spread + Z_999 * math.sqrt(spread)) ** 3
    return max(index_max, point * (1 / n + 1 / m))
