"""Convolution as CONV_2D and DEPTHWISE_CONV_2D."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

from tests.converter.quantizing import floats, graph
from tests.converter.tflite.harness import check_float, steps_of

_CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((3, 8, 8), (4, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
    "valid": ((3, 8, 8), (4, 3, 3, 3), {}),
    "stride 2, SAME": ((3, 9, 9), (4, 3, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "stride 2, explicit": ((3, 8, 8), (4, 3, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "uneven": ((2, 7, 9), (4, 2, 3, 5), {"strides": [1, 2], "pads": [0, 3, 2, 1]}),
    "auto_pad lower": ((3, 8, 8), (4, 3, 2, 2), {"auto_pad": "SAME_LOWER"}),
    "auto_pad upper": ((3, 8, 8), (4, 3, 2, 2), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "dilated": ((3, 9, 9), (4, 3, 3, 3), {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
    "depthwise": ((4, 8, 8), (4, 1, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
    "depthwise times 2": ((4, 8, 8), (8, 1, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
    "grouped": ((4, 8, 8), (6, 2, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    "1x1": ((8, 5, 5), (4, 8, 1, 1), {}),
    "one axis": ((3, 16), (4, 3, 5), {"pads": [2, 2], "strides": [2]}),
    "one axis depthwise": ((4, 16), (4, 1, 3), {"group": 4}),
}  # fmt: skip


def _model(case: str, *, relu: bool = False, bias: bool = True) -> onnx.ModelProto:
    shape, weight, attributes = _CASES[case]
    constants = {"w": floats(1, *weight)} | ({"b": floats(2, weight[0])} if bias else {})
    line = ("Conv", "x w b" if bias else "x w", "c" if relu else "y", attributes)
    lines = [line, ("Relu", "c", "y")] if relu else [line]
    return graph(lines, constants, outputs={"y": [None] * (len(shape) + 1)}, shape=shape)


@pytest.mark.parametrize("case", _CASES)
@pytest.mark.parametrize("bias", [True, False])
def test_float_is_onnx(case: str, *, bias: bool) -> None:
    written = check_float(_model(case, bias=bias))
    assert "TRANSPOSE" not in written.operators


@pytest.mark.parametrize("case", _CASES)
@pytest.mark.parametrize(
    "recipe", ["static_wi8_ai8_pc_minmax", "static_wi8_au8_pc_minmax", "static_wi8_ai8_pt_minmax"]
)
def test_int8_is_equal(case: str, recipe: str) -> None:
    steps = steps_of(_model(case), recipe)
    assert steps.integer
    assert (steps.worst, steps.equal) == (0, 1.0)


def test_a_relu_is_fused() -> None:
    assert check_float(_model("plain", relu=True)).operators == {"CONV_2D": 1}
    steps = steps_of(_model("plain", relu=True))
    assert steps.written.operators == {"CONV_2D": 1}
    assert steps.worst == 0
