"""What can be asked of one operator of a `.tflite` file.

For: `CHECKS`, by the names that profiles use (`converter.targets.tflite_rules.Check`). Each gives what is
wrong in words, or None. What a constant would have to say is not asked where it is computed.
Not for: which operators are asked, and with which bounds: that is the profiles' data.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from math import prod

import numpy as np

from converter.targets.tflite_rules import Check, Limit
from converter.tflite.reader import File, FileOperator, FileTensor

_PAIRS = frozenset({
    "ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "POW", "FLOOR_DIV",
    "BATCH_MATMUL", "EQUAL", "NOT_EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL",
})  # fmt: skip
_MANY = frozenset({"ADD_N", "CONCATENATION", "PACK"})
_DATA = {"SPLIT": (1,), "TRANSPOSE_CONV": (2,), "SELECT": (1, 2), "SELECT_V2": (1, 2)}
_WEIGHTED = frozenset({"CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"})
_FACTORS = (2.0, 4.0, 8.0)

Asked = Callable[[File, FileOperator, Limit], str | None]


def places_of_data(operator: FileOperator) -> tuple[int, ...]:
    """Which of an operator's inputs are feature maps, not weights or parameters."""
    if operator.kind in _MANY:
        return tuple(range(len(operator.inputs)))
    return _DATA.get(operator.kind, (0, 1) if operator.kind in _PAIRS else (0,))


def data_of(file: File, operator: FileOperator) -> list[FileTensor]:
    """Feature maps that an operator reads."""
    found = (file.given(operator, number) for number in places_of_data(operator))
    return [one for one in found if one is not None]


def weight_of(file: File, operator: FileOperator) -> FileTensor | None:
    """Weights of a convolution or a matrix product with constants."""
    return file.given(operator, 1) if operator.kind in _WEIGHTED else None


def _maps(file: File, operator: FileOperator) -> list[FileTensor]:
    """Feature maps that it reads and makes."""
    return [*data_of(file, operator), *file.made(operator)]


def _scaled(file: File, operator: FileOperator) -> list[FileTensor]:
    weight = weight_of(file, operator)
    return [*_maps(file, operator), *([] if weight is None else [weight])]


def _all(file: File, operator: FileOperator) -> list[FileTensor]:
    given = (file.given(operator, number) for number in range(len(operator.inputs)))
    return [*(one for one in given if one is not None), *file.made(operator)]


def _bias_place(operator: FileOperator) -> int:
    return 3 if operator.kind == "TRANSPOSE_CONV" else 2


def _named(tensors: Iterable[FileTensor], what: Callable[[FileTensor], str]) -> str | None:
    told = [f"{one.name} {what(one)}" for one in tensors]
    return ", ".join(told[:2]) + (" and others" if len(told) > 2 else "") if told else None


# Types and quantization.


def _types(file: File, operator: FileOperator, limit: Limit) -> str | None:
    wrong = (one for one in _maps(file, operator) if one.dtype not in limit.words)
    return _named(wrong, lambda one: f"is {one.dtype}, {' or '.join(limit.words)} is taken")


def _types_of_data(file: File, operator: FileOperator, limit: Limit) -> str | None:
    wrong = (one for one in data_of(file, operator) if one.dtype not in limit.words)
    return _named(wrong, lambda one: f"is {one.dtype}, {' or '.join(limit.words)} is taken")


def _input_types_not(file: File, operator: FileOperator, limit: Limit) -> str | None:
    given = _all(file, operator)[: -len(operator.outputs) or None]
    return _named((one for one in given if one.dtype in limit.words), lambda one: f"is {one.dtype}")


def _output_types_not(file: File, operator: FileOperator, limit: Limit) -> str | None:
    wrong = (one for one in file.made(operator) if one.dtype in limit.words)
    return _named(wrong, lambda one: f"is {one.dtype}")


def _weights_types(file: File, operator: FileOperator, limit: Limit) -> str | None:
    weight = weight_of(file, operator)
    wrong = weight is not None and weight.dtype not in limit.words
    return f"weights {weight.name} are {weight.dtype}" if wrong and weight is not None else None


def _bias_types(file: File, operator: FileOperator, limit: Limit) -> str | None:
    bias = file.given(operator, _bias_place(operator))
    return None if bias is None or bias.dtype in limit.words else f"bias {bias.name} is {bias.dtype}"


def _same_types(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    weight, data = weight_of(file, operator), data_of(file, operator)
    if weight is None or not data or weight.dtype == data[0].dtype:
        return None
    return f"weights are {weight.dtype}, data are {data[0].dtype}"


def _quantized(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    without = (one for one in _scaled(file, operator) if one.quantization is None)
    return _named(without, lambda _: "has no scale")


def _per_tensor(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    several = (one for one in _scaled(file, operator) if one.quantization and one.quantization.per_axis)
    return _named(several, lambda _: "has a scale per channel")


def _parameters(one: FileTensor) -> tuple[tuple[float, ...], tuple[int, ...]] | None:
    return None if one.quantization is None else (one.quantization.scales, one.quantization.zero_points)


def _same_quantization(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    wanted = _parameters(file.made(operator)[0])
    apart = (one for one in data_of(file, operator) if _parameters(one) != wanted)
    return _named(apart, lambda _: "has another scale or zero point than the output")


# Constants.


def _weights_constant(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    return "its weights are computed" if file.values(operator, 1) is None else None


def _bias_constant(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    place = _bias_place(operator)
    computed = file.given(operator, place) is not None and file.values(operator, place) is None
    return "its bias is computed" if computed else None


def _parameters_constant(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    data = places_of_data(operator)
    computed = [
        one.name
        for number in range(len(operator.inputs))
        if number not in data and (one := file.given(operator, number)) is not None
        if file.values(operator, number) is None
    ]
    return f"its parameter {computed[0]} is computed" if computed else None


def _concat_computed(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    held = [i for i in range(len(operator.inputs)) if file.values(operator, i) is not None]
    return f"its input {held[0]} is a constant" if held else None


def _weights_sum_max(file: File, operator: FileOperator, limit: Limit) -> str | None:
    """Sum of magnitudes behind one output channel."""
    values, weight = file.values(operator, 1), weight_of(file, operator)
    if values is None or weight is None or weight.quantization is None or limit.high is None:
        return None
    channel = values.ndim - 1 if operator.kind == "DEPTHWISE_CONV_2D" else 0
    # A zero point per channel is 0 wherever there are several (LiteRT's specification).
    centred = np.abs(values.astype(np.int64) - weight.quantization.zero_points[0])
    largest = int(centred.sum(axis=tuple(i for i in range(values.ndim) if i != channel)).max())
    return f"weights of one filter sum up to {largest}" if largest > limit.high else None


# Shapes.


def _fixed_shape(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    free = (one for one in _all(file, operator) if not one.fixed)
    return _named(free, lambda one: f"is {list(one.shape)}, not of a fixed size")


def _not_empty(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    empty = (one for one in _all(file, operator) if 0 in one.shape)
    return _named(empty, lambda one: f"is {list(one.shape)}, empty")


def _rank_max(file: File, operator: FileOperator, limit: Limit) -> str | None:
    many = (one for one in _maps(file, operator) if limit.high is not None and len(one.shape) > limit.high)
    return _named(many, lambda one: f"has {len(one.shape)} axes")


def _inner_axes(file: File, operator: FileOperator, limit: Limit) -> str | None:
    inner = limit.high or 0
    wide = (
        one
        for one in _maps(file, operator)
        if any(axis > 1 for axis in one.shape[: max(0, len(one.shape) - inner)])
    )
    return _named(wide, lambda one: f"is {list(one.shape)}, larger than 1 outside its {inner} innermost axes")


def _flat_max(file: File, operator: FileOperator, limit: Limit) -> str | None:
    most = limit.high or 0
    wide = (one for one in file.made(operator) if sum(axis > 1 for axis in one.shape) > most)
    return _named(wide, lambda one: f"is {list(one.shape)}, {most} axis may be larger than 1")


def _batch_max(file: File, operator: FileOperator, limit: Limit) -> str | None:
    several = (
        one for one in data_of(file, operator) if limit.high is not None and prod(one.shape[:-3]) > limit.high
    )
    return _named(several, lambda one: f"is {list(one.shape)}, a batch of {prod(one.shape[:-3])}")


def _depth_max(file: File, operator: FileOperator, limit: Limit) -> str | None:
    deep = (
        one
        for one in data_of(file, operator)
        if one.shape and limit.high is not None and one.shape[-1] > limit.high
    )
    return _named(deep, lambda one: f"is {list(one.shape)}, its last axis may be up to {limit.high}")


def _softmax_area(file: File, operator: FileOperator, limit: Limit) -> str | None:
    one = data_of(file, operator)[0]
    area = prod((1, 1, 1, 1, *one.shape)[-3:-1])
    return f"height times width are {area}" if limit.high is not None and area > limit.high else None


# What runs along which axis.


def _axes(file: File, operator: FileOperator, number: int) -> tuple[int, ...]:
    """Constant axes, counted from the front; empty where they are computed."""
    values, data = file.values(operator, number), data_of(file, operator)
    if values is None or not data:
        return ()
    rank = max(len(data[0].shape), 1)
    return tuple(int(axis) % rank for axis in np.ravel(values))


def _batch_kept(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    words = "it runs along the batch"
    if operator.kind == "PACK":
        return words if operator.option("axis") == 0 else None
    if operator.kind == "PAD":
        values = file.values(operator, 1)
        return words if values is not None and values.ndim == 2 and values[0].any() else None
    if operator.kind == "SPLIT":
        return words if 0 in _axes(file, operator, 0) else None
    if operator.kind == "SLICE":
        before, after = data_of(file, operator)[0].shape, file.made(operator)[0].shape
        return words if len(before) > 3 and before[0] != after[0] else None
    return words if 0 in _axes(file, operator, 1) else None


def _depth_reduced(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    """Over depth only where height, width or depth is 1."""
    shape, axes = data_of(file, operator)[0].shape, _axes(file, operator, 1)
    if len(shape) < 3 or len(shape) - 1 not in axes or 1 in shape[-3:]:
        return None
    return f"it reduces the depth of {list(shape)}"


def _depth_multiple(file: File, operator: FileOperator, limit: Limit) -> str | None:
    shape, axes = data_of(file, operator)[0].shape, _axes(file, operator, 1)
    if not shape or len(shape) - 1 not in axes or shape[-1] % (limit.low or 1) == 0:
        return None
    return f"it reduces a depth of {shape[-1]}, which is no multiple of {limit.low}"


def _reduced_axis_max(file: File, operator: FileOperator, limit: Limit) -> str | None:
    shape = data_of(file, operator)[0].shape
    long = [shape[axis] for axis in _axes(file, operator, 1) if shape[axis] > (limit.high or 0)]
    return f"it reduces an axis of {long[0]}" if long else None


def _reduced_elements_max(file: File, operator: FileOperator, limit: Limit) -> str | None:
    one = data_of(file, operator)[0]
    count = prod(one.shape[axis] for axis in _axes(file, operator, 1))
    if one.dtype not in limit.words or limit.high is None or count <= limit.high:
        return None
    return f"it reduces {count} elements of {one.dtype}"


def _argmax_last(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    axes, rank = _axes(file, operator, 1), len(data_of(file, operator)[0].shape)
    return f"it runs along axis {axes[0]} of {rank}" if axes and axes[0] != rank - 1 else None


def _prelu_inner(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    alpha = file.given(operator, 1)
    wide = alpha is not None and prod(alpha.shape[:-1]) != 1
    return f"its slopes are {list(alpha.shape)}" if wide and alpha is not None else None


# Options.


def _activation_none(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    return None if operator.activation == "NONE" else f"{operator.activation} is fused into it"


def _dilation_equal(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    height, width = (operator.option(f"dilation{side}Factor", 1) for side in "HW")
    return None if height == width else f"it is dilated by {height} and {width}"


def _strides(operator: FileOperator) -> tuple[int, int]:
    return operator.option("strideH", 1), operator.option("strideW", 1)


def _stride(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    steps, high = _strides(operator), limit.high or 1
    within = all((limit.low or 1) <= step <= high for step in steps)
    return None if within else f"strides {list(steps)}, up to {high} are taken"


def _wide_stride(file: File, operator: FileOperator, limit: Limit) -> str | None:
    """Beyond the bound only without padding (SAME may need none) and dilation."""
    steps = _strides(operator)
    if max(steps) <= (limit.high or 1):
        return None
    if any(operator.option(f"dilation{side}Factor", 1) != 1 for side in "HW"):
        return f"strides {list(steps)} with dilation"
    return f"strides {list(steps)} with padding" if _pads(file, operator) else None


def _pads(file: File, operator: FileOperator) -> bool:
    """Whether an undilated convolution or pool reads beyond its input."""
    weight, before, after = weight_of(file, operator), data_of(file, operator)[0], file.made(operator)[0]
    sides = weight.shape[1:3] if weight is not None else _pool(operator, ())
    reach = [(after.shape[i] - 1) * _strides(operator)[i - 1] + sides[i - 1] for i in (1, 2)]
    return operator.padding == "SAME" and any(reach[i - 1] > before.shape[i] for i in (1, 2))


def _pool(operator: FileOperator, paddings: Collection[str]) -> tuple[int, int]:
    """Height and width of a pool's kernel; 0 where its padding is none of those that are asked about."""
    asked = not paddings or operator.padding in paddings
    return (operator.option("filterHeight"), operator.option("filterWidth")) if asked else (0, 0)


def _pool_side(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    sides = _pool(operator, limit.words)
    return f"a kernel of {list(sides)} that pads" if max(sides) > (limit.high or 0) else None


def _pool_height(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    sides = _pool(operator, limit.words)
    return f"a kernel of height {sides[0]}" if sides[0] > (limit.high or 0) else None


def _pool_area(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    sides = _pool(operator, limit.words)
    return f"a kernel of {list(sides)}" if prod(sides) > (limit.high or 0) else None


def _strides_one(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    steps = file.values(operator, 3)
    return None if steps is None or (steps == 1).all() else f"steps {steps.tolist()}"


def _strides_inner(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    """Forwards, and other than 1 only along height and width."""
    steps = file.values(operator, 3)
    if steps is None:
        return None
    told = steps.tolist()
    others = [step for i, step in enumerate(told) if len(told) - i not in {2, 3}]
    return f"steps {told}" if min(told) < 1 or any(step != 1 for step in others) else None


def _transpose_plain(file: File, operator: FileOperator, limit: Limit) -> str | None:
    """Products of all but two axes within the bound; 32 bits only with axes beside each other exchanged."""
    data, order = data_of(file, operator)[0], _axes(file, operator, 1)
    shape, rank = data.shape, len(data.shape)
    if len(order) != rank or order == tuple(range(rank)):
        return None
    if data.dtype == "int32":
        plain = (*range(rank - 3), rank - 2, rank - 3, rank - 1), (*range(rank - 2), rank - 1, rank - 2)
        return None if order in plain else f"an order of {list(order)} for 32 bits"
    high = limit.high or 0
    if order[: rank - 3] == tuple(range(rank - 3)) and prod(shape[: rank - 3]) == 1:
        return f"an axis of {max(shape)}" if max(shape) > high else None
    largest = prod(sorted(shape)[2:])
    return f"axes of {list(shape)}, too many for the order {list(order)}" if largest > high else None


def _masks_zero(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    used = [name for name in limit.words if operator.option(name)]
    return f"it uses {', '.join(used)}" if used else None


def _adjoint_one(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    both = operator.option("adjX") and operator.option("adjY")
    return "both its operands are transposed" if both else None


def _resize_factors(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    """By 2, 4 or 8 in both directions; bilinear with half-pixel centres by 2 only."""
    before, after = data_of(file, operator)[0].shape, file.made(operator)[0].shape
    if len(before) != 4 or len(after) != 4 or before == after or before[1:3] == (1, 1):
        return None
    less = 1 if operator.option("alignCorners") else 0
    height, width = ((after[i] - less) / max(before[i] - less, 1) for i in (1, 2))
    half = operator.kind == "RESIZE_BILINEAR" and operator.option("halfPixelCenters")
    flat = (after[1] == before[1] == 1, after[2] == before[2] == 1)
    factor = width if flat[0] else height
    if (height == width or any(flat)) and factor in (_FACTORS[:1] if half else _FACTORS):
        return None
    centres = " with half-pixel centres" if half else ""
    return f"from {list(before[1:3])} to {list(after[1:3])}{centres}"


def _transpose_conv(file: File, operator: FileOperator, limit: Limit) -> str | None:  # noqa: ARG001
    """Strides of 1 or 2, the same in both directions but for rows and columns; plain sizes of the output."""
    before, after, weight = data_of(file, operator)[0], file.made(operator)[0], weight_of(file, operator)
    steps = _strides(operator)
    if weight is None or len(before.shape) != 4 or len(after.shape) != 4:
        return None
    rows = before.shape[1] == 1 and weight.shape[1] == 1
    columns = before.shape[2] == 1 and weight.shape[2] == 1
    if steps not in {(1, 1), (2, 2)} and not (steps == (1, 2) and rows) and not (steps == (2, 1) and columns):
        return f"strides {list(steps)}"
    spare = [0 if operator.padding == "SAME" else max(weight.shape[i] - steps[i - 1], 0) for i in (1, 2)]
    wanted = [before.shape[i] * steps[i - 1] + spare[i - 1] for i in (1, 2)]
    return (
        None if wanted == list(after.shape[1:3]) else f"an output of {list(after.shape[1:3])}, not {wanted}"
    )


CHECKS: Mapping[Check, Asked] = {
    "activation_none": _activation_none, "adjoint_one": _adjoint_one, "argmax_last": _argmax_last,
    "batch_kept": _batch_kept, "batch_max": _batch_max, "bias_constant": _bias_constant,
    "bias_types": _bias_types, "concat_computed": _concat_computed, "depth_max": _depth_max,
    "depth_multiple": _depth_multiple, "depth_reduced": _depth_reduced, "dilation_equal": _dilation_equal,
    "fixed_shape": _fixed_shape, "flat_max": _flat_max, "inner_axes": _inner_axes,
    "input_types_not": _input_types_not, "masks_zero": _masks_zero, "not_empty": _not_empty,
    "output_types_not": _output_types_not, "parameters_constant": _parameters_constant,
    "per_tensor": _per_tensor, "pool_area": _pool_area, "pool_height": _pool_height,
    "pool_side": _pool_side, "prelu_inner": _prelu_inner, "quantized": _quantized, "rank_max": _rank_max,
    "reduced_axis_max": _reduced_axis_max, "reduced_elements_max": _reduced_elements_max,
    "resize_factors": _resize_factors, "same_quantization": _same_quantization, "same_types": _same_types,
    "softmax_area": _softmax_area, "stride": _stride, "strides_inner": _strides_inner,
    "strides_one": _strides_one, "transpose_conv": _transpose_conv, "transpose_plain": _transpose_plain,
    "types": _types, "types_of_data": _types_of_data, "weights_constant": _weights_constant,
    "weights_sum_max": _weights_sum_max, "weights_types": _weights_types, "wide_stride": _wide_stride,
}  # fmt: skip
