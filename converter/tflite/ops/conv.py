"""Convolution: CONV_2D and DEPTHWISE_CONV_2D.

For: ONNX Conv over one or two spatial axes, grouped or depthwise, with its bias and activation.
Not for: transposed convolution.

Weights: ONNX [O, I/group, kh, kw]; CONV_2D wants [O, kh, kw, I/group] with scales along axis 0,
DEPTHWISE_CONV_2D [1, kh, kw, O] with scales along axis 3; biases are int32 with scale = scale_in *
scale_weight (https://ai.google.dev/edge/litert/models/quantization_spec).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from converter.quantize.qparams import QParams
from converter.tflite.errors import TFLiteError
from converter.tflite.lowering import Lowering
from converter.tflite.ops.entry import Entry
from converter.tflite.ops.windows import Window, image, image_output, padded, settle, window_of
from converter.tflite.reading import Op, Traits
from converter.tflite.schema import ACTIVATIONS, schema
from converter.tflite.tensors import Tensor

Array = NDArray[Any]


class Filter(Struct, frozen=True, kw_only=True, eq=False):
    """A weight in the file's order.

    Attributes:
        values: stored.
        quant: its axis in the file's order; None for float.
        axis: of the output channels.
    """

    values: Array
    quant: QParams | None
    axis: int


def conv(b: Lowering, op: Op) -> None:
    """Writes one Conv."""
    shape, weight = b.shape(op.inputs[0]), b.shape(op.inputs[1])
    window = window_of(op, shape, weight[2:], b.shape(op.outputs[0]))
    group = int(op.attributes.get("group", 1))
    depthwise = group > 1 and group == shape[1] and weight[1] == 1
    filters = laid_filter(b, op, (1, 2, 3, 0) if depthwise else (0, 2, 3, 1), 3 if depthwise else 0)
    tensor = padded(b, op, image(b, op.inputs[0]), window)
    bias = bias_of(b, op, tensor, filters, weight[0])
    made, wanted = image_output(b, op)
    stored = filter_tensor(b, op.inputs[1], filters)
    if depthwise:
        multiplier = weight[0] // group
        _add(b, "DEPTHWISE_CONV_2D", [tensor, stored, bias], made, _depthwise(op, window, multiplier))
    else:
        _add(b, "CONV_2D", [tensor, stored, bias], made, _plain(op, window))
    settle(b, made, wanted)


def _add(b: Lowering, kind: str, inputs: list[Tensor], made: Tensor, options: Any) -> None:  # noqa: ANN401
    """Hybrid kernels (float inputs, int8 weights per channel) are newer than both pure ones."""
    hybrid = inputs[0].dtype == "float32" and inputs[1].dtype == "int8"
    newest = {"CONV_2D": 5, "DEPTHWISE_CONV_2D": 6}[kind]
    b.add(kind, inputs, [made], options, version=newest if hybrid else None)


def _plain(op: Op, window: Window) -> Any:  # noqa: ANN401 - the schema has no types
    options = schema.Conv2DOptionsT()
    options.padding = window.padding
    options.strideH, options.strideW = window.strides
    options.dilationHFactor, options.dilationWFactor = window.dilations
    options.fusedActivationFunction = ACTIVATIONS[op.activation]
    return options


def _depthwise(op: Op, window: Window, multiplier: int) -> Any:  # noqa: ANN401 - the schema has no types
    options = schema.DepthwiseConv2DOptionsT()
    options.padding = window.padding
    options.strideH, options.strideW = window.strides
    options.dilationHFactor, options.dilationWFactor = window.dilations
    options.depthMultiplier = multiplier
    options.fusedActivationFunction = ACTIVATIONS[op.activation]
    return options


def laid_filter(b: Lowering, op: Op, order: tuple[int, ...], axis: int) -> Filter:
    """The constant weight as an image filter in the file's order.

    Args:
        b: the builder.
        op: whose input 1 it is, `[O, I, k]` or `[O, I, kh, kw]`.
        order: the file's axes, of the four.
        axis: of the output channels in the file.

    Raises:
        TFLiteError: `tflite_attribute`: it is computed; `tflite_quantization`: a zero point other than 0, or
            scales along another axis than the output channels.
    """
    found = b.constant(op.inputs[1])
    if found is None:
        raise TFLiteError("tflite_attribute", f"the weight of {op.where} is no constant")
    values = found.values if found.values.ndim == 4 else np.expand_dims(found.values, 2)
    quant = found.quant
    if quant is not None:
        if quant.zero_point.any():
            raise TFLiteError(
                "tflite_quantization", f"the weight of {op.where} has a zero point other than 0"
            )
        if quant.axis is not None:
            # With one spatial axis the height stands before it; channels stay in front of both.
            if order[axis] != quant.axis:
                raise TFLiteError(
                    "tflite_quantization",
                    f"the weight of {op.where} is stored per axis {quant.axis}, TFLite per output channel",
                )
            quant = QParams(scale=quant.scale, zero_point=quant.zero_point, dtype="i8", axis=axis)
    return Filter(values=np.ascontiguousarray(values.transpose(order)), quant=quant, axis=axis)


def filter_tensor(b: Lowering, name: str, filters: Filter) -> Tensor:
    """The weight as a tensor of the file."""
    if filters.quant is None:
        return b.weight(filters.values, name, filters.axis)
    return b.new_constant(filters.values, name, filters.quant)


def bias_of(b: Lowering, op: Op, tensor: Tensor, filters: Filter, channels: int) -> Tensor:
    """The operator's bias, zeros where ONNX has none.

    Raises:
        TFLiteError: `tflite_quantization`: its scale is not float32(scale_in * scale_weight), bit for bit.
    """
    name = op.inputs[2] if len(op.inputs) > 2 else ""
    found = b.constant(name)
    if name and found is None:
        raise TFLiteError("tflite_attribute", f"the bias of {op.where} is no constant")
    if filters.quant is None or tensor.quant is None:
        values = np.zeros(channels, np.float32) if found is None else found.values.reshape(-1)
        values = np.broadcast_to(values, (channels,))
        return b.new_constant(np.ascontiguousarray(values, dtype=np.float32), name or f"{op.name}_bias")
    wanted = bias_scale(tensor.quant, filters.quant)
    zeros = np.zeros(wanted.shape, dtype=np.int32)
    quant = QParams(scale=wanted, zero_point=zeros, dtype="i32", axis=0 if wanted.ndim else None)
    if found is None:
        return b.new_constant(np.zeros(channels, np.int32), f"{op.name}_bias", quant)
    if found.quant is None or found.values.dtype != np.int32:
        raise TFLiteError("tflite_quantization", f"the bias of {op.where} is not stored as int32")
    have = np.broadcast_to(found.quant.scale, (channels,))
    if not np.array_equal(have, np.broadcast_to(wanted, (channels,))) or found.quant.zero_point.any():
        raise TFLiteError(
            "tflite_quantization", f"the scale of the bias of {op.where} is not scale_in * scale_weight"
        )
    return b.new_constant(found.values.reshape(-1), name, quant)


def bias_scale(tensor: QParams, weight: QParams) -> NDArray[np.float32]:
    """float32(scale_in * scale_weight), `[]` or `[C]`."""
    return np.asarray(weight.scale * np.float32(tensor.scale), dtype=np.float32)


ENTRIES = {"Conv": Entry(lower=conv, traits=Traits(integer=True, constants=(1, 2), fuses=True))}
