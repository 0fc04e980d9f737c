"""Seven bits where sums would saturate, and only there.

For: `guarded()`: the plan that a scheme emits, after the emulation of 16-bit sums (x86 without VNNI) said
which layers need 7-bit weights, and which saturate all the same.
Not for: the emulation (`converter.quantize.saturation`).
"""

from __future__ import annotations

from msgspec import Struct

from converter.quantize.plan import Plan, make_plan
from converter.quantize.repaired import Repaired
from converter.quantize.saturation import saturating
from converter.recipe import Recipe


class Guarded(Struct, frozen=True, kw_only=True, eq=False):
    """What the emulation left.

    Attributes:
        plan: to emit.
        saturating: layers whose sums still saturate, in words; None where that was not emulated.
        decisions: in words.
    """

    plan: Plan
    saturating: tuple[str, ...] | None = None
    decisions: tuple[str, ...] = ()


def guarded(repaired: Repaired, recipe: Recipe) -> Guarded:
    """The plan with 7-bit weights where 16-bit sums would saturate.

    Emulated where the recipe asks for a reduced range, or the target's sums saturate.
    """
    material = repaired.material
    if not (recipe.reduce_range or material.rules.reduce_range.value):
        return Guarded(plan=repaired.plan)
    full = _planned(repaired, recipe, frozenset())
    found = saturating(material.model, full, material.samples)
    if not recipe.reduce_range:
        return Guarded(plan=full, saturating=tuple(one.words for one in found))
    if not found:
        said = "8-bit weights everywhere: no 16-bit sum saturates on the calibration samples"
        return Guarded(plan=full, saturating=(), decisions=(said,))
    plan = _planned(repaired, recipe, frozenset(one.node for one in found))
    said = f"7-bit weights in {len(found)} of {len(full.weights)} layers, where 16-bit sums saturate: "
    return Guarded(
        plan=plan,
        saturating=tuple(one.words for one in saturating(material.model, plan, material.samples)),
        decisions=(said + "; ".join(one.words for one in found),),
    )


def _planned(repaired: Repaired, recipe: Recipe, reduced: frozenset[str]) -> Plan:
    islands = frozenset(repaired.islands)
    return make_plan(repaired.material, recipe, repaired.ranges, islands=islands, reduced=reduced)
