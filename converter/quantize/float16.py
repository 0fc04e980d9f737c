"""Half precision: `float_wf16_af16`.

For: weights and activations of 16 bits, inputs and outputs still float32. What would overflow stays in
float32 and is named: half precision ends at 65,504, and a tensor that came near it in calibration takes
its producer and its consumers with it (raw FP16 of a ViT lost its accuracy in decomposed layer norms:
FACTS.md section 1, Jetson).
Not for: bfloat16, or deciding where half precision pays; x86 converts back and forth and measured 1.45 x
FP32 (FACTS.md section 1).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from converter.calibrate import Ranges
from converter.errors import RecipeError
from converter.quantize.common import prepared, quiet
from converter.quantize.material import Made, Material
from converter.recipe import Recipe
from converter.runtime import ort_float16

FLOAT16_MAX = 65504.0
_HEADROOM = 2.0
"""Calibration sees a sample of the data, and sums within a kernel reach further than their result."""
_NAMED_MAX = 8
_SUMS_SQUARES = frozenset({"Pow", "ReduceSum", "ReduceSumSquare", "ReduceL2", "ReduceMean"})
"""Sum before they divide: x^2 overflows at 256, a mean of n values at 65,504 / n (decomposed layer norm)."""


def quantize_float16(material: Material, recipe: Recipe) -> Made:
    """The graph with 16-bit weights and activations.

    Raises:
        RecipeError: `recipe_extra`: an extra that this scheme does not do; `float16_nothing_left`: every
            node would have to stay in float32.
    """
    if recipe.extras:
        raise RecipeError("recipe_extra", f"{', '.join(recipe.extras)} is not done by this scheme")
    graph = prepared(material.model)
    blocked = overflowing(graph, material.calibration.ranges)
    if graph.graph.node and len(blocked) == len(graph.graph.node):
        raise RecipeError("float16_nothing_left", "every operator would overflow 16 bits and stay in float32")
    with quiet(), warnings.catch_warnings():
        # It warns of weights that round to zero; their effect is measured with everything else.
        warnings.simplefilter("ignore")
        made = ort_float16.convert_float_to_float16(
            graph, keep_io_types=True, disable_shape_infer=True, node_block_list=sorted(blocked)
        )
    del made.graph.value_info[:]
    del made.metadata_props[:]
    _join_casts(made.graph)
    return Made(model=made, decisions=_words(blocked))


def _join_casts(graph: onnx.GraphProto) -> None:
    """Takes out the way through 16 bits between two nodes that both stayed in float32.

    The library casts every tensor on its own, so that what must not be halved was halved between them.
    """
    halves = {n.output[0]: n.input[0] for n in graph.node if _casts(n, onnx.TensorProto.FLOAT16)}
    back = {
        n.output[0]: halves[n.input[0]]
        for n in graph.node
        if _casts(n, onnx.TensorProto.FLOAT) and n.input[0] in halves
    }
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = back.get(name, name)
    while True:
        read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        idle = [n for n in graph.node if n.op_type == "Cast" and n.output[0] not in read]
        if not idle:
            return
        for node in idle:
            graph.node.remove(node)


def _casts(node: onnx.NodeProto, to: int) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i == to for a in node.attribute)


def overflowing(model: onnx.ModelProto, ranges: Ranges) -> dict[str, str]:
    """Nodes that must stay in float32, with the tensor for whose sake.

    Args:
        model: graph with named nodes.
        ranges: of its activations, from calibration.
    """
    near = {
        name for name, span in ranges.items() if _magnitude(span.low, span.high) > FLOAT16_MAX / _HEADROOM
    }
    near |= {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and _widest(tensor) > FLOAT16_MAX
    }
    found = {}
    for node in model.graph.node:
        touched = [name for name in (*node.input, *node.output) if name in near]
        touched += list(_squares(node, ranges))
        if touched:
            found[node.name] = touched[0]
    return found


def _squares(node: onnx.NodeProto, ranges: Mapping[str, object]) -> Iterator[str]:
    """Inputs whose square or sum leaves 16 bits within the kernel though no tensor shows it."""
    if node.op_type not in _SUMS_SQUARES or not node.output:
        return
    squares = node.op_type in {"Pow", "ReduceSumSquare", "ReduceL2"}
    span = ranges.get(node.input[0])
    low, high = getattr(span, "low", 0.0), getattr(span, "high", 0.0)
    reach = _magnitude(low, high)
    if (reach * reach if squares else reach) > FLOAT16_MAX / _HEADROOM:
        yield node.input[0]


def _magnitude(low: float, high: float) -> float:
    return max(abs(low), abs(high))


def _widest(tensor: onnx.TensorProto) -> float:
    array = numpy_helper.to_array(tensor)
    return float(np.abs(array).max()) if array.size else 0.0


def _words(blocked: Mapping[str, str]) -> tuple[str, ...]:
    if not blocked:
        return ()
    shown = [f"{node} (for {tensor})" for node, tensor in sorted(blocked.items())]
    more = f" and {len(shown) - _NAMED_MAX} more" if len(shown) > _NAMED_MAX else ""
    return (f"kept in float32, for 16 bits would overflow: {', '.join(shown[:_NAMED_MAX])}{more}",)
