"""Pools: AVERAGE_POOL_2D, MAX_POOL_2D, MEAN or REDUCE_MAX for global ones; many averages as convolutions.

For: AveragePool, MaxPool, GlobalAveragePool, GlobalMaxPool over one or two spatial axes.
Not for: reductions over other axes, and LpPool, which TFLite has only as L2 and only in float.

A pool that stays one keeps scale and zero point; where ONNX's pair gives others, a QUANTIZE follows. An
average does not count what SAME pads. What ONNX counts is a PAD in front; what it does not count and SAME
does not pad alike comes from a pool of stride 1, padded by SAME, of which a STRIDED_SLICE takes ONNX's
windows.
"""

from __future__ import annotations

from typing import Any

from msgspec import structs

from converter.tflite.errors import TFLiteError
from converter.tflite.layout import channels_last, laid, same_pads
from converter.tflite.lowering import Lowering
from converter.tflite.ops.averages import as_convolution, average
from converter.tflite.ops.entry import Entry
from converter.tflite.ops.slicing import Span, cut
from converter.tflite.ops.windows import (
    PAIR,
    Window,
    image,
    image_output,
    padded,
    pads_of,
    settle,
    window_of,
)
from converter.tflite.reading import Op, Traits
from converter.tflite.schema import schema
from converter.tflite.tensors import Tensor

_LOWEST = -3.4028234663852886e38
"""The lowest float32: what a maximum does not see."""


def average_pool(b: Lowering, op: Op) -> None:
    """Writes one AveragePool."""
    window = _window(b, op)
    tensor = image(b, op.inputs[0])
    pads = _image_pads(b, op)
    if op.attributes.get("count_include_pad", 0) and any(pads):
        counted = ((pads[0], pads[2]), (pads[1], pads[3]))
        tensor = padded(b, op, tensor, structs.replace(window, explicit=counted))
        pads = [0, 0, 0, 0]
    out = _out(b, op)
    edges = _edges(tensor, window, pads, out)
    window = structs.replace(window, same=edges != ((0, 0), (0, 0)), explicit=())
    alone = as_convolution(op, window, b.shape(op.outputs[0]))
    made, wanted = image_output(b, op, like=None if alone else tensor)
    if alone:
        average(b, op, tensor, made, window)
    elif not window.same or _is_same(tensor, window, edges, out):
        _add(b, "AVERAGE_POOL_2D", tensor, made, window)
    else:
        _every_window(b, op, tensor, made, window, (pads[0], pads[1]))
    settle(b, made, wanted)


def _out(b: Lowering, op: Op) -> PAIR:
    shape = b.shape(op.outputs[0])
    return (shape[2], shape[3]) if len(shape) == 4 else (1, shape[2])


def _edges(tensor: Tensor, window: Window, pads: list[int], out: PAIR) -> tuple[PAIR, PAIR]:
    """What windows read before and beyond the image; what the last reads beyond its pads is never counted."""
    sizes = _pair(tensor.shape)
    beyond = [
        max((out[i] - 1) * window.strides[i] + window.kernel[i] - sizes[i] - pads[i], 0) for i in range(2)
    ]
    return (pads[0], beyond[0]), (pads[1], beyond[1])


def _is_same(tensor: Tensor, window: Window, edges: tuple[PAIR, PAIR], out: PAIR) -> bool:
    """Whether SAME gives these edges and so many windows."""
    sizes = _pair(tensor.shape)
    return all(
        edges[i] == same_pads(sizes[i], window.kernel[i], window.strides[i])
        and out[i] == -(-sizes[i] // window.strides[i])
        for i in range(2)
    )


def _pair(shape: tuple[int, ...]) -> PAIR:
    return shape[1], shape[2]


def _image_pads(b: Lowering, op: Op) -> list[int]:
    """ONNX's pads as height and width: both fronts, then both ends."""
    shape, kernel = b.shape(op.inputs[0]), [int(x) for x in op.attributes["kernel_shape"]]
    n = len(kernel)
    strides = list(op.attributes.get("strides", [1] * n))
    pads = pads_of(op, shape[2:], kernel, strides, [1] * n)
    return pads if n == 2 else [0, pads[0], 0, pads[1]]


def _every_window(b: Lowering, op: Op, tensor: Tensor, made: Tensor, window: Window, fronts: PAIR) -> None:
    """A pool of stride 1 whose output has a window at every place, and those of ONNX out of it."""
    sizes, out = _pair(tensor.shape), _pair(made.shape)
    starts = [same_pads(sizes[i], window.kernel[i], 1)[0] - fronts[i] for i in range(2)]
    if any(starts[i] < 0 or starts[i] + (out[i] - 1) * window.strides[i] >= sizes[i] for i in range(2)):
        raise TFLiteError(
            "tflite_attribute",
            f"{op.where} has windows of which half or more lie in padding that it does not count",
        )
    whole = b.new(f"{made.name}_every", tensor.shape, made.dtype, tensor.quant)
    _add(b, "AVERAGE_POOL_2D", tensor, whole, structs.replace(window, same=True, strides=(1, 1)))
    taken = [
        Span(start=0, step=1, length=tensor.shape[0]),
        *(Span(start=starts[i], step=window.strides[i], length=out[i]) for i in range(2)),
        Span(start=0, step=1, length=tensor.shape[3]),
    ]
    cut(b, op, whole, taken, made)


def max_pool(b: Lowering, op: Op) -> None:
    """Writes one MaxPool."""
    if len([name for name in op.outputs if name]) > 1:
        raise TFLiteError("tflite_attribute", f"{op.where} gives indices as well")
    window = _window(b, op)
    tensor = padded(b, op, image(b, op.inputs[0]), window, _LOWEST)
    made, wanted = image_output(b, op, like=tensor)
    _add(b, "MAX_POOL_2D", tensor, made, window)
    settle(b, made, wanted)


def _window(b: Lowering, op: Op) -> Window:
    kernel = [int(x) for x in op.attributes["kernel_shape"]]
    window = window_of(op, b.shape(op.inputs[0]), kernel, b.shape(op.outputs[0]))
    if window.dilations != (1, 1):
        raise TFLiteError("tflite_attribute", f"{op.where} has dilations {list(window.dilations)}")
    return window


def _add(b: Lowering, kind: str, tensor: Tensor, made: Tensor, window: Window) -> None:
    b.add(kind, [tensor], [made], options_of(window))


def options_of(window: Window) -> Any:  # noqa: ANN401 - the schema has no types
    """A pool's options."""
    options = schema.Pool2DOptionsT()
    options.padding = window.padding
    options.strideH, options.strideW = window.strides
    options.filterHeight, options.filterWidth = window.kernel
    return options


def global_pool(b: Lowering, op: Op) -> None:
    """Writes one GlobalAveragePool or GlobalMaxPool: a reduction, or the convolution of `averages`."""
    shape = b.shape(op.inputs[0])
    picks = op.op_type == "GlobalMaxPool"
    if not picks:
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
    made = b.output(op, axes, like=tensor if picks else None)
    if made.shape != laid(b.shape(op.outputs[0]), axes):
        raise TFLiteError("tflite_shape", f"{op.where} gives another shape than it should")
    b.add("REDUCE_MAX" if picks else "MEAN", [tensor, spatial], [made], options)


_INTEGER = Traits(integer=True)

ENTRIES = {
    "AveragePool": Entry(lower=average_pool, traits=_INTEGER),
    "GlobalAveragePool": Entry(lower=global_pool, traits=_INTEGER),
    "GlobalMaxPool": Entry(lower=global_pool, traits=_INTEGER),
    "MaxPool": Entry(lower=max_pool, traits=_INTEGER),
}
