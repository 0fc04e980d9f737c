"""Detection: mean average precision.

For: ground truth as `boxes` `[N,M,4]` corners (x0, y0, x1, y1) and `classes` `[N,M]`, -1 behind the last;
mAP at IoU .5 to .95 in steps of .05 as the metric, at .5 beside it.
Not for: decoding outputs (`wire.detection`), or crowd and difficult boxes, which no array here marks.

As COCO's evaluation does it: greedy matching by score, precision made monotone and read at 101 recalls,
averaged over the classes that have a box. Areas are not told apart, and the cap on boxes per sample is
`Boxes.boxes_max` (COCO's 100).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from converter.evaluate.tasks import Scores, Truth
from wire.detection import Detections, detections, iou
from wire.tasks import Answer, Kind, Metric

THRESHOLDS = np.arange(0.5, 0.96, 0.05)
_RECALLS = np.linspace(0.0, 1.0, 101)
_METRIC = Metric(name="map_50_95", per_sample=False, low=0.0, high=1.0)


class Detection(Struct, frozen=True, kw_only=True):
    """See `converter.evaluate.tasks.Task`."""

    answer: Answer = Answer()

    @property
    def kind(self) -> Kind:
        """`detection`."""
        return "detection"

    @property
    def metric(self) -> Metric:
        """A figure of the whole set."""
        return _METRIC

    def scores(self, outputs: Truth, baseline: Truth, truth: Truth) -> Scores:
        """Decoded and matched once; resampling only counts again."""
        del baseline
        tables = matches(list(detections(self.answer.boxes, outputs)), truth["boxes"], truth["classes"])
        n = len(truth["boxes"])
        return Scores(
            main=MeanPrecision(n, tables, np.arange(len(THRESHOLDS))),
            others={"map_50": MeanPrecision(n, tables, np.arange(1))},
        )


class ClassTable(Struct, frozen=True):
    """All detections of one class, best score first.

    Attributes:
        sample: of each detection, `[d]`.
        hit: whether it found a box, at each threshold, `[thresholds,d]`.
        boxes: ground truth boxes of the class in each sample, `[n]`.
    """

    sample: NDArray[np.int64]
    hit: NDArray[np.bool_]
    boxes: NDArray[np.int64]


class MeanPrecision(Struct, frozen=True):
    """mAP over some of the thresholds; see `converter.evaluate.statistics.Score`."""

    n: int
    tables: tuple[ClassTable, ...]
    thresholds: NDArray[np.int64]

    def value(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """The mean over classes that have a box in the resample, and over thresholds."""
        rows = [self._one(row) for row in counts]
        return np.array(rows, np.float64)

    def _one(self, count: NDArray[np.int64]) -> float:
        found = [
            average_precision(table, count, self.thresholds)
            for table in self.tables
            if count @ table.boxes > 0
        ]
        return float(np.mean(found)) if found else float("nan")


def average_precision(
    table: ClassTable, count: NDArray[np.int64], thresholds: NDArray[np.int64]
) -> NDArray[np.float64]:
    """AP of one class where sample `i` stands `count[i]` times; `[thresholds]`."""
    weight, whole = count[table.sample], int(count @ table.boxes)
    if not weight.any():
        return np.zeros(len(thresholds))
    hits = np.cumsum(table.hit[thresholds] * weight, axis=1, dtype=np.float64)
    # A detection that no resample holds must not stand at the front with nothing over nothing.
    precision = hits / np.maximum(np.cumsum(weight), 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = hits / whole
    # One search for all thresholds: each row of recalls is lifted above the one before.
    lift = 2.0 * np.arange(len(thresholds))[:, None]
    length = recall.shape[1]
    at = np.searchsorted((recall + lift).ravel(), (_RECALLS - 1e-12 + lift).ravel(), side="left")
    at = at.reshape(len(thresholds), -1) - length * np.arange(len(thresholds))[:, None]
    padded = np.concatenate([envelope, np.zeros((len(thresholds), 1))], axis=1)
    found: NDArray[np.float64] = np.take_along_axis(padded, at, axis=1).mean(axis=1)
    return found


def matches(found: list[Detections], boxes: NDArray[Any], classes: NDArray[Any]) -> tuple[ClassTable, ...]:
    """One table per class that has a box anywhere; detections of other classes count nowhere, as in COCO.

    Args:
        found: of each sample.
        boxes: ground truth `[n,m,4]`.
        classes: ground truth `[n,m]`, -1 where there is none.
    """
    tables = []
    for kind in np.unique(classes[classes >= 0]).tolist():
        samples, scores, hits = [], [], []
        for i, one in enumerate(found):
            mine = one.taken(one.classes == kind)
            samples.append(np.full(len(mine.scores), i, np.int64))
            scores.append(mine.scores)
            hits.append(_hits(mine.boxes, boxes[i][classes[i] == kind]))
        order = np.argsort(-np.concatenate(scores), kind="stable")
        tables.append(
            ClassTable(
                np.concatenate(samples)[order],
                np.concatenate(hits, axis=1)[:, order],
                (classes == kind).sum(axis=1),
            )
        )
    return tuple(tables)


def _hits(mine: NDArray[Any], truth: NDArray[Any]) -> NDArray[np.bool_]:
    """Which boxes, in order of score, find a ground truth box that no better one has taken."""
    hit = np.zeros((len(THRESHOLDS), len(mine)), np.bool_)
    if len(truth) == 0 or len(mine) == 0:
        return hit
    overlap = iou(mine, truth.astype(np.float64))
    for level, least in enumerate(THRESHOLDS):
        free = np.ones(len(truth), np.bool_)
        for i, row in enumerate(overlap):
            best = int(np.where(free, row, -1.0).argmax())
            if free[best] and row[best] >= least - 1e-10:
                hit[level, i] = True
                free[best] = False
    return hit
