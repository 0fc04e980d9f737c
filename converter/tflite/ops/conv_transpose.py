"""Transposed convolution: TRANSPOSE_CONV.

For: ConvTranspose over one or two spatial axes, with its bias and activation.
Not for: Conv.

Weights: ONNX [I, O/group, kh, kw], the file's [O, kh, kw, I] with scales along axis 0. TFLite knows neither
groups nor dilations: taps and channels that do not take part are written as zeros, which changes no sum.
Padding is SAME where that crops alike; else the whole output is computed (VALID) and a SLICE crops it.
Source of both paddings: tensorflow/lite/kernels/transpose_conv.cc, which pads as the convolution from output
to input would.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from converter.quantize.qparams import QParams
from converter.tflite.errors import TFLiteError
from converter.tflite.layout import same_pads
from converter.tflite.lowering import Lowering
from converter.tflite.ops.conv import Filter, bias_of
from converter.tflite.ops.entry import Entry
from converter.tflite.ops.windows import PAIR, image, image_output, settle
from converter.tflite.reading import Op, Traits
from converter.tflite.schema import ACTIVATIONS, schema
from converter.tflite.tensors import Tensor

Array = NDArray[Any]
_WEIGHTS_MAX = 1 << 22
"""Elements of a weight once its groups are written out."""
_WITH_BIAS, _WITH_ACTIVATION = 3, 4
"""Versions (op_version.cc)."""


class Spread(Struct, frozen=True, kw_only=True):
    """How two spatial axes grow.

    Attributes:
        strides: between the places of two inputs.
        front: what is cropped before.
        sizes: of the output.
        whole: of the output before it is cropped; at least what the taps reach.
        same: SAME gives the cropped output itself.
    """

    strides: PAIR
    front: PAIR
    sizes: PAIR
    whole: PAIR
    same: bool


def conv_transpose(b: Lowering, op: Op) -> None:
    """Writes one ConvTranspose."""
    filters = _filter(b, op)
    spread = _spread(b, op, (filters.values.shape[1], filters.values.shape[2]))
    tensor = image(b, op.inputs[0])
    made, wanted = image_output(b, op)
    weight = b.weight(filters.values, op.inputs[1], None) if filters.quant is None else (
        b.new_constant(filters.values, op.inputs[1], filters.quant)
    )  # fmt: skip
    sizes = spread.sizes if spread.same else spread.whole
    shape = (made.shape[0], *sizes, made.shape[3])
    whole = made if made.shape == shape else b.new(f"{made.name}_whole", shape, made.dtype, made.quant)
    inputs = [b.integers(shape, f"{op.name}_shape"), weight, tensor]
    version = None
    if len(op.inputs) > 2 and op.inputs[2]:
        inputs.append(bias_of(b, op, tensor, filters, made.shape[3]))
        version = _WITH_BIAS
    options = schema.TransposeConvOptionsT()
    options.padding = schema.Padding.SAME if spread.same else schema.Padding.VALID
    options.strideH, options.strideW = spread.strides
    options.fusedActivationFunction = ACTIVATIONS[op.activation]
    if op.activation != "NONE":
        version = _WITH_ACTIVATION
    b.add("TRANSPOSE_CONV", inputs, [whole], options, version=version)
    if whole is not made:
        _crop(b, op, whole, made, spread.front)
    settle(b, made, wanted)


def _crop(b: Lowering, op: Op, whole: Tensor, made: Tensor, front: PAIR) -> None:
    begin = b.integers((0, *front, 0), f"{op.name}_begin")
    size = b.integers(made.shape, f"{op.name}_size")
    b.add("SLICE", [whole, begin, size], [made], schema.SliceOptionsT())


def _filter(b: Lowering, op: Op) -> Filter:
    """The weight as [O, kh, kw, I], with groups and dilations written out as zeros."""
    found = b.constant(op.inputs[1])
    if found is None:
        raise TFLiteError("tflite_attribute", f"the weight of {op.where} is no constant")
    values = found.values if found.values.ndim == 4 else np.expand_dims(found.values, 2)
    group = int(op.attributes.get("group", 1))
    dilations = list(op.attributes.get("dilations", [1] * (found.values.ndim - 2)))
    values = _dilated(values, ([1] * (2 - len(dilations))) + dilations)
    if values.size * group > _WEIGHTS_MAX:
        raise TFLiteError(
            "tflite_attribute",
            f"{op.where} has {group} groups, which TFLite has not, and {values.size * group} weights without",
        )
    values, quant = _grouped(values, group), found.quant
    if quant is not None:
        if quant.zero_point.any():
            raise TFLiteError(
                "tflite_quantization", f"the weight of {op.where} has a zero point other than 0"
            )
        if quant.axis not in {None, 1}:
            raise TFLiteError(
                "tflite_quantization",
                f"the weight of {op.where} is stored per axis {quant.axis}, TFLite per output channel",
            )
        if quant.axis == 1:
            # A channel has the scale of its place within its group.
            scale, zero = np.tile(quant.scale, group), np.tile(quant.zero_point, group)
            quant = QParams(scale=scale, zero_point=zero, dtype="i8", axis=0)
    return Filter(values=np.ascontiguousarray(values.transpose(1, 2, 3, 0)), quant=quant, axis=0)


def _dilated(values: Array, dilations: list[int]) -> Array:
    """Zeros between the taps."""
    height, width = ((n - 1) * d + 1 for n, d in zip(values.shape[2:], dilations, strict=True))
    wide = np.zeros((*values.shape[:2], height, width), dtype=values.dtype)
    wide[:, :, :: dilations[0], :: dilations[1]] = values
    return wide


def _grouped(values: Array, group: int) -> Array:
    """[I, O/group, ...] as [I, O, ...]: zeros where another group's input would be read."""
    inputs, outputs = values.shape[:2]
    dense = np.zeros((inputs, outputs * group, *values.shape[2:]), dtype=values.dtype)
    each = inputs // group
    for i in range(group):
        rows = slice(i * each, (i + 1) * each)
        dense[rows, i * outputs : (i + 1) * outputs] = values[rows]
    return dense


def _spread(b: Lowering, op: Op, reach: PAIR) -> Spread:
    shape, out = b.shape(op.inputs[0]), b.shape(op.outputs[0])
    n = len(shape) - 2
    if n not in {1, 2}:
        raise TFLiteError("tflite_rank", f"{op.where} has {n} spatial axes, TFLite's have two")
    lead = [1] * (2 - n)
    strides = [*lead, *op.attributes.get("strides", [1] * n)]
    given = [*lead, *shape[2:]]
    sizes = [*lead, *out[2:]]
    front = [0] * (2 - n) + _fronts(op, given[2 - n :], strides[2 - n :], reach[2 - n :], sizes[2 - n :])
    whole = []
    for i in range(2):
        taps = (given[i] - 1) * strides[i] + reach[i]
        whole.append(max(taps, front[i] + sizes[i]))
        if front[i] < 0 or whole[i] - reach[i] >= given[i] * strides[i]:
            raise TFLiteError(
                "tflite_attribute", f"{op.where} is padded beyond what its weight and stride reach"
            )
    same = all(
        -(-sizes[i] // strides[i]) == given[i] and same_pads(sizes[i], reach[i], strides[i])[0] == front[i]
        for i in range(2)
    )
    return Spread(
        strides=(strides[0], strides[1]), front=(front[0], front[1]), sizes=(sizes[0], sizes[1]),
        whole=(whole[0], whole[1]), same=same,
    )  # fmt: skip


def _fronts(
    op: Op, given: list[int], strides: list[int], reach: tuple[int, ...], sizes: list[int]
) -> list[int]:
    """What ONNX crops before each spatial axis."""
    n = len(given)
    auto = op.attributes.get("auto_pad", "NOTSET")
    if auto == "VALID":
        return [0] * n
    if auto == "NOTSET" and "output_shape" not in op.attributes:
        return [int(x) for x in op.attributes.get("pads", [0] * (2 * n))[:n]]
    more = op.attributes.get("output_padding", [0] * n)
    fronts = []
    for i in range(n):
        total = max((given[i] - 1) * strides[i] + reach[i] + more[i] - sizes[i], 0)
        fronts.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
    return fronts


ENTRIES = {
    "ConvTranspose": Entry(lower=conv_transpose, traits=Traits(integer=True, constants=(1, 2), fuses=True))
}
