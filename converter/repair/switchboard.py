"""One session that computes any assignment of scales, weights and islands.

For: making sensitivity and the searches cheap. The FP32 graph gets a fake quantizer on every tensor that a
plan would quantize, with step and bounds as *graph inputs*, and its weights become graph inputs too. So an
assignment is a set of numbers, and nothing is built again to try another.
Not for: the answers of the verdict: those come from the emitted graph, run by the device's own kernels.

A fake quantizer computes clip(round(x / step), low, high) * step, round half to even, which is what
QuantizeLinear and DequantizeLinear compute with low = qmin - zero point and high = qmax - zero point. What
it does not imitate: the rounding of biases to 32 bits, and integer kernels that round their sum only once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
from msgspec import Struct
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from converter.dataset import Feeds, Samples
from converter.limits import (
    CALIBRATION_BATCH_MAX,
    EVALUATION_WORKERS_MAX,
    SEARCH_BYTES,
    SEARCH_SAMPLES_MAX,
    SEARCH_SAMPLES_MIN,
    SWITCHBOARD_BYTES_MAX,
    SWITCHBOARD_INPUT_BYTES_MAX,
)
from converter.model import Signature, element_types
from converter.repair.channels import with_outputs
from converter.runtime import open_session

Array = NDArray[np.float32]

_STEP_OPEN = 2.0**-60
"""Divides and multiplies without rounding; every float32 of at least 2^-37 is a whole number of it."""


class FakeQuant(Struct, frozen=True, kw_only=True):
    """How one tensor is quantized.

    Attributes:
        step: of the grid, in the tensor's unit; above 0.
        low: smallest multiple of the step that is kept.
        high: largest.
    """

    step: float
    low: float
    high: float


OPEN = FakeQuant(step=_STEP_OPEN, low=-math.inf, high=math.inf)
"""Lets a tensor pass as it is."""


class Assignment(Struct, frozen=True, kw_only=True):
    """What is quantized, and how; what is not named stays in float.

    Attributes:
        activations: fake quantizer by tensor.
        weights: numbers to compute with by initializer, `[its shape]` float32: dequantized weights, biases.
    """

    activations: Mapping[str, FakeQuant]
    weights: Mapping[str, Array]


class Switchboard:
    """An FP32 graph whose quantization is an argument.

    Attributes:
        tensors: that have a fake quantizer, in the graph's order.
        evaluations: how many assignments were computed.
        n: samples that each is computed on.
        plain: weights that may be replaced, as they are.
        labels: of these samples; None where the set has none.
        reference: float32 outputs of FP32 on them by name, first axis samples.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        samples: Samples,
        signature: Signature,
        *,
        tensors: frozenset[str],
        weights: frozenset[str],
        watched: tuple[str, ...] = (),
        samples_max: int = SEARCH_SAMPLES_MAX,
    ) -> None:
        """Builds the graph and runs FP32 on the samples.

        Args:
            model: cleaned FP32 graph.
            samples: the calibration set; an even spread of at most `samples_max` is used.
            signature: of the model.
            tensors: activations that get a fake quantizer; constants and other types are left out.
            weights: initializers that may be replaced.
            watched: other float32 tensors to give besides the outputs.
            samples_max: fewer are used where their inputs exceed SWITCHBOARD_INPUT_BYTES_MAX or all their
                activations SEARCH_BYTES, but SEARCH_SAMPLES_MIN in any case where there are so many.

        Raises:
            Exception: what the runtime raises on this graph.
        """
        self.evaluations = 0
        picked = _picked(model, samples, samples_max)
        self._feeds = _batches(model, samples, signature, picked)
        self.n = len(picked)
        self.labels = None if samples.labels is None else samples.labels[picked]
        types = element_types(onnx.shape_inference.infer_shapes(model))
        self._names = tuple(spec.name for spec in signature.outputs if spec.dtype == "float32") + watched
        self.plain = _weights(model, weights)
        graph, self.tensors = switched(
            with_outputs(model, list(watched)), tensors, frozenset(self.plain), types
        )
        self._session = open_session(graph.SerializeToString(), threads=1, optimization="EXTENDED")
        self.reference = self.outputs(Assignment(activations={}, weights={}))
        self.evaluations = 0

    def outputs(self, assignment: Assignment) -> dict[str, Array]:
        """Outputs and watched tensors under an assignment, first axis samples.

        Raises:
            KeyError: the assignment names a tensor or a weight that has no switch here.
        """
        switches = self._switches(assignment)
        wanted = list(self._names)

        def run(feeds: Feeds) -> list[Array]:
            rows: list[Array] = self._session.run(wanted, {**feeds, **switches})
            return rows

        with ThreadPoolExecutor(max(1, min(os.cpu_count() or 1, EVALUATION_WORKERS_MAX))) as pool:
            rows = list(pool.map(run, self._feeds))
        self.evaluations += 1
        alone = len(self._feeds) == self.n
        return {name: _joined([row[i] for row in rows], alone=alone) for i, name in enumerate(self._names)}

    def _switches(self, assignment: Assignment) -> dict[str, Any]:
        unknown = [name for name in assignment.activations if name not in self.tensors]
        unknown += [name for name in assignment.weights if name not in self.plain]
        if unknown:
            raise KeyError(f"no switch for {', '.join(unknown)}")
        weights = {**self.plain, **assignment.weights}
        # The runtime takes arrays only; arithmetic on an array without axes gives numpy's scalars.
        feeds: dict[str, Any] = {name: np.asarray(values) for name, values in weights.items()}
        for name in self.tensors:
            fake = assignment.activations.get(name, OPEN)
            values = (fake.step, fake.low, fake.high)
            for part, value in zip(_PARTS, values, strict=True):
                feeds[_switch(name, part)] = np.array(value, dtype=np.float32)
        return feeds


def _picked(model: onnx.ModelProto, samples: Samples, samples_max: int) -> list[int]:
    """An even spread over the set, within the limits of work and memory."""
    each = activation_bytes(model)
    # A board of more samples than a search's is for few evaluations, so each may work as much longer.
    work = SEARCH_BYTES * max(1, samples_max // SEARCH_SAMPLES_MAX)
    most = samples_max if each is None else min(samples_max, max(SEARCH_SAMPLES_MIN, work // each))
    first = samples.feeds(0, 1)
    held = SWITCHBOARD_INPUT_BYTES_MAX // max(sum(tensor.nbytes for tensor in first.values()), 1)
    n = max(1, min(samples.n, most, held))
    return [i * samples.n // n for i in range(n)]


def _batches(
    model: onnx.ModelProto, samples: Samples, signature: Signature, picked: list[int]
) -> list[Feeds]:
    """The picked samples' tensors in batches; they are made once and held."""
    fitting = batch_size(activation_bytes(model), len(picked)) if signature.batch_free else 1
    size = samples.together(fitting)
    found = []
    for start in range(0, len(picked), size):
        parts = [samples.feeds(i, i + 1) for i in picked[start : start + size]]
        found.append({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    return found


_PARTS = ("step", "low", "high")


def _switch(tensor: str, part: str) -> str:
    return f"shallop/{part}/{tensor}"


def switched(
    model: onnx.ModelProto, tensors: frozenset[str], weights: frozenset[str], types: Mapping[str, int]
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The graph with fake quantizers, and the tensors that have one in the graph's order.

    Requires: inferred element types; names of `weights` are float32 initializers.
    Ensures: with OPEN everywhere and the initializers' own numbers the graph computes what it did.
    """
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    wanted = {n for n in tensors if types.get(n) == TensorProto.FLOAT and n not in constants}
    placed: list[str] = []
    nodes: list[onnx.NodeProto] = []
    renamed = {}
    for value in graph.graph.input:
        if value.name in wanted:
            placed.append(value.name)
            renamed[value.name] = f"shallop/quantized/{value.name}"
            nodes += _fake(value.name, value.name, renamed[value.name])
    for node in graph.graph.node:
        _rename_reads(node, renamed)
        nodes.append(node)
        for place, name in enumerate(node.output):
            if name in wanted:
                placed.append(name)
                node.output[place] = f"shallop/float/{name}"
                nodes += _fake(name, node.output[place], name)
    for name in placed:
        for part in _PARTS:
            graph.graph.input.append(
                helper.make_tensor_value_info(_switch(name, part), TensorProto.FLOAT, [])
            )
    for name in sorted(weights):
        dims = list(constants[name].dims)
        graph.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))
    kept = [tensor for name, tensor in constants.items() if name not in weights]
    _put(graph.graph, nodes, kept)
    return graph, tuple(placed)


def _put(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]) -> None:
    """Replaces nodes and initializers; copies first, for a protobuf list owns what stands in it."""
    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    held = []
    for tensor in constants:
        one = TensorProto()
        one.CopyFrom(tensor)
        held.append(one)
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(copies)
    graph.initializer.extend(held)


def _fake(tensor: str, source: str, result: str) -> list[onnx.NodeProto]:
    """Div, Round, Clip, Mul, with the tensor's switches."""
    step, low, high = (_switch(tensor, part) for part in _PARTS)
    scaled, rounded, clipped = (f"shallop/{stage}/{tensor}" for stage in ("scaled", "rounded", "clipped"))
    return [
        helper.make_node("Div", [source, step], [scaled], name=scaled),
        helper.make_node("Round", [scaled], [rounded], name=rounded),
        helper.make_node("Clip", [rounded, low, high], [clipped], name=clipped),
        helper.make_node("Mul", [clipped, step], [result], name=f"shallop/back/{tensor}"),
    ]


def _rename_reads(node: onnx.NodeProto, renamed: Mapping[str, str]) -> None:
    for place, name in enumerate(node.input):
        if name in renamed:
            node.input[place] = renamed[name]


def _weights(model: onnx.ModelProto, names: frozenset[str]) -> dict[str, Array]:
    """The float32 initializers among the names."""
    tensors = (t for t in model.graph.initializer if t.name in names and t.data_type == TensorProto.FLOAT)
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}


def _joined(rows: list[Array], *, alone: bool) -> Array:
    """Batches one after another, each sample as one row.

    Where every sample ran alone its tensor is its row, whatever its axes count (a whole sequence, frame by
    frame); shorter rows are filled up with zeros, which carry no signal and no noise.
    """
    if alone:
        longest = max(row.size for row in rows)
        return np.stack([np.pad(row.reshape(-1), (0, longest - row.size)) for row in rows])
    return np.concatenate(
        [row.reshape(row.shape[0], -1) if row.ndim > 1 else row.reshape(-1, 1) for row in rows]
    )


def activation_bytes(model: onnx.ModelProto) -> int | None:
    """Of all tensors of one sample together; None where a shape is open."""
    total = 0
    inferred = onnx.shape_inference.infer_shapes(model)
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        dims = [d.dim_value if d.HasField("dim_value") else 0 for d in value.type.tensor_type.shape.dim]
        if 0 in dims[1:]:
            return None
        total += 4 * math.prod(dims[1:])
    return max(total, 1)


def batch_size(sample_bytes: int | None, n: int) -> int:
    """Samples at once so that the activations of a batch stay within SWITCHBOARD_BYTES_MAX."""
    if sample_bytes is None:
        return min(n, CALIBRATION_BATCH_MAX)
    # A fake quantizer holds up to two copies of a tensor beside the tensor itself.
    return max(1, min(n, SWITCHBOARD_BYTES_MAX // (3 * sample_bytes)))
