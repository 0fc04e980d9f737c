"""Relu and Clip by themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.quantize.qparams import QParams, dequantize, quantize
from converter.tflite import TFLiteError
from converter.tflite.ops.bounds import stored_bound
from tests.converter.quantizing import graph, inputs
from tests.converter.tflite.harness import check_float, compare_int8
from tests.converter.tflite.singles import paired, single

_BOUNDS: dict[str, tuple[float | None, float | None, dict[str, int]]] = {
    "relu": (0.0, None, {"RELU": 1}),
    "relu6": (0.0, 6.0, {"RELU6": 1}),
    "one": (-1.0, 1.0, {"RELU_N1_TO_1": 1}),
    "both": (-0.5, 0.75, {"MAXIMUM": 1, "MINIMUM": 1}),
    "below": (-0.25, None, {"MAXIMUM": 1}),
    "above": (None, 0.5, {"MINIMUM": 1}),
    "the wrong way round": (0.5, -0.5, {"MAXIMUM": 1, "MINIMUM": 1}),
}


def _clip(low: float | None, high: float | None, opset: int = 17) -> onnx.ModelProto:
    given_bounds: dict[str, Any] = {
        k: np.float32(v) for k, v in (("low", low), ("high", high)) if v is not None
    }
    if opset < 11:
        names = {"low": "min", "high": "max"}
        settings = {names[k]: float(v) for k, v in given_bounds.items()}
        return single("Clip", (3, 8, 8), settings, opset=opset)
    line = "x " + ("low" if low is not None else "") + (" high" if high is not None else "")
    return graph([("Clip", line, "y")], given_bounds, outputs={"y": [None] * 4}, opset=opset)


@pytest.mark.parametrize("case", _BOUNDS)
def test_float_is_onnx(case: str) -> None:
    low, high, operators = _BOUNDS[case]
    assert check_float(_clip(low, high)).operators == operators


def test_bounds_may_be_attributes() -> None:
    assert check_float(_clip(-0.5, 0.25, opset=10)).operators == {"MAXIMUM": 1, "MINIMUM": 1}


def test_no_bounds_are_no_operator() -> None:
    made = graph(
        [("Clip", "x", "c"), ("Relu", "c", "y")], {}, outputs={"y": [None] * 4}
    )  # fmt: skip
    assert check_float(made).operators == {"RELU": 1}


def test_relu_is_relu() -> None:
    assert check_float(single("Relu", (3, 8, 8))).operators == {"RELU": 1}


@pytest.mark.parametrize("case", _BOUNDS)
@pytest.mark.parametrize(("scale", "zero_point"), [(0.02, -7), (0.0041, -128)])
def test_int8_is_within_a_step(case: str, scale: float, zero_point: int) -> None:
    """Whether the bounds lie within what the type holds, or beyond it."""
    low, high, _ = _BOUNDS[case]
    made = _clip(low, high)
    steps = compare_int8(paired(made, {"x": (0.03, 5), "y": (scale, zero_point)}), inputs(made) * 2)
    assert steps.integer
    assert steps.worst <= 1


def test_a_bound_that_the_type_sets_is_no_operator() -> None:
    made = _clip(0.0, 0.5)
    steps = compare_int8(paired(made, {"x": (0.03, 5), "y": (0.5 / 255, -128)}), inputs(made))
    assert steps.written.operators == {"QUANTIZE": 1}
    assert steps.worst <= 1


@given(
    bound=st.floats(-4, 4, width=32), x=st.floats(-4, 4, width=32), scale=st.floats(2**-10, 0.125, width=32),
    zero=st.integers(-128, 127),
)  # fmt: skip
def test_bounding_stored_integers_is_storing_bounded_reals(
    bound: float, x: float, scale: float, zero: int
) -> None:
    params = QParams(scale=np.array(scale, np.float32), zero_point=np.array(zero, np.int8), dtype="i8")
    real = np.array([x], dtype=np.float32)
    meant = quantize(np.minimum(real, np.float32(bound)), params)
    assert min(int(quantize(real, params)[0]), stored_bound(bound, params)) == int(meant[0])
    assert abs(float(dequantize(meant, params)[0])) < 256 * scale


def test_integers_are_refused() -> None:
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.INT32, [1, 4])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [1, 4])
    node = onnx.helper.make_node("Relu", ["x"], ["y"], name="n")
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [x], [y]), opset_imports=[onnx.helper.make_opsetid("", 17)]
    )
    with pytest.raises(TFLiteError, match="Relu n") as caught:
        check_float(model)
    assert caught.value.code == "tflite_type"
