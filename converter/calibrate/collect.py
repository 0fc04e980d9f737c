"""Ranges of every activation, in one pass with bounded memory.

For: the smallest and largest value of each float32 tensor over the calibration set. The graph itself is
given a ReduceMin and a ReduceMax for each, so that a run hands out two numbers a tensor and never the
tensors; memory is that of one batch, however large the set (onnxruntime#10503: its own calibrators keep
every output).
Not for: choosing how much of a range to keep, or quantizing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median

import numpy as np
import onnx
from msgspec import Struct
from onnx import helper

from converter.dataset import Samples
from converter.errors import InputError
from converter.limits import CALIBRATION_BATCH_MAX
from converter.model import Signature, element_types
from converter.runtime import open_session
from wire.figures import Interval

Ranges = dict[str, Interval]

_OUTLIER_FACTOR = 4.0
"""A sample this many times above the median sample's largest value is named; one such image of 256 cost
77 points of accuracy (FACTS.md, trap 7, with a factor of 40)."""
_OUTLIERS_NAMED_MAX = 20


class Outlier(Struct, frozen=True, kw_only=True):
    """A calibration sample whose input reaches far beyond the others'."""

    input: str
    sample: int
    largest: float
    times_median: float


class Calibration(Struct, frozen=True, kw_only=True):
    """What the calibration set said.

    Attributes:
        ranges: by tensor name.
        n_samples: that were run.
        outliers: the worst ones by name.
    """

    ranges: Ranges
    n_samples: int
    outliers: tuple[Outlier, ...] = ()


def calibrate(
    model: onnx.ModelProto,
    samples: Samples,
    signature: Signature,
    progress: Callable[[int, int], None] | None = None,
    batch: int = CALIBRATION_BATCH_MAX,
) -> Calibration:
    """Runs the whole set through the model once.

    Args:
        model: cleaned FP32 graph.
        samples: the calibration set.
        signature: of the model; without a free first axis samples run one by one.
        progress: told (samples done, samples in all).
        batch: samples whose activations live at once, where the model allows.

    Raises:
        InputError: `calibration_not_finite`: a tensor reached NaN or infinity; the message names it.
    """
    graph, tensors = augmented(model)
    session = open_session(graph.SerializeToString(), threads=2, optimization="BASIC")
    size = batch if signature.batch_free else 1
    lows = np.full(len(tensors), math.inf)
    highs = np.full(len(tensors), -math.inf)
    largest: dict[str, list[float]] = {}
    done = 0
    for feeds in samples.batches(size):
        values = np.array([float(value) for value in session.run(None, feeds)]).reshape(-1, 2)
        _require_finite(values, tensors)
        lows = np.minimum(lows, values[:, 0])
        highs = np.maximum(highs, values[:, 1])
        done += len(next(iter(feeds.values())))
        for name, tensor in feeds.items():
            if tensor.dtype == np.float32:
                flat = np.abs(tensor.reshape(tensor.shape[0], -1))
                largest.setdefault(name, []).extend(flat.max(axis=1, initial=0.0).tolist())
        if progress is not None:
            progress(done, samples.n)
    ranges = {name: Interval(float(lows[i]), float(highs[i])) for i, name in enumerate(tensors)}
    return Calibration(ranges=ranges, n_samples=done, outliers=outliers(largest))


def _require_finite(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], tensors: list[str]) -> None:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise InputError(
            "calibration_not_finite",
            f"tensor {tensors[int(bad[0])]} reaches NaN or infinity on the calibration set; "
            "check the preprocessing, or the model itself in FP32",
        )


def augmented(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """The model with the minimum and maximum of each float32 activation as its only outputs.

    Returns:
        The graph, and the tensors' names; outputs stand in pairs (lowest, highest) in that order.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    types = element_types(inferred)
    constants = {tensor.name for tensor in model.graph.initializer}
    made = [value.name for value in model.graph.input]
    made += [name for node in model.graph.node for name in node.output]
    tensors = [n for n in made if types.get(n) == onnx.TensorProto.FLOAT and n not in constants]
    graph = inferred.graph
    del graph.output[:]
    for i, name in enumerate(tensors):
        for operator in ("ReduceMin", "ReduceMax"):
            out = f"shallop_range_{i}_{operator}"
            graph.node.append(helper.make_node(operator, [name], [out], name=out, keepdims=0))
            graph.output.append(helper.make_tensor_value_info(out, onnx.TensorProto.FLOAT, []))
    return inferred, tensors


def outliers(largest: dict[str, list[float]]) -> tuple[Outlier, ...]:
    """Samples whose largest absolute value is far above the median sample's, worst first."""
    found = []
    for name, values in largest.items():
        middle = median(values)
        if middle <= 0.0:
            continue
        for i, value in enumerate(values):
            if value > _OUTLIER_FACTOR * middle:
                found.append(Outlier(input=name, sample=i, largest=value, times_median=value / middle))
    return tuple(sorted(found, key=lambda one: -one.times_median)[:_OUTLIERS_NAMED_MAX])
