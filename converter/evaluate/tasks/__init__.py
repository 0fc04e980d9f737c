"""What a task must say of answers, and the tasks there are.

For: one Protocol with a module per task behind it, and the choice of the task.
Not for: comparing a candidate with the baseline (`converter.evaluate.quality`), the same for all tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from converter.dataset import Array
from converter.evaluate.statistics import Score
from wire.tasks import Answer, Kind, Metric

Truth = Mapping[str, Array]
"""Right answers by name, first axis samples."""


class Scores(Struct, frozen=True, kw_only=True):
    """How good one set of answers is.

    Attributes:
        main: the task's metric.
        right: per sample, where the metric is the share of right answers; None for any other.
        others: reported beside it; those that are 0 or 1 per sample as that.
    """

    main: Score
    right: NDArray[np.bool_] | None = None
    others: dict[str, Score | NDArray[np.bool_]] = {}


class Task(Protocol):
    """One task with its settings."""

    @property
    def kind(self) -> Kind:
        """Its name."""

    @property
    def metric(self) -> Metric:
        """Its figure of merit."""

    @property
    def answer(self) -> Answer:
        """How outputs are read."""

    def scores(self, outputs: Truth, baseline: Truth, truth: Truth) -> Scores:
        """How good the outputs are.

        Args:
            outputs: of the candidate, the answer's first.
            baseline: of FP32 on the same samples; for metrics that are themselves a comparison.
            truth: right answers.

        Raises:
            RecipeError: `metric_failed`: a custom metric raised or gave what is no figure.
            ContentError: the outputs are not what the task says they are.
        """


class Mean(Struct, frozen=True):
    """A mean over samples, weighted: `sum(w v) / sum(w)`, or the root of it."""

    values: NDArray[np.float64]
    weights: NDArray[np.float64]
    root: bool = False

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.values)

    def value(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """See `Score.value`."""
        whole = counts @ self.weights
        with np.errstate(invalid="ignore", divide="ignore"):
            mean: NDArray[np.float64] = np.where(
                whole > 0, counts @ (self.values * self.weights) / whole, np.nan
            )
        return np.sqrt(mean) if self.root else mean


def mean_of(values: Array, *, root: bool = False) -> Mean:
    """Every sample counts alike."""
    return Mean(values.astype(np.float64), np.ones(len(values)), root)
