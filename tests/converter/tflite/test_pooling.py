"""Pools, with every way of padding them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from converter.tflite import TFLiteError, write
from tests.converter.quantizing import floats, graph, inputs, run
from tests.converter.tflite.harness import Session, check_float, compare_int8, steps_of
from tests.converter.tflite.singles import paired, single

_SAME, _EVERY = {"AVERAGE_POOL_2D": 1}, {"AVERAGE_POOL_2D": 1, "STRIDED_SLICE": 1}
_PADDED = {"AVERAGE_POOL_2D": 1, "PAD": 1}
_AVERAGES: dict[str, tuple[tuple[int, ...], dict[str, Any], dict[str, int]]] = {
    "plain": ((3, 8, 8), {"kernel_shape": [2, 2], "strides": [2, 2]}, _SAME),
    "SAME": ((3, 8, 8), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, _SAME),
    "not SAME": ((3, 8, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, _EVERY),
    "lower": ((3, 8, 8), {"kernel_shape": [2, 3], "strides": [1, 2], "pads": [0, 1, 0, 0]}, _EVERY),
    "counted": (
        (3, 8, 8), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, _PADDED,
    ),
    "counted, uneven": (
        (3, 8, 9),
        {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1], "count_include_pad": 1}, _PADDED,
    ),
    "counted, nothing padded": ((3, 8, 8), {"kernel_shape": [2, 2], "count_include_pad": 1}, _SAME),
    "rounded up": ((3, 8, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, _SAME),
    "rounded up and padded": (
        (3, 9, 9), {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}, _SAME,
    ),
    "auto_pad": ((3, 8, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}, _SAME),
    "one axis": ((3, 9), {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}, {**_SAME, "RESHAPE": 2}),
    "one axis, not SAME": (
        (3, 8), {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}, {**_EVERY, "RESHAPE": 2},
    ),
}  # fmt: skip
_MAXIMA: dict[str, tuple[tuple[int, ...], dict[str, Any], dict[str, int]]] = {
    "plain": ((3, 8, 8), {"kernel_shape": [2, 2], "strides": [2, 2]}, {}),
    "SAME": ((3, 8, 8), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, {}),
    "not SAME": ((3, 8, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, {"PADV2": 1}),
    "rounded up": ((3, 8, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, {}),
    "rounded up and padded": (
        (3, 7, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
        {"PADV2": 1},
    ),
    "one axis": ((3, 8), {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}, {"PADV2": 1, "RESHAPE": 2}),
}  # fmt: skip
RECIPES = ["static_wi8_ai8_pc_minmax", "static_wi8_au8_pc_minmax"]


def _pool(kind: str, case: str) -> onnx.ModelProto:
    shape, attributes, _ = (_AVERAGES if kind == "AveragePool" else _MAXIMA)[case]
    return single(kind, shape, attributes)


def _is_onnx(made: onnx.ModelProto) -> dict[str, int]:
    """ONNX Runtime is the yardstick: the reference evaluator spreads what ceil_mode adds on both sides."""
    written, x = write(made), inputs(made)[:1]
    np.testing.assert_allclose(Session(written).run({"x": x})["y"], run(made, x)[0], atol=1e-6)
    return {k: n for k, n in written.operators.items() if k != "TRANSPOSE"}


@pytest.mark.parametrize("case", _AVERAGES)
def test_average_is_onnx(case: str) -> None:
    assert _is_onnx(_pool("AveragePool", case)) == _AVERAGES[case][2]


@pytest.mark.parametrize("case", _MAXIMA)
def test_max_is_onnx(case: str) -> None:
    assert _is_onnx(_pool("MaxPool", case)) == {"MAX_POOL_2D": 1, **_MAXIMA[case][2]}


@pytest.mark.parametrize("case", _AVERAGES)
def test_average_int8_is_within_a_step(case: str) -> None:
    made = _pool("AveragePool", case)
    steps = compare_int8(paired(made, {"x": (0.03, 5), "y": (0.03, 5)}), inputs(made))
    assert steps.integer
    assert "QUANTIZE" not in steps.written.operators
    assert steps.worst <= 1


TWO_STEPS = {
    "AveragePool": "other parameters behind it: the kernel rounds in the input's steps, QUANTIZE again"
}
"""More than one step, and why; a `_twin` recipe gives input and output the same parameters."""


@pytest.mark.parametrize("case", _AVERAGES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_average_int8_of_unequal_pairs_is_requantized_or_convolved(case: str, recipe: str) -> None:
    steps = steps_of(_pool("AveragePool", case), recipe)
    assert steps.integer
    convolves = "DEPTHWISE_CONV_2D" in steps.written.operators
    assert steps.written.operators.get("QUANTIZE", 0) == (0 if convolves else 1)
    assert steps.worst <= (0 if convolves else 2)


@pytest.mark.parametrize("case", _MAXIMA)
@pytest.mark.parametrize("recipe", RECIPES)
def test_max_int8_is_equal(case: str, recipe: str) -> None:
    made = _pool("MaxPool", case)
    steps = steps_of(made, recipe)
    assert steps.integer
    assert (steps.worst, steps.equal) == (0, 1.0)
    other = compare_int8(paired(made, {"x": (0.03, 5), "y": (0.02, -3)}), inputs(made))
    assert other.written.operators["QUANTIZE"] == 1
    assert other.worst <= 1


@pytest.mark.parametrize("kind", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 6)])
def test_global_pools(kind: str, shape: tuple[int, ...]) -> None:
    made = single(kind, shape)
    found = _is_onnx(made)
    assert found["MEAN" if kind == "GlobalAveragePool" else "REDUCE_MAX"] == 1
    for y in ((0.03, 5), (0.01, -3)):
        steps = compare_int8(paired(made, {"x": (0.03, 5), "y": y}), inputs(made))
        assert steps.integer
        assert steps.worst <= 1


def test_behind_a_convolution_nothing_is_moved() -> None:
    made = graph(
        [("Conv", "x w", "c"), ("AveragePool", "c", "p", _AVERAGES["not SAME"][1]),
         ("GlobalMaxPool", "p", "y")],
        {"w": floats(1, 4, 3, 1, 1)}, outputs={"y": [None] * 4},
    )  # fmt: skip
    assert set(check_float(made).operators) == {
        "AVERAGE_POOL_2D", "CONV_2D", "REDUCE_MAX", "STRIDED_SLICE",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "attributes", "shape", "code"),
    [
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [2, 2, 2, 2]}, (3, 8, 8), "tflite_attribute"),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [2, 0, 0, 0]}, (3, 8, 8), "tflite_attribute"),
        (
            "AveragePool",
            {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
            (3, 8, 8),
            "tflite_attribute",
        ),
        ("AveragePool", {"kernel_shape": [2, 2, 2]}, (3, 4, 4, 4), "tflite_rank"),
        ("MaxPool", {"kernel_shape": [2, 2], "dilations": [2, 2]}, (3, 8, 8), "tflite_attribute"),
        ("LpPool", {"kernel_shape": [2, 2]}, (3, 8, 8), "tflite_operator"),
        ("GlobalLpPool", {}, (3, 8, 8), "tflite_operator"),
    ],
)
def test_what_cannot_be_said_is_named(
    kind: str, attributes: dict[str, Any], shape: tuple[int, ...], code: str
) -> None:
    with pytest.raises(TFLiteError, match=f"{kind} n_y") as caught:
        write(single(kind, shape, attributes))
    assert caught.value.code == code


def test_indices_are_refused() -> None:
    made = graph([("MaxPool", "x", "y i", {"kernel_shape": [2, 2]})], {}, outputs={"y": [None] * 4})
    with pytest.raises(TFLiteError, match="MaxPool n_y gives indices") as caught:
        write(made)
    assert caught.value.code == "tflite_attribute"
