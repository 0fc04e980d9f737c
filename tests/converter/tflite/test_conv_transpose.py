"""Transposed convolution as TRANSPOSE_CONV."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from converter.tflite import Options, TFLiteError, write
from converter.tflite.options import Weights
from tests.converter.quantizing import floats, graph, inputs, run
from tests.converter.tflite.harness import Session, check_float, compare_int8, quantized, steps_of

# Shape of x, of the weight, attributes, whether SAME or VALID says it without a SLICE.
_CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], bool]] = {
    "2x2, stride 2": ((3, 5, 5), (3, 4, 2, 2), {"strides": [2, 2]}, True),
    "3x3, valid": ((3, 5, 6), (3, 4, 3, 3), {"strides": [2, 2]}, True),
    "4x4, cropped by 1, SAME": ((3, 5, 5), (3, 4, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}, True),
    "3x3, cropped by 1": ((3, 5, 5), (3, 4, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}, True),
    "output_padding": (
        (3, 5, 5), (3, 4, 3, 3),
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}, False,
    ),
    "stride 1, SAME": ((3, 6, 6), (3, 4, 3, 3), {"pads": [1, 1, 1, 1]}, True),
    "more padding than taps": (
        (2, 4, 4), (2, 3, 2, 2), {"strides": [3, 3], "output_padding": [2, 1]}, True,
    ),
    "gaps between the taps": ((2, 4, 4), (2, 3, 1, 1), {"strides": [2, 2]}, True),
    "uneven": ((2, 4, 6), (2, 3, 3, 5), {"strides": [1, 3], "pads": [0, 3, 2, 1]}, False),
    "dilated": ((2, 5, 5), (2, 3, 3, 3), {"dilations": [2, 2], "pads": [1, 1, 1, 1]}, False),
    "one axis": ((3, 7), (3, 4, 4), {"strides": [2], "pads": [1, 1]}, True),
    "one axis, cropped": ((3, 7), (3, 4, 3), {"strides": [2], "pads": [1, 0]}, False),
}  # fmt: skip
# ONNX's reference evaluator is wrong about these; ONNX Runtime is the yardstick.
_RUNTIME_CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "grouped": ((4, 5, 5), (4, 3, 3, 3), {"group": 2, "strides": [2, 2]}),
    "depthwise": ((4, 5, 5), (4, 1, 4, 4), {"group": 4, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "auto_pad upper": ((3, 5, 5), (3, 4, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "auto_pad lower": ((3, 5, 5), (3, 4, 3, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "auto_pad valid": ((3, 5, 5), (3, 4, 3, 3), {"auto_pad": "VALID", "strides": [2, 2]}),
    "output_shape": ((3, 5, 5), (3, 4, 3, 3), {"output_shape": [10, 9], "strides": [2, 2]}),
}  # fmt: skip
RECIPES = ["static_wi8_ai8_pc_minmax", "static_wi8_au8_pc_minmax", "static_wi8_ai8_pt_minmax"]


def _model(case: str, *, bias: bool = True, relu: bool = False) -> onnx.ModelProto:
    shape, weight, attributes = {**{k: v[:3] for k, v in _CASES.items()}, **_RUNTIME_CASES}[case]
    channels = weight[1] * attributes.get("group", 1)
    constants = {"w": floats(1, *weight)} | ({"b": floats(2, channels)} if bias else {})
    line = ("ConvTranspose", "x w b" if bias else "x w", "c" if relu else "y", attributes)
    lines = [line, ("Relu", "c", "y")] if relu else [line]
    return graph(lines, constants, outputs={"y": [None] * (len(shape) + 1)}, shape=shape)


@pytest.mark.parametrize("case", _CASES)
@pytest.mark.parametrize("bias", [True, False])
def test_float_is_onnx(case: str, *, bias: bool) -> None:
    written = check_float(_model(case, bias=bias))
    assert ("SLICE" not in written.operators) == _CASES[case][3]
    assert "TRANSPOSE" not in written.operators


@pytest.mark.parametrize("case", _RUNTIME_CASES)
def test_float_is_onnx_runtime(case: str) -> None:
    made = _model(case)
    x = inputs(made)[:1]
    np.testing.assert_allclose(Session(write(made)).run({"x": x})["y"], run(made, x)[0], atol=1e-5)


@pytest.mark.parametrize("case", [*_CASES, *_RUNTIME_CASES])
@pytest.mark.parametrize("recipe", RECIPES)
def test_int8_is_within_a_step(case: str, recipe: str) -> None:
    """ONNX Runtime has no integer kernel: it rounds what it sums in float, LiteRT the sum of integers."""
    steps = steps_of(_model(case), recipe)
    assert steps.integer
    assert steps.worst <= 1
    assert steps.equal > 0.99


def test_a_relu_is_fused() -> None:
    assert check_float(_model("uneven", relu=True)).operators == {"SLICE": 1, "TRANSPOSE_CONV": 1}


@pytest.mark.parametrize("weights", ["float16", "dynamic_int8"])
def test_other_weights_are_near(weights: Weights) -> None:
    written = check_float(_model("3x3, valid"), atol=0.02, options=Options(weights=weights))
    assert "TRANSPOSE_CONV" in written.operators


@pytest.mark.parametrize(
    ("line", "attributes", "code"),
    [
        ("x x", {}, "tflite_attribute"),
        ("x big", {"group": 64}, "tflite_attribute"),
        ("x w", {"output_shape": [9, 9], "strides": [2, 2]}, "tflite_attribute"),
    ],
)
def test_what_cannot_be_said_is_named(line: str, attributes: dict[str, Any], code: str) -> None:
    constants = {"w": floats(1, 64, 4, 1, 1), "big": floats(1, 64, 1025, 1, 1)}
    used = {k: v for k, v in constants.items() if k in line}
    made = graph(
        [("ConvTranspose", line, "y", attributes)], used, outputs={"y": [None] * 4}, shape=(64, 1, 1)
    )  # fmt: skip
    with pytest.raises(TFLiteError, match="ConvTranspose n_y") as caught:
        write(made)
    assert caught.value.code == code


def test_a_weight_scaled_along_another_axis_is_refused() -> None:
    made = quantized(_model("2x2, stride 2"))
    node = next(n for n in made.graph.node if n.op_type == "DequantizeLinear" and n.input[0].startswith("w"))
    next(a for a in node.attribute if a.name == "axis").i = 0
    for tensor in made.graph.initializer:
        if tensor.name in node.input[1:]:
            array = onnx.numpy_helper.to_array(tensor)[:3]
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    with pytest.raises(TFLiteError, match="ConvTranspose n_y is stored per axis 0") as caught:
        compare_int8(made, inputs(made))
    assert caught.value.code == "tflite_quantization"
