"""A metric of the user's own, `module:function`.

For: calling `function(outputs, labels)` with dictionaries of arrays, first axis samples, and taking the
float (of the whole set) or the array `[n]` (one figure per sample, of which the mean counts) that it
returns. Its attributes declare the rest: `direction` ("higher" or "lower"; default higher), `low`, `high`
(range), `name`. Custom metrics run on the host only.
Not for: sandboxing it: it is the user's code, in the user's process.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from converter.errors import InputError, RecipeError
from converter.evaluate.tasks import Scores, Truth, mean_of
from wire.tasks import Answer, Kind, Metric

SECONDS_MAX = 60.0
"""For one figure's resamples of a metric of the whole set; those that were not reached are unknown."""

Function = Callable[[dict[str, Any], dict[str, Any]], Any]


class Custom(Struct, frozen=True, kw_only=True):
    """See `converter.evaluate.tasks.Task`."""

    function: Function
    metric: Metric
    answer: Answer = Answer()

    @property
    def kind(self) -> Kind:
        """`custom`."""
        return "custom"

    def scores(self, outputs: Truth, baseline: Truth, truth: Truth) -> Scores:
        """Calls the metric once, to see whether it is per sample.

        Raises:
            RecipeError: `metric_failed`.
        """
        del baseline
        n = len(next(iter(outputs.values())))
        found = called(self.function, dict(outputs), dict(truth), n)
        if isinstance(found, np.ndarray):
            return Scores(main=mean_of(found))
        return Scores(main=OfSet(self.function, dict(outputs), dict(truth), n))


class OfSet(Struct, frozen=True):
    """A metric that is computed again on every resample; see `converter.evaluate.statistics.Score`."""

    function: Function
    outputs: dict[str, Any]
    truth: dict[str, Any]
    n: int

    def value(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """A resample on which the metric fails, or for which no time was left, has no value."""
        until = time.monotonic() + SECONDS_MAX
        values = np.full(len(counts), np.nan)
        for row, count in enumerate(counts):
            if time.monotonic() > until:
                break
            index = np.repeat(np.arange(self.n), count)
            taken = [{k: v[index] for k, v in part.items()} for part in (self.outputs, self.truth)]
            try:
                values[row] = called(self.function, taken[0], taken[1], self.n)
            except RecipeError:
                continue
        return values


def called(function: Function, outputs: dict[str, Any], truth: dict[str, Any], n: int) -> Any:  # noqa: ANN401
    """One call; a finite float, or a float64 array `[n]`.

    Raises:
        RecipeError: `metric_failed`: it raised, or returned anything else.
    """
    try:
        found = np.asarray(function(outputs, truth), np.float64)
    except Exception as error:
        raise RecipeError("metric_failed", f"the metric raised {type(error).__name__}: {error}") from error
    if found.shape not in {(), (n,)} or not np.isfinite(found).all():
        raise RecipeError(
            "metric_failed",
            f"the metric returned {list(found.shape)} with values that may not be finite; it must be a "
            f"finite number, or an array of {n}, one a sample",
        )
    return float(found) if found.shape == () else found


def imported(path: str, what: str) -> Callable[..., Any]:
    """The function that `module:function` names; modules are looked for in the current folder too.

    Raises:
        InputError: `entry_point`: no such module or function, or importing it failed.
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise InputError("entry_point", f"{what} {path!r} is not module:function")
    here = os.getcwd()  # noqa: PTH109 - sys.path holds text
    if here not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise InputError(
            "entry_point",
            f"{what} {path}: {type(error).__name__}: {error}; is the module importable from {here}?",
        ) from error
    if not callable(found):
        raise InputError("entry_point", f"{what} {path} is a {type(found).__name__}, no function")
    function: Callable[..., Any] = found
    return function


def custom(path: str, answer: Answer) -> Custom:
    """The task of a metric `module:function`.

    Raises:
        InputError: `entry_point`, or `metric_unknown`: its attributes declare what cannot be.
    """
    function = imported(path, "metric")
    direction = getattr(function, "direction", "higher")
    if direction not in {"higher", "lower"}:
        raise InputError("metric_unknown", f"{path}.direction is {direction!r}; it is `higher` or `lower`")
    bounds = [getattr(function, name, None) for name in ("low", "high")]
    if any(
        bound is not None and not (isinstance(bound, int | float) and math.isfinite(bound))
        for bound in bounds
    ):
        raise InputError("metric_unknown", f"{path}: `low` and `high` must be finite numbers")
    metric = Metric(
        name=str(getattr(function, "name", path.partition(":")[2]))[:200],
        direction="lower" if direction == "lower" else "higher",
        per_sample=bool(getattr(function, "per_sample", False)),
        low=bounds[0],
        high=bounds[1],
    )
    return Custom(function=function, metric=metric, answer=answer)
