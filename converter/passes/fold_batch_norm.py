"""Folds a scale and offset per channel into the multiplication beside it.

Requires: weights are initializers. Ensures: no inference-mode BatchNormalization, and no Mul, Div, Add or
Sub by a constant per channel, directly after a Conv, ConvTranspose or Gemm whose output nothing else reads;
no BatchNormalization directly before a Conv without padding or a Gemm. Quantized apart, the two would round
twice and fuse into nothing.
Not for: a BatchNormalization before padding, whose zeros it would have to shift too, or weights that leave
float32's range.

With scale g, offset b, mean m and variance v per channel (ONNX, BatchNormalization), the factor is
f = g / sqrt(v + eps) and the shift s = b - m f. After a product: W' = W f, bias' = bias f + s. Before one:
W' = W f, bias' = bias + W s. All computed in float64.
"""

from __future__ import annotations

import numpy as np
import onnx
from msgspec import Struct

from converter.passes.walk import Doubles, View, attribute, is_op, set_attribute

PRODUCTS = ("Conv", "ConvTranspose", "Gemm")


class _Affine(Struct, frozen=True):
    """y = factor x + shift, per channel; `source` is x."""

    source: str
    factor: Doubles
    shift: Doubles


def fold_batch_norm(model: onnx.ModelProto) -> int:
    """Folds in place; returns the number of nodes that went."""
    view = View(model)
    changes = 0
    for node in list(view.graph.node):
        if is_op(node, "BatchNormalization", "Mul", "Div", "Add", "Sub"):
            changes += _folded_back(view, node)
    for node in list(view.graph.node):
        if is_op(node, "Conv", "Gemm"):
            changes += _folded_on(view, node)
    for tensor in [tensor for tensor in view.graph.initializer if not view.reads[tensor.name]]:
        view.graph.initializer.remove(tensor)
    return changes


def _folded_back(view: View, node: onnx.NodeProto) -> bool:
    """Takes `node` into the product that it reads."""
    for source in dict.fromkeys(node.input[:2]):
        product = view.maker(source, *PRODUCTS)
        weight = None if product is None else view.floats(product.input[1])
        if product is None or weight is None:
            continue
        affine = _affine(view, node, source, _channels(product, weight[0]), weight[0].ndim)
        if affine is None or not scaled_by(view, product, node.output[0], affine.factor, affine.shift):
            continue
        view.remove(node)
        view.give(product, node.output[0])
        return True
    return False


def scaled_by(view: View, product: onnx.NodeProto, name: str, factor: Doubles, shift: Doubles) -> bool:
    """Has a product give `factor y + shift` instead of y; False, and nothing done, where it cannot.

    Args:
        view: the graph.
        product: of `PRODUCTS`.
        name: that its new constants are called after.
        factor: one number for each output channel.
        shift: as many.
    """
    weight = view.floats(product.input[1])
    bias = None if weight is None else _bias(view, product, _channels(product, weight[0]))
    if weight is None or bias is None:
        return False
    scaled = _scaled_outputs(product, weight[0], factor)
    return _set(view, product, name, scaled, bias * factor + shift)


def _folded_on(view: View, product: onnx.NodeProto) -> bool:
    """Takes a BatchNormalization into the product that reads it."""
    norm = view.maker(product.input[0], "BatchNormalization")
    weight = view.floats(product.input[1])
    if norm is None or weight is None or _pads(product) or attribute(product, "transA", 0):
        return False
    affine = _batch_norm(view, norm)
    bias = _bias(view, product, _channels(product, weight[0]))
    if affine is None or bias is None:
        return False
    taken = _scaled_inputs(product, weight[0], affine)
    if taken is None or not _set(view, product, product.output[0], taken[0], bias + taken[1]):
        return False
    view.set_inputs(product, norm.input[0], *list(product.input)[1:])
    view.remove(norm)
    return True


def _affine(view: View, node: onnx.NodeProto, source: str, channels: int, rank: int) -> _Affine | None:
    """What `node` does to `source`, if it does the same to a whole channel."""
    if is_op(node, "BatchNormalization"):
        found = _batch_norm(view, node)
        return found if found is not None and found.source == source else None
    other = node.input[1] if node.input[0] == source else node.input[0]
    values = view.floats(other)
    vector = None if values is None else _per_channel(values[0], channels, rank)
    one, none = np.ones(channels), np.zeros(channels)
    if vector is None or other == source:
        return None
    if is_op(node, "Add", "Mul"):
        return _Affine(source, one, vector) if is_op(node, "Add") else _Affine(source, vector, none)
    if node.input[0] != source:
        return None
    if is_op(node, "Div"):
        return _Affine(source, 1.0 / vector, none) if (vector != 0.0).all() else None
    return _Affine(source, one, -vector)


def _batch_norm(view: View, node: onnx.NodeProto) -> _Affine | None:
    """Inference mode, and every number that the fold needs is a float32 constant."""
    values = view.floats(*node.input[1:5])
    if values is None or attribute(node, "training_mode", 0) or len([n for n in node.output if n]) != 1:
        return None
    gain, offset, mean, variance = values
    factor = gain / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return _Affine(node.input[0], factor, offset - mean * factor)


def _per_channel(value: Doubles, channels: int, rank: int) -> Doubles | None:
    """A constant as one number a channel, if it broadcasts to axis 1 of that rank and nothing else."""
    if value.ndim > rank:
        return None
    if value.size == 1:
        return np.full(channels, value.reshape(-1)[0])
    shape = (1,) * (rank - value.ndim) + value.shape
    return value.reshape(-1) if shape == (1, channels, *[1] * (rank - 2)) else None


def channels_of(view: View, product: onnx.NodeProto) -> int | None:
    """Output channels; None where the weight is no constant."""
    weight = view.floats(product.input[1])
    return None if weight is None else _channels(product, weight[0])


def _channels(product: onnx.NodeProto, weight: Doubles) -> int:
    """Output channels."""
    if is_op(product, "ConvTranspose"):
        return int(weight.shape[1] * attribute(product, "group", 1))
    if is_op(product, "Gemm"):
        return int(weight.shape[0 if attribute(product, "transB", 0) else 1])
    return int(weight.shape[0])


def _bias(view: View, product: onnx.NodeProto, channels: int) -> Doubles | None:
    """What a product adds per channel; None where that is no such constant."""
    if len(product.input) < 3 or not product.input[2]:
        return np.zeros(channels)
    values = view.floats(product.input[2])
    if values is None:
        return None
    rank = 2 if is_op(product, "Gemm") else 1
    row = values[0] if rank == 1 else _per_channel(values[0], channels, rank)
    return None if row is None else row * (attribute(product, "beta", 1.0) if rank == 2 else 1.0)


def _scaled_outputs(product: onnx.NodeProto, weight: Doubles, factor: Doubles) -> Doubles:
    """The weight with each output channel times its factor."""
    if is_op(product, "Gemm"):
        return weight * (factor[:, None] if attribute(product, "transB", 0) else factor[None, :])
    ones = [1] * (weight.ndim - 2)
    if is_op(product, "ConvTranspose"):
        groups = attribute(product, "group", 1)
        spread = factor.reshape(groups, 1, -1, *ones)
        return (weight.reshape(groups, -1, *weight.shape[1:]) * spread).reshape(weight.shape)
    return weight * factor.reshape(-1, 1, *ones)


def _scaled_inputs(
    product: onnx.NodeProto, weight: Doubles, affine: _Affine
) -> tuple[Doubles, Doubles] | None:
    """The weight with each input channel times its factor, and what the shifts add to each output."""
    if is_op(product, "Gemm"):
        turned = attribute(product, "transB", 0)
        rows = weight.T if turned else weight
        if len(affine.factor) != rows.shape[0]:
            return None
        scaled = rows * affine.factor[:, None]
        return scaled.T if turned else scaled, attribute(product, "alpha", 1.0) * (affine.shift @ rows)
    groups = attribute(product, "group", 1)
    outputs, inputs = weight.shape[:2]
    # Output channel o reads the input channels of its own group only.
    reads = np.arange(outputs)[:, None] // (outputs // groups) * inputs + np.arange(inputs)[None, :]
    shape = (outputs, inputs, *[1] * (weight.ndim - 2))
    added = weight * affine.shift[reads].reshape(shape)
    return weight * affine.factor[reads].reshape(shape), added.reshape(outputs, -1).sum(axis=1)


def _pads(product: onnx.NodeProto) -> bool:
    automatic = attribute(product, "auto_pad", b"NOTSET") not in {b"NOTSET", b"VALID", b""}
    return automatic or any(attribute(product, "pads", []))


def _set(view: View, product: onnx.NodeProto, name: str, weight: Doubles, bias: Doubles) -> bool:
    """Gives a product new constants under new names: another may share the old ones."""
    with np.errstate(over="ignore"):
        folded = [array.astype(np.float32) for array in (weight, bias)]
    if not all(np.isfinite(array).all() for array in folded):
        return False
    names = [
        view.add(f"{name}_folded_{part}", array)
        for part, array in zip(("weight", "bias"), folded, strict=True)
    ]
    view.set_inputs(product, product.input[0], *names)
    if is_op(product, "Gemm"):
        set_attribute(product, "beta", None)
    return True
