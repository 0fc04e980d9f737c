"""What a graph holds, in counts: operators, how they compute, types of weights and activations.

For: saying of any ONNX file how it is quantized, from the file alone.
Not for: what a runtime makes of it (`converter.fusion`).

An operator counts as *integer* where its data comes out of a DequantizeLinear of another operator's
result (QDQ) or where it is an integer operator itself, as *weight-only* where only its constants are
stored as integers, and as *float* otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
from msgspec import Struct

from converter.passes.walk import dtype_name

_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_INTEGER = frozenset(
    {
        "ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulInteger",
        "MatMulIntegerToFloat", "QGemm",
    }
)  # fmt: skip
_WEIGHT_ONLY = frozenset({"GatherBlockQuantized", "MatMulNBits"})
_WEIGHT_INPUT = {"ConvInteger": 1, "MatMulInteger": 1, "DynamicQuantizeMatMul": 1, "MatMulIntegerToFloat": 1}
"""Where an integer operator's weight stands; the QLinear ones have it at 3."""
_SCALE_INPUT = {"DynamicQuantizeMatMul": 2, "MatMulIntegerToFloat": 3}
_QLINEAR_WEIGHT, _QLINEAR_SCALE = 3, 4


class OperatorCount(Struct, frozen=True, kw_only=True):
    """Nodes of one operator by the way they compute."""

    operator: str
    integer: int
    weight_only: int
    float: int


class GraphSummary(Struct, frozen=True, kw_only=True):
    """Counts of one graph; tensors by type, largest count first.

    Attributes:
        weight_types: quantized weights by element type.
        activation_types: quantized activations by element type.
        per_channel: quantized weights with more than one scale.
        per_tensor: quantized weights with one.
        scale_unknown: quantized weights whose scale is made when the graph runs.
    """

    opset: int
    nodes: int
    weights: int
    operators: tuple[OperatorCount, ...]
    weight_types: dict[str, int]
    activation_types: dict[str, int]
    per_channel: int
    per_tensor: int
    scale_unknown: int

    @property
    def quantized(self) -> bool:
        """Whether anything in it computes on integers or is stored as such."""
        return any(one.integer or one.weight_only for one in self.operators)


def summarize(proto: onnx.ModelProto) -> GraphSummary:
    """Counts of the main graph; subgraphs of If and Loop count as their node."""
    nodes = list(proto.graph.node)
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in nodes:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
    made_by = {name: node for node in nodes for name in node.output}
    counts: dict[str, Counter[str]] = {}
    for node in nodes:
        if node.op_type not in {*_QUANTIZERS, "Constant"}:
            counts.setdefault(node.op_type, Counter())[_way(node, made_by, constants)] += 1
    weights = list(_weights(nodes, constants))
    scales = Counter(granularity for _, granularity in weights)
    return GraphSummary(
        opset=next((one.version for one in proto.opset_import if one.domain in {"", "ai.onnx"}), 0),
        nodes=len(nodes),
        weights=len(proto.graph.initializer),
        operators=tuple(
            OperatorCount(
                operator=name,
                integer=found["integer"],
                weight_only=found["weight_only"],
                float=found["float"],
            )
            for name, found in sorted(counts.items(), key=lambda pair: (-pair[1].total(), pair[0]))
        ),
        weight_types=dict(Counter(kind for kind, _ in weights).most_common()),
        activation_types=dict(Counter(_activations(nodes, constants)).most_common()),
        per_channel=scales["channel"],
        per_tensor=scales["tensor"],
        scale_unknown=scales["unknown"],
    )


def _way(
    node: onnx.NodeProto, made_by: dict[str, onnx.NodeProto], constants: dict[str, onnx.TensorProto]
) -> str:
    if node.op_type in _INTEGER or node.op_type.startswith("QLinear"):
        return "integer"
    if node.op_type in _WEIGHT_ONLY:
        return "weight_only"
    way = "float"
    for name in node.input:
        maker = made_by.get(name)
        if maker is not None and maker.op_type == "DequantizeLinear":
            if maker.input[0] not in constants:
                return "integer"
            way = "weight_only"
    return way


def _weights(
    nodes: list[onnx.NodeProto], constants: dict[str, onnx.TensorProto]
) -> Iterator[tuple[str, str]]:
    """Element type of each quantized weight, and whether its scale is per channel.

    Biases, which are 32-bit sums, do not count.
    """
    for node in nodes:
        if node.op_type == "MatMulNBits":
            bits = next((one.i for one in node.attribute if one.name == "bits"), 4)
            yield f"int{bits}", "channel"
            continue
        if node.op_type == "DequantizeLinear":
            weight, scale = 0, 1
        elif node.op_type.startswith("QLinear") or node.op_type == "QGemm":
            weight, scale = _QLINEAR_WEIGHT, _QLINEAR_SCALE
        elif node.op_type in _WEIGHT_INPUT:
            weight, scale = _WEIGHT_INPUT[node.op_type], _SCALE_INPUT.get(node.op_type, len(node.input))
        else:
            continue
        tensor = constants.get(node.input[weight]) if weight < len(node.input) else None
        if tensor is None or tensor.data_type == onnx.TensorProto.INT32:
            continue
        held = constants.get(node.input[scale]) if scale < len(node.input) else None
        yield dtype_name(tensor.data_type), _granularity(held)


def _granularity(scale: onnx.TensorProto | None) -> str:
    if scale is None:
        return "unknown"
    return "channel" if int(np.prod(scale.dims)) > 1 else "tensor"


def _activations(nodes: list[onnx.NodeProto], constants: dict[str, onnx.TensorProto]) -> Iterator[str]:
    """Element type of each tensor that a QuantizeLinear makes; uint8 where no zero point says otherwise."""
    for node in nodes:
        if node.op_type == "DynamicQuantizeLinear":
            yield "uint8"
        if node.op_type != "QuantizeLinear":
            continue
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        stated = next((one.i for one in node.attribute if one.name == "output_dtype"), 0)
        if zero is not None:
            yield dtype_name(zero.data_type)
        else:
            yield dtype_name(stated) if stated else "uint8"
