"""What the figures of a candidate say, in words, and how many samples would say more.

For: "no worse than 1 point, at 95%", or "cannot tell with 200 samples".
Not for: the verdict, which follows the point estimate (`wire.sla`).
"""

from __future__ import annotations

from converter.candidates import samples_needed
from converter.evaluate.quality import Quality
from converter.evaluate.statistics import samples_needed_for
from wire.figures import PairedCounts
from wire.measures import Measure
from wire.sla import Limits

POINT = 0.01
"""Of a metric between 0 and 1: a loss of one point is what people ask about."""
PERCENT = 0.01
"""Of the baseline's value, for a metric without such a scale."""


def needed_by(limits: Limits, found: Quality) -> int | None:
    """Samples that would prove the accuracy limit with 80% power; None where none would, or none is set."""
    limit = limits.accuracy
    if limit is None:
        return None
    sign = 1.0 if limit.direction == "higher" else -1.0
    n = found.agreement.n
    if limit.absolute is not None:
        spread = found.accuracy_spread
        if spread is None:
            spread = (found.accuracy.value * (1 - found.accuracy.value) / n) ** 0.5
        return samples_needed_for(sign * (found.accuracy.value - limit.absolute), spread, n)
    if limit.of_baseline is None or found.ratio is None:
        return None
    if found.against_baseline is not None:
        return samples_needed(found.against_baseline, limit.of_baseline)
    return samples_needed_for(sign * (found.ratio.value - limit.of_baseline), found.ratio_spread or 0.0, n)


def words_of(found: Quality, needed: int | None = None) -> str:
    """The paired comparison with FP32, in a sentence.

    Args:
        found: of a candidate.
        needed: samples that would prove the limit, where that is open.
    """
    name, delta = found.metric.name, found.delta
    n = found.agreement.n
    if delta is None or delta.low is None or delta.high is None:
        return f"{name}: {n} samples give no interval against FP32"
    lower = found.metric.direction == "lower"
    # As gains: positive is better than FP32.
    worst, best = (-delta.high, -delta.low) if lower else (delta.low, delta.high)
    if worst >= 0.0 and best > 0.0:
        return f"{name}: no worse than FP32, at 95%, on {n} samples"
    if best < 0.0:
        return f"{name}: worse than FP32 by {_amount(found, -best)} to {_amount(found, -worst)}, at 95%"
    step = _step(found)
    if step > 0.0 and -worst <= step:
        return f"{name}: no worse than FP32 by more than {_amount(found, step)}, at 95%, on {n} samples"
    about = needed or _needed_for_step(found, delta, step)
    more = "" if about is None else f": you need about {about}"
    return (
        f"{name}: cannot tell with {n} samples whether it loses {_amount(found, step)} "
        f"(at 95% up to {_amount(found, -worst)}){more}"
    )


def _needed_for_step(found: Quality, delta: Measure, step: float) -> int | None:
    """Samples that would prove a loss below one step; from the table, or from the interval's width."""
    n = found.agreement.n
    gain = -delta.value if found.metric.direction == "lower" else delta.value
    if found.against_baseline is not None:
        return samples_needed(found.against_baseline, _ratio_for(found.against_baseline, step))
    width = (delta.high or 0.0) - (delta.low or 0.0)
    return samples_needed_for(gain + step, width / (2 * 1.96), n)


def _ratio_for(counts: PairedCounts, step: float) -> float:
    """The fraction of the baseline at which the loss is one step."""
    reference = (counts.both + counts.reference_only) / counts.n
    return 1.0 - step / reference if reference > 0 else 1.0


def _of_unit_range(found: Quality) -> bool:
    return found.metric.low == 0.0 and found.metric.high == 1.0


def _step(found: Quality) -> float:
    if _of_unit_range(found):
        return POINT
    baseline = found.accuracy.value - (0.0 if found.delta is None else found.delta.value)
    return PERCENT * abs(baseline)


def _amount(found: Quality, value: float) -> str:
    if _of_unit_range(found):
        return f"{100 * value:.3g} point{'' if round(100 * value, 3) == 1 else 's'}"
    return f"{value:.3g}"
