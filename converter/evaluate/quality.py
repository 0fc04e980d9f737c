"""How good a candidate is, beside the baseline on the same samples.

For: the task's metric, its ratio and difference to FP32's, the agreement: each with a 95% interval.
Not for: running anything (`converter.evaluate.outputs`), or judging (`wire.sla`).
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

from converter.dataset import Samples
from converter.errors import RecipeError
from converter.evaluate.outputs import Outputs
from converter.evaluate.statistics import Score, measured, point, resampled
from converter.evaluate.tasks import Scores, Task
from wire.agreement import agreement
from wire.figures import (
    PairedCounts,
    mean_interval,
    paired_delta_interval,
    paired_ratio_interval,
    wilson_interval,
)
from wire.measures import Measure
from wire.tasks import TOP1, Metric


class Quality(Struct, frozen=True, kw_only=True):
    """How good the answers are.

    Attributes:
        metric: what is called accuracy.
        accuracy: the metric.
        ratio: over the baseline's on the same samples; None where that is zero.
        delta: minus the baseline's on the same samples.
        agreement: with the baseline's answers, by `wire.agreement`.
        against_baseline: McNemar's table, where the metric is a share of right answers.
        others: metrics reported beside it.
        ratio_spread: standard deviation of the ratio over resamples; None where the table says it.
        accuracy_spread: the same of the metric.
    """

    metric: Metric
    accuracy: Measure
    ratio: Measure | None
    delta: Measure | None
    agreement: Measure
    against_baseline: PairedCounts | None
    others: dict[str, Measure] = {}
    ratio_spread: float | None = None
    accuracy_spread: float | None = None


def quality(task: Task, outputs: Outputs, baseline: Outputs, samples: Samples) -> Quality:
    """The figures of one candidate.

    Args:
        task: what the outputs are for.
        outputs: of the candidate, first axis samples.
        baseline: of FP32 on the same samples.
        samples: with the right answers.

    Raises:
        RecipeError: `metric_failed`, or `metric_undefined`: the metric has no value here.
        ContentError: the outputs are not what the task says they are.
    """
    truth = samples.known
    mine = task.scores(outputs, baseline, truth)
    theirs = mine if outputs is baseline else task.scores(baseline, baseline, truth)
    agreed = np.asarray(agreement(task.kind, task.answer, outputs, baseline), np.float64)
    if mine.right is not None and theirs.right is not None:
        found = _by_counts(mine.right, theirs.right)
    else:
        found = _by_resampling(mine, theirs)
    return structs.replace(
        found,
        metric=task.metric,
        agreement=_mean(agreed),
        others=_others(mine),
    )


def _by_counts(right: NDArray[np.bool_], right_baseline: NDArray[np.bool_]) -> Quality:
    """A share of right answers: Wilson's interval and McNemar's table, nothing left to chance."""
    counts = PairedCounts(
        both=int((right & right_baseline).sum()),
        candidate_only=int((right & ~right_baseline).sum()),
        reference_only=int((~right & right_baseline).sum()),
        neither=int((~right & ~right_baseline).sum()),
    )
    n = counts.n
    apart = (counts.candidate_only - counts.reference_only) / n
    interval = paired_delta_interval(counts)
    return Quality(
        metric=TOP1,
        accuracy=_share(right),
        ratio=_ratio(counts),
        # Both intervals are centred on a shrunken difference; the point must not lie just outside.
        delta=Measure(value=apart, low=min(interval.low, apart), high=max(interval.high, apart), n=n),
        agreement=Measure(value=1.0, n=n),
        against_baseline=counts,
    )


def _ratio(counts: PairedCounts) -> Measure | None:
    interval = paired_ratio_interval(counts)
    if interval is None:
        return None
    value = (counts.both + counts.candidate_only) / (counts.both + counts.reference_only)
    return Measure(value=value, low=min(interval.low, value), high=max(interval.high, value), n=counts.n)


def _by_resampling(mine: Scores, theirs: Scores) -> Quality:
    """Any other metric: the paired bootstrap over samples."""
    own, base, n = point(mine.main), point(theirs.main), mine.main.n
    drawn, drawn_base = resampled((mine.main, theirs.main))
    accuracy, delta = measured(drawn, own, n), measured(drawn - drawn_base, own - base, n)
    if accuracy is None:
        raise RecipeError("metric_undefined", "the metric has no value on these samples")
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = np.where(drawn_base > 0, drawn / drawn_base, np.nan)
    ratio = measured(ratios, own / base, n) if base > 0 else None
    return Quality(
        metric=TOP1,
        accuracy=accuracy,
        ratio=ratio,
        delta=delta,
        agreement=Measure(value=1.0, n=n),
        against_baseline=None,
        ratio_spread=_spread(ratios),
        accuracy_spread=_spread(drawn),
    )


def _spread(values: NDArray[np.float64]) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.std()) if len(known) > 1 else None


def _others(mine: Scores) -> dict[str, Measure]:
    """What has a value; the rest is unknown and left out."""
    found = {name: _other(score) for name, score in mine.others.items()}
    return {name: measure for name, measure in found.items() if measure is not None}


def _other(score: Score | NDArray[np.bool_]) -> Measure | None:
    if isinstance(score, np.ndarray):
        return _share(score)
    return measured(resampled((score,))[0], point(score), score.n)


def _share(right: NDArray[np.bool_]) -> Measure:
    interval = wilson_interval(int(right.sum()), len(right))
    return Measure(value=float(right.mean()), low=interval.low, high=interval.high, n=len(right))


def _mean(values: NDArray[np.float64]) -> Measure:
    centre, n = float(values.mean()), len(values)
    if n == 1 and centre not in {0.0, 1.0}:
        return Measure(value=centre, n=1)
    interval = mean_interval(values.tolist())
    # A mean of values within 0 and 1 lies there, which Student's interval does not know.
    return Measure(value=centre, low=max(-1.0, interval.low), high=min(1.0, interval.high), n=n)
