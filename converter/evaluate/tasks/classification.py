"""Classification: the right class first, or among the first five; of a sample or of every frame.

For: labels `[N]`, or `[N,K]` with the acceptable classes of each sample, -1 behind them; with frames
`[N,T]`, -1 where a frame is not judged.
Not for: which class an output stands for (`wire.agreement.classes_of`): the device decides that alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from converter.evaluate.tasks import Mean, Scores, Truth, mean_of
from wire.agreement import answer_name, classes_of
from wire.tasks import TOP1, Answer, Kind, Metric

_TOP = 5
_FRAMES = Metric(name="frame_accuracy", low=0.0, high=1.0)


class Classification(Struct, frozen=True, kw_only=True):
    """See `converter.evaluate.tasks.Task`."""

    answer: Answer = Answer()

    @property
    def kind(self) -> Kind:
        """`classification`."""
        return "classification"

    @property
    def metric(self) -> Metric:
        """Top-1, of samples or of frames."""
        return _FRAMES if self.answer.frames else TOP1

    def scores(self, outputs: Truth, baseline: Truth, truth: Truth) -> Scores:
        """Top-1 with top-5 beside it where there are more than five classes."""
        del baseline
        scores = outputs[answer_name(self.answer, tuple(outputs))]
        labels, classes = truth["labels"], classes_of(self.answer, scores)
        if self.answer.frames:
            return Scores(main=_frames(classes, labels))
        right = is_right(classes, labels)
        wide = scores.ndim == 2 and scores.shape[1] > _TOP
        return Scores(
            main=mean_of(right), right=right, others={"top5": _in_top(scores, labels)} if wide else {}
        )


def is_right(classes: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each class `[n]` is the label `[n]`, or one of the labels `[n,K]`; -1 is no label."""
    sets = labels.reshape(len(labels), -1)
    right: NDArray[np.bool_] = ((classes[:, None] == sets) & (sets >= 0)).any(axis=1)
    return right


def _in_top(scores: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether a right class is among the five best; equal scores are taken in the order of classes."""
    best = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, :_TOP]
    found = np.zeros(len(scores), np.bool_)
    for rank in range(_TOP):
        found |= is_right(best[:, rank], labels)
    return found


def _frames(classes: NDArray[Any], labels: NDArray[Any]) -> Mean:
    """A sample's frames stand or fall together: neighbours are alike, so samples are what is resampled."""
    judged = labels >= 0
    weights = judged.sum(axis=1)
    right = ((classes == labels) & judged).sum(axis=1)
    return Mean(right / np.maximum(weights, 1), weights.astype(np.float64))
