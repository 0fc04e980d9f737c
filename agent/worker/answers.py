"""A candidate's answers against labels, FP32, the incumbent and the host.

For: the accuracy, agreement and paired counts of one trial, computed by `wire.figures` as the host did.
Not for: comparing bits (`agent.worker.conformity`), latency or memory (`agent.worker.timing`), or judging
(`wire.sla`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from agent.errors import FinalError
from agent.worker.conformity import conformance
from agent.worker.job import TrialJob
from agent.worker.shards import Arrays, Samples
from wire.agreement import agreement, answer_name, classes_of, same_answers
from wire.errors import ContentError
from wire.figures import PairedCounts, mean_interval, mean_ratio_interval, paired_ratio_interval
from wire.measures import Conformance, Measure
from wire.tasks import Answer

Classes = NDArray[np.int64]


class Answers(Struct, frozen=True, kw_only=True):
    """What the outputs say; None where there was nothing to compare with."""

    accuracy: Measure | None = None
    accuracy_ratio: Measure | None = None
    agreement: Measure | None = None
    against_baseline: PairedCounts | None = None
    against_incumbent: PairedCounts | None = None
    conformance: Conformance | None = None


def answers_of(job: TrialJob, outputs: Arrays, samples: Samples, incumbent: Classes | None) -> Answers:
    """Compares the outputs, by the job's task.

    Accuracy is measured here for classification and for a mean absolute error; a neighbour among a shard's
    samples, a mAP or a custom metric of a few samples would be another figure than the host's.

    Args:
        job: task, metric and how outputs are read.
        outputs: of the candidate, in the manifest's order.
        samples: what they were computed from, and what to compare with.
        incumbent: its answers to the same samples, from `classes`.

    Raises:
        FinalError: `output_mismatch`: the model's outputs are not those that the release describes.
        FinalError: `shard_unreadable`: a label is no class of this model.
    """
    for whose, references in (("the FP32 model's", samples.fp32), ("the host's", samples.host)):
        _same_shape(outputs, references, whose)
    found = _labelled(job, outputs, samples, incumbent)
    with _described():
        agreed = None if not samples.fp32 else agreement(job.task, job.answer, outputs, samples.fp32)
        same = None if not samples.host else same_answers(job.task, job.answer, outputs, samples.host)
    return replace(
        found,
        agreement=None if agreed is None else _mean(agreed),
        conformance=None if same is None else conformance(outputs, samples.host, same),
    )


@contextmanager
def _described() -> Iterator[None]:
    """Outputs that are not what the release says they are.

    Raises:
        FinalError: `output_mismatch`.
    """
    try:
        yield
    except ContentError as error:
        raise FinalError("output_mismatch", str(error.args[0])) from None


def _labelled(job: TrialJob, outputs: Arrays, samples: Samples, incumbent: Classes | None) -> Answers:
    """What the labels say; nothing where there are none, or where a shard's figure would mislead."""
    with _described():
        name = answer_name(job.answer, tuple(outputs))
    if job.task == "classification":
        return _classified(job.answer, name, outputs, samples, incumbent)
    if samples.labels is not None and job.task == "regression" and job.metric.per_sample:
        return _regressed(outputs[name], samples.fp32.get(name), samples.labels)
    return Answers()


def _classified(
    answer: Answer, name: str, outputs: Arrays, samples: Samples, incumbent: Classes | None
) -> Answers:
    mine = classes(outputs[name], samples.n, answer)
    labels = samples.labels
    if labels is None:
        return Answers()
    count = _class_count(outputs[name], answer)
    if int(labels.max()) >= count:
        raise FinalError("shard_unreadable", f"label {int(labels.max())} is no class of a model with {count}")
    baseline = classes(samples.fp32[name], samples.n, answer) if samples.fp32 else None
    if answer.frames:
        return _framed(mine, baseline, labels)
    against_baseline = _paired(labels, mine, baseline)
    return Answers(
        accuracy=_mean(_right(mine, labels)),
        accuracy_ratio=_ratio(against_baseline),
        against_baseline=against_baseline,
        against_incumbent=_paired(labels, mine, incumbent),
    )


def _class_count(scores: NDArray[Any], answer: Answer) -> int:
    """One score a sample, or a frame, tells two classes apart."""
    wide = scores.ndim == (3 if answer.frames else 2)
    return scores.shape[-1] if wide and scores.shape[-1] > 1 else 2


def _framed(mine: Classes, baseline: Classes | None, labels: NDArray[Any]) -> Answers:
    """The share of right frames; samples, whose frames are alike, are what the interval counts."""
    if labels.shape != mine.shape:
        raise FinalError(
            "shard_unreadable", f"labels are {list(labels.shape)}, the model judges {list(mine.shape)}"
        )
    right = _frames_right(mine, labels)
    theirs = None if baseline is None else _frames_right(baseline, labels)
    judged = (labels >= 0).sum(axis=1).astype(np.float64)
    return Answers(
        accuracy=_ratio_of_means(right, judged),
        accuracy_ratio=None if theirs is None else _ratio_of_means(right, theirs),
    )


def _frames_right(found: Classes, labels: NDArray[Any]) -> NDArray[np.float64]:
    """Right frames of each sample."""
    right: NDArray[np.float64] = ((found == labels) & (labels >= 0)).sum(axis=1).astype(np.float64)
    return right


def _ratio_of_means(values: NDArray[Any], reference: NDArray[Any]) -> Measure | None:
    """Over the same samples; None where there are too few for an interval, or the reference is zero."""
    n, below = len(values), float(reference.mean())
    if n < 2 or below == 0.0:
        return None
    value = float(values.mean()) / below
    interval = mean_ratio_interval(values.tolist(), reference.tolist())
    if interval is None:
        return None
    return Measure(value=value, low=min(interval.low, value), high=max(interval.high, value), n=n)


def _regressed(mine: NDArray[Any], baseline: NDArray[Any] | None, labels: NDArray[Any]) -> Answers:
    """Mean absolute error; each sample counts once.

    Raises:
        FinalError: `output_mismatch`: no values of as many samples as have labels; `shard_unreadable`.
    """
    if mine.ndim == 0 or mine.shape[:1] != labels.shape[:1]:
        raise FinalError(
            "output_mismatch",
            f"labels are {list(labels.shape)}, the model gives {list(mine.shape)}: other samples than these",
        )
    n = len(mine)
    if mine.size != labels.size:
        raise FinalError(
            "shard_unreadable", f"labels are {list(labels.shape)}, the model gives {list(mine.shape)}"
        )
    target = labels.reshape(n, -1).astype(np.float64)
    errors = np.abs(mine.reshape(n, -1).astype(np.float64) - target).mean(axis=1)
    if not np.isfinite(errors).all():
        return Answers()
    ratio = None
    if baseline is not None:
        theirs = np.abs(baseline.reshape(n, -1).astype(np.float64) - target).mean(axis=1)
        ratio = _ratio_of_means(errors, theirs)
    return Answers(accuracy=_mean(errors), accuracy_ratio=ratio)


def classes(values: NDArray[Any], n: int, answer: Answer) -> Classes:
    """The class of each sample, or of each frame; NaN never wins.

    Raises:
        FinalError: `output_mismatch`: no scores of `n` samples.
    """
    if values.ndim == 0 or len(values) != n:
        raise FinalError(
            "output_mismatch",
            f"a classifier gives [{n}, classes], these outputs are {values.dtype}{list(values.shape)}",
        )
    with _described():
        found: Classes = classes_of(answer, values)
    return found


def _same_shape(outputs: Arrays, references: Arrays, whose: str) -> None:
    for name, reference in references.items():
        if outputs[name].shape != reference.shape:
            raise FinalError(
                "output_mismatch",
                f"output {name} is {list(outputs[name].shape)}, {whose} is {list(reference.shape)}",
            )


def _mean(values: NDArray[Any]) -> Measure:
    n, value = len(values), float(values.mean())
    if n == 1 and value not in {0.0, 1.0}:
        return Measure(value=value, n=1)
    interval = mean_interval(values.astype(np.float64).tolist())
    return Measure(value=value, low=min(interval.low, value), high=max(interval.high, value), n=n)


def _right(found: Classes, labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each class is the label, or one of the labels; -1 is none."""
    sets = labels.reshape(len(labels), -1)
    right: NDArray[np.bool_] = ((found[:, None] == sets) & (sets >= 0)).any(axis=1)
    return right


def _paired(labels: NDArray[Any], mine: Classes, theirs: Classes | None) -> PairedCounts | None:
    if theirs is None or theirs.shape != mine.shape:
        return None
    a, b = _right(mine, labels), _right(theirs, labels)
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
