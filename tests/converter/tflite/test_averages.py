"""Average pools of stored integers as convolutions: one rounding, and equal where ONNX Runtime's is one."""

from __future__ import annotations

from typing import Any

import pytest

from converter.quantize import quantize
from converter.recipe import parse
from converter.tflite.parity import prove
from converter.tflite.proof import NodeProof
from tests.converter.quantizing import floats, graph, inputs, material
from tests.converter.tflite.harness import check_float

_RECIPES = ["static_wi8_ai8_pc_minmax_twin", "static_wi8_au8_pc_minmax_twin", "static_wi8_ai8_pc_minmax"]


def _node(line: Any, recipe: str, shape: tuple[int, ...]) -> NodeProof:  # noqa: ANN401 - of `graph`
    weight = floats(1, 8, shape[0], *(3 for _ in shape[1:]))
    made = graph(
        [("Conv", "x w b", "c", {"pads": [1, 1] * len(shape[1:])}), line], {"w": weight, "b": floats(2, 8)},
        outputs={"y": [None] * (len(shape) + 1)}, shape=shape,
    )  # fmt: skip
    check_float(made)
    twin = quantize(material(made), parse(recipe)).model
    proof = prove(twin, [{"x": one[None]} for one in inputs(made, 6)])
    return next(node for node in proof.nodes if node.op_type == line[0])


def _pool(*kernel: int, **more: Any) -> Any:  # noqa: ANN401 - of `graph`
    return ("AveragePool", "c", "y", {"kernel_shape": list(kernel), **more})


_CASES = {
    "2 x 2": (_pool(2, 2, strides=[2, 2]), (3, 8, 8)),
    "2 x 2, step 1": (_pool(2, 2), (3, 8, 8)),
    "3 x 3": (_pool(3, 3, strides=[2, 2]), (3, 8, 8)),
    "4 x 2": (_pool(4, 2, strides=[2, 1]), (3, 8, 8)),
    "padding that counts": (_pool(2, 2, pads=[1, 0, 1, 0], count_include_pad=1), (3, 8, 8)),
    "one axis": (_pool(4, strides=[2]), (3, 16)),
    "global 4 x 4": (("GlobalAveragePool", "c", "y"), (3, 4, 4)),
    "global, one axis": (("GlobalAveragePool", "c", "y"), (3, 16)),
}


_NO_HALVES = {"3 x 3", "global 4 x 4", "global, one axis"}
"""Or halves that ONNX Runtime rounds to even without the zero point, although scales are equal."""


@pytest.mark.parametrize("recipe", _RECIPES)
@pytest.mark.parametrize("case", _CASES)
def test_one_rounding(case: str, recipe: str) -> None:
    node = _node(_CASES[case][0], recipe, _CASES[case][1])
    assert "DEPTHWISE_CONV_2D" in node.written_as
    assert "QUANTIZE" not in node.written_as
    if "twin" not in recipe or case in _NO_HALVES:
        assert (node.verdict, node.worst_steps) == ("equal", 0)
    else:
        assert node.worst_steps <= 1


_LEFT = {
    "padding that does not count": (_pool(3, 3, pads=[1, 1, 1, 1]), (3, 8, 8), "AVERAGE_POOL_2D"),
    "halves in sixths": (_pool(2, 3), (3, 8, 8), "AVERAGE_POOL_2D"),
    "all of 8 x 8": (_pool(8, 8), (3, 8, 8), "AVERAGE_POOL_2D"),
    "more than 64": (_pool(9, 9), (3, 10, 10), "AVERAGE_POOL_2D"),
    "global 8 x 8": (("GlobalAveragePool", "c", "y"), (3, 8, 8), "MEAN"),
}


@pytest.mark.parametrize("case", _LEFT)
def test_left_to_the_pool(case: str) -> None:
    line, shape, kind = _LEFT[case]
    node = _node(line, _RECIPES[0], shape)
    assert kind in node.written_as
    assert node.verdict in {"equal", "one_step"}
