"""Judges finished models on a test set that no tool has seen, all of them in one run.

For: accuracy with its interval, the paired difference to Shallop's choice, agreement with FP32, and
latency of all models turn by turn, as ratios to FP32.
Not for: making models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.runtime import Session, open_session
from wire.figures import PairedCounts, median_interval, paired_delta_interval, percentile, wilson_interval

Array = NDArray[Any]
Feeds = dict[str, Array]

_ROUNDS_SECONDS_MAX = 20.0
_WARM_UP = 10
_ROUNDS_MIN = 30
_ROUNDS_MAX = 400
_SEED = 20261121


def subject_feeds(folder: Path, n_max: int | None = None, part: str = "test") -> list[Feeds]:
    """Single samples of the subject's test set, or another part of it, as its model takes them."""
    with np.load(folder / f"{part}.npz") as held:
        arrays = {name: held[name] for name in held.files if name != "labels"}
    n = max(len(array) for array in arrays.values())
    clip = folder.name == "audio_vad"
    begin = folder / "state.npz"
    state = dict(np.load(begin)) if begin.is_file() else {}
    return [
        {name: array[i] if clip else array[i : i + 1] for name, array in arrays.items()} | state
        for i in range(min(n, n_max or n))
    ]


def answers(model: bytes, feeds: Sequence[Feeds]) -> Array:
    """The first output of every sample, stacked: `[n, ...]`."""
    session = open_session(model, threads=2)
    name = session.get_outputs()[0].name
    rows = [session.run([name], feed)[0] for feed in feeds]
    return np.stack([row[0] if row.shape[0] == 1 else row for row in rows])


def right(folder: Path, scores: Array, head: tuple[Array, Array] | None) -> NDArray[np.bool_]:
    """Which answers are right, flat: one per sample, for the detector of speech one per frame."""
    with np.load(folder / "test.npz") as held:
        labels = held["labels"][: len(scores)]
    answer = predicted(folder, scores, head)
    if labels.ndim > answer.ndim:  # sets of acceptable classes, padded with -1
        hits: NDArray[np.bool_] = (answer[:, None] == labels).any(axis=1)
        return hits
    same: NDArray[np.bool_] = np.equal(answer, labels).ravel()
    return same


def predicted(folder: Path, scores: Array, head: tuple[Array, Array] | None) -> Array:
    """The answer in the task's own terms: a class, or speech or none for each frame."""
    if folder.name == "audio_vad":
        return (scores > 0.5).astype(np.int64)
    if folder.name == "minilm":
        if head is None:
            raise ValueError("minilm is judged by its linear head")
        scores = scores @ head[0].T + head[1]
    answer: Array = scores.argmax(axis=-1)
    return answer


def quality(
    folder: Path, found: Mapping[str, Array], head: tuple[Array, Array] | None
) -> dict[str, dict[str, object]]:
    """Figures of every model; `fp32` and `shallop` are among them where they could be made."""
    hits = {name: right(folder, scores, head) for name, scores in found.items()}
    classes = {name: predicted(folder, scores, head).ravel() for name, scores in found.items()}
    rows: dict[str, dict[str, object]] = {}
    for name, hit in hits.items():
        interval = wilson_interval(int(hit.sum()), hit.size)
        row: dict[str, object] = {
            "accuracy": round(float(hit.mean()), 5),
            "accuracy_ci95": [round(interval.low, 4), round(interval.high, 4)],
            "agreement": round(float((classes[name] == classes["fp32"]).mean()), 5),
            "n": hit.size,
        }
        if name not in {"fp32", "shallop"} and "shallop" in hits:
            row["shallop_minus_this_ci95"] = difference(hits["shallop"], hit)
        rows[name] = row
    return rows


def difference(mine: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> list[float]:
    """95% interval of mine minus theirs, paired by sample."""
    counts = PairedCounts(
        both=int((mine & theirs).sum()),
        candidate_only=int((mine & ~theirs).sum()),
        reference_only=int((~mine & theirs).sum()),
        neither=int((~mine & ~theirs).sum()),
    )
    interval = paired_delta_interval(counts)
    return [round(interval.low, 4), round(interval.high, 4)]


def latency(models: Mapping[str, bytes], feeds: Sequence[Feeds]) -> dict[str, dict[str, object]]:
    """One thread each; ratios are to FP32's."""
    sessions: dict[str, Session] = {name: open_session(model) for name, model in models.items()}

    def ask(session: Session, i: int) -> object:
        return session.run(None, feeds[i % len(feeds)])

    return turn_by_turn({name: partial(ask, one) for name, one in sessions.items()}, "fp32")


def turn_by_turn(
    runs: Mapping[str, Callable[[int], object]],
    reference: str,
    *,
    rounds_max: int = _ROUNDS_MAX,
    seconds_max: float = _ROUNDS_SECONDS_MAX,
) -> dict[str, dict[str, object]]:
    """Latency of each run; ratios are paired with the reference's.

    The order is drawn anew with every round, seeded: each run finds the caches as another one left them.

    Args:
        runs: by name, what is timed; it is told the number of the round.
        reference: the name of the one that the others are divided by.
        rounds_max: no more than these.
        seconds_max: after these no more begin.
    """
    names = list(runs)
    for i in range(_WARM_UP):
        for name in names:
            runs[name](i)
    times: dict[str, list[float]] = {name: [] for name in names}
    order = Random(_SEED)
    began = time.perf_counter()
    for i in range(rounds_max):
        if i >= _ROUNDS_MIN and time.perf_counter() - began > seconds_max:
            break
        for name in order.sample(names, len(names)):
            at = time.perf_counter_ns()
            runs[name](i)
            times[name].append((time.perf_counter_ns() - at) / 1e6)
    rows: dict[str, dict[str, object]] = {}
    for name in names:
        ratios = [mine / theirs for mine, theirs in zip(times[name], times[reference], strict=True)]
        interval = median_interval(ratios)
        rows[name] = {
            "latency_ms_p50": round(percentile(times[name], 0.5), 4),
            "latency_ratio": round(percentile(ratios, 0.5), 3),
            "latency_ratio_ci95": [round(interval.low, 3), round(interval.high, 3)],
        }
    return rows
