"""From what was collected to the range of each tensor.

For: `ranges_of()`: the ranges that a recipe's method keeps.
Not for: collecting, or scales and zero points (`converter.quantize`).
"""

from __future__ import annotations

from converter.calibrate.collect import Calibration, Ranges
from converter.errors import RecipeError
from converter.recipe import Recipe


def ranges_of(calibration: Calibration, recipe: Recipe) -> Ranges:
    """The ranges of every activation for that recipe; empty where it needs none.

    Raises:
        RecipeError: `recipe_method`: the method is not known here.
    """
    if recipe.method is None:
        return {}
    if recipe.method != "minmax":
        raise RecipeError("recipe_method", f"method {recipe.method} is not done by this calibration")
    return calibration.ranges
