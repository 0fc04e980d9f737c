"""A model that came with Q/DQ pairs, taken as it is: `given_wi8_au8_pc`.

For: exports of quantization-aware training, whose scales were learned: nothing of them is moved, cleaned or
folded. What the pairs hold is said in words.
Not for: judging them by the target's rules (`converter.targets.lint`), or the float twin that is the baseline
(`converter.quantized_input.dequantized`).
"""

from __future__ import annotations

import onnx

from converter.errors import RecipeError
from converter.quantize.material import Made, Material
from converter.quantized_input import QuantizedInput, describe
from converter.recipe import Recipe

_TYPES = {"int8": "i8", "uint8": "u8", "int16": "i16", "uint16": "u16", "int4": "i4", "uint4": "u4"}


def quantize_given(material: Material, _recipe: Recipe) -> Made:
    """The model as it was given.

    Raises:
        RecipeError: `given_none`: it came without Q/DQ pairs.
    """
    found = None if material.given is None else describe(material.given)
    if material.given is None or found is None:
        raise RecipeError("given_none", "the model came without Q/DQ pairs to take as they are")
    return Made(model=material.given, decisions=(_words(found),))


def given_recipe(model: onnx.ModelProto) -> Recipe | None:
    """The recipe that names what the pairs hold; None where a type has no name in the grammar."""
    found = describe(model)
    if found is None or not found.activation_types or not found.weight_types:
        return None
    weight, activation = _TYPES.get(found.weight_types[0]), _TYPES.get(found.activation_types[0])
    if weight is None or activation is None:
        return None
    extras = ("sym",) if found.activations_symmetric else ()
    return Recipe(
        kind="given", weight=weight, activation=activation, granularity="pc" if found.weight_axes else "pt",
        extras=extras,
    )  # fmt: skip


def _words(found: QuantizedInput) -> str:
    weights, activations = "/".join(found.weight_types), "/".join(found.activation_types)
    scales = "a scale per channel" if found.weight_axes else "a scale per tensor"
    left = ", ".join(f"{n} {name}" for name, n in found.float_multiplies.items())
    said = (
        f"taken as given: {found.quantize} QuantizeLinear and {found.dequantize} DequantizeLinear nodes, "
        f"weights {weights} with {scales}, activations {activations}"
    )
    return said + (f"; left in float: {left}" if left else "")
