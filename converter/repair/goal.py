"""What a search has to reach, and on which samples.

For: turning the SLA's accuracy and agreement into one score of an assignment. The samples are the
calibration set (label-free: agreement with FP32 stands for accuracy, which cannot fall further than
agreement does) or a labelled split named `search`. Never the samples of the verdict (DESIGN.md section 7).
Not for: judging a candidate (`wire.sla`).
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from converter.dataset import Samples
from converter.repair.effects import Outputs, agreement, decibels, noise_by_sample
from wire.sla import Limits

_SQNR_DB_MIN = 30.0
"""For an answer without classes, where no share of samples can agree: noise a thousandth of the signal."""


class Goal(Struct, frozen=True, kw_only=True):
    """What to reach.

    Attributes:
        samples: that are searched on; with labels accuracy is measured, without only agreement.
        accuracy_fraction_min: of FP32's accuracy; None where the SLA has no accuracy limit.
        accuracy_min: absolute; None where the SLA has no such limit.
        agreement_min: with FP32's top class; None where the SLA has no such limit.
        classes: whether the answer is one class for each sample; else signal over noise stands for all.
    """

    samples: Samples
    accuracy_fraction_min: float | None = None
    accuracy_min: float | None = None
    agreement_min: float | None = None
    classes: bool = True

    @property
    def words(self) -> str:
        """The goal and its samples, for people."""
        if not self.classes:
            return f"{_SQNR_DB_MIN:g} dB of signal over noise (on calibration samples, for want of classes)"
        limits = {
            "accuracy of at least {:.4g} of FP32's": self.accuracy_fraction_min,
            "accuracy of at least {:.4g}": self.accuracy_min,
            "agreement of at least {:.4g}": self.agreement_min,
        }
        said = [text.format(value) for text, value in limits.items() if value is not None]
        on = "labelled search samples"
        if self.samples.labels is None:
            on = "calibration samples, where agreement stands for accuracy"
        return f"{' and '.join(said)} (on {on})"


def goal_of(
    limits: Limits, calibration: Samples, search: Samples | None, *, classes: bool = True
) -> Goal | None:
    """The goal that an SLA sets for a search; None where it limits neither accuracy nor agreement."""
    accuracy = limits.accuracy
    if accuracy is None and limits.agreement is None:
        return None
    return Goal(
        classes=classes,
        samples=calibration if search is None else search,
        accuracy_fraction_min=None if accuracy is None else accuracy.min_fraction_of_baseline,
        accuracy_min=None if accuracy is None else accuracy.min,
        agreement_min=None if limits.agreement is None else limits.agreement.min,
    )


def score(
    goal: Goal, reference: Outputs, found: Outputs, answer: str, labels: NDArray[np.int64] | None
) -> float:
    """How far an assignment reaches: 1 or more meets the goal; the limit that is missed most decides.

    Args:
        goal: the limits.
        reference: FP32's outputs, `[n, columns]` each.
        found: the assignment's.
        answer: output with the scores by class.
        labels: right class of each of those samples `[n]`; None without labels.
    """
    agreeing = agreement(reference[answer], found[answer]) if goal.classes else None
    if agreeing is None:
        return decibels(float(noise_by_sample(reference, found).mean())) / _SQNR_DB_MIN
    parts = [] if goal.agreement_min is None else [_over(agreeing, goal.agreement_min)]
    if labels is None:
        bounds = [one for one in (goal.accuracy_fraction_min, goal.accuracy_min) if one is not None]
        parts += [_over(agreeing, min(bound, 1.0)) for bound in bounds]
        return min(parts, default=1.0)
    accuracy = float((found[answer].argmax(axis=1) == labels).mean())
    baseline = float((reference[answer].argmax(axis=1) == labels).mean())
    if goal.accuracy_fraction_min is not None:
        parts.append(_over(accuracy, goal.accuracy_fraction_min * baseline))
    if goal.accuracy_min is not None:
        parts.append(_over(accuracy, goal.accuracy_min))
    return min(parts, default=1.0)


def _over(value: float, least: float) -> float:
    """Ratio to a limit; a limit of zero is met."""
    return value / least if least > 0.0 else 1.0 + value
