"""SpaceToDepth and DepthToSpace."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

from tests.converter.quantizing import floats, graph, inputs
from tests.converter.tflite.harness import check_float, compare_int8, steps_of
from tests.converter.tflite.singles import paired

_CASES: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {
    "to depth": ("SpaceToDepth", {"blocksize": 2}, {"SPACE_TO_DEPTH": 1}),
    "to space": ("DepthToSpace", {"blocksize": 2}, {"DEPTH_TO_SPACE": 1}),
    "to space, depth first": (
        "DepthToSpace", {"blocksize": 2, "mode": "CRD"}, {"DEPTH_TO_SPACE": 1, "GATHER": 1},
    ),
    "to space by 4": ("DepthToSpace", {"blocksize": 4, "mode": "CRD"}, {"DEPTH_TO_SPACE": 1}),
}  # fmt: skip


def _model(case: str) -> onnx.ModelProto:
    kind, attributes, _ = _CASES[case]
    lines = [("Conv", "x w", "c"), (kind, "c", "y", attributes)]
    constants = {"w": floats(1, 16 if "4" in case else 8, 3, 1, 1)}
    return graph(lines, constants, outputs={"y": [None] * 4}, shape=(3, 4, 6))


@pytest.mark.parametrize("case", _CASES)
def test_float_is_onnx(case: str) -> None:
    """Sixteen channels by 4 are one, so their order is nothing to pick."""
    assert check_float(_model(case)).operators == {"CONV_2D": 1, **_CASES[case][2]}


@pytest.mark.parametrize("case", _CASES)
@pytest.mark.parametrize(
    "recipe", ["static_wi8_ai8_pc_minmax", "static_wi8_au8_pc_minmax", "static_wi8_ai8_pt_minmax"]
)
def test_int8_is_equal(case: str, recipe: str) -> None:
    steps = steps_of(_model(case), recipe)
    assert steps.integer
    assert (steps.worst, steps.equal) == (0, 1.0)


@pytest.mark.parametrize("kind", ["SpaceToDepth", "DepthToSpace"])
def test_an_unequal_pair_is_requantized(kind: str) -> None:
    made = graph([(kind, "x", "y", {"blocksize": 2})], {}, outputs={"y": [None] * 4}, shape=(4, 4, 6))
    steps = compare_int8(paired(made, {"x": (0.03, 5), "y": (0.02, -3)}), inputs(made))
    assert steps.integer
    assert steps.written.operators["QUANTIZE"] == 1
    assert steps.worst <= 1
