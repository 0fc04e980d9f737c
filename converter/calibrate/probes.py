"""What the calibration graph hands out for each tensor.

For: adding reductions and an evenly spaced selection of values to the graph, as its only outputs, so that a
run hands out small arrays and the runtime frees every activation as it goes (onnxruntime#10503: its own
calibrators keep every output).
Not for: running it (`converter.calibrate.collect`).
"""

from __future__ import annotations

import math

import onnx
from msgspec import Struct
from onnx import TensorProto, helper

from converter.limits import CHANNELS_MAX, HISTOGRAM_VALUES_PER_SAMPLE
from converter.model import element_types
from converter.passes.opset import opset_of

_AXES_INPUT_OPSET = 18
_SLICE_INPUTS_OPSET = 10
_LAST_AXIS = frozenset({"MatMul"})
_FLOAT_BYTES = 4

PARTS = ("ReduceMin", "ReduceMax", "ReduceMean", "values")
"""Outputs of each tensor, in this order."""


class Probe(Struct, frozen=True, kw_only=True):
    """One tensor.

    Attributes:
        tensor: its name.
        axis: whose entries are followed one by one (channels), None where there is none of fixed size.
        by_sample: whether the first axis is kept, as it may count samples.
    """

    tensor: str
    axis: int | None
    by_sample: bool


Shape = tuple[int | None, ...]


def augmented(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Probe]]:
    """The model with four outputs (`PARTS`) for each float32 activation, and no others.

    Reductions give `[N, C]` where there is a channel axis, `[N]` where there is only a first axis, else
    one number. Values are `[N, K]`, or flat where the first axis cannot count samples; K is at most
    `HISTOGRAM_VALUES_PER_SAMPLE` where the shape is known, else all of the tensor.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    types, shapes = element_types(inferred), _shapes(inferred)
    constants = {tensor.name for tensor in model.graph.initializer}
    made = [value.name for value in model.graph.input]
    made += [name for node in model.graph.node for name in node.output]
    names = [n for n in made if types.get(n) == TensorProto.FLOAT and n not in constants]
    last = {name for node in model.graph.node if node.op_type in _LAST_AXIS for name in node.input}
    probes = [_probe(name, shapes.get(name), last=name in last) for name in names]
    opset = opset_of(model)
    del inferred.graph.output[:]
    for i, probe in enumerate(probes):
        _add(inferred.graph, probe, shapes.get(probe.tensor), f"shallop_probe_{i}", opset)
    return inferred, probes


def activation_bytes(model: onnx.ModelProto) -> int:
    """Of all float32 activations of one sample, were they all alive; an unknown axis counts as one."""
    inferred = onnx.shape_inference.infer_shapes(model)
    types = element_types(inferred)
    sizes = [
        math.prod(size or 1 for size in shape)
        for name, shape in _shapes(inferred).items()
        if types.get(name) == TensorProto.FLOAT
    ]
    return _FLOAT_BYTES * sum(sizes)


def _shapes(inferred: onnx.ModelProto) -> dict[str, Shape]:
    graph = inferred.graph
    return {
        value.name: tuple(
            d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim
        )
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def _probe(name: str, shape: Shape | None, *, last: bool) -> Probe:
    if shape is None or not shape:
        return Probe(tensor=name, axis=None, by_sample=False)
    if len(shape) == 1:
        return Probe(tensor=name, axis=None, by_sample=True)
    axis = len(shape) - 1 if last else 1
    size = shape[axis]
    fixed = size is not None and 0 < size <= CHANNELS_MAX
    return Probe(tensor=name, axis=axis if fixed else None, by_sample=True)


def _add(graph: onnx.GraphProto, probe: Probe, shape: Shape | None, prefix: str, opset: int) -> None:
    kept = {0, probe.axis} if probe.by_sample else set()
    axes = [i for i in range(len(shape or ())) if i not in kept]
    for operator in PARTS[:3]:
        out = f"{prefix}_{operator}"
        if probe.by_sample and not axes:
            graph.node.append(helper.make_node("Identity", [probe.tensor], [out], name=out))
        else:
            graph.node.append(_reduction(graph, operator, probe, axes, out, opset))
        graph.output.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, None))
    out = f"{prefix}_values"
    _select(graph, probe, shape, out, opset)
    graph.output.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, None))


def _reduction(
    graph: onnx.GraphProto, operator: str, probe: Probe, axes: list[int], out: str, opset: int
) -> onnx.NodeProto:
    if not probe.by_sample:
        return helper.make_node(operator, [probe.tensor], [out], name=out, keepdims=0)
    if opset < _AXES_INPUT_OPSET:
        return helper.make_node(operator, [probe.tensor], [out], name=out, keepdims=0, axes=axes)
    graph.initializer.append(helper.make_tensor(f"{out}_axes", TensorProto.INT64, [len(axes)], axes))
    return helper.make_node(operator, [probe.tensor, f"{out}_axes"], [out], name=out, keepdims=0)


def _select(graph: onnx.GraphProto, probe: Probe, shape: Shape | None, out: str, opset: int) -> None:
    """Every so many-th value of each sample; the stride is prime, so that it walks through rows."""
    tensor = probe.tensor
    sizes = (shape or ())[1:]
    if not sizes:
        graph.node.append(helper.make_node("Identity", [tensor], [out], name=out))
        return
    each = None if None in sizes else math.prod(size or 0 for size in sizes)
    stride = 1 if each is None else _prime_from(-(-each // HISTOGRAM_VALUES_PER_SAMPLE))
    flat = out if stride == 1 or opset < _SLICE_INPUTS_OPSET else f"{out}_flat"
    graph.node.append(helper.make_node("Flatten", [tensor], [flat], name=f"{out}_flatten", axis=1))
    if flat == out:
        return
    bounds = {"starts": 0, "ends": 2**62, "axes": 1, "steps": stride}
    for word, number in bounds.items():
        graph.initializer.append(helper.make_tensor(f"{out}_{word}", TensorProto.INT64, [1], [number]))
    graph.node.append(helper.make_node("Slice", [flat, *(f"{out}_{w}" for w in bounds)], [out], name=out))


def _prime_from(number: int) -> int:
    """The smallest prime at or above `number`; 1 for 1."""
    if number <= 1:
        return 1
    while any(number % i == 0 for i in range(2, math.isqrt(number) + 1)):
        number += 1
    return number
