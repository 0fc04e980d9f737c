"""What cannot be part of a TFLite twin: recipes, and single nodes.

For: refusing by name what no TFLite graph could hold with the same scales, before anything is planned.
Not for: checking a finished graph (`converter.quantize.twin`), or the rules about scales
(`converter.quantize.twin_rules`).
"""

from __future__ import annotations

import onnx

from converter.errors import RecipeError
from converter.quantize.units import bounds_of, is_absorbed, mode_of
from converter.quantize.view import View, attribute
from converter.recipe import Recipe

_ROOT_BELOW = -0.5


def require_twin(recipe: Recipe) -> None:
    """Refuses what no TFLite graph could hold.

    Raises:
        RecipeError: `no_twin`: a type, or a form of the graph.
    """
    rules = (
        (recipe.activation in {"u8", "i8"}, f"activations {recipe.activation}: its INT8 kernels take 8 bits"),
        (recipe.weight == "i8", f"weights {recipe.weight}: its weights are symmetric int8"),
        ("qop" not in recipe.extras, "the QOperator form: it is written from Q/DQ pairs"),
    )
    why = next((words for holds, words in rules if not holds), None)
    if why is not None:
        raise RecipeError("no_twin", f"no TFLite graph has the scales of {why}")


def why_not_twin(view: View, node: onnx.NodeProto) -> str | None:
    """Why a node that ONNX could quantize stays in float in a twin, or None."""
    if node.op_type in {"Conv", "ConvTranspose"}:
        return _why_not_convolution(view, node)
    if is_absorbed(view, node) and bounds_of(view, node) is None:
        return "its bounds are computed"
    if node.op_type == "Pow" and _exponent(view, node) != _ROOT_BELOW:
        return "of powers LiteRT has an INT8 kernel for x ** -0.5 alone"
    if node.op_type == "Pad" and padding(view, node) is None:
        return "its padding is computed"
    return None


def _exponent(view: View, node: onnx.NodeProto) -> float | None:
    constant = view.constant(node.input[1])
    return float(constant.flat[0]) if constant is not None and constant.size == 1 else None


def _why_not_convolution(view: View, node: onnx.NodeProto) -> str | None:
    weight = view.constant(node.input[1])
    if weight is not None and weight.ndim > 4:
        return f"LiteRT's {node.op_type} in three dimensions has no INT8 kernel"
    if node.op_type == "ConvTranspose" and attribute(node, "group", 1) != 1:
        return "LiteRT has no transposed convolution in groups"
    return None


def padding(view: View, node: onnx.NodeProto) -> float | None:
    """What a Pad puts around its input; None where that is computed, 0 where it repeats values of it."""
    if mode_of(node) != "constant":
        return 0.0
    if len(node.input) < 3 or not node.input[2]:
        return attribute(node, "value", 0.0)
    constant = view.constant(node.input[2])
    return float(constant.flat[0]) if constant is not None and constant.size == 1 else None
