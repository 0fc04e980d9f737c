"""Static quantization in QDQ form: `static_w*_a*_pt|pc_METHOD`.

For: integer weights and activations with ranges known beforehand: the repairs that the recipe names
(`converter.quantize.repaired`), a plan (`converter.quantize.plan`), its graph (`converter.quantize.emit`).
Not for: QOperator format, or what a repair does.
"""

from __future__ import annotations

from converter.calibrate import Ranges, ranges_of
from converter.calibrate import ranges_of
import numpy as np
import onnx

from converter.calibrate import Ranges
from converter.errors import RecipeError
from converter.quantize.emit import emit
from converter.quantize.material import Made, Material
from converter.quantize.plan import Plan, make_plan
from converter.quantize.saturation import saturating
from converter.errors import RecipeError
from converter.quantize.emit import emit
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
    ranges = ranges_of(material.calibration, recipe)
    full = make_plan(material, recipe, ranges, reduced=frozenset())
    plan, cut, said = _guarded(material, recipe, ranges, full)
    return Made(model=emit(material.model, plan), decisions=(*plan.decisions, *said), saturating=cut)


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
    reduced = frozenset(one.node for one in found)
    plan = make_plan(material, recipe, ranges, reduced=reduced)
    left = saturating(material.model, plan, material.samples)
    said = f"7-bit weights in {len(reduced)} of {len(full.weights)} layers, where 16-bit sums saturate: "
    return plan, tuple(one.words for one in left), (said + "; ".join(one.words for one in found),)
    plan = make_plan(material, recipe, ranges_of(material.calibration, recipe))
    return Made(model=emit(material.model, plan), decisions=plan.decisions)
    require_done(material, recipe)
    repaired = repair(material, recipe, emitter(recipe))
    model = emit(repaired.material, recipe, repaired.ranges, frozenset(repaired.islands))
    return Made(model=model, decisions=repaired.decisions)


def require_done(material: Material, recipe: Recipe) -> None:
    """Refuses what this scheme does not do.

    Raises:
        RecipeError: `recipe_extra`, `recipe_opset`.
    """
    undone = sorted({extra.rstrip("0123456789") for extra in recipe.extras} - _EXTRAS_DONE)
    if undone or (recipe.kind == "static" and any(extra.startswith("islands") for extra in recipe.extras)):
        raise RecipeError("recipe_extra", f"{', '.join(undone) or 'islands'} is not done by this scheme")
    if recipe.per_channel and opset_of(material.model) < _OPSET_PER_CHANNEL:
        raise RecipeError(
            "recipe_opset", f"per channel needs opset 13, the model has {opset_of(material.model)}"
        )


def emitter(recipe: Recipe) -> Emitter:
    """`emit()` for one recipe, as the repairs call it."""

    def emitting(material: Material, ranges: Ranges, islands: frozenset[str]) -> onnx.ModelProto:
        return emit(material, recipe, ranges, islands)

    return emitting


def emit(material: Material, recipe: Recipe, ranges: Ranges, islands: frozenset[str]) -> onnx.ModelProto:
    """The QDQ graph with these ranges; islands, their producers and their readers stay in float."""
    left: list[str] = []
    if islands:
        full = read_assignment(emit(material, recipe, ranges, frozenset()), material.model)
        places = island_nodes(material.model, full.activations, islands)
        left = [material.model.graph.node[place].name for place in places]
    with quiet():
        quantizer = ort_quantization.QDQQuantizer(
            prepared(material.model),
            recipe.per_channel,
            recipe.reduce_range,
            quant_type(recipe.weight),
            quant_type(recipe.activation),
            _tensor_data(ranges),
            [],
            left,
            sorted({*ort_registry.QLinearOpsRegistry, *ort_registry.QDQRegistry}),
            {"ActivationSymmetric": recipe.symmetric},
        )
    return finished(quantizer)


def _tensor_data(ranges: Ranges) -> object:
    """The ranges in the quantizer's own type."""
    data = {
        name: ort_calibrate.TensorData(
            lowest=np.array(span.low, dtype=np.float32), highest=np.array(span.high, dtype=np.float32)
        )
        for name, span in ranges.items()
    }
    return ort_calibrate.TensorsData(ort_calibrate.CalibrationMethod.MinMax, data)
    repaired = repair(material, recipe)
    return Made(model=emit(repaired.material.model, repaired.plan), decisions=repaired.decisions)
