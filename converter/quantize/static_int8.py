"""Static quantization: `static_w*_a*_pt|pc_METHOD`, in QDQ or (`qop`) QOperator form.

For: integer weights and activations with ranges known beforehand: the repairs that the recipe names
(`converter.quantize.repaired`), a plan (`converter.quantize.plan`), its graph (`converter.quantize.emit`).
Not for: what a repair does.
"""

from __future__ import annotations

from collections.abc import Sequence

from converter.errors import RecipeError
from converter.quantize.emit import emit
from converter.quantize.material import Made, Material
from converter.quantize.plan import Plan
from converter.quantize.qoperator import to_qoperator
from converter.quantize.repaired import Repaired, final_plan, repair
from converter.quantize.saturation import Saturating, saturating
from converter.quantize.twin import check_twin
from converter.recipe import Recipe

_LAYERS_NAMED_MAX = 5
_AGAINST_NAMED_MAX = 3
_EXTRAS_DONE = frozenset({"sym", "rr", "qop", "cle", "bc", "twin"})


def quantize_static(material: Material, recipe: Recipe) -> Made:
    """The quantized graph, repaired as the recipe's method and extras say.

    Raises:
        RecipeError: `recipe_method` or `recipe_extra` (not done here), or what `make_plan` raises.
    """
    undone = sorted(set(recipe.extras) - _EXTRAS_DONE)
    if undone:
        raise RecipeError("recipe_extra", f"{', '.join(undone)} is not done by this scheme")
    return made_of(repair(material, recipe), recipe)


def made_of(repaired: Repaired, recipe: Recipe) -> Made:
    """The graph of what the repairs came to.

    Raises:
        RecipeError: `no_twin`: a twin was asked for, and something in the graph is against it.
    """
    plan, cut, said = _guarded(repaired, recipe)
    model = emit(repaired.material.model, plan)
    against = check_twin(model) if recipe.twin else ()
    if against:
        raise RecipeError("no_twin", "; ".join(against[:_AGAINST_NAMED_MAX]))
    if "qop" in recipe.extras:
        model = to_qoperator(model)
    return Made(model=model, decisions=(*repaired.decisions, *said), saturating=cut)


def _guarded(repaired: Repaired, recipe: Recipe) -> tuple[Plan, tuple[str, ...] | None, tuple[str, ...]]:
    """The plan with 7-bit weights where 16-bit sums would saturate, what still does, and the decision.

    Emulated where the recipe asks for a reduced range, or the target's sums saturate.
    """
    material, full = repaired.material, repaired.plan
    if not (recipe.reduce_range or material.rules.reduce_range.value):
        return full, None, ()
    found = saturating(material.model, full, material.samples)
    if not recipe.reduce_range:
        return full, tuple(one.words for one in found), ()
    if not found:
        return full, (), ("8-bit weights everywhere: no 16-bit sum saturates on the calibration samples",)
    reduced = {one.node: one.channels for one in found}
    islands = frozenset(repaired.islands)
    plan = final_plan(material, recipe, repaired.ranges, islands, reduced)
    left = saturating(material.model, plan, material.samples)
    return plan, tuple(one.words for one in left), (_reduced_words(found, full, recipe),)


def _reduced_words(found: Sequence[Saturating], full: Plan, recipe: Recipe) -> str:
    """Which layers, the worst ones by name."""
    worst = sorted(found, key=lambda one: -one.saturated / one.sums)[:_LAYERS_NAMED_MAX]
    channels = sum(len(one.channels) for one in found)
    what = f"{channels} output channels" if recipe.per_channel else "all channels"
    return (
        f"7-bit weights in {what} of {len(found)} of {len(full.weights)} layers, where 16-bit sums saturate "
        f"or nearly do; the worst: {'; '.join(one.words for one in worst)}"
    )
