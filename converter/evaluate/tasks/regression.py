"""Regression: how far numbers are from the right ones.

For: `labels` real, of the answer's shape; mean absolute error (or the root of the mean square as the
metric) with the other beside it. Lower is better.
Not for: scaling; errors are in the labels' own unit.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from converter.evaluate.tasks import Scores, Truth, mean_of
from wire.agreement import answer_name
from wire.errors import ContentError
from wire.tasks import Answer, Kind, Metric


class Regression(Struct, frozen=True, kw_only=True):
    """See `converter.evaluate.tasks.Task`."""

    answer: Answer = Answer()
    rmse: bool = False

    @property
    def kind(self) -> Kind:
        """`regression`."""
        return "regression"

    @property
    def metric(self) -> Metric:
        """MAE is a mean of the samples' errors; RMSE is of the whole set."""
        return Metric(
            name="rmse" if self.rmse else "mae", direction="lower", per_sample=not self.rmse, low=0.0
        )

    def scores(self, outputs: Truth, baseline: Truth, truth: Truth) -> Scores:
        """Errors averaged within each sample first, so that each sample counts once.

        Raises:
            ContentError: `answer_shape`: labels and answers differ in their count of numbers.
        """
        del baseline
        found = outputs[answer_name(self.answer, tuple(outputs))]
        n = len(found)
        mine, labels = (part.reshape(n, -1).astype(np.float64) for part in (found, truth["labels"]))
        if mine.shape != labels.shape:
            raise ContentError(
                "answer_shape",
                f"a sample's answer holds {mine.shape[1]} numbers, its label {labels.shape[1]}",
            )
        errors = mine - labels
        absolute = mean_of(np.abs(errors).mean(axis=1))
        square = mean_of((errors**2).mean(axis=1), root=True)
        if self.rmse:
            return Scores(main=square, others={"mae": absolute})
        return Scores(main=absolute, others={"rmse": square})
