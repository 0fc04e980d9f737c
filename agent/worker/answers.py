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

NO_ANSWER = -1
"""Where every score is NaN; it equals no label, so a broken model is right about nothing."""

Classes = NDArray[np.int64]


class Answers(Struct, frozen=True, kw_only=True):
    """What the outputs say; None where there was nothing to compare with."""

    accuracy: Measure | None
    accuracy_ratio: Measure | None
    agreement: Measure | None
    against_baseline: PairedCounts | None
    against_incumbent: PairedCounts | None
    conformance: Conformance | None


def answers_of(outputs: Arrays, samples: Samples, incumbent: Classes | None) -> Answers:
    """Compares the outputs of a classifier; `argmax` over the last axis of the first output is its answer.

    Args:
        outputs: of the candidate, in the manifest's order.
        samples: what they were computed from, and what to compare with.
        incumbent: its answers to the same samples, from `classes`.

    Raises:
        FinalError: `output_mismatch`: the model's outputs are not those that the release describes.
        FinalError: `shard_unreadable`: a label is no class of this model.
    """
    name = next(iter(outputs))
    mine = classes(outputs[name], samples.n)
    if samples.labels is not None and int(samples.labels.max()) >= outputs[name].shape[1]:
        raise FinalError(
            "shard_unreadable",
            f"label {int(samples.labels.max())} is no class of a model with {outputs[name].shape[1]}",
        )
    for whose, references in (("the FP32 model's", samples.fp32), ("the host's", samples.host)):
        _same_shape(outputs, references, whose)
    baseline = classes(samples.fp32[name], samples.n) if samples.fp32 else None
    against_baseline = _paired(samples.labels, mine, baseline)
    return Answers(
        accuracy=None if samples.labels is None else _share(mine == samples.labels),
        accuracy_ratio=_ratio(against_baseline),
        agreement=None if baseline is None else _share(mine == baseline),
        against_baseline=against_baseline,
        against_incumbent=_paired(samples.labels, mine, incumbent),
        conformance=_conformance(outputs, samples.host, mine) if samples.host else None,
    )


def classes(values: NDArray[Any], n: int) -> Classes:
    """The class with the highest score of each sample, the first of equals; NaN never wins.

    Raises:
        FinalError: `output_mismatch`: not `[n, classes]` of numbers.
    """
    if values.ndim != 2 or len(values) != n or values.shape[1] < 1 or values.dtype.kind not in "fiub":
        raise FinalError(
            "output_mismatch",
            f"a classifier gives [{n}, classes], these outputs are {values.dtype}{list(values.shape)}",
        )
    scores = values.astype(np.float64)
    unknown = np.isnan(scores)
    best: Classes = np.argmax(np.where(unknown, -np.inf, scores), axis=1).astype(np.int64)
    # Where only NaN and -inf are left, argmax may have met the NaN first.
    best = np.where(unknown[np.arange(n), best], np.argmin(unknown, axis=1), best)
    best[unknown.all(axis=1)] = NO_ANSWER
    return best


def _same_shape(outputs: Arrays, references: Arrays, whose: str) -> None:
    for name, reference in references.items():
        if outputs[name].shape != reference.shape:
            raise FinalError(
                "output_mismatch",
                f"output {name} is {list(outputs[name].shape)}, {whose} is {list(reference.shape)}",
            )


def _share(right: NDArray[np.bool_]) -> Measure:
    interval = wilson_interval(int(right.sum()), len(right))
    return Measure(value=float(right.mean()), low=interval.low, high=interval.high, n=len(right))


def _paired(labels: NDArray[Any] | None, mine: Classes, theirs: Classes | None) -> PairedCounts | None:
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


def _conformance(outputs: Arrays, host: Arrays, mine: Classes) -> Conformance:
    """Equal bits, equal answers, and the worst element, on the host's own samples."""
    n = len(mine)
    equal = np.ones(n, np.bool_)
    worst = 0.0
    for name, reference in host.items():
        own = outputs[name]
        same = own == reference
        equal &= same.reshape(n, -1).all(axis=1)
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.abs(own.astype(np.float64) - reference.astype(np.float64))
        # JSON has no infinity; a difference that is no number is told by the largest one there is.
        told = np.nan_to_num(np.where(same, 0.0, difference), nan=np.inf)
        worst = max(worst, min(float(told.max(initial=0.0)), float(np.finfo(np.float64).max)))
    answers = mine == classes(host[next(iter(outputs))], n)
    return Conformance(
        n=n,
        equal=float(equal.mean()),
        same_answer=float(answers.mean()),
        worst=worst,
        conforms=bool(answers.all()),
    )
