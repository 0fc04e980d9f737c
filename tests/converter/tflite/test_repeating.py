"""Tile and Expand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from converter.tflite import TFLiteError, write
from tests.converter.quantizing import floats, graph, inputs
from tests.converter.tflite.harness import check_float, compare_int8, steps_of
from tests.converter.tflite.singles import paired

_CASES: dict[str, tuple[str, list[int], tuple[int, ...]]] = {
    "tiled": ("Tile", [1, 2, 1, 3], (3, 4, 5)),
    "expanded": ("Expand", [1, 3, 4, 5], (3, 1, 5)),
    "expanded by the operand": ("Expand", [4, 1], (3, 1, 5)),
    "expanded to a higher rank": ("Expand", [2, 1, 3, 4, 5], (3, 1, 5)),
}


def _model(case: str, *, conv: bool) -> onnx.ModelProto:
    kind, numbers, shape = _CASES[case]
    constants: dict[str, Any] = {"n": np.array(numbers, np.int64)}
    lines: list[Any] = [(kind, f"{'c' if conv else 'x'} n", "y")]
    if conv:
        constants["w"] = floats(1, 3, 3, 1, 1)
        lines = [("Conv", "x w", "c"), *lines]
    return graph(lines, constants, outputs={"y": [None] * max(4, len(numbers))}, shape=shape)


@pytest.mark.parametrize("case", _CASES)
@pytest.mark.parametrize("conv", [True, False])
def test_float_is_onnx(case: str, *, conv: bool) -> None:
    assert check_float(_model(case, conv=conv)).operators["TILE"] == 1


@pytest.mark.parametrize("case", _CASES)
def test_int8_is_equal(case: str) -> None:
    made = _model(case, conv=False)
    steps = compare_int8(paired(made, {"x": (0.03, 5), "y": (0.03, 5)}), inputs(made))
    assert steps.integer
    assert (steps.worst, steps.equal) == (0, 1.0)
    other = compare_int8(paired(made, {"x": (0.03, 5), "y": (0.02, -3)}), inputs(made))
    assert other.written.operators["QUANTIZE"] == 1
    assert other.worst <= 1


def test_a_u8_graph_is_equal() -> None:
    steps = steps_of(_model("expanded", conv=True), "static_wi8_au8_pc_minmax")
    assert steps.integer
    assert (steps.worst, steps.equal) == (0, 1.0)


def test_once_is_nothing() -> None:
    constants = {"n": np.array([1, 1, 1, 1])}
    made = graph([("Tile", "x n", "t"), ("Relu", "t", "y")], constants, outputs={"y": [None] * 4})
    assert check_float(made).operators == {"RELU": 1}


def test_computed_times_are_named() -> None:
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 2])
    n = onnx.helper.make_tensor_value_info("n", onnx.TensorProto.INT64, [2])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    node = onnx.helper.make_node("Tile", ["x", "n"], ["y"], name="n_y")
    made = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [x, n], [y]), opset_imports=[onnx.helper.make_opsetid("", 17)]
    )
    with pytest.raises(TFLiteError, match="Tile n_y") as caught:
        write(made)
    assert caught.value.code == "tflite_shape"
