"""What one candidate answers, and how good that is.

For: outputs of a whole validation set, computed one sample at a time as a device computes them, and the
figures of accuracy and agreement with their intervals.
Not for: latency (`converter.latency`), or judging (`wire.sla`).

One at a time matters: dynamic quantization takes its scale from the whole batch, and float kernels round
differently for other batch sizes (docs/adr/0003).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count, pairwise

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from converter.dataset import Array, Samples
from converter.errors import InputError, RecipeError
from converter.limits import EVALUATION_WORKERS_MAX
from converter.runtime import Session, open_session
from wire.figures import PairedCounts, paired_ratio_interval, wilson_interval
from wire.measures import Measure

Outputs = dict[str, Array]
Progress = Callable[[int, int], None]


class Quality(Struct, frozen=True, kw_only=True):
    """How good the answers are.

    Attributes:
        accuracy: top-1, with Wilson's interval.
        ratio: accuracy over the baseline's on the same samples; None where that is zero.
        agreement: fraction of samples with the baseline's top class.
        against_baseline: McNemar's table.
    """

    accuracy: Measure
    ratio: Measure | None
    agreement: Measure
    against_baseline: PairedCounts


def outputs_of(
    model: bytes,
    config: Mapping[str, str],
    samples: Samples,
    names: tuple[str, ...],
    progress: Progress | None = None,
) -> Outputs:
    """Every output of every sample, first axis samples.

    Args:
        model: the serialized graph.
        config: session entries.
        samples: to run, one at a time, spread over the cores with one thread each.
        names: outputs wanted.
        progress: told (samples done, samples in all).

    Raises:
        RecipeError: `outputs_not_finite`: NaN or infinity came out.
        Exception: what the runtime raises.
    """
    session = open_session(model, threads=1, config=config)
    workers = max(1, min(os.cpu_count() or 1, EVALUATION_WORKERS_MAX, samples.n))
    edges = [samples.n * i // workers for i in range(workers + 1)]
    done = count(1)
    with ThreadPoolExecutor(workers) as pool:
        futures = [
            pool.submit(_run_span, session, samples, names, span, (done, progress))
            for span in pairwise(edges)
        ]
        parts = [future.result() for future in futures]
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in names}
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise RecipeError("outputs_not_finite", f"output {name} holds NaN or infinity")
    return outputs


def _run_span(
    session: Session,
    samples: Samples,
    names: tuple[str, ...],
    span: tuple[int, int],
    told: tuple[count[int], Progress | None],
) -> Outputs:
    """Samples `span[0]` to `span[1]`; the runtime lets other threads run meanwhile."""
    done, progress = told
    rows: list[list[Array]] = []
    for feeds in samples.singles(*span):
        rows.append(session.run(list(names), feeds))
        if progress is not None:
            progress(next(done), samples.n)
    return {name: _stacked([row[i] for row in rows], name) for i, name in enumerate(names)}


def _stacked(rows: list[Array], name: str) -> Array:
    try:
        return np.concatenate(rows)
    except ValueError as error:
        raise InputError(
            "model_outputs",
            f"output {name} changes its shape or has no first axis for samples ({error}); "
            "export the model with one row per sample",
        ) from error


def quality(answers: Array, baseline: Array, labels: NDArray[np.int64]) -> Quality:
    """The figures of one candidate.

    Args:
        answers: scores `[n, classes]` of the candidate.
        baseline: scores `[n, classes]` of FP32 on the same samples.
        labels: right classes `[n]`.
    """
    top, top_baseline = answers.argmax(axis=1), baseline.argmax(axis=1)
    right, right_baseline = top == labels, top_baseline == labels
    counts = PairedCounts(
        both=int((right & right_baseline).sum()),
        candidate_only=int((right & ~right_baseline).sum()),
        reference_only=int((~right & right_baseline).sum()),
        neither=int((~right & ~right_baseline).sum()),
    )
    return Quality(
        accuracy=_proportion(int(right.sum()), len(labels)),
        ratio=_ratio(counts),
        agreement=_proportion(int((top == top_baseline).sum()), len(labels)),
        against_baseline=counts,
    )


def _proportion(successes: int, n: int) -> Measure:
    interval = wilson_interval(successes, n)
    return Measure(value=successes / n, low=interval.low, high=interval.high, n=n)


def _ratio(counts: PairedCounts) -> Measure | None:
    interval = paired_ratio_interval(counts)
    if interval is None:
        return None
    value = (counts.both + counts.candidate_only) / (counts.both + counts.reference_only)
    # The interval is centred on a shrunken difference; it must not leave the point just outside.
    low, high = min(interval.low, value), max(interval.high, value)
    return Measure(value=value, low=low, high=high, n=counts.n)
