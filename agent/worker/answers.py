"""A candidate's answers against labels, FP32, the incumbent and the host.

For: the accuracy, agreement, paired counts and conformance of one trial, computed by `wire.figures` as the
host did.
Not for: latency or memory (`agent.worker.timing`), or judging (`wire.sla`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.errors import FinalError
from agent.worker.shards import Arrays, Samples
from wire.figures import PairedCounts, paired_ratio_interval, wilson_interval
from wire.measures import Conformance, Measure


class Answers(Struct, frozen=True, kw_only=True):
    """What the outputs say; None where there was nothing to compare with."""

    accuracy: Measure | None
    accuracy_ratio: Measure | None
    agreement: Measure | None
    against_baseline: PairedCounts | None
    against_incumbent: PairedCounts | None
    conformance: Conformance | None


def answers_of(outputs: Arrays, samples: Samples, incumbent: Arrays | None) -> Answers:
    """Compares the outputs of a classifier; `argmax` over the last axis of the first output is its answer.

    Raises:
        FinalError: `output_mismatch`: the model's outputs are not those that the release describes.
    """
    name = next(iter(outputs))
    mine = _answers(outputs[name], samples.n)
    fp32 = samples.fp32.get(name)
    baseline = None if fp32 is None else _answers(fp32, samples.n)
    against_baseline = _paired(samples.labels, mine, baseline)
    theirs = None if incumbent is None else _answers(next(iter(incumbent.values())), samples.n)
    return Answers(
        accuracy=None if samples.labels is None else _share(mine == samples.labels),
        accuracy_ratio=_ratio(against_baseline),
        agreement=None if baseline is None else _share(mine == baseline),
        against_baseline=against_baseline,
        against_incumbent=_paired(samples.labels, mine, theirs),
        conformance=_conformance(outputs, samples, mine) if samples.host else None,
    )


def _answers(values: NDArray[Any], n: int) -> NDArray[np.int64]:
    if values.ndim != 2 or len(values) != n or values.shape[1] < 1:
        raise FinalError(
            "output_mismatch", f"a classifier gives [{n}, classes], these outputs are {list(values.shape)}"
        )
    return np.asarray(np.argmax(np.nan_to_num(values.astype(np.float64), nan=-np.inf), axis=1), np.int64)


def _share(right: NDArray[np.bool_]) -> Measure:
    interval = wilson_interval(int(right.sum()), len(right))
    return Measure(value=float(right.mean()), low=interval.low, high=interval.high, n=len(right))


def _paired(
    labels: NDArray[Any] | None, mine: NDArray[Any], theirs: NDArray[Any] | None
) -> PairedCounts | None:
    if labels is None or theirs is None:
        return None
    a, b = mine == labels, theirs == labels
    return PairedCounts(
        both=int((a & b).sum()),
        candidate_only=int((a & ~b).sum()),
        reference_only=int((~a & b).sum()),
        neither=int((~a & ~b).sum()),
    )


def _ratio(counts: PairedCounts | None) -> Measure | None:
    interval = None if counts is None else paired_ratio_interval(counts)
    if counts is None or interval is None:
        return None
    mine, theirs = counts.both + counts.candidate_only, counts.both + counts.reference_only
    return Measure(value=mine / theirs, low=interval.low, high=interval.high, n=counts.n)


def _conformance(outputs: Arrays, samples: Samples, mine: NDArray[Any]) -> Conformance:
    """Equal bits, equal answers, and the worst element, on the host's own samples."""
    equal = np.ones(samples.n, np.bool_)
    worst = 0.0
    for name, host in samples.host.items():
        own = outputs[name]
        if own.shape != host.shape:
            raise FinalError(
                "output_mismatch",
                f"output {name} is {list(own.shape)} here and {list(host.shape)} on the host",
            )
        axes = tuple(range(1, own.ndim))
        equal &= (own == host).all(axis=axes)
        difference = np.abs(own.astype(np.float64) - host.astype(np.float64))
        worst = max(worst, float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max()))
    same = mine == _answers(samples.host[next(iter(outputs))], samples.n)
    # JSON has no infinity; a difference that is no number is told by the largest one there is.
    return Conformance(
        n=samples.n,
        equal=float(equal.mean()),
        same_answer=float(same.mean()),
        worst=min(worst, float(np.finfo(np.float64).max)),
        conforms=bool(same.all()),
    )
