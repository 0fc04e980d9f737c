"""Mixed precision: `mixed_wi8_au8_pc_auto`, integers with the float islands that the SLA needs.

For: the static scheme with islands found by search; the recipe that comes out says how many (`..._islands3`).
Islands are of 16 bits where the target lists kernels for them (QNN), else in float.
Not for: finding them (`converter.repair.islands`).
"""

from __future__ import annotations

from msgspec import structs

from converter.errors import RecipeError
from converter.quantize.material import Made, Material
from converter.quantize.repaired import repair
from converter.quantize.static_int8 import made_of
from converter.recipe import EXTRAS, Recipe

_EXTRAS_DONE = frozenset({"sym", "rr", "qop", "cle", "bc", "islands", "twin"})


def quantize_mixed(material: Material, recipe: Recipe) -> Made:
    """The QDQ graph with the fewest islands found that meet the goal, or the best found, and what is missing.

    Raises:
        RecipeError: `recipe_extra`, `recipe_goal`, `recipe_islands` (none is needed: then the static recipe
            is this candidate, and need not be measured twice), or what `make_plan` raises.
        Exception: what the runtime raises on this graph.
    """
    undone = sorted({extra.rstrip("0123456789") for extra in recipe.extras} - _EXTRAS_DONE)
    if undone:
        raise RecipeError("recipe_extra", f"{', '.join(undone)} is not done by this scheme")
    repaired = repair(material, recipe)
    if not repaired.islands:
        raise RecipeError("recipe_islands", repaired.searched)
    return structs.replace(made_of(repaired, recipe), recipe=with_islands(recipe, len(repaired.islands)))


def with_islands(recipe: Recipe, n: int) -> Recipe:
    """The recipe with `islandsN` among its extras, in the grammar's order."""
    extras = [extra for extra in recipe.extras if not extra.startswith("islands")]
    extras.append(f"islands{n}")
    extras.sort(key=lambda extra: EXTRAS.index(extra.rstrip("0123456789")))
    return structs.replace(recipe, extras=tuple(extras))
