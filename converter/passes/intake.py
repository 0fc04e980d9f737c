"""Brings a model as it was exported into the form in which the runtime and the passes can read it.

Requires: a valid model, its weights in memory. Ensures: no functions of its own, nodes with distinct
names where two had one (onnxruntime refuses those), every float tensor float32.
Not for: clean-ups whose effect on the answers is checked (`converter.passes`); these are the model.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, inliner, numpy_helper

from converter.errors import InputError
from converter.passes.names import name_nodes
from converter.passes.walk import DEFAULT_DOMAINS, graphs, tensors

_WIDTHS = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16", TensorProto.DOUBLE: "float64"}
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "stash_type"})


def intake(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The model, changed where it must be, and in words what was changed.

    Raises:
        InputError: `model_functions` (cannot be inlined), `model_dtype` (float64 weights that float32
            cannot hold, or a graph that is invalid in float32).
    """
    said = []
    if model.functions:
        model, words = _inlined(model)
        said.append(words)
    names = [node.name for node in model.graph.node if node.name]
    if len(set(names)) != len(names):
        said.append(f"{name_nodes(model)} nodes were given names: two had the same")
    narrowed = _single_precision(model)
    said += [narrowed] if narrowed else []
    return model, tuple(said)


def _inlined(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    try:
        made = inliner.inline_local_functions(model, convert_version=True)
    except Exception as error:
        raise InputError(
            "model_functions", f"the model's own functions cannot be inlined ({error}); export without them"
        ) from error
    used = {node.domain for graph in graphs(made.graph) for node in graph.node} | DEFAULT_DOMAINS
    for unused in [opset for opset in made.opset_import if opset.domain not in used]:
        made.opset_import.remove(unused)
    return made, f"{len(model.functions)} functions of the model's own were inlined"


def _single_precision(model: onnx.ModelProto) -> str | None:
    """Makes every other float type float32, in place; in words which there were, None if none."""
    found = {kind for graph in graphs(model.graph) for kind in _widened(graph)}
    if not found:
        return None
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        first = str(error).strip().splitlines()[0][:200]
        raise InputError(
            "model_dtype", f"the model is not valid in float32 ({first}); export it in float32"
        ) from error
    kinds = ", ".join(sorted(_WIDTHS[kind] for kind in found))
    return f"the model held {kinds}; all of it is float32 here, its inputs and outputs too"


def _widened(graph: onnx.GraphProto) -> Iterator[int]:
    """Makes one graph float32 in place; gives every other float type that it meets."""
    for tensor in tensors(graph):
        if tensor.data_type in _WIDTHS:
            yield tensor.data_type
            tensor.CopyFrom(_narrowed(tensor))
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in _WIDTHS:
            yield value.type.tensor_type.elem_type
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for one in (one for node in graph.node for one in node.attribute):
        if one.name in _TYPE_ATTRIBUTES and one.i in _WIDTHS:
            yield one.i
            one.i = TensorProto.FLOAT


def _narrowed(tensor: onnx.TensorProto) -> onnx.TensorProto:
    array = numpy_helper.to_array(tensor).astype(np.float64)
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    if not np.array_equal(np.isfinite(array), np.isfinite(single)):
        raise InputError(
            "model_dtype", f"weight {tensor.name} holds values that float32 cannot; scale the model down"
        )
    return numpy_helper.from_array(single, tensor.name)
