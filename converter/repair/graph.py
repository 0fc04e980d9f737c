"""An index of one graph: who makes a tensor, who reads it, which tensors are constant.

For: the repairs, which walk along tensors and change weights in place of a copy.
Not for: subgraphs of If and Loop; a tensor that one of them reads counts as read by an operator that nothing
is known of.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Floats = NDArray[np.float64]


class GraphIndex:
    """A graph that is read and whose constants may be replaced.

    Attributes:
        model: the graph itself.
        producers: node by the name of a tensor that it makes.
        readers: (node, place among its inputs) of everything that reads a tensor; a subgraph's read counts
            for the node that holds it, with place -1.
        shapes: of tensors where inference knows them; None for an open axis.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.producers: dict[str, onnx.NodeProto] = {}
        self.readers: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}
        for node in model.graph.node:
            for name in node.output:
                self.producers[name] = node
            for place, name in enumerate(node.input):
                if name:
                    self.readers[name].append((node, place))
            for name in _captured(node):
                self.readers[name].append((node, -1))
        self.shapes = _shapes(model)

    def is_constant(self, name: str) -> bool:
        """Whether the tensor is an initializer."""
        return name in self._constants

    def constant(self, name: str) -> Floats | None:
        """An initializer of floating point in double precision; None where the name is something else."""
        tensor = self._constants.get(name)
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
            return None
        values: Floats = numpy_helper.to_array(tensor).astype(np.float64)
        return values

    def replace(self, name: str, values: NDArray[Any]) -> None:
        """Puts other numbers, rounded to float32, in the place of an initializer."""
        self._constants[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))

    def add(self, name: str, values: NDArray[Any]) -> None:
        """A new float32 initializer."""
        tensor = self.model.graph.initializer.add()
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
        self._constants[name] = tensor

    def used_once(self, name: str) -> bool:
        """Whether exactly one place of one node reads the tensor."""
        return len(self.readers[name]) == 1 and name not in self.outputs


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:  # noqa: ANN401 - as ONNX has it
    """A node's attribute, or `default`."""
    for one in node.attribute:
        if one.name == name:
            return onnx.helper.get_attribute_value(one)
    return default


def label(node: onnx.NodeProto) -> str:
    """How people find a node: its name, else operator and output."""
    return node.name or f"{node.op_type} of {node.output[0]}"


def _captured(node: onnx.NodeProto) -> Iterator[str]:
    """Names that the subgraphs of a node read; more than that is no harm."""
    for one in node.attribute:
        for graph in (*one.graphs, *((one.g,) if one.HasField("g") else ())):
            for inner in graph.node:
                yield from (name for name in inner.input if name)
                yield from _captured(inner)
            yield from (value.name for value in graph.output)


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    inferred = onnx.shape_inference.infer_shapes(model)
    graph = inferred.graph
    found = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            found[value.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
    return found
