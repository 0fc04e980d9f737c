"""What every clean-up needs to know of a graph: who makes a tensor, who reads it, what is constant.

For: one view that counts the readers in subgraphs (If, Loop, Scan) too, since those take tensors of the
outer graph by name; a pass that asks `reads` cannot break them.
Not for: deciding what to change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]
Doubles = NDArray[np.float64]

DEFAULT_DOMAINS = frozenset({"", "ai.onnx"})
QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})


class View:
    """A graph's makers, readers and constants; passes keep it true while they change the graph.

    Attributes:
        graph: the main graph.
        makers: node by the name of what it makes.
        constants: initializer by name.
        reads: how often a name is read, by nodes, as an output, or within a subgraph.
        outputs: names that the graph gives.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.makers = {name: node for node in self.graph.node for name in node.output if name}
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.outputs = {value.name for value in self.graph.output}
        self.reads: Counter[str] = Counter(self.outputs)
        for graph in graphs(self.graph):
            self.reads.update(name for node in graph.node for name in node.input if name)
            if graph is not self.graph:
                self.reads.update(value.name for value in graph.output)

    def maker(self, name: str, *op_types: str) -> onnx.NodeProto | None:
        """The node of one of these types that makes `name`, if nothing but one node reads it."""
        node = self.makers.get(name)
        # An output counts as a reader, so what is read once by a node is none.
        return node if node is not None and is_op(node, *op_types) and self.reads[name] == 1 else None

    def array(self, name: str) -> Array | None:
        """A constant's value; None for what is no constant."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def floats(self, *names: str) -> list[Doubles] | None:
        """Values of float32 constants in float64; None if one of them is anything else."""
        tensors = [self.constants.get(name) for name in names]
        if any(tensor is None or tensor.data_type != onnx.TensorProto.FLOAT for tensor in tensors):
            return None
        return [numpy_helper.to_array(tensor).astype(np.float64) for tensor in tensors]

    def scalar(self, name: str) -> float | None:
        """The value of a float32 constant of one element."""
        found = self.floats(name)
        return float(found[0].reshape(-1)[0]) if found and found[0].size == 1 else None

    def add(self, name: str, array: Array) -> str:
        """A new initializer; `name` is varied until it is free."""
        while name in self.constants or name in self.makers or self.reads[name]:
            name += "_"
        tensor = numpy_helper.from_array(np.asarray(array, order="C"), name)
        self.graph.initializer.append(tensor)
        self.constants[name] = self.graph.initializer[-1]
        return name

    def set_inputs(self, node: onnx.NodeProto, *names: str) -> None:
        """Gives a node other inputs."""
        self.reads.subtract(name for name in node.input if name)
        node.input[:] = names
        self.reads.update(name for name in names if name)

    def remove(self, node: onnx.NodeProto) -> None:
        """Takes a node out."""
        self.reads.subtract(name for name in node.input if name)
        for name in node.output:
            self.makers.pop(name, None)
        self.graph.node.remove(node)

    def give(self, node: onnx.NodeProto, name: str) -> None:
        """Lets a node make `name`, which another node made until it was removed."""
        self.makers.pop(node.output[0], None)
        node.output[0] = name
        self.makers[name] = node

    def bypass(self, node: onnx.NodeProto) -> bool:
        """Removes a node of one input and one output that passes its input on; False where it must stay."""
        source, result = node.input[0], node.output[0]
        if result not in self.outputs:
            self.remove(node)
            self.rename(result, source)
            return True
        maker = self.makers.get(source)
        if maker is None or source in self.outputs or len(maker.output) != 1:
            return False
        self.remove(node)
        self.rename(source, result)
        self.give(maker, result)
        return True

    def rename(self, old: str, new: str) -> None:
        """Every reader of `old`, in subgraphs too, reads `new`."""
        for graph in graphs(self.graph):
            for node in graph.node:
                if old in node.input:
                    node.input[:] = [new if name == old else name for name in node.input]
            if graph is not self.graph:
                for value in graph.output:
                    value.name = new if value.name == old else value.name
        moved = self.reads.pop(old, 0)
        self.reads[new] += moved


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and every graph within it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.type in _GRAPHS else ():
                yield from graphs(inner)


def nests(node: onnx.NodeProto) -> bool:
    """Whether a node holds graphs of its own."""
    return any(one.type in _GRAPHS for one in node.attribute)


_SMALL_ELEMENTS_MAX = 64
"""What shapes are made of is smaller."""

_GRAPHS = frozenset({onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS})


def is_op(node: onnx.NodeProto, *op_types: str) -> bool:
    """Whether a node is one of these operators of the default domain."""
    return node.op_type in op_types and node.domain in DEFAULT_DOMAINS


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:  # noqa: ANN401 - of many types
    """An attribute's value, or `default`."""
    found = next((one for one in node.attribute if one.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:  # noqa: ANN401 - of many types
    """Sets an attribute; None takes it away."""
    for one in [one for one in node.attribute if one.name == name]:
        node.attribute.remove(one)
    if value is not None:
        node.attribute.append(helper.make_attribute(name, value))


def inferred(model: onnx.ModelProto) -> onnx.GraphProto:
    """The main graph with inferred types and shapes, its large constants stated as inputs.

    Inference writes the whole model out and reads it again: with MiniLM's 90 MB, cleaning took 9 times as
    long.
    """
    graph = onnx.GraphProto(name=model.graph.name)
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    stated = {value.name for value in graph.input}
    for tensor in model.graph.initializer:
        if prod(tensor.dims) <= _SMALL_ELEMENTS_MAX:
            graph.initializer.append(tensor)
        elif tensor.name not in stated:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(value)
    light = helper.make_model(graph, opset_imports=model.opset_import, ir_version=max(model.ir_version, 4))
    return onnx.shape_inference.infer_shapes(light, data_prop=True).graph


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int | str | None, ...]]:
    """Inferred shapes by name: a size, the name of a free axis, or None; unranked tensors are left out."""
    graph = inferred(model)
    found: dict[str, tuple[int | str | None, ...]] = {t.name: tuple(t.dims) for t in graph.initializer}
    for value in (*graph.value_info, *graph.output, *graph.input):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            found[value.name] = tuple(
                dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None)
                for dim in tensor.shape.dim
            )
    return found


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """A graph's initializers, and the tensors that stand as its nodes' attributes."""
    yield from graph.initializer
    for node in graph.node:
        for one in node.attribute:
            if one.type == onnx.AttributeProto.TENSOR:
                yield one.t


def dtype_name(elem_type: int) -> str:
    """Numpy's name of an ONNX element type, `unknown` where it has none."""
    try:
        return str(helper.tensor_dtype_to_np_dtype(elem_type).name)
    except (KeyError, ValueError):
        return "unknown"
