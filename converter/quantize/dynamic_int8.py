"""Dynamic quantization: `dynamic_wi8_af32`.

For: integer weights, activations quantized per tensor while the model runs; needs no calibration.
Not for: weights alone (`weight_*`).
"""

from __future__ import annotations

from converter.errors import RecipeError
from converter.quantize.common import finished, prepared, quant_type, quiet
from converter.quantize.material import Made, Material
from converter.recipe import Recipe
from converter.runtime import ort_onnx_quantizer, ort_quantization, ort_registry


def quantize_dynamic(material: Material, recipe: Recipe) -> Made:
    """The graph with integer operators.

    Raises:
        RecipeError: `recipe_extra`: an extra that this scheme does not do.
        Exception: the quantizer's own, on graphs that it cannot do.
    """
    undone = sorted(set(recipe.extras) - {"rr"})
    if undone:
        raise RecipeError("recipe_extra", f"{', '.join(undone)} is not done by this scheme")
    with quiet():
        quantizer = ort_onnx_quantizer.ONNXQuantizer(
            prepared(material.model),
            recipe.per_channel,
            recipe.reduce_range,
            ort_onnx_quantizer.QuantizationMode.IntegerOps,
            False,
            quant_type(recipe.weight),
            ort_quantization.QuantType.QUInt8,
            None,
            [],
            [],
            sorted(ort_registry.IntegerOpsRegistry),
            {"MatMulConstBOnly": True},
        )
    return Made(model=finished(quantizer))
