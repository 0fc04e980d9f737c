"""Folds a BatchNormalization into the Conv before it.

Requires: weights are initializers. Ensures: no inference-mode BatchNormalization directly after a Conv
whose output nothing else reads. Quantized apart, the two would round twice and fuse into nothing.
Not for: BatchNormalization after Gemm or before a Conv.

With scale g, offset b, mean m and variance v per channel (ONNX, BatchNormalization):
W' = W g / sqrt(v + eps), bias' = (bias - m) g / sqrt(v + eps) + b, computed in float64.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Doubles = NDArray[np.float64]


def fold_batch_norm(model: onnx.ModelProto) -> int:
    """Folds in place; returns the number of BatchNormalization nodes that went."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    makers = {node.output[0]: node for node in graph.node if node.op_type == "Conv"}
    changes = 0
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        conv = makers.get(norm.input[0])
        if conv is None or readers[norm.input[0]] != 1 or not _foldable(norm, conv, constants):
            continue
        _fold(graph, conv, norm, constants)
        changes += 1
    _drop_unread(graph)
    return changes


def _foldable(norm: onnx.NodeProto, conv: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    """Inference mode, and every number that the fold needs is a float32 constant."""
    training = any(attribute.name == "training_mode" and attribute.i for attribute in norm.attribute)
    needed = [*norm.input[1:5], *(name for name in conv.input[1:3] if name)]
    float32 = onnx.TensorProto.FLOAT
    plain = all(name in constants and constants[name].data_type == float32 for name in needed)
    return plain and not training and len([name for name in norm.output if name]) == 1


def _fold(
    graph: onnx.GraphProto, conv: onnx.NodeProto, norm: onnx.NodeProto, constants: dict[str, onnx.TensorProto]
) -> None:
    def value(name: str) -> Doubles:
        array: Doubles = numpy_helper.to_array(constants[name]).astype(np.float64)
        return array

    gain, offset, mean, variance = (value(name) for name in norm.input[1:5])
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    factor = gain / np.sqrt(variance + epsilon)
    weight = value(conv.input[1])
    has_bias = len(conv.input) > 2 and conv.input[2]
    bias = value(conv.input[2]) if has_bias else np.zeros_like(mean)
    folded = {
        # New names: another Conv may share the old weight.
        f"{norm.output[0]}_folded_weight": weight * factor.reshape(-1, *[1] * (weight.ndim - 1)),
        f"{norm.output[0]}_folded_bias": (bias - mean) * factor + offset,
    }
    for name, array in folded.items():
        graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    kept = conv.input[0]
    del conv.input[:]
    conv.input.extend([kept, *folded])
    conv.output[0] = norm.output[0]
    graph.node.remove(norm)


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Initializers that no node reads any more; subgraphs may read by name, so graphs with them keep all."""
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
