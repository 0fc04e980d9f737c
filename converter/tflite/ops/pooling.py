"""Pools: AVERAGE_POOL_2D, MAX_POOL_2D, and MEAN for the global one; many averages as convolutions.

For: AveragePool, MaxPool, GlobalAveragePool over one or two spatial axes.
Not for: ReduceMean over other axes.

A pool that stays one keeps scale and zero point; where ONNX's pair gives others, a QUANTIZE follows.
"""

from __future__ import annotations

from typing import Any

from converter.tflite.errors import TFLiteError
from converter.tflite.layout import channels_last, laid
from converter.tflite.lowering import Lowering
from converter.tflite.ops.averages import as_convolution, average
from converter.tflite.ops.entry import Entry
from converter.tflite.ops.windows import Window, image, image_output, padded, settle, window_of
from converter.tflite.reading import Op, Traits
from converter.tflite.schema import schema

_LOWEST = -3.4028234663852886e38
"""The lowest float32: what a maximum does not see."""


def average_pool(b: Lowering, op: Op) -> None:
    """Writes one AveragePool; TFLite does not count what SAME pads."""
    window = _window(b, op)
    counted = bool(op.attributes.get("count_include_pad", 0))
    if (window.same and counted) or (window.explicit and not counted):
        raise TFLiteError(
            "tflite_attribute",
            f"{op.where} {'counts' if counted else 'does not count'} its padding, TFLite the other way",
        )
    if as_convolution(op, window, b.shape(op.outputs[0])):
        tensor = padded(b, op, image(b, op.inputs[0]), window)
        made, wanted = image_output(b, op)
        average(b, op, tensor, made, window)
        settle(b, made, wanted)
        return
    _pool(b, op, window, "AVERAGE_POOL_2D", None)


def max_pool(b: Lowering, op: Op) -> None:
    """Writes one MaxPool."""
    if len([name for name in op.outputs if name]) > 1:
        raise TFLiteError("tflite_attribute", f"{op.where} gives indices as well")
    _pool(b, op, _window(b, op), "MAX_POOL_2D", _LOWEST)


def _window(b: Lowering, op: Op) -> Window:
    kernel = [int(x) for x in op.attributes["kernel_shape"]]
    window = window_of(op, b.shape(op.inputs[0]), kernel, b.shape(op.outputs[0]))
    if window.dilations != (1, 1):
        raise TFLiteError("tflite_attribute", f"{op.where} has dilations {list(window.dilations)}")
    return window


def _pool(b: Lowering, op: Op, window: Window, kind: str, filler: float | None) -> None:
    tensor = padded(b, op, image(b, op.inputs[0]), window, filler)
    made, wanted = image_output(b, op, like=tensor)
    b.add(kind, [tensor], [made], options_of(window))
    settle(b, made, wanted)


def options_of(window: Window) -> Any:  # noqa: ANN401 - the schema has no types
    """A pool's options."""
    options = schema.Pool2DOptionsT()
    options.padding = window.padding
    options.strideH, options.strideW = window.strides
    options.filterHeight, options.filterWidth = window.kernel
    return options


def global_average_pool(b: Lowering, op: Op) -> None:
    """Writes one GlobalAveragePool as MEAN over the spatial axes, or as the convolution of `averages`."""
    shape = b.shape(op.inputs[0])
    window = window_of(op, shape, shape[2:], b.shape(op.outputs[0]))
    if as_convolution(op, window, b.shape(op.outputs[0])):
        made, wanted = image_output(b, op)
        average(b, op, image(b, op.inputs[0]), made, window)
        settle(b, made, wanted)
        return
    axes = channels_last(len(shape))
    tensor = b.take(op.inputs[0], axes)
    options = schema.ReducerOptionsT()
    options.keepDims = True
    spatial = b.integers([axes.index(i) for i in range(2, len(shape))], f"{op.name}_axes")
    made = b.output(op, axes)
    if made.shape != laid(b.shape(op.outputs[0]), axes):
        raise TFLiteError("tflite_shape", f"{op.where} gives another shape than it should")
    b.add("MEAN", [tensor, spatial], [made], options)


_INTEGER = Traits(integer=True)

ENTRIES = {
    "AveragePool": Entry(lower=average_pool, traits=_INTEGER),
    "GlobalAveragePool": Entry(lower=global_average_pool, traits=_INTEGER),
    "MaxPool": Entry(lower=max_pool, traits=_INTEGER),
}
