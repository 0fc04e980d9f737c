"""Models that carry QuantizeLinear/DequantizeLinear pairs already, such as QAT exports.

For: telling them, saying what their pairs hold so that a target's rules can be held against it, and making
their float twin, which is what they are measured against.
Not for: graphs of integer operators (`converter.model` refuses them), or judging by a target's rules.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from msgspec import Struct
from onnx import TensorProto, numpy_helper

from converter.errors import InputError
from converter.passes.opset import opset_of
from converter.passes.walk import (
    QDQ,
    Array,
    Doubles,
    View,
    attribute,
    dtype_name,
    graphs,
    is_op,
    set_attribute,
)

_MULTIPLIES = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")
_NEVER_NEGATIVE = ("Relu", "Sigmoid", "Softmax", "HardSigmoid", "Abs", "Exp", "Sqrt", "ReduceL2")
_BOUNDS = {TensorProto.INT8: (-128, 127), TensorProto.UINT8: (0, 255), TensorProto.INT16: (-32768, 32767),
           TensorProto.UINT16: (0, 65535), TensorProto.INT4: (-8, 7), TensorProto.UINT4: (0, 15)}  # fmt: skip


class QuantizedInput(Struct, frozen=True, kw_only=True):
    """What a model's Q/DQ pairs hold.

    Attributes:
        opset: of the default domain.
        quantize: number of QuantizeLinear nodes.
        dequantize: number of DequantizeLinear nodes.
        activation_types: of tensors that are computed, such as `uint8`, sorted.
        weight_types: of constants other than biases, sorted.
        bias_types: of constants that are added in a multiplication, sorted.
        activations_symmetric: whether all their zero points are 0; None without any, or where one of
            them is no constant.
        weights_symmetric: the same of the weights.
        weight_axes: axes along which weights have a scale for each slice, sorted; empty: per tensor.
        weights_blocked: number of weights with a scale per block (opset 21).
        float_multiplies: multiplying operators of which an operand is not quantized, by type.
    """

    opset: int
    quantize: int
    dequantize: int
    activation_types: tuple[str, ...]
    weight_types: tuple[str, ...]
    bias_types: tuple[str, ...]
    activations_symmetric: bool | None
    weights_symmetric: bool | None
    weight_axes: tuple[int, ...]
    weights_blocked: int
    float_multiplies: dict[str, int]


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether a Q or DQ stands anywhere in the model."""
    return any(is_op(node, *QDQ) for graph in graphs(model.graph) for node in graph.node)


def describe(model: onnx.ModelProto) -> QuantizedInput | None:
    """A summary of the main graph's pairs; None for a model without any."""
    if not is_quantized(model):
        return None
    view = View(model)
    readers = _readers(view)
    kinds: dict[str, set[str]] = {"activation": set(), "weight": set(), "bias": set()}
    zeros: dict[str, list[bool | None]] = {"activation": [], "weight": [], "bias": []}
    axes, blocked = set(), 0
    pairs = [node for node in view.graph.node if is_op(node, "DequantizeLinear")]
    for node in pairs:
        kind = _kind(view, node, readers)
        kinds[kind].add(_type_name(view, node))
        zeros[kind].append(_zero_is_null(view, node))
        if kind == "weight":
            blocked += bool(attribute(node, "block_size", 0))
            scale = view.array(node.input[1])
            if scale is not None and scale.size > 1 and not attribute(node, "block_size", 0):
                axes.add(int(attribute(node, "axis", 1)))
    return QuantizedInput(
        opset=opset_of(model),
        quantize=sum(is_op(node, "QuantizeLinear") for node in view.graph.node),
        dequantize=len(pairs),
        activation_types=tuple(sorted(kinds["activation"])),
        weight_types=tuple(sorted(kinds["weight"])),
        bias_types=tuple(sorted(kinds["bias"])),
        activations_symmetric=_all(zeros["activation"]),
        weights_symmetric=_all(zeros["weight"]),
        weight_axes=tuple(sorted(axes)),
        weights_blocked=blocked,
        float_multiplies=_left_in_float(view),
    )


def _all(found: list[bool | None]) -> bool | None:
    return None if not found or None in found else all(found)


def _readers(view: View) -> dict[str, list[tuple[onnx.NodeProto, int]]]:
    found: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in view.graph.node:
        for i, name in enumerate(node.input):
            found.setdefault(name, []).append((node, i))
    return found


def _kind(view: View, node: onnx.NodeProto, readers: dict[str, list[tuple[onnx.NodeProto, int]]]) -> str:
    """Whether a DQ gives an activation, a weight or a bias."""
    source = node.input[0]
    maker = view.makers.get(source)
    if maker is not None and is_op(maker, "QuantizeLinear"):
        source = maker.input[0]
    if source not in view.constants:
        return "activation"
    adds = [is_op(reader, "Conv", "Gemm", "ConvTranspose") and i == 2 for reader, i in
            readers.get(node.output[0], [])]  # fmt: skip
    return "bias" if adds and all(adds) else "weight"


def _type_name(view: View, node: onnx.NodeProto) -> str:
    """Of what a DQ reads: the zero point says it, else the constant, else its Q's default."""
    for name in (node.input[2] if len(node.input) > 2 else "", node.input[0]):
        if name in view.constants:
            return dtype_name(view.constants[name].data_type)
    maker = view.makers.get(node.input[0])
    kind = attribute(maker, "output_dtype", 0) if maker is not None else 0
    return dtype_name(kind or TensorProto.UINT8)


def _zero_is_null(view: View, node: onnx.NodeProto) -> bool | None:
    """Whether the zero point is 0 throughout; None where it is computed."""
    if len(node.input) < 3 or not node.input[2]:
        return True
    zero = view.array(node.input[2])
    return None if zero is None else not zero.astype(np.int64).any()


def _left_in_float(view: View) -> dict[str, int]:
    def quantized(name: str) -> bool:
        maker = view.makers.get(name)
        return maker is not None and is_op(maker, "DequantizeLinear")

    found = Counter(
        node.op_type
        for node in view.graph.node
        if is_op(node, *_MULTIPLIES) and not all(quantized(name) for name in node.input[:2])
    )
    return dict(sorted(found.items()))


def dequantized(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """The float twin: the same graph without its Q/DQ, and in words what was done.

    A constant behind a DQ becomes the float32 values that the DQ gives. A Q whose range begins at zero
    may have taken the place of a Relu: where what it reads may be negative, a Clip to its range is left.
    Pairs at integer inputs and outputs of the model stay.

    Raises:
        InputError: `model_not_onnx`: scales or zero points do not fit what they belong to.
    """
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    view = View(twin)
    integers = {v.name for v in twin.graph.input if v.type.tensor_type.elem_type != TensorProto.FLOAT}
    removed = clips = 0
    for node in [node for node in twin.graph.node if is_op(node, *QDQ)]:
        result = node.output[0]
        if is_op(node, "QuantizeLinear"):
            bounds = _folded_relu(view, node)
            if bounds is not None and result not in view.outputs:
                _to_clip(view, node, bounds, opset_of(twin))
                clips, removed = clips + 1, removed + 1
            else:
                removed += result not in view.outputs and view.bypass(node)
        elif (values := _constant(view, node)) is not None:
            source = node.input[0]
            view.remove(node)
            name = view.add(f"{source}_float", values)
            view.rename(result, name)
            removed += 1
        elif node.input[0] not in integers:
            removed += view.bypass(node)
    del twin.graph.value_info[:]
    words = f"the model carries Q/DQ: FP32 here is its float twin, {removed} Q/DQ nodes taken out"
    return twin, words + (f" ({clips} replaced by a Clip to their range)" if clips else "")


def _constant(view: View, node: onnx.NodeProto) -> Array | None:
    """What a DQ of a constant gives, float32; None where it is none, or in blocks of an odd kind."""
    stored, scale = view.array(node.input[0]), view.array(node.input[1])
    # A float weight whose Q was taken out just now is no stored integer.
    if stored is None or scale is None or stored.dtype == np.float32:
        return None
    zero = view.array(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros_like(scale)
    if zero is None:
        return None
    axis, block = int(attribute(node, "axis", 1)), int(attribute(node, "block_size", 0))
    try:
        return _in_floats(stored, scale.astype(np.float64), zero.astype(np.float64), axis, block)
    except (ValueError, IndexError) as error:
        raise InputError(
            "model_not_onnx",
            f"the scales or zero points of {node.input[0][:80]!r} do not fit its shape {list(stored.shape)}: "
            f"{str(error)[:200]}; export the model again",
        ) from error


def _in_floats(stored: Array, scale: Doubles, zero: Doubles, axis: int, block: int) -> Array:
    """Raises ValueError, IndexError: what belongs to it is of another shape."""
    if block:
        length = stored.shape[axis]
        # However long a block is said to be, no more of it is used.
        block = min(block, length)
        scale = np.repeat(scale, block, axis=axis).take(range(length), axis=axis)
        zero = np.repeat(zero, block, axis=axis).take(range(length), axis=axis)
    elif scale.size > 1:
        shape = [1] * stored.ndim
        shape[axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    values: Array = ((stored.astype(np.float64) - zero) * scale).astype(np.float32)
    return values.reshape(stored.shape)


def _folded_relu(view: View, node: onnx.NodeProto) -> tuple[float, float] | None:
    """Range of a Q that begins at zero and reads what may be negative; None for any other."""
    if node.input[0] in view.constants:
        return None
    maker = view.makers.get(node.input[0])
    if maker is None or is_op(maker, *_NEVER_NEGATIVE, "DequantizeLinear"):
        return None
    scale = view.scalar(node.input[1])
    zero = view.constants.get(node.input[2]) if len(node.input) > 2 else None
    if scale is None or zero is None or zero.data_type not in _BOUNDS:
        return None
    low, high = _BOUNDS[zero.data_type]
    point = int(numpy_helper.to_array(zero).astype(np.int64).reshape(-1)[0])
    return (0.0, (high - low) * scale) if point == low else None


def _to_clip(view: View, node: onnx.NodeProto, bounds: tuple[float, float], opset: int) -> None:
    """Turns a Q into a Clip in place; its DQ then passes on what the Clip gives."""
    node.op_type = "Clip"
    for one in list(node.attribute):
        node.attribute.remove(one)
    if opset < 11:
        view.set_inputs(node, node.input[0])
        set_attribute(node, "min", bounds[0])
        set_attribute(node, "max", bounds[1])
        return
    names = [view.add(f"{node.output[0]}_{side}", np.asarray(bound, dtype=np.float32)) for side, bound in
             zip(("low", "high"), bounds, strict=True)]  # fmt: skip
    view.set_inputs(node, node.input[0], *names)
