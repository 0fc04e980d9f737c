"""Resizing: which of ONNX's rules are TFLite's, place by place."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.tflite import TFLiteError, write
from converter.tflite.ops.resize import (
    RULES,
    Axis,
    nearest_of,
    places_of,
    tflite_nearest,
    tflite_places,
)
from tests.converter.quantizing import floats, graph, inputs, run
from tests.converter.tflite.harness import Session, check_float, compare_int8, steps_of
from tests.converter.tflite.singles import paired

COORDINATES = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]
ROUNDINGS = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
RECIPES = ["static_wi8_ai8_pc_minmax", "static_wi8_au8_pc_minmax"]


def _model(
    shape: tuple[int, ...] = (2, 4, 6), *, scales: list[float] | None = None, sizes: list[int] | None = None,
    opset: int = 19, conv: bool = False, **attributes: object,
) -> onnx.ModelProto:  # fmt: skip
    constants: dict[str, Any] = {"roi": np.zeros(0, np.float32)}
    line = f"{'c' if conv else 'x'} roi scales"
    constants["scales"] = np.array([1, 1, *(scales or [])] if scales else [], np.float32)
    if sizes:
        constants["sizes"] = np.array([1, shape[0], *sizes], np.int64)
        line += " sizes"
    lines: list[Any] = [("Resize", line, "y", attributes)]
    if conv:
        constants["w"] = floats(1, 5, shape[0], 3, 3)
        lines = [("Conv", "x w", "c"), *lines]
    rank = len(shape) + 1
    made = graph(lines, constants, outputs={"y": [None] * rank}, shape=shape, opset=opset)
    if sizes:
        made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    return made


def _nearest_is_onnx(made: onnx.ModelProto) -> dict[str, int]:
    return check_float(made, atol=0).operators


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("scales", [[2.0, 2.0], [3.0, 2.0], [0.5, 0.5], [1.5, 2.5]])
def test_every_nearest_rule_is_exact(coordinates: str, rounding: str, scales: list[float]) -> None:
    operators = _nearest_is_onnx(
        _model(scales=scales, coordinate_transformation_mode=coordinates, nearest_mode=rounding)
    )
    assert set(operators) <= {"RESIZE_NEAREST_NEIGHBOR", "GATHER", "TRANSPOSE"}


@pytest.mark.parametrize(
    ("coordinates", "rounding"),
    [
        ("asymmetric", "floor"), ("half_pixel", "round_prefer_ceil"), ("half_pixel", "round_prefer_floor"),
        ("align_corners", "round_prefer_ceil"), ("half_pixel_symmetric", "round_prefer_ceil"),
        ("pytorch_half_pixel", "round_prefer_ceil"),
    ],
)  # fmt: skip
def test_these_are_one_operator(coordinates: str, rounding: str) -> None:
    made = _model(
        scales=[2.0, 3.0], conv=True, coordinate_transformation_mode=coordinates, nearest_mode=rounding
    )
    assert check_float(made).operators == {"CONV_2D": 1, "RESIZE_NEAREST_NEIGHBOR": 1}


def test_another_is_picked_along_each_axis() -> None:
    made = _model(
        scales=[2.0, 3.0], conv=True, coordinate_transformation_mode="asymmetric", nearest_mode="ceil"
    )
    assert check_float(made).operators == {"CONV_2D": 1, "GATHER": 2}


@pytest.mark.parametrize("opset", [11, 13, 18, 19])
def test_sizes(opset: int) -> None:
    assert "GATHER" in _nearest_is_onnx(_model(sizes=[7, 9], opset=opset, mode="nearest"))
    assert "RESIZE_NEAREST_NEIGHBOR" in _nearest_is_onnx(_model(sizes=[12, 6], opset=opset))


def test_one_axis_and_channels() -> None:
    assert "RESIZE_NEAREST_NEIGHBOR" in _nearest_is_onnx(_model((3, 8), scales=[2.0]))
    made = _model((2, 4, 6), sizes=[4, 6])
    sizes = onnx.numpy_helper.from_array(np.array([1, 6, 4, 6], np.int64), "sizes")
    next(t for t in made.graph.initializer if t.name == "sizes").CopyFrom(sizes)
    assert "GATHER" in _nearest_is_onnx(made)


def test_chosen_axes() -> None:
    constants = {"roi": np.zeros(0, np.float32), "scales": np.array([2, 3], np.float32)}
    made = graph(
        [("Resize", "x roi scales", "y", {"axes": [3, 2], "mode": "linear"})], constants,
        outputs={"y": [None] * 4}, opset=18,
    )  # fmt: skip
    assert "RESIZE_BILINEAR" in check_float(made).operators


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("kind", "opset"), [("Upsample", 9), ("Resize", 10)])
def test_old_resizes_are_plain(kind: str, opset: int, mode: str) -> None:
    constants = {"scales": np.array([1, 1, 2, 3], np.float32)}
    made = graph([(kind, "x scales", "y", {"mode": mode})], constants, outputs={"y": [None] * 4}, opset=opset)
    x = inputs(made)[:1]
    np.testing.assert_allclose(Session(write(made)).run({"x": x})["y"], run(made, x)[0], atol=1e-5)


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("scales", [[2.0, 2.0], [3.0, 1.0], [0.5, 1.5]])
def test_linear_is_onnx(coordinates: str, scales: list[float]) -> None:
    made = _model(scales=scales, mode="linear", coordinate_transformation_mode=coordinates)
    assert "RESIZE_BILINEAR" in check_float(made).operators


def test_linear_over_one_axis() -> None:
    assert "RESIZE_BILINEAR" in check_float(_model((3, 8), scales=[2.0], mode="linear")).operators


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("rounding", ["round_prefer_floor", "ceil"])
def test_nearest_int8_is_equal(recipe: str, rounding: str) -> None:
    steps = steps_of(_model(scales=[2.0, 2.0], nearest_mode=rounding), recipe)
    assert steps.integer
    assert (steps.worst, steps.equal) == (0, 1.0)


@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners", "asymmetric"])
@pytest.mark.parametrize("y", [(0.03, 5), (0.04, -3)])
def test_linear_int8_is_within_a_step(coordinates: str, y: tuple[float, int]) -> None:
    """Requantized behind where input and output are not stored alike."""
    made = _model(scales=[2.0, 3.0], mode="linear", coordinate_transformation_mode=coordinates)
    steps = compare_int8(paired(made, {"x": (0.03, 5), "y": y}), inputs(made))
    assert steps.integer
    assert ("QUANTIZE" in steps.written.operators) == (y != (0.03, 5))
    assert steps.worst <= 1


@pytest.mark.parametrize(
    ("attributes", "scales", "words", "code"),
    [
        ({"mode": "cubic"}, [2.0, 2.0], "mode cubic", "tflite_attribute"),
        ({"mode": "linear", "antialias": 1}, [0.5, 0.5], "antialias", "tflite_attribute"),
        ({"mode": "linear", "exclude_outside": 1}, [2.0, 2.0], "exclude_outside", "tflite_attribute"),
        ({"mode": "linear"}, [1.3, 2.0], "none of TFLite's rules", "tflite_attribute"),
    ],
)
def test_what_cannot_be_said_is_named(
    attributes: dict[str, Any], scales: list[float], words: str, code: str
) -> None:
    with pytest.raises(TFLiteError, match=f"Resize n_y .*{words}") as caught:
        write(_model(scales=scales, **attributes))
    assert caught.value.code == code


def test_cropping_and_aspect_and_channels_are_named() -> None:
    with pytest.raises(TFLiteError, match="keep_aspect_ratio_policy"):
        write(_model(sizes=[8, 8], keep_aspect_ratio_policy="not_larger"))
    crop = _model(scales=[2.0, 2.0], mode="linear", coordinate_transformation_mode="tf_crop_and_resize")
    roi = onnx.numpy_helper.from_array(np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32), "roi")
    next(t for t in crop.graph.initializer if t.name == "roi").CopyFrom(roi)
    with pytest.raises(TFLiteError, match="tf_crop_and_resize"):
        write(crop)
    with pytest.raises(TFLiteError, match="spatial") as caught:
        write(_model((2, 3, 4, 4), scales=[1.0, 2.0, 2.0], mode="linear"))
    assert caught.value.code == "tflite_rank"


def test_an_old_shrinking_resize_is_refused() -> None:
    constants = {"scales": np.array([1, 1, 0.5, 0.5], np.float32)}
    made = graph([("Resize", "x scales", "y")], constants, outputs={"y": [None] * 4}, opset=10)
    with pytest.raises(TFLiteError, match="shrinks"):
        write(made)


_LENGTHS = st.integers(1, 40)


@given(before=_LENGTHS, factor=st.integers(1, 8), corners=st.booleans())
def test_whole_factors_have_a_rule(before: int, factor: int, *, corners: bool) -> None:
    """Upscaling by whole numbers: PyTorch's and TensorFlow's exports are one operator."""
    axis = Axis(before=before, after=before * factor, scale=float(factor))
    for mode, rounding in (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor")):
        wanted = nearest_of(axis, mode, rounding)
        assert np.array_equal(wanted, np.arange(axis.after) // factor)
        assert any(np.array_equal(tflite_nearest(axis, rule), wanted) for rule in RULES)
    mode = "align_corners" if corners else "half_pixel"
    places = np.clip(places_of(axis, mode), 0, before - 1)
    rule = RULES[2 if corners else 1]
    found = np.clip(tflite_places(axis, rule, nearest=False), 0, before - 1)
    np.testing.assert_allclose(found, places, atol=1e-5 * before)
