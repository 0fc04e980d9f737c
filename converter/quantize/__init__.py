"""One module per scheme, found by the recipe's kind.

For: turning the cleaned FP32 graph into a candidate's graph.
Not for: measuring it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx

from converter.calibrate import Ranges
from converter.errors import RecipeError
from converter.quantize.dynamic_int8 import quantize_dynamic
from converter.quantize.static_int8 import quantize_static
from converter.recipe import Kind, Recipe, format_recipe

Scheme = Callable[[onnx.ModelProto, Recipe, Ranges], onnx.ModelProto]


def _float(model: onnx.ModelProto, _recipe: Recipe, _ranges: Ranges) -> onnx.ModelProto:
    """The cleaned model itself; only FP32 is of this scheme."""
    return model


SCHEMES: Mapping[Kind, Scheme] = {
    "float": _float,
    "dynamic": quantize_dynamic,
    "static": quantize_static,
}


def quantize(model: onnx.ModelProto, recipe: Recipe, ranges: Ranges) -> onnx.ModelProto:
    """The graph of a candidate.

    Args:
        model: cleaned FP32 graph; it is not changed.
        recipe: what to do.
        ranges: of the activations, from calibration.

    Raises:
        RecipeError: `recipe_unknown` (no scheme of this kind), or the scheme's own.
        Exception: whatever the quantizer raises on this graph; the caller makes a row of it.
    """
    scheme = SCHEMES.get(recipe.kind)
    if scheme is None:
        raise RecipeError(
            "recipe_unknown", f"{format_recipe(recipe)}: no scheme of kind {recipe.kind} is here"
        )
    return scheme(model, recipe, ranges)
