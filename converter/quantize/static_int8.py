"""Static quantization in QDQ form: `static_w*_a*_pt|pc_METHOD`.

For: integer weights and activations with ranges known beforehand: ranges (`converter.calibrate`), a plan
(`converter.quantize.plan`), its graph (`converter.quantize.emit`).
Not for: repair (`converter.repair`), which changes material before the plan is made, and the plan after.
"""

from __future__ import annotations

from converter.calibrate import ranges_of
from converter.errors import RecipeError
from converter.quantize.emit import emit
from converter.quantize.material import Made, Material
from converter.quantize.plan import make_plan
from converter.recipe import Recipe

_EXTRAS_DONE = frozenset({"sym", "rr"})


def quantize_static(material: Material, recipe: Recipe) -> Made:
    """The QDQ graph.

    Raises:
        RecipeError: `recipe_method` or `recipe_extra` (not done here), or what `make_plan` raises.
    """
    undone = sorted(set(recipe.extras) - _EXTRAS_DONE)
    if undone:
        raise RecipeError("recipe_extra", f"{', '.join(undone)} is not done by this scheme")
    plan = make_plan(material, recipe, ranges_of(material.calibration, recipe))
    return Made(model=emit(material.model, plan), decisions=plan.decisions)
