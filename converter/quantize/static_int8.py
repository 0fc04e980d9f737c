"""Static quantization: `static_w*_a*_pt|pc_METHOD`, in QDQ or (`qop`) QOperator form.

For: integer weights and activations with ranges known beforehand: ranges (`converter.calibrate`), a plan
(`converter.quantize.plan`), its graph (`converter.quantize.emit`).
Not for: repair (`converter.repair`), which changes material before the plan is made, and the plan after.
"""

from __future__ import annotations

from collections.abc import Sequence

from converter.calibrate import Ranges, ranges_of
from converter.errors import RecipeError
from converter.quantize.emit import emit
from converter.quantize.material import Made, Material
from converter.quantize.plan import Plan, make_plan
from converter.quantize.qoperator import to_qoperator
from converter.quantize.saturation import Saturating, saturating
from converter.recipe import Recipe

_LAYERS_NAMED_MAX = 5
_EXTRAS_DONE = frozenset({"sym", "rr", "qop"})


def quantize_static(material: Material, recipe: Recipe) -> Made:
    """The QDQ graph.

    Raises:
        RecipeError: `recipe_method` or `recipe_extra` (not done here), or what `make_plan` raises.
    """
    undone = sorted(set(recipe.extras) - _EXTRAS_DONE)
    if undone:
        raise RecipeError("recipe_extra", f"{', '.join(undone)} is not done by this scheme")
    ranges = ranges_of(material.calibration, recipe)
    full = make_plan(material, recipe, ranges, reduced={})
    plan, cut, said = _guarded(material, recipe, ranges, full)
    model = emit(material.model, plan)
    if "qop" in recipe.extras:
        model = to_qoperator(model)
    return Made(model=model, decisions=(*plan.decisions, *said), saturating=cut)


def _guarded(
    material: Material, recipe: Recipe, ranges: Ranges, full: Plan
) -> tuple[Plan, tuple[str, ...] | None, tuple[str, ...]]:
    """The plan with 7-bit weights where 16-bit sums would saturate, what still does, and the decision.

    Emulated where the recipe asks for a reduced range, or the target's sums saturate.
    """
    if not (recipe.reduce_range or material.rules.reduce_range.value):
        return full, None, ()
    found = saturating(material.model, full, material.samples)
    if not recipe.reduce_range:
        return full, tuple(one.words for one in found), ()
    if not found:
        return full, (), ("8-bit weights everywhere: no 16-bit sum saturates on the calibration samples",)
    reduced = {one.node: one.channels for one in found}
    plan = make_plan(material, recipe, ranges, reduced=reduced)
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
