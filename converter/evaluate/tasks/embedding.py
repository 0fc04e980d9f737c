"""Embedding: whether the nearest neighbour is a right one.

For: with `labels` `[N]`, the share of samples whose nearest neighbour by cosine, among the others, has
their label; without, the share whose nearest neighbour is the one that FP32 finds (retrieval agreement).
Not for: similarity to FP32's vectors themselves, which is the agreement (`wire.agreement`).

Samples are taken to be independent; a sample that is many others' neighbour makes the intervals a little
too narrow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from converter.evaluate.tasks import Scores, Truth, mean_of
from wire.agreement import answer_name
from wire.errors import ContentError
from wire.tasks import Answer, Kind, Metric

_BLOCK = 512
_TINY = 1e-12


class Embedding(Struct, frozen=True, kw_only=True):
    """See `converter.evaluate.tasks.Task`."""

    answer: Answer = Answer()
    labelled: bool = True

    @property
    def kind(self) -> Kind:
        """`embedding`."""
        return "embedding"

    @property
    def metric(self) -> Metric:
        """Recall at 1, of labels or of FP32's neighbours."""
        return Metric(name="neighbour_accuracy" if self.labelled else "recall_at_1", low=0.0, high=1.0)

    def scores(self, outputs: Truth, baseline: Truth, truth: Truth) -> Scores:
        """The other of the two stands beside the metric.

        Raises:
            ContentError: `answer_shape`: fewer than two samples have no neighbour.
        """
        name = answer_name(self.answer, tuple(outputs))
        mine, theirs = neighbours(outputs[name]), neighbours(baseline[name])
        same = mine == theirs
        if not self.labelled:
            return Scores(main=mean_of(same), right=same)
        labels = truth["labels"]
        right = labels[mine] == labels
        return Scores(main=mean_of(right), right=right, others={"recall_at_1": same})


def neighbours(vectors: NDArray[Any]) -> NDArray[np.int64]:
    """Index of each vector's nearest other by cosine, the first of equals; `[n]`.

    Raises:
        ContentError: `answer_shape`.
    """
    n = len(vectors)
    if n < 2:
        raise ContentError("answer_shape", "one sample has no neighbour; give two at least")
    flat = vectors.reshape(n, -1).astype(np.float64)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), _TINY)
    found = np.empty(n, np.int64)
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        near = flat[start:stop] @ flat.T
        near[np.arange(stop - start), np.arange(start, stop)] = -np.inf
        found[start:stop] = near.argmax(axis=1)
    return found
