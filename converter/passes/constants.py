"""Makes every constant an initializer and no initializer an input.

Requires: a valid graph. Ensures: tensor-valued Constant nodes of the main graph are initializers; graph
inputs are what a caller gives. The quantizer only sees weights that are initializers, and the runtime
folds only those that nobody may override.
Not for: Constants in subgraphs, or with string or sparse values.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

_IR_VERSION_OF_OWN_INITIALIZERS = 4


def lift_constants(model: onnx.ModelProto) -> int:
    """Lifts in place; returns the number of nodes and inputs removed."""
    graph = model.graph
    lifted = [(node, tensor) for node in graph.node if (tensor := _value(node)) is not None]
    for node, tensor in lifted:
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
        graph.node.remove(node)
    constants = {tensor.name for tensor in graph.initializer}
    doubled = [value for value in graph.input if value.name in constants]
    for value in doubled:
        graph.input.remove(value)
    # Before IR 4 every initializer had to be an input.
    if graph.initializer:
        model.ir_version = max(model.ir_version, _IR_VERSION_OF_OWN_INITIALIZERS)
    return len(lifted) + len(doubled)


def _value(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """A Constant node's tensor; None for other nodes and other kinds of value."""
    if node.op_type != "Constant" or node.domain not in {"", "ai.onnx"}:
        return None
    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        tensor = onnx.TensorProto()
        tensor.CopyFrom(value)
        return tensor
    kinds = {"value_float": "float32", "value_floats": "float32", "value_int": "int64", "value_ints": "int64"}
    if attribute.name not in kinds:
        return None
    return numpy_helper.from_array(np.asarray(value, dtype=kinds[attribute.name]))
