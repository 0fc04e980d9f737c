"""Which of a target's recipes suit a model.

For: `recipes_for()`: leaving out what cannot help (4-bit weights where there are no large matrices).
Not for: running them, or what was asked for by name (`converter.inputs.only`).
"""

from __future__ import annotations

from msgspec import Struct

from converter.recipe import Recipe
from converter.targets.loader import Target

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
