"""The tasks there are, and which one a conversion is for.

For: `task_of()` by name, and `inferred()` from what the validation set holds.
Not for: what a task computes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from converter.errors import InputError
from converter.evaluate.tasks import Task
from converter.evaluate.tasks.classification import Classification
from converter.evaluate.tasks.custom import custom
from converter.evaluate.tasks.detection import Detection
from converter.evaluate.tasks.embedding import Embedding
from converter.evaluate.tasks.regression import Regression
from wire.tasks import Answer, Kind


def task_of(kind: Kind, answer: Answer, metric: str | None = None, *, labelled: bool = True) -> Task:
    """A task with its settings.

    Args:
        kind: its name.
        answer: how outputs are read.
        metric: `mae` or `rmse` for regression, `module:function` for a custom one; else None.
        labelled: whether the samples have labels.

    Raises:
        InputError: `metric_unknown`, or what `custom()` raises.
    """
    if kind == "custom":
        if metric is None:
            raise InputError("metric_unknown", "task custom needs --metric module:function")
        return custom(metric, answer)
    if kind == "regression":
        if metric not in {None, "mae", "rmse"}:
            raise InputError("metric_unknown", f"regression is measured by mae or rmse, not {metric}")
        return Regression(answer=answer, rmse=metric == "rmse")
    if metric is not None:
        raise InputError(
            "metric_unknown", f"task {kind} has its own metric; --metric {metric} needs --task custom"
        )
    if kind == "detection":
        return Detection(answer=answer)
    if kind == "embedding":
        return Embedding(answer=answer, labelled=labelled)
    return Classification(answer=answer)


def inferred(dtypes: Mapping[str, np.dtype[np.generic]], metric: str | None) -> tuple[Kind, str]:
    """The task that nobody named, and why it is taken to be that one.

    Args:
        dtypes: of the validation set's arrays by name.
        metric: as asked for.
    """
    if metric is not None and ":" in metric:
        return "custom", "a metric module:function was given"
    if {"boxes", "classes"} <= set(dtypes):
        return "detection", "the validation set holds boxes and classes"
    if metric in {"mae", "rmse"}:
        return "regression", f"the metric is {metric}"
    if "labels" in dtypes and dtypes["labels"].kind == "f":
        return "regression", "the labels are real numbers"
    return "classification", "the labels are classes"
