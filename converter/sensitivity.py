"""Which layers hurt, and why: the figures of the report's chart.

For: one call that measures every tensor and weight of a static recipe on calibration samples, label-free.
Not for: the searches, which rank by what they need (`converter.repair`).
"""

from __future__ import annotations

import time

from msgspec import Struct

from converter.calibrate import ranges_of
from converter.limits import CHART_ISLANDS_MAX
from converter.quantize.material import Material
from converter.quantize.plan import view_of
from converter.quantize.repaired import board_of, plan_of
from converter.quantize.simulate import assignment_of
from converter.recipe import Recipe, format_recipe
from converter.repair.sensitivity import Sensitivity, sensitivities
from converter.repair.switchboard import Assignment


class Chart(Struct, frozen=True, kw_only=True):
    """What was measured.

    Attributes:
        recipe: whose quantization it is.
        tensors: activations and weights, the one that hurts most first.
        n_samples: of the calibration set, that each was measured on.
        evaluations: of the model, on these samples.
        seconds: that all took on this host.
    """

    recipe: str
    tensors: tuple[Sensitivity, ...]
    n_samples: int
    evaluations: int
    seconds: float


def measure_sensitivity(material: Material, recipe: Recipe) -> Chart:
    """Each tensor and weight of the recipe quantized alone; for the worst, what an island there gains.

    Args:
        material: of the conversion; not changed.
        recipe: static, of a method that needs no search.

    Raises:
        RecipeError: what `make_plan` or the calibration raises for this recipe.
        Exception: what the runtime raises on this graph.
    """
    begun = time.monotonic()
    ranges = ranges_of(material.calibration, recipe)
    view = view_of(material.model, recipe)
    full = assignment_of(material.model, plan_of(material, recipe, ranges))

    def islands(name: str) -> Assignment:
        plan = plan_of(material, recipe, ranges, frozenset({name}), view)
        return assignment_of(material.model, plan)

    board = board_of(material, full)
    found = sensitivities(board, full, material.signature.answer, islands, CHART_ISLANDS_MAX)
    return Chart(
        recipe=format_recipe(recipe), tensors=tuple(found), n_samples=board.n,
        evaluations=board.evaluations, seconds=time.monotonic() - begun,
    )  # fmt: skip
