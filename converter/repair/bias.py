"""Bias correction: `bc`.

For: giving back the mean that quantization shifts: for each output channel of a layer, the mean difference
between its float and its quantized output over calibration samples is added to its bias (Nagel et al. 2019,
arXiv:1906.04721, section 4.2, the empirical form). Layers are corrected one after another in the order of
the graph, for the shift of a layer depends on the corrections before it (groups of seven layers at once made
EfficientNet-Lite0 worse, 18.0 to -0.5 dB). Beyond BIAS_LAYERS_MAX layers only those that shift most are.
Not for: deciding by the mean alone: half of the samples give the means, and unless the outputs of the other
half come nearer to FP32 beyond noise, nothing is changed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from msgspec import Struct, structs
from numpy.typing import NDArray
from onnx import helper

from converter.dataset import Samples
from converter.limits import BIAS_LAYERS_MAX
from converter.model import Signature
from converter.passes.opset import opset_of
from converter.repair.descent import is_better
from converter.repair.effects import decibels, noise_by_sample
from converter.repair.graph import GraphIndex
from converter.repair.switchboard import Array, Assignment, Switchboard

_AXES_AS_INPUT = 18
"""Opset from which ReduceMean takes its axes as an input."""


class _Layer(Struct, frozen=True, kw_only=True):
    """A layer with a bias.

    Attributes:
        bias: initializer.
        output: tensor with the bias added.
        channel_axis: of the output.
        mean: tensor that holds the output's mean over all but samples and channels.
    """

    bias: str
    output: str
    channel_axis: int
    mean: str


def correct_biases(
    model: onnx.ModelProto, samples: Samples, signature: Signature, assignment: Assignment
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """A copy with corrected biases, or a plain copy where that does not help; and why, in words.

    Args:
        model: cleaned (and perhaps equalized) FP32 graph.
        samples: the calibration set.
        signature: of the model.
        assignment: how everything else is quantized.

    Raises:
        Exception: what the runtime raises on this graph.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    layers = _layers(copy)
    if not layers:
        return copy, ("bias correction: no layer has a bias of its own",)
    watched = onnx.ModelProto()
    watched.CopyFrom(copy)
    _add_means(watched, layers)
    board = Switchboard(
        watched, samples, signature, tensors=frozenset(assignment.activations),
        weights=frozenset(assignment.weights) | {layer.bias for layer in layers},
        watched=tuple(layer.mean for layer in layers),
    )  # fmt: skip
    biases = _corrected(board, assignment, layers, copy)
    names = [spec.name for spec in signature.outputs if spec.dtype == "float32"]
    before = _errors(board, assignment, names)
    after = _errors(board, _with(assignment, biases), names)
    said = (
        f"bias correction of {len(biases)} layers, {board.evaluations} evaluations: "
        f"{decibels(float(np.mean(before[1]))):.1f} -> {decibels(float(np.mean(after[1]))):.1f} dB"
        " on samples that gave no means"
    )
    if not is_better((before[1], before[1]), (after[1], after[1])):
        return copy, (f"{said}; not kept",)
    index = GraphIndex(copy)
    for name, values in biases.items():
        index.replace(name, values)
    return copy, (f"{said}; kept",)


def _corrected(
    board: Switchboard, assignment: Assignment, layers: list[_Layer], model: onnx.ModelProto
) -> dict[str, Array]:
    """Biases with the shift of each layer given back."""
    index = GraphIndex(model)
    biases: dict[str, Array] = {}
    for layer in _worst(board, assignment, layers):
        found = board.outputs(_with(assignment, biases))
        shift = _shift(board, found, layer)
        plain = index.constant(layer.bias)
        if plain is not None and np.isfinite(shift).all():
            biases[layer.bias] = (plain + shift.reshape(plain.shape)).astype(np.float32)
    return biases


def _worst(board: Switchboard, assignment: Assignment, layers: list[_Layer]) -> list[_Layer]:
    """The layers to correct, in the graph's order."""
    if len(layers) <= BIAS_LAYERS_MAX:
        return layers
    found = board.outputs(assignment)
    power = [float(np.square(board.reference[layer.mean]).mean()) or 1.0 for layer in layers]
    size = [float(np.square(_shift(board, found, layer)).mean()) for layer in layers]
    ranked = sorted(range(len(layers)), key=lambda i: -size[i] / power[i])[:BIAS_LAYERS_MAX]
    return [layers[i] for i in sorted(ranked)]


def _shift(board: Switchboard, found: Mapping[str, Array], layer: _Layer) -> NDArray[np.float64]:
    """How far the mean of each channel fell, over the half of the samples that gives means, `[channels]`."""
    rows = (board.reference[layer.mean] - found[layer.mean])[0::2]
    shift: NDArray[np.float64] = rows.mean(axis=0, dtype=np.float64)
    return shift


def _with(assignment: Assignment, biases: Mapping[str, Array]) -> Assignment:
    return structs.replace(assignment, weights={**assignment.weights, **biases})


def _errors(
    board: Switchboard, assignment: Assignment, names: list[str]
) -> tuple[NDArray[np.float64], list[float]]:
    """Noise of the outputs by sample: all, and the half that gives no means."""
    found = board.outputs(assignment)
    noise = noise_by_sample({name: board.reference[name] for name in names}, found)
    held_out = noise[1::2] if len(noise) > 1 else noise
    return noise, held_out.tolist()


def _layers(model: onnx.ModelProto) -> list[_Layer]:
    """Layers with a bias of their own, in the graph's order; a Conv or Gemm without one is given zeros."""
    index = GraphIndex(model)
    found = []
    for node in list(model.graph.node):
        if node.op_type in {"Conv", "Gemm"}:
            layer = _own_bias(index, node)
        elif node.op_type == "Add":
            layer = _bias_of_product(index, node)
        else:
            layer = None
        if layer is not None:
            found.append(layer)
    return found


def _own_bias(index: GraphIndex, node: onnx.NodeProto) -> _Layer | None:
    weight = index.constant(node.input[1])
    if weight is None:
        return None
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    channels = weight.shape[0] if node.op_type == "Conv" or transposed else weight.shape[1]
    if len(node.input) < 3 or not node.input[2]:
        name = f"{node.output[0]}_bias"
        index.add(name, np.zeros(channels))
        del node.input[2:]
        node.input.append(name)
        index.readers[name].append((node, 2))
    bias = index.constant(node.input[2])
    if bias is None or bias.size != channels or not index.used_once(node.input[2]):
        return None
    return _Layer(bias=node.input[2], output=node.output[0], channel_axis=1, mean=_mean_name(node))


def _bias_of_product(index: GraphIndex, node: onnx.NodeProto) -> _Layer | None:
    """Add of a constant to a MatMul's result."""
    for place in (0, 1):
        bias = index.constant(node.input[place])
        made_by = index.producers.get(node.input[1 - place])
        shape = index.shapes.get(node.output[0])
        if bias is None or made_by is None or made_by.op_type != "MatMul" or shape is None:
            continue
        own = (
            index.used_once(node.input[place]) and bias.shape[-1:] == (bias.size,) and shape[-1] == bias.size
        )
        if own and len(shape) > 1:
            return _Layer(
                bias=node.input[place], output=node.output[0], channel_axis=len(shape) - 1,
                mean=_mean_name(node),
            )  # fmt: skip
    return None


def _mean_name(node: onnx.NodeProto) -> str:
    return f"shallop/mean/{node.output[0]}"


def _add_means(model: onnx.ModelProto, layers: list[_Layer]) -> None:
    """A ReduceMean behind each layer, so that a run gives one number a channel and never the tensor."""
    index = GraphIndex(model)
    opset = opset_of(model)
    for layer in layers:
        shape = index.shapes.get(layer.output)
        rank = layer.channel_axis + 1 if shape is None else len(shape)
        axes = [axis for axis in range(1, rank) if axis != layer.channel_axis]
        if not axes:
            node = helper.make_node("Identity", [layer.output], [layer.mean])
        elif opset < _AXES_AS_INPUT:
            node = helper.make_node("ReduceMean", [layer.output], [layer.mean], axes=axes, keepdims=0)
        else:
            name = f"{layer.mean}/axes"
            tensor = onnx.numpy_helper.from_array(np.array(axes, dtype=np.int64), name)
            model.graph.initializer.append(tensor)
            node = helper.make_node("ReduceMean", [layer.output, name], [layer.mean], keepdims=0)
        node.name = layer.mean
        model.graph.node.append(node)
