"""Which of a target's recipes suit a model.

For: `recipes_for()`: leaving out what cannot help (4-bit weights where there are no large matrices);
`tflite_attempts_for()`: what is tried as TFLite, with the runtimes that each is for.
Not for: running them, or what was asked for by name (`converter.inputs.only`).
"""

from __future__ import annotations

from msgspec import Struct

from converter.recipe import Recipe, parse
from converter.targets.loader import Target

LITERT = "ai-edge-litert"
"""As variants name the runtime."""

_MATRIX_BYTES_MIN = 1_000_000
_MATRIX_SHARE_MIN = 0.5
"""4 bits save size: worth a candidate where matrices and tables are most of a model of some size."""


class ModelFacts(Struct, frozen=True, kw_only=True):
    """What a choice of recipes looks at.

    Attributes:
        weight_bytes: of all float32 constants.
        matrix_bytes: of those, constant matrices of products and tables of lookups.
    """

    weight_bytes: int
    matrix_bytes: int

    @property
    def matrix_heavy(self) -> bool:
        """Whether 4-bit weights are worth a candidate."""
        return (
            self.matrix_bytes >= _MATRIX_BYTES_MIN
            and self.matrix_bytes >= _MATRIX_SHARE_MIN * self.weight_bytes
        )


def recipes_for(target: Target, facts: ModelFacts) -> tuple[Recipe, ...]:
    """The target's recipes for such a model, in the target's order of preference."""
    return tuple(one for one in target.recipes if one.kind != "weight" or facts.matrix_heavy)


def tflite_attempts_for(target: Target) -> tuple[tuple[str, Recipe], ...]:
    """Runtime and recipe of each row that joins where TFLite files are written, in the order of preference.

    A twin has a row for both runtimes on a CPU; where the target takes TFLite files only, one for LiteRT.
    Empty where a target has no TFLite files.
    """
    if target.tflite is None:
        return ()
    both = target.rules.format.value != "TFLite"
    recipes = tuple(parse(name) for name in target.tflite.recipes.value)
    return tuple(
        (runtime, recipe)
        for recipe in recipes
        for runtime in (("onnxruntime", LITERT) if recipe.twin and both else (LITERT,))
    )
