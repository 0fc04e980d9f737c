"""Static quantization in QDQ form: `static_w*_a*_pt|pc_METHOD`.

For: integer weights and activations with ranges known beforehand. The ranges are ours
(`converter.calibrate`); onnxruntime's QDQ quantizer places the operators.
Not for: QOperator format, or repair.
"""

from __future__ import annotations

import numpy as np

from converter.calibrate import Ranges, ranges_of
from converter.errors import RecipeError
from converter.passes.opset import opset_of
from converter.quantize.common import finished, prepared, quant_type, quiet
from converter.quantize.material import Made, Material
from converter.recipe import Recipe
from converter.runtime import ort_calibrate, ort_quantization, ort_registry

_OPSET_PER_CHANNEL = 13
_EXTRAS_DONE = frozenset({"sym", "rr"})


def quantize_static(material: Material, recipe: Recipe) -> Made:
    """The QDQ graph.

    Raises:
        RecipeError: `recipe_method` or `recipe_extra` (not done here), `recipe_opset` (per channel below
            opset 13 is an invalid graph).
        ValueError: the quantizer's own, on graphs that it cannot do (FACTS.md, trap 3).
    """
    model, ranges = material.model, ranges_of(material.calibration, recipe)
    undone = sorted(set(recipe.extras) - _EXTRAS_DONE)
    if undone:
        raise RecipeError("recipe_extra", f"{', '.join(undone)} is not done by this scheme")
    if recipe.per_channel and opset_of(model) < _OPSET_PER_CHANNEL:
        raise RecipeError("recipe_opset", f"per channel needs opset 13, the model has {opset_of(model)}")
    with quiet():
        quantizer = ort_quantization.QDQQuantizer(
            prepared(model),
            recipe.per_channel,
            recipe.reduce_range,
            quant_type(recipe.weight),
            quant_type(recipe.activation),
            _tensor_data(ranges),
            [],
            [],
            sorted({*ort_registry.QLinearOpsRegistry, *ort_registry.QDQRegistry}),
            {"ActivationSymmetric": recipe.symmetric},
        )
    return Made(model=finished(quantizer))


def _tensor_data(ranges: Ranges) -> object:
    """The ranges in the quantizer's own type."""
    data = {
        name: ort_calibrate.TensorData(
            lowest=np.array(span.low, dtype=np.float32), highest=np.array(span.high, dtype=np.float32)
        )
        for name, span in ranges.items()
    }
    return ort_calibrate.TensorsData(ort_calibrate.CalibrationMethod.MinMax, data)
