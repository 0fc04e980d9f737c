"""Fixed shapes, and the arithmetic on shapes done once.

For: setting the batch, inferring every shape, and computing what depends on shapes and constants alone
(Shape, Gather, Concat, Range in front of a Reshape), so that nothing of it is left in the file.
Not for: graphs of which a shape really depends on the data; those are refused by name.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from converter.passes.names import name_nodes
from converter.passes.opset import opset_of
from converter.tflite.errors import TFLiteError

Array = NDArray[Any]
_ROUNDS_MAX = 24
_ELEMENTS_MAX = 1 << 22
"""Of a constant that is computed here: arithmetic on shapes is small."""
_VALUES_MAX = 4096
"""Elements of a constant that may say a shape, or a type by its zero point."""
_KEPT = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""Not folded: they say how a constant is stored."""


def fix(model: onnx.ModelProto, batch: int) -> tuple[onnx.ModelProto, dict[str, tuple[int, ...]]]:
    """A copy with fixed shapes and folded arithmetic, and the shape of every tensor.

    Args:
        model: any graph; it is not changed.
        batch: length of free first axes of inputs.

    Raises:
        TFLiteError: `tflite_shape`: an input has another free axis, or a shape is not known in the end.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    name_nodes(copy)
    _set_batch(copy, batch)
    del copy.graph.value_info[:]
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    for _ in range(_ROUNDS_MAX):
        shapes = _shapes(inferred(copy))
        if not _folded(copy, shapes):
            break
    _require(copy, shapes)
    return copy, shapes


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with the shapes and types that onnx infers, and of large constants these alone.

    The inference goes through bytes; with all weights in them it took three quarters of the time of writing a
    model of 90 MB.
    """
    graph = model.graph
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = graph.name or "graph"
    light.graph.node.extend(graph.node)
    light.graph.input.extend(graph.input)
    light.graph.output.extend(graph.output)
    listed = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT64 or prod(tensor.dims) <= _VALUES_MAX:
            light.graph.initializer.append(tensor)
        elif tensor.name not in listed:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            light.graph.input.append(value)
    return onnx.shape_inference.infer_shapes(light, data_prop=True)


def _set_batch(model: onnx.ModelProto, batch: int) -> None:
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name in constants:
            continue
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                continue
            if axis:
                raise TFLiteError(
                    "tflite_shape",
                    f"axis {axis} of input {value.name} is free ({dim.dim_param or 'unknown'}); TFLite files "
                    "have fixed shapes: export the model with this axis fixed",
                )
            dim.ClearField("dim_param")
            dim.dim_value = batch


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Of every tensor whose shape is fixed."""
    found = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
            continue
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            found.setdefault(value.name, tuple(dim.dim_value for dim in dims))
    return found


def _folded(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Replaces what is constant by initializers; whether anything was."""
    known = {tensor.name: tensor for tensor in model.graph.initializer}
    kept, changed = [], False
    for node in model.graph.node:
        values = _computed(model, node, known, shapes)
        if values is None:
            kept.append(node)
            continue
        changed = True
        for name, array in zip(node.output, values, strict=True):
            if name:
                tensor = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
                known[name] = tensor
                model.graph.initializer.append(tensor)
    if changed:
        del model.graph.node[:]
        model.graph.node.extend(kept)
    return changed


def _computed(
    model: onnx.ModelProto, node: onnx.NodeProto, known: dict[str, onnx.TensorProto],
    shapes: dict[str, tuple[int, ...]],
) -> list[Array] | None:  # fmt: skip
    """The node's outputs where they are constant."""
    if node.op_type in _KEPT or any(a.HasField("g") or a.graphs for a in node.attribute):
        return None
    if node.domain not in {"", "ai.onnx"} or node.op_type.startswith("Random"):
        return None
    names = [name for name in node.input if name]
    if node.op_type == "Shape" and names[0] in shapes and names[0] not in known:
        return [_shape_of(node, shapes[names[0]])]
    if not all(name in known for name in names):
        return None
    sizes = [int(np.prod(shapes.get(name, (0,)))) for name in node.output if name]
    if max(sizes, default=0) > _ELEMENTS_MAX:
        return None
    feeds = {name: numpy_helper.to_array(known[name]) for name in names}
    return _evaluated(node, feeds, opset_of(model))


def _shape_of(node: onnx.NodeProto, shape: tuple[int, ...]) -> Array:
    found = {a.name: a.i for a in node.attribute}
    end = found.get("end", len(shape))
    return np.array(shape[found.get("start", 0) : end], dtype=np.int64)


def _evaluated(node: onnx.NodeProto, feeds: dict[str, Array], opset: int) -> list[Array] | None:
    """ONNX's own definition of the node; None where that cannot run it."""
    inputs = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in feeds.items()
    ]
    names = [name for name in node.output if name]
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in names]
    graph = onnx.helper.make_graph([node], "constant", inputs, outputs)
    single = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):
            values = ReferenceEvaluator(single).run(None, feeds)
    except Exception:  # noqa: BLE001 - what the reference cannot compute is simply not folded
        return None
    by_name = dict(zip(names, (np.asarray(value) for value in values), strict=True))
    return [by_name.get(name, np.zeros(0)) for name in node.output]


def _require(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> None:
    """Every tensor's shape is known."""
    for node in model.graph.node:
        for name in node.output:
            if name and name not in shapes:
                raise TFLiteError(
                    "tflite_shape",
                    f"the shape of {name}, which {node.op_type} {node.name} makes, is not fixed: it depends "
                    "on the data or on an operator without shape inference",
                )
