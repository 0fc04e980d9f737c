"""Static quantization in QDQ form: `static_w*_a*_pt|pc_METHOD`.

For: integer weights and activations with ranges known beforehand: the repairs that the recipe names
(`converter.quantize.repaired`), a plan (`converter.quantize.plan`), its graph (`converter.quantize.emit`).
Not for: QOperator format, or what a repair does.
"""

from __future__ import annotations

from converter.errors import RecipeError
from converter.quantize.emit import emit
from converter.quantize.guard import guarded
from converter.quantize.material import Made, Material
from converter.quantize.repaired import repair
from converter.recipe import Recipe

_EXTRAS_DONE = frozenset({"sym", "rr", "cle", "bc"})


def quantize_static(material: Material, recipe: Recipe) -> Made:
    """The QDQ graph, repaired as the recipe's method and extras say.

    Raises:
        RecipeError: `recipe_method` or `recipe_extra` (not done here), or what `make_plan` raises.
    """
    undone = sorted(set(recipe.extras) - _EXTRAS_DONE)
    if undone:
        raise RecipeError("recipe_extra", f"{', '.join(undone)} is not done by this scheme")
    repaired = repair(material, recipe)
    safe = guarded(repaired, recipe)
    return Made(
        model=emit(repaired.material.model, safe.plan),
        decisions=(*repaired.decisions, *safe.decisions),
        saturating=safe.saturating,
    )
