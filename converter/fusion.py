"""What the runtime really runs.

For: counting integer and float kernels in the graph that the runtime itself optimized (FACTS.md, trap
11: S8S8 on x86 fuses 35 of 49 convolutions; that is why INT8 can be slower than FP32).
Not for: timing.

The graph is saved at the level EXTENDED, where all fusion of Q/DQ is done; the level above only lays
float convolutions out anew, which renames their weights and hides what they were.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import onnx
from msgspec import Struct

from converter.candidates import Fusion
from converter.runtime import open_session

_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_INTEGER = frozenset(
    {
        "ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulInteger16",
        "MatMulIntegerToFloat", "QAttention", "QEmbedLayerNormalization", "QGemm",
    }
)  # fmt: skip
_GIVES_OTHER = _INTEGER
"""Integer kernels whose result is a 32-bit sum or float: what reads it computes on no 8-bit values."""
_MOVES = frozenset(
    {
        "Cast", "Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "GatherElements",
        "Identity", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Moves data and computes nothing: not counted on either side."""
_TYPE_NAMES = {
    onnx.TensorProto.UINT8: "u8", onnx.TensorProto.INT8: "s8",
    onnx.TensorProto.UINT16: "u16", onnx.TensorProto.INT16: "s16",
}  # fmt: skip
_MULTIPLIES = frozenset({"Conv", "ConvTranspose", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul"})


class Audit(Struct, frozen=True, kw_only=True):
    """What an optimized graph holds.

    Attributes:
        fusion: the counts.
        int8_fraction: multiplications in integer kernels over all of them; None where a multiplying
            operator of the FP32 model cannot be followed into the optimized graph.
        float_multiplies: multiplying kernels that stayed in float.
        left_float: each of those by name, with what kept it there (FACTS.md, trap 11).
    """

    fusion: Fusion
    int8_fraction: float | None
    float_multiplies: int
    left_float: tuple[str, ...] = ()


def audit(model: bytes, config: Mapping[str, str], work: Mapping[str, int] | None) -> Audit:
    """Opens the model once more and reads the graph that the runtime made of it.

    Args:
        model: the serialized candidate.
        config: session entries, the device's or those that emulate it.
        work: multiplications by weight name, from `multiplications()`.

    Raises:
        Exception: what the runtime raises.
    """
    with tempfile.TemporaryDirectory(prefix="shallop-audit-") as folder:
        path = Path(folder) / "optimized.onnx"
        open_session(model, config=config, optimized_path=path, optimization="EXTENDED")
        optimized = onnx.load(path)
    return read_audit(optimized, work)


def read_audit(optimized: onnx.ModelProto, work: Mapping[str, int] | None) -> Audit:
    """Counts of one optimized graph."""
    small: set[str] = set()
    integer = floating = left = 0
    multiplies: list[onnx.NodeProto] = []
    in_integer: dict[str, bool] = {}
    for node in optimized.graph.node:
        if node.op_type in _QDQ:
            left += 1
            if node.op_type != "DequantizeLinear":
                small.add(node.output[0])
            continue
        passed_on = bool(node.input) and node.input[0] in small and node.op_type != "Cast"
        whole = passed_on or node.op_type in _INTEGER or node.op_type.startswith("QLinear")
        if whole and node.op_type not in _GIVES_OTHER:
            small.add(node.output[0])
        for weight in _weights(node, work or {}):
            in_integer[weight] = whole
        if node.op_type in _MOVES:
            continue
        integer, floating = integer + whole, floating + (not whole)
        if node.op_type in _MULTIPLIES and not whole:
            multiplies.append(node)
    fusion = Fusion(integer=integer, float=floating, qdq_left=left)
    return Audit(
        fusion=fusion,
        int8_fraction=_fraction(work, in_integer),
        float_multiplies=len(multiplies),
        left_float=why_float(optimized, multiplies) if left else (),
    )


def why_float(optimized: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> tuple[str, ...]:
    """Name and reason of each multiplication that stayed in float, read off what stands around it."""
    graph = optimized.graph
    producer = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    return tuple(
        f"{node.op_type} {node.name or node.output[0]}: {_why(node, producer, readers, types)}"
        for node in nodes
    )


def _why(
    node: onnx.NodeProto,
    producer: Mapping[str, onnx.NodeProto],
    readers: Mapping[str, list[str]],
    types: Mapping[str, int],
) -> str:
    for place, what in ((0, "input"), (1, "weight or second input")):
        made = producer.get(node.input[place])
        if made is None or made.op_type != "DequantizeLinear":
            return f"its {what} is float"
    bias = node.input[2] if len(node.input) > 2 else ""
    if bias and (bias not in producer or producer[bias].op_type != "DequantizeLinear"):
        return "its bias is float"
    if "QuantizeLinear" not in readers.get(node.output[0], []):
        return "no QuantizeLinear behind it"
    if len(readers[node.output[0]]) > 1:
        return "others than QuantizeLinear read its output too"
    found = [types.get(i) for place in (0, 1) for i in producer[node.input[place]].input[2:3]]
    names = " and ".join(_TYPE_NAMES.get(kind or 0, "unknown type") for kind in found)
    grouped = any(a.name == "group" and a.i > 1 for a in node.attribute)
    return f"the runtime has no integer kernel for it here ({names}{', grouped' if grouped else ''})"


def _weights(node: onnx.NodeProto, work: Mapping[str, int]) -> set[str]:
    """Weights of the FP32 model among a node's inputs; quantizers append `_quantized` and the like."""
    found = set()
    for name in node.input:
        parts = name.split("_")
        for end in range(len(parts), 0, -1):
            stem = "_".join(parts[:end])
            if stem in work:
                found.add(stem)
                break
    return found


def _fraction(work: Mapping[str, int] | None, in_integer: Mapping[str, bool]) -> float | None:
    """None where a weight was lost on the way: a share of what was found would be a guess."""
    if not work or set(in_integer) != set(work):
        return None
    return sum(work[name] for name, whole in in_integer.items() if whole) / sum(work.values())


def multiplications(model: onnx.ModelProto) -> dict[str, int] | None:
    """Multiplications of one sample by weight name, in the FP32 graph.

    Conv: output elements times the elements of one filter. Gemm and MatMul: output elements times the
    shared axis. None where a shape is open, a multiplication has no constant weight, or two share one.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    values = (*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input)
    shapes = {value.name: _dims(value) for value in values}
    weights = {tensor.name: tuple(tensor.dims) for tensor in inferred.graph.initializer}
    work: dict[str, int] = {}
    for node in inferred.graph.node:
        if node.op_type not in _MULTIPLIES:
            continue
        name, shape = node.input[1], shapes.get(node.output[0])
        if name not in weights or name in work or not shape or None in shape[1:]:
            return None
        elements = prod(size for size in shape[1:] if size is not None)
        work[name] = elements * _per_element(node, weights[name])
    return work or None


def _per_element(node: onnx.NodeProto, weight: tuple[int, ...]) -> int:
    """Multiplications behind one output element."""
    if node.op_type in {"Gemm", "FusedGemm"}:
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        return weight[1] if transposed else weight[0]
    return weight[-2] if node.op_type == "MatMul" else prod(weight[1:])


def _dims(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)


def widest_weight(model: onnx.ModelProto) -> int | None:
    """Largest absolute value among the graph's int8 weights; None without any.

    An unsigned 8-bit activation times two weights of at most 64 stays below 2^15 (2 x 255 x 64 = 32,640),
    so x86 without VNNI cannot saturate on such a model whatever the data.
    """
    int8 = onnx.TensorProto.INT8
    tensors = [t for t in model.graph.initializer if t.data_type == int8 and t.dims]
    arrays = [onnx.numpy_helper.to_array(tensor).astype("int16") for tensor in tensors]
    return max((int(abs(array).max()) for array in arrays if array.size), default=None)
