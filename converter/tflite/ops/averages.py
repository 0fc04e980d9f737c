"""Averages of stored integers in one rounding: DEPTHWISE_CONV_2D with ones.

For: `as_convolution`, whether a pool is better written so, and `average`, which does it.
Not for: float, or windows that do not count their padding.

Weights of 1 with the scale 1 / n make the average, rescaled to the output in one rounding, where
AVERAGE_POOL_2D keeps its scale and a QUANTIZE would round again. Halves are rounded to even once the zero
point is off, as ONNX Runtime does where scales differ and in global pools: all answers are equal there. Where
scales are equal its QLinearAveragePool rounds the plain stored average, so that with an odd zero point halves
go to the other side; AVERAGE_POOL_2D rounds them away from zero, which is no nearer. Where n is a power of
two the scale is exact; where n is odd no average is a half; other windows are left to the pool.

XNNPACK has no INT8 average pool, so the convolution is the faster one too: 33 us instead of 198 for 2 x 2
over 56 x 56 x 64, and no slower than MEAN up to 4 x 4 (27 us slower for 8 x 8 x 256).
"""

from __future__ import annotations

from math import prod

import numpy as np

from converter.quantize.qparams import QParams
from converter.tflite.errors import TFLiteError
from converter.tflite.layout import Shape
from converter.tflite.lowering import Lowering
from converter.tflite.ops.conv import bias_scale
from converter.tflite.ops.windows import Window
from converter.tflite.reading import Op
from converter.tflite.schema import schema
from converter.tflite.tensors import Tensor

_TAPS_MAX, _TAPS_OF_ONE_MAX = 64, 16
"""Of a window; beyond, halves are rare (one average in 128). Of a window that is the whole image, where only
few taps are as fast as a reduction."""


def as_convolution(op: Op, window: Window, out: Shape) -> bool:
    """Whether the pool is of stored integers, and the convolution exact and no slower.

    Args:
        op: the pool.
        window: its own.
        out: logical shape of its output.
    """
    taps = window.kernel[0] * window.kernel[1]
    taps_max = _TAPS_OF_ONE_MAX if prod(out[2:]) == 1 else _TAPS_MAX
    exact = taps % 2 == 1 or taps & (taps - 1) == 0
    return op.integer and not window.same and 1 < taps <= taps_max and exact


def average(b: Lowering, op: Op, tensor: Tensor, made: Tensor, window: Window) -> None:
    """Writes the convolution; it rescales to the output's parameters by itself.

    Args:
        b: the builder.
        op: the pool.
        tensor: its input `[N, H, W, C]`, padding included.
        made: its output.
        window: of the pool.
    """
    if tensor.quant is None:
        raise TFLiteError("tflite_quantization", f"{op.where} averages stored integers without a scale")
    channels = tensor.shape[3]
    taps = window.kernel[0] * window.kernel[1]
    scale = QParams(
        scale=np.array(1 / taps, dtype=np.float32), zero_point=np.array(0, dtype=np.int8), dtype="i8"
    )
    ones = b.new_constant(np.ones((1, *window.kernel, channels), dtype=np.int8), f"{op.name}_ones", scale)
    sums = QParams(scale=bias_scale(tensor.quant, scale), zero_point=np.array(0, dtype=np.int32), dtype="i32")
    zeros = b.new_constant(np.zeros(channels, dtype=np.int32), f"{op.name}_bias", sums)
    options = schema.DepthwiseConv2DOptionsT()
    options.padding = window.padding
    options.strideH, options.strideW = window.strides
    options.depthMultiplier = 1
    b.add("DEPTHWISE_CONV_2D", [tensor, ones, zeros], [made], options)
