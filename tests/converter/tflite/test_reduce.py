"""Reductions over axes, wherever they lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from converter.tflite import TFLiteError, write
from tests.converter.quantizing import Line, floats, graph, inputs
from tests.converter.tflite.harness import check_float, compare_int8
from tests.converter.tflite.singles import paired, single

_PLAIN = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd")
_COMPOSED = ("ReduceL1", "ReduceL2", "ReduceSumSquare")
_AXES: tuple[list[int], ...] = ([1], [-1], [2, 3], [-2, -1], [1, 2, 3])


def _reduce(kind: str, axes: list[int], *, keep: int, image: bool, opset: int = 17) -> onnx.ModelProto:
    """Over the input, or over an image that lies with channels last."""
    rank = 4 if keep else 4 - len(axes)
    constants: dict[str, Any] = {"w": floats(1, 4, 3, 1, 1)} if image else {}
    lines: list[Line] = [("Conv", "x w", "c")] if image else []
    read, settings = "c" if image else "x", {"keepdims": keep}
    if opset >= 18 or kind == "ReduceSum":
        constants["axes"] = np.array(axes, np.int64)
        lines.append((kind, f"{read} axes", "y", settings))
    else:
        lines.append((kind, read, "y", {**settings, "axes": axes}))
    return graph(lines, constants, outputs={"y": [None] * rank}, shape=(3, 4, 5), opset=opset)


@pytest.mark.parametrize("kind", [*_PLAIN, *_COMPOSED])
@pytest.mark.parametrize("axes", _AXES)
@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("image", [False, True])
def test_float_is_onnx(kind: str, axes: list[int], keep: int, *, image: bool) -> None:
    check_float(_reduce(kind, axes, keep=keep, image=image), atol=1e-4)


@pytest.mark.parametrize("kind", [*_PLAIN, *_COMPOSED])
def test_axes_may_be_an_input(kind: str) -> None:
    check_float(_reduce(kind, [2, 3], keep=0, image=True, opset=18), atol=1e-4)


def test_a_pooled_image_needs_no_transpose() -> None:
    written = check_float(_reduce("ReduceMean", [2, 3], keep=0, image=True))
    assert written.operators == {"CONV_2D": 1, "MEAN": 1}


def test_the_logarithm_of_a_sum() -> None:
    made = graph(
        [("Exp", "x", "e"), ("ReduceLogSum", "e", "y", {"axes": [1]})], {}, outputs={"y": [None] * 4}
    )  # fmt: skip
    check_float(made)


def test_no_axes_are_all_of_them() -> None:
    made = graph([("ReduceMax", "x", "y", {"keepdims": 1})], {}, outputs={"y": [None] * 4})
    check_float(made)


def test_no_axes_may_mean_none() -> None:
    made = graph(
        [("ReduceSum", "x", "s", {"noop_with_empty_axes": 1}), ("Relu", "s", "y")], {},
        outputs={"y": [None] * 4},
    )  # fmt: skip
    assert check_float(made).operators == {"RELU": 1}


@pytest.mark.parametrize("kind", ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("axes", [[1], [2, 3], [3]])
@pytest.mark.parametrize("image", [False, True])
def test_int8_is_within_a_step(kind: str, axes: list[int], *, image: bool) -> None:
    made = _reduce(kind, axes, keep=1, image=image)
    stored = {"x": (0.03, 5), "y": (0.06 if kind == "ReduceSum" else 0.02, -11)}
    if image:
        stored |= {"w": (0.01, 0), "c": (0.03, 4)}
    steps = compare_int8(paired(made, stored), inputs(made))
    assert steps.integer
    assert steps.worst <= 1


def test_int8_maximum_of_one_scale_is_equal() -> None:
    made = single("ReduceMax", (3, 8, 8), {"axes": [2, 3]})
    steps = compare_int8(paired(made, {"x": (0.03, 5), "y": (0.03, 5)}), inputs(made))
    assert steps.written.operators == {"REDUCE_MAX": 1}
    assert steps.worst == 0


def test_computed_axes_are_refused() -> None:
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 4])
    axes = onnx.helper.make_tensor_value_info("axes", onnx.TensorProto.INT64, [1])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 1])
    node = onnx.helper.make_node("ReduceSum", ["x", "axes"], ["y"], name="n")
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [x, axes], [y]), opset_imports=[onnx.helper.make_opsetid("", 17)]
    )
    with pytest.raises(TFLiteError) as caught:
        write(model)
    assert caught.value.code in {"tflite_attribute", "tflite_shape"}
