"""One module per scheme, found by the recipe's kind.

For: turning the cleaned FP32 graph into a candidate's graph.
Not for: measuring it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec import structs

from converter.calibrate import calibrate
from converter.errors import RecipeError
from converter.quantize.dynamic_int8 import quantize_dynamic
from converter.quantize.float16 import quantize_float16
from converter.quantize.given import quantize_given
from converter.quantize.material import Made, Material
from converter.quantize.mixed_int8 import quantize_mixed
from converter.quantize.prune import pruned
from converter.quantize.static_int8 import quantize_static
from converter.quantize.weights.scheme import quantize_weights
from converter.recipe import FLOAT32, Kind, Recipe, format_recipe

__all__ = ["Made", "Material", "quantize"]

Scheme = Callable[[Material, Recipe], Made]


def _float(material: Material, recipe: Recipe) -> Made:
    """The cleaned model itself, or its half."""
    return Made(model=material.model) if recipe == FLOAT32 else quantize_float16(material, recipe)


SCHEMES: Mapping[Kind, Scheme] = {
    "float": _float,
    "dynamic": quantize_dynamic,
    "given": quantize_given,
    "static": quantize_static,
    "weight": quantize_weights,
    "mixed": quantize_mixed,
}


def quantize(material: Material, recipe: Recipe) -> Made:
    """The graph of a candidate.

    Args:
        material: the cleaned FP32 graph and what is known of it; nothing of it is changed.
        recipe: what to do.

    Raises:
        RecipeError: `recipe_unknown` (no scheme of this kind), or the scheme's own.
        Exception: whatever the quantizer raises on this graph; the caller makes a row of it.
    """
    scheme = SCHEMES.get(recipe.kind)
    if scheme is None:
        raise RecipeError(
            "recipe_unknown", f"{format_recipe(recipe)}: no scheme of kind {recipe.kind} is here"
        )
    if not recipe.pruned_percent:
        return scheme(material, recipe)
    return _pruned(material, recipe, scheme)


def _pruned(material: Material, recipe: Recipe, scheme: Scheme) -> Made:
    """The candidate of the pruned graph, calibrated anew, under the whole recipe's name.

    Raises:
        RecipeError: `prune_nothing`: no weight is large enough.
    """
    model, changed = pruned(material.model, recipe.pruned_percent)
    if not changed:
        raise RecipeError("prune_nothing", "no weight of the model is large enough to be pruned")
    calibration = calibrate(model, material.samples, material.signature)
    rest = structs.replace(recipe, extras=tuple(x for x in recipe.extras if not x.startswith("prune")))
    made = scheme(structs.replace(material, model=model, calibration=calibration), rest)
    said = f"the smallest {recipe.pruned_percent}% of {changed} weights were set to zero first"
    return structs.replace(made, recipe=recipe, decisions=(said, *made.decisions))
