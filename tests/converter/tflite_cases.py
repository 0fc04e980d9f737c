"""Operators as TFLite has them, on both sides of Ethos-U's limits, with the rule that each breaks.

For: the lint's tests, and its agreement with what Vela really does.
Not for: other targets, or answers.
"""

from __future__ import annotations

from math import prod
from typing import Any

from converter.tflite.tensors import Operator, Tensor
from tests.converter.tflite_files import bias, operator, plain, tensor, weights

Shape = tuple[int, ...]
S: Shape = (1, 8, 8, 4)
Case = tuple[Operator, str | None]
"""An operator, and the rule that it breaks; None where it runs on the NPU."""


def _side(size: int, kernel: int, stride: int, padding: str) -> int:
    return -(-size // stride) if padding == "SAME" else (size - kernel) // stride + 1


def conv(
    size: int = 8, kernel: int = 3, stride: int = 1, padding: str = "SAME", dilation: int = 1, *,
    batch: int = 1, dtype: str = "int8", weight: str = "int8", biased: str = "int32", fill: int = 3,
    channels: int = 4, activation: str = "NONE",
) -> Operator:  # fmt: skip
    side = _side(size, (kernel - 1) * dilation + 1, stride, padding)
    axis = 0 if weight == "int8" else None
    held = weights((4, kernel, kernel, channels), weight, fill=fill, axis=axis)
    return operator(
        "CONV_2D",
        [tensor((batch, size, size, channels), dtype), held, bias(4, biased)],
        [tensor((batch, side, side, 4), dtype)],
        padding=padding, strideW=stride, strideH=stride, dilationWFactor=dilation, dilationHFactor=dilation,
        fusedActivationFunction=activation,
    )  # fmt: skip


def depthwise(stride: int = 1, padding: str = "SAME", multiplier: int = 1) -> Operator:
    side = _side(16, 3, stride, padding)
    return operator(
        "DEPTHWISE_CONV_2D",
        [tensor((1, 16, 16, 4)), weights((1, 3, 3, 4 * multiplier), axis=3), bias(4 * multiplier)],
        [tensor((1, side, side, 4 * multiplier))],
        padding=padding, strideW=stride, strideH=stride, depthMultiplier=multiplier,
    )  # fmt: skip


def pool(
    kind: str, size: Shape, kernel: Shape, stride: int, padding: str, activation: str = "NONE"
) -> Operator:  # fmt: skip
    sides = [_side(a, k, stride, padding) for a, k in zip(size, kernel, strict=True)]
    return operator(
        kind, [tensor((1, *size, 4))], [tensor((1, *sides, 4))], padding=padding,
        strideW=stride, strideH=stride, filterHeight=kernel[0], filterWidth=kernel[1],
        fusedActivationFunction=activation,
    )  # fmt: skip


def reduce(shape: Shape, axes: Shape, dtype: str = "int8", kind: str = "MEAN") -> Operator:
    made = tuple(1 if i in axes else axis for i, axis in enumerate(shape))
    return operator(kind, [tensor(shape, dtype), plain(list(axes))], [tensor(made, dtype)], keepDims=True)


def resize(before: Shape, after: Shape, kind: str = "BILINEAR", **options: Any) -> Operator:  # noqa: ANN401
    return operator(
        f"RESIZE_{kind}", [tensor((1, *before, 4)), plain(list(after))], [tensor((1, *after, 4))], **options
    )


def transposed(
    before: Shape, after: Shape, kernel: Shape, strides: Shape, padding: str = "SAME"
) -> Operator:  # fmt: skip
    return operator(
        "TRANSPOSE_CONV",
        [plain([1, *after, 4]), weights((4, *kernel, 4), axis=0), tensor((1, *before, 4)), bias(4)],
        [tensor((1, *after, 4))],
        padding=padding, strideH=strides[0], strideW=strides[1],
    )  # fmt: skip


def dense(samples: int = 1, weight: str = "int8") -> Operator:
    return operator(
        "FULLY_CONNECTED", [tensor((samples, 16)), weights((8, 16), weight), bias(8)], [tensor((samples, 8))]
    )  # fmt: skip


def unary(
    kind: str,
    shape: Shape = S,
    dtype: str = "int8",
    to: str | None = None,
    **options: Any,  # noqa: ANN401
) -> Operator:
    return operator(kind, [tensor(shape, dtype)], [tensor(shape, to or dtype)], **options)


def binary(
    kind: str, one: Shape, other: Shape, made: Shape, dtype: str = "int8", other_scale: float = 0.05,
    **options: Any,  # noqa: ANN401
) -> Operator:  # fmt: skip
    given: list[Tensor | None] = [tensor(one, dtype), tensor(other, dtype, scale=other_scale)]
    return operator(kind, given, [tensor(made, dtype)], **options)


def sliced(shape: Shape, steps: Shape) -> Operator:
    made = tuple(-(-axis // abs(step)) for axis, step in zip(shape, steps, strict=True))
    begin = [axis - 1 if step < 0 else 0 for axis, step in zip(shape, steps, strict=True)]
    end = [-axis - 1 if step < 0 else axis for axis, step in zip(shape, steps, strict=True)]
    return operator(
        "STRIDED_SLICE", [tensor(shape), plain(begin), plain(end), plain(list(steps))], [tensor(made)]
    )


def transpose(shape: Shape, order: Shape, dtype: str = "int8") -> Operator:
    made = tuple(shape[axis] for axis in order)
    return operator("TRANSPOSE", [tensor(shape, dtype), plain(list(order))], [tensor(made, dtype)])


def argmax(shape: Shape, axis: int, dtype: str = "int8") -> Operator:
    made = tuple(length for i, length in enumerate(shape) if i != axis % len(shape))
    return operator(
        "ARG_MAX", [tensor(shape, dtype), plain([axis])], [tensor(made, "int32", scale=None)], outputType=2
    )


def padded(pads: list[list[int]]) -> Operator:
    made = tuple(axis + sum(pair) for axis, pair in zip(S, pads, strict=True))
    return operator("PAD", [tensor(S), plain(pads)], [tensor(made)])


def reshaped(made: Shape, scale: float = 0.05, kind: str = "RESHAPE") -> Operator:
    return operator(kind, [tensor((1, *made)), plain(list(made))], [tensor(made, scale=scale)])


def ethos() -> dict[str, Case]:
    """Cases by name; none of them makes the compiler refuse the whole file."""
    avg, top = "AVERAGE_POOL_2D", "MAX_POOL_2D"
    wide = [[0, 0], [1, 1], [1, 1], [0, 2]]
    return {
        "conv": (conv(), None),
        "conv, stride 3": (conv(16, stride=3), None),
        "conv, stride 4 without a need of padding": (conv(16, stride=4), None),
        "conv, stride 4 that pads": (conv(16, kernel=5, stride=4), "wide_stride"),
        "conv, stride 4 without padding": (conv(16, stride=4, padding="VALID"), None),
        "conv, stride 5 dilated": (conv(32, stride=5, padding="VALID", dilation=2), "wide_stride"),
        "conv, kernel 65": (conv(80, kernel=65, channels=1), None),
        "conv, two samples": (conv(batch=2), None),
        "conv, unsigned": (conv(dtype="uint8", weight="uint8"), None),
        "conv, Relu": (conv(activation="RELU"), None),
        "conv, float": (conv(dtype="float32", weight="float32", biased="float32"), "types"),
        "conv, 16 bits": (conv(dtype="int16", biased="int64"), None),
        "conv, float weights": (conv(weight="float32"), "weights_types"),
        "conv, float bias": (conv(biased="float32"), "bias_types"),
        "conv, heavy weights": (
            conv(64, kernel=63, padding="VALID", channels=20, fill=127), "weights_sum_max"
        ),
        "depthwise": (depthwise(), None),
        "depthwise, stride 3": (depthwise(3), None),
        "depthwise, stride 4": (depthwise(4, "VALID"), "stride"),
        "depthwise, multiplier 2": (depthwise(multiplier=2), None),
        "average": (pool(avg, (8, 8), (3, 3), 1, "SAME"), None),
        "average, 8 that pads": (pool(avg, (16, 16), (8, 8), 1, "SAME"), None),
        "average, 9 that pads": (pool(avg, (16, 16), (9, 9), 1, "SAME"), "pool_side"),
        "average, 9": (pool(avg, (16, 16), (9, 9), 1, "VALID"), None),
        "average, height 256": (pool(avg, (300, 4), (256, 1), 1, "VALID"), None),
        "average, height 257": (pool(avg, (300, 4), (257, 1), 1, "VALID"), "pool_height"),
        "average, stride 4 that pads": (pool(avg, (16, 16), (5, 5), 4, "SAME"), "wide_stride"),
        "average, only the width pads": (pool(avg, (16, 18), (4, 4), 4, "SAME"), "wide_stride"),
        "average, only the height pads": (pool(avg, (18, 16), (4, 4), 4, "SAME"), "wide_stride"),
        "average, only the kernel's width pads": (pool(avg, (16, 16), (4, 5), 4, "SAME"), "wide_stride"),
        "average, only the kernel's height pads": (pool(avg, (16, 16), (5, 4), 4, "SAME"), "wide_stride"),
        "average, area": (pool(avg, (256, 300), (256, 257), 1, "VALID"), "pool_area"),
        "maximum of 9": (pool(top, (16, 16), (9, 9), 1, "SAME"), None),
        "maximum of height 257": (pool(top, (300, 4), (257, 1), 1, "VALID"), "pool_height"),
        "maximum, stride 4": (pool(top, (16, 16), (4, 4), 4, "SAME"), None),
        "mean": (reduce(S, (1, 2)), None),
        "mean of depth": (reduce(S, (3,)), "depth_reduced"),
        "mean of depth of a row": (reduce((1, 1, 8, 4), (3,)), None),
        "mean of two samples": (reduce((2, 8, 8, 4), (1, 2)), "batch_max"),
        "mean of five axes": (reduce((1, 2, 8, 8, 4), (2, 3)), "batch_max"),
        "mean of 4096": (reduce((1, 1, 4096, 4), (2,)), None),
        "mean of 4097": (reduce((1, 1, 4097, 4), (2,)), "reduced_axis_max"),
        "mean of 32 bits": (reduce(S, (1, 2), "int32"), "types"),
        "sum of depth": (reduce(S, (3,), kind="SUM"), None),
        "bilinear, 2": (resize((4, 4), (8, 8), halfPixelCenters=True), None),
        "bilinear, 4": (resize((4, 4), (16, 16)), None),
        "bilinear, 4 from centres": (resize((4, 4), (16, 16), halfPixelCenters=True), "resize_factors"),
        "bilinear, 3": (resize((4, 4), (12, 12)), "resize_factors"),
        "bilinear, corners": (resize((4, 4), (7, 7), alignCorners=True), None),
        "bilinear, corners missed": (resize((4, 4), (8, 8), alignCorners=True), "resize_factors"),
        "bilinear, from one": (resize((1, 1), (5, 7)), None),
        "bilinear, apart": (resize((4, 4), (8, 16)), "resize_factors"),
        "bilinear, a row": (resize((1, 4), (1, 8)), None),
        "nearest, 4 from centres": (
            resize((4, 4), (16, 16), "NEAREST_NEIGHBOR", halfPixelCenters=True), None
        ),
        "nearest, down": (resize((8, 8), (4, 4), "NEAREST_NEIGHBOR"), "resize_factors"),
        "transposed, 2": (transposed((4, 4), (8, 8), (3, 3), (2, 2)), None),
        "transposed, 2 without padding": (transposed((4, 4), (9, 9), (3, 3), (2, 2), "VALID"), None),
        "transposed, 3": (transposed((4, 4), (12, 12), (3, 3), (3, 3)), "transpose_conv"),
        "transposed, cut": (transposed((4, 4), (7, 7), (3, 3), (2, 2)), "transpose_conv"),
        "transposed, 1": (transposed((4, 4), (4, 4), (3, 3), (1, 1)), None),
        "transposed, a column": (transposed((4, 1), (8, 1), (3, 1), (2, 1)), None),
        "transposed, a wide column": (transposed((4, 1), (8, 1), (3, 3), (2, 1)), "transpose_conv"),
        "transposed, a high row": (transposed((1, 4), (1, 8), (3, 3), (1, 2)), "transpose_conv"),
        "transposed, a row by one": (transposed((1, 4), (1, 4), (1, 3), (1, 1)), None),
        "transposed, a row upwards": (transposed((1, 4), (2, 4), (1, 3), (2, 1)), "transpose_conv"),
        "transposed, small kernel": (transposed((4, 4), (8, 8), (1, 1), (2, 2), "VALID"), None),
        "transposed, wide": (transposed((4, 6), (9, 12), (3, 2), (2, 2), "VALID"), None),
        "transposed, a row": (transposed((1, 4), (1, 8), (1, 3), (1, 2)), None),
        "transposed, apart": (transposed((4, 4), (4, 8), (3, 3), (1, 2)), "transpose_conv"),
        "dense": (dense(), None),
        "dense, four samples": (dense(4), None),
        "dense, float weights": (dense(weight="float32"), "weights_types"),
        "softmax": (unary("SOFTMAX", (1, 10)), None),
        "softmax, large": (unary("SOFTMAX", (1, 300, 300, 4)), "softmax_area"),
        "gelu": (unary("GELU"), None),
        "gelu, 16 bits": (unary("GELU", dtype="int16"), "types"),
        "elu, unsigned": (unary("ELU", dtype="uint8"), "types"),
        "hard swish": (unary("HARD_SWISH"), None),
        "square root": (unary("SQRT"), "operators"),
        "add": (binary("ADD", S, S, S), None),
        "add, spread": (binary("ADD", (1, 8, 1, 4), (1, 1, 8, 4), S), None),
        "add, 32 bits": (binary("ADD", S, S, S, "int32"), None),
        "add, float": (binary("ADD", S, S, S, "float32"), "types"),
        "add, without a scale": (
            operator("ADD", [tensor(S, scale=None), tensor(S)], [tensor(S)]), "quantized"
        ),
        "div": (binary("DIV", S, S, S), "operators"),
        "maximum": (binary("MAXIMUM", S, S, S), None),
        "maximum, two scales": (binary("MAXIMUM", S, S, S, other_scale=0.04), "same_quantization"),
        "product": (binary("BATCH_MATMUL", (1, 4, 8, 16), (1, 4, 16, 8), (1, 4, 8, 8)), None),
        "product, unsigned": (binary("BATCH_MATMUL", (4, 8, 16), (4, 16, 8), (4, 8, 8), "uint8"), "types"),
        "concat, two scales": (binary("CONCATENATION", S, S, (1, 8, 8, 8), other_scale=0.04, axis=3), None),
        "concat, 32 bits": (binary("CONCATENATION", S, S, (1, 8, 8, 8), "int32", axis=3), "types"),
        "pad": (padded(wide), None),
        "slice": (
            operator("SLICE", [tensor(S), plain([0, 1, 1, 0]), plain([1, 4, 4, 4])], [tensor((1, 4, 4, 4))]),
            None,
        ),
        "steps": (sliced(S, (1, 2, 2, 1)), None),
        "steps backwards": (sliced(S, (1, -1, 1, 1)), "strides_inner"),
        "steps in depth": (sliced(S, (1, 1, 1, 2)), "strides_inner"),
        "transpose": (transpose(S, (0, 3, 1, 2)), None),
        "transpose, 32 bits across": (transpose(S, (0, 2, 1, 3), "int32"), None),
        "transpose, 32 bits of three": (transpose((8, 6, 4), (1, 0, 2), "int32"), None),
        "transpose, 32 bits as they are": (transpose(S, (0, 1, 2, 3), "int32"), None),
        "transpose, 32 bits": (transpose(S, (0, 1, 3, 2), "int32"), None),
        "transpose, 32 bits to the front": (transpose(S, (0, 3, 1, 2), "int32"), "transpose_plain"),
        "transpose, large": (transpose((2, 300, 300, 4), (3, 2, 1, 0)), "transpose_plain"),
        "transpose, large inside": (transpose((1, 300, 300, 4), (0, 2, 1, 3)), None),
        "transpose, large inside of two": (transpose((2, 300, 300, 4), (0, 2, 1, 3)), "transpose_plain"),
        "transpose, of 65536": (transpose((1, 1, 65536, 2), (0, 1, 3, 2)), None),
        "transpose, of 65537": (transpose((1, 1, 65537, 2), (0, 1, 3, 2)), "transpose_plain"),
        "transpose, large as it is": (transpose((2, 300, 300, 4), (0, 1, 2, 3)), None),
        "argmax": (argmax(S, 3), None),
        "argmax, height": (argmax(S, 1), "argmax_last"),
        "argmax, deep": (argmax((1, 8, 8, 128), -1), "depth_max"),
        "reshape": (reshaped((prod(S),)), None),
        "reshape, float": (
            operator("RESHAPE", [tensor(S, "float32"), plain([prod(S)])], [tensor((prod(S),), "float32")]),
            "types",
        ),
        "gather": (
            operator("GATHER", [tensor((10, 4)), plain([1, 2])], [tensor((2, 4))], axis=0), "operators"
        ),
        "activations per channel": (operator("RELU", [tensor(S, axis=3)], [tensor(S)]), "per_tensor"),
        "quantize, float": (unary("QUANTIZE", dtype="float32", to="int8"), "types"),
        "dequantize": (unary("DEQUANTIZE", to="float32"), "operators"),
    }  # fmt: skip


def refused() -> dict[str, Case]:
    """What makes the compiler refuse the whole file."""
    return {
        "hard swish, float": (unary("HARD_SWISH", dtype="float32"), "types_of_data"),
        "reshape, two scales": (reshaped((prod(S),), scale=0.04), "same_quantization"),
        "computed weights": (
            operator("CONV_2D", [tensor(S), tensor((4, 3, 3, 4)), bias(4)], [tensor(S)], padding="SAME"),
            "weights_constant",
        ),
        "an empty constant": (
            operator("CONCATENATION", [tensor(S), weights((1, 8, 8, 0))], [tensor(S)], axis=3),
            "not_empty",
        ),
        "computed axes": (
            operator(
                "MEAN", [tensor(S), tensor((2,), "int32", scale=None)], [tensor((1, 1, 1, 4))], keepDims=True
            ),
            "parameters_constant",
        ),
    }
