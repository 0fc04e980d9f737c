"""Judges the files of all tools on a test set that none has seen.

For: accuracy with its interval, differences paired by sample, distance of the outputs from FP32's, operators,
and latency turn by turn, as ratios to the file of Shallop's twin.
Not for: making files (`bench.tflite.tools`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from statistics import stdev
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from bench.converter.judging import (
    Feeds,
    answers,
    difference,
    quality,
    right,
    subject_feeds,
    turn_by_turn,
)  # fmt: skip
from bench.tflite.files import outline
from bench.tflite.running import Runner
from bench.tflite.tools import Made
from converter.litert import Prepared
from wire.figures import Interval, percentile, t_quantile

Array = NDArray[Any]
Row = dict[str, object]

_TIMED = (
    "shallop",
    "onnx2tf",
    "litert_quantizer",
    "litert_quantizer_default",
    "shallop_float",
    "onnx2tf_float",
)
_TIMED_SAMPLES = 64
_OPENINGS = 8
_ROUNDS_MAX = 1_000
_OPENING_SECONDS_MAX = 8.0
_SEED = 20261121
_REFERENCE = "shallop"


def judge(folder: Path, made: Mapping[str, Made], answer: str) -> dict[str, Row]:
    """Figures by tool; a tool without a file has its costs and the reason.

    Args:
        folder: of the subject.
        made: what the tools gave.
        answer: name of the ONNX model's output that is judged.
    """
    feeds = subject_feeds(folder)
    fp32 = answers((folder / "model.onnx").read_bytes(), feeds)
    shape = _answer_shape(fp32, feeds)
    rows: dict[str, Row] = {name: dict(one.costs) | {"note": one.note} for name, one in made.items()}
    found: dict[str, Array] = {"fp32": fp32}
    files: dict[str, Callable[[], Runner]] = {}
    for name, one in made.items():
        if one.content is None:
            continue
        try:
            if name == "shallop_onnx":
                rows[name]["size_bytes"] = len(one.content)
                found[name] = answers(one.content, feeds)
            else:
                lines = outline(one.content)
                rows[name] |= lines.figures()
                opened = partial(Runner, one.content, lines, feeds[0], (answer, shape))
                found[name] = opened().answers(feeds)
                files[name] = opened
        except Exception as error:  # noqa: BLE001 - a file that does not run is a row
            rows[name]["note"] = f"does not run: {error}"[:300]
    for name, figures in _quality(folder, found).items():
        rows.setdefault(name, {}).update(figures)
    for name, figures in _latency(files, feeds).items():
        rows[name].update(figures)
    return rows


def _answer_shape(stacked: Array, feeds: Sequence[Feeds]) -> tuple[int, ...]:
    """Of one answer as the model gives it: `answers()` takes a batch of one away."""
    first = next(iter(feeds[0].values())).shape[0]
    return (1, *stacked.shape[1:]) if first == 1 else stacked.shape[1:]


def _quality(folder: Path, found: Mapping[str, Array]) -> dict[str, Row]:
    """Accuracy where there are labels; distance from FP32 for all."""
    rows: dict[str, Row] = {
        name: {"sqnr_db": sqnr_db(found["fp32"], scores)} for name, scores in found.items()
    }
    with np.load(folder / "test.npz") as held:
        labelled = "labels" in held.files
    if not labelled:
        return rows
    reference = right(folder, found["fp32"], None)
    for name, figures in quality(folder, found, None).items():
        rows[name] |= figures
        if name != "fp32":
            rows[name]["this_minus_fp32_ci95"] = difference(right(folder, found[name], None), reference)
    return rows


def sqnr_db(wanted: Array, given: Array) -> float | None:
    """Power of the wanted outputs over that of the difference, in dB; None where there is no difference."""
    noise = float(np.square(wanted.astype(np.float64) - given).sum())
    power = float(np.square(wanted.astype(np.float64)).sum())
    return round(10 * float(np.log10(power / noise)), 1) if noise and power else None


def _latency(files: Mapping[str, Callable[[], Runner]], feeds: Sequence[Feeds]) -> dict[str, Row]:
    """Of the files that run; ratios are to Shallop's twin, or missing where that is.

    Where an opened file comes to lie in memory changes its time by up to a percent, in every call alike: so
    all files are opened several times, and the interval is that of the openings' ratios.
    """
    timed = [name for name in _TIMED if name in files]
    if _REFERENCE not in timed:
        return {}
    order = Random(_SEED)
    found = [
        _opening({name: files[name]() for name in order.sample(timed, len(timed))}, feeds)
        for _ in range(_OPENINGS)
    ]
    return {name: _pooled([one[name] for one in found]) for name in timed}


def _opening(runners: Mapping[str, Runner], feeds: Sequence[Feeds]) -> dict[str, Row]:
    """All files turn by turn, opened once."""

    def ask(runner: Runner, prepared: Sequence[Prepared], i: int) -> object:
        return runner.invoke(prepared[i % len(prepared)])

    few = feeds[:_TIMED_SAMPLES]
    runs = {name: partial(ask, one, [one.prepare(feed) for feed in few]) for name, one in runners.items()}
    return turn_by_turn(runs, _REFERENCE, rounds_max=_ROUNDS_MAX, seconds_max=_OPENING_SECONDS_MAX)


def _pooled(openings: Sequence[Row]) -> Row:
    """Median time, and the mean ratio with its interval over openings."""
    times = [cast("float", one["latency_ms_p50"]) for one in openings]
    ratios = [cast("float", one["latency_ratio"]) for one in openings]
    # Ratios of one file to itself are all 1: a mean of constants needs no interval of Wilson's.
    interval = t_interval(ratios)
    return {
        "latency_ms_p50": round(percentile(times, 0.5), 4),
        "latency_ratio": round(sum(ratios) / len(ratios), 3),
        "latency_ratio_ci95": [round(interval.low, 3), round(interval.high, 3)],
    }


def t_interval(values: Sequence[float]) -> Interval:
    """95% interval of a mean, Student's t."""
    mean = sum(values) / len(values)
    half = t_quantile(len(values) - 1) * stdev(values) / len(values) ** 0.5
    return Interval(mean - half, mean + half)
