"""What the checks of a target read in a graph.

For: telling weights, biases and activations apart, through whatever Q/DQ pairs stand before them.
Not for: judging (`converter.targets.lint`), or changing anything.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import helper

QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
NO_WORK = QDQ | {"Constant"}
"""What a compiler folds away: it runs nowhere."""
_TYPES = {
    onnx.TensorProto.UINT4: "u4", onnx.TensorProto.INT4: "i4",
    onnx.TensorProto.UINT8: "u8", onnx.TensorProto.INT8: "i8",
    onnx.TensorProto.UINT16: "u16", onnx.TensorProto.INT16: "i16",
    onnx.TensorProto.INT32: "i32",
}  # fmt: skip


class GraphView:
    """Constants, makers and readers of one graph; what an outer graph holds is not seen."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def dequantized(self, name: str) -> bool:
        """Whether a tensor comes out of a DequantizeLinear."""
        maker = self.makers.get(name)
        return maker is not None and maker.op_type == "DequantizeLinear"

    def stored(self, name: str) -> onnx.TensorProto | None:
        """The constant that a tensor is, itself or behind a QuantizeLinear, a DequantizeLinear or both."""
        for _ in range(3):
            if name in self.constants:
                return self.constants[name]
            maker = self.makers.get(name)
            if maker is None or maker.op_type not in QDQ or not maker.input:
                return None
            name = maker.input[0]
        return None

    def integer(self, node: onnx.NodeProto) -> str | None:
        """The integer type of a QuantizeLinear or DequantizeLinear; None where it has none of ours.

        Without a zero point it is that of the stored constant, of `output_dtype`, or uint8 (ONNX).
        """
        zero = self.constants.get(node.input[2]) if len(node.input) > 2 else None
        if zero is not None:
            return _TYPES.get(zero.data_type)
        stored = self.constants.get(node.input[0])
        if stored is not None and stored.data_type in _TYPES:
            return _TYPES[stored.data_type]
        if node.op_type == "DequantizeLinear" and node.input[0] in self.makers:
            maker = self.makers[node.input[0]]
            return self.integer(maker) if maker.op_type == "QuantizeLinear" else None
        return _TYPES.get(options(node).get("output_dtype", 0) or onnx.TensorProto.UINT8)


def options(node: onnx.NodeProto) -> dict[str, object]:
    """A node's attributes by name."""
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def integers(value: object, default: list[int]) -> list[int]:
    """An attribute that is a list of integers."""
    return [int(one) for one in value] if isinstance(value, list | tuple) else default


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph, and those in it (bodies of If, Loop and Scan), outermost first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs_of(attribute.g)


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Shapes of the main graph's tensors as far as they can be inferred; an open axis is None.

    Constants are left out but where they are inputs, too.
    """
    inferred = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
        )
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
        if value.type.tensor_type.HasField("shape")
    }
