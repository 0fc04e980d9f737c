"""A graph as the quantizer reads it.

For: who makes and who reads a tensor, what is constant, which tensors share one scale.
Not for: changing a graph, or deciding about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from converter.model import element_types
from converter.passes.names import name_nodes
from converter.passes.opset import opset_of
from converter.quantize.operators import OPERATORS, Operator, Role
from converter.quantize.qparams import Floats


class View:
    """Of the main graph; nodes are known by name, so a copy is made whose nodes all have one.

    Attributes:
        model: a copy with inferred shapes.
        opset: of the default domain.
        nodes: in the graph's order.
        by_name: nodes by name.
        producer: node by output tensor.
        readers: nodes by tensor that they read, each once.
        captured: tensors that a subgraph reads.
        outputs: names of the graph's outputs.
        floats: tensors of float32 that are not constants.
        operators: the table that says what each operator is.
    """

    def __init__(self, model: onnx.ModelProto, operators: Mapping[str, Operator] = OPERATORS) -> None:
        """Reads the graph; `model` is not changed."""
        self.operators = operators
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        name_nodes(copy)
        self.model = onnx.shape_inference.infer_shapes(copy)
        self.opset = opset_of(copy)
        graph = self.model.graph
        self.nodes = list(graph.node)
        self.by_name = {node.name: node for node in self.nodes}
        self.producer = {name: node for node in self.nodes for name in node.output if name}
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        self.captured: set[str] = set()
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)
            self.captured.update(_captures(node))
        self.outputs = {value.name for value in graph.output}
        known = (*graph.value_info, *graph.input, *graph.output)
        shapes = {v.name: v.type.tensor_type.shape for v in known if v.type.tensor_type.HasField("shape")}
        self._ranks = {name: len(shape.dim) for name, shape in shapes.items()}
        types = element_types(self.model)
        float32 = onnx.TensorProto.FLOAT
        self.floats = {n for n, t in types.items() if t == float32 and n not in self._constants}

    def rank(self, name: str) -> int | None:
        """How many axes a tensor has; None where inference does not know."""
        return self._ranks.get(name)

    def constant(self, name: str) -> Floats | None:
        """The numbers of a float32 initializer; None for any other tensor."""
        tensor = self._constants.get(name)
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
            return None
        return np.asarray(numpy_helper.to_array(tensor), dtype=np.float32)

    def activations(self, node: onnx.NodeProto) -> list[str]:
        """Float32 inputs of a listed operator that hold activations, constants left out."""
        return [name for name in self.data_inputs(node) if name in self.floats]

    def data_inputs(self, node: onnx.NodeProto) -> list[str]:
        """Inputs of a listed operator at the places of activations, constants among them."""
        places = self.operators[node.op_type].activations
        if places is None:
            return [name for name in node.input if name]
        return [node.input[i] for i in places if i < len(node.input) and node.input[i]]

    def sole_reader(self, name: str) -> onnx.NodeProto | None:
        """The only node that reads a tensor; None where others, a subgraph or the caller read it too."""
        readers = self.readers.get(name, [])
        alone = len(readers) == 1 and name not in self.outputs and name not in self.captured
        return readers[0] if alone else None

    def groups(self) -> dict[str, str]:
        """For each float tensor the one that speaks for its group.

        A group holds what data movement and absorbed activations join: its tensors have one scale, and one
        cannot be in float without the others doing any good.
        """
        parent = {name: name for name in self.floats}
        for node in self.nodes:
            operator = self.operators.get(node.op_type)
            if operator is None or operator.role not in {Role.SAME_SCALE, Role.ABSORBED}:
                continue
            for name in node.output:
                if name in parent and node.input[0] in parent:
                    parent[name] = node.input[0]
        return {name: _root(parent, name) for name in parent}


def _root(parent: dict[str, str], name: str) -> str:
    while parent[name] != name:
        name = parent[name]
    return name


def _captures(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node's subgraphs read; some of them are the subgraphs' own, which does no harm."""
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
        for graph in graphs:
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from inner.input
                yield from _captures(inner)


def attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    """A number among a node's attributes."""
    for one in node.attribute:
        if one.name == name:
            return float(onnx.helper.get_attribute_value(one))
    return default
