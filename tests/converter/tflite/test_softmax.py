"""SOFTMAX and LOG_SOFTMAX over any axis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from converter.tflite import write
from tests.converter.quantizing import floats, graph, inputs, run
from tests.converter.tflite.harness import Session, check_float, compare_int8
from tests.converter.tflite.singles import paired, single

_DEMANDED = {"Softmax": (1 / 256, -128), "LogSoftmax": (1 / 16, 127)}
_CASES: dict[str, tuple[tuple[int, ...], dict[str, Any], int]] = {
    "last": ((5, 7), {}, 13),
    "middle": ((5, 7), {"axis": 1}, 13),
    "first behind the batch, rank 4": ((5, 3, 2), {"axis": 1}, 17),
    "rank 2": ((9,), {"axis": 1}, 17),
    "rank 5": ((2, 3, 4, 5), {"axis": -2}, 17),
    "opset 11, last": ((3, 4), {"axis": 2}, 11),
}


@pytest.mark.parametrize("kind", _DEMANDED)
@pytest.mark.parametrize("case", _CASES)
def test_float_is_onnx(kind: str, case: str) -> None:
    shape, attributes, opset = _CASES[case]
    check_float(single(kind, shape, attributes, opset=opset))


@pytest.mark.parametrize("kind", _DEMANDED)
def test_before_opset_13_all_axes_behind_are_one(kind: str) -> None:
    """ONNX Runtime is the yardstick: the reference evaluator takes the axis as opset 13 means it."""
    made = single(kind, (3, 4), opset=11)
    x = inputs(made)[:1]
    np.testing.assert_allclose(Session(write(made)).run({"x": x})["y"], run(made, x)[0], atol=1e-5)


def test_channels_of_an_image_lie_last_already() -> None:
    made = graph(
        [("Conv", "x w", "c"), ("Softmax", "c", "y", {"axis": 1})],
        {"w": floats(1, 5, 3, 1, 1)}, outputs={"y": [None] * 4},
    )  # fmt: skip
    assert check_float(made).operators == {"CONV_2D": 1, "SOFTMAX": 1}


@pytest.mark.parametrize("axis", [1, 2])
def test_int8_is_equal_where_stored_as_demanded(axis: int) -> None:
    made = single("Softmax", (6, 7), {"axis": axis})
    steps = compare_int8(paired(made, {"x": (0.03, 5), "y": _DEMANDED["Softmax"]}), inputs(made))
    assert steps.integer
    assert "QUANTIZE" not in steps.written.operators
    assert (steps.worst, steps.equal) == (0, 1.0)


@pytest.mark.parametrize(("kind", "zero_point"), [("Softmax", 3), ("LogSoftmax", 31)])
def test_int8_is_requantized_behind_where_it_is_not(kind: str, zero_point: int) -> None:
    made = single(kind, (6, 7))
    steps = compare_int8(paired(made, {"x": (0.03, 5), "y": (0.1, zero_point)}), inputs(made))
    assert steps.integer
    assert steps.written.operators["QUANTIZE"] == 1
    assert steps.worst <= 1


@pytest.mark.parametrize(
    ("kind", "stored"), [("Softmax", (0.0019, -128)), ("LogSoftmax", (0.03, 127)), ("LogSoftmax", (0.1, 127))]
)
def test_int8_is_float_where_the_kernel_would_lose_numbers(kind: str, stored: tuple[float, int]) -> None:
    """Finer steps than the kernel's, or lower logarithms than it holds."""
    made = single(kind, (6, 7))
    steps = compare_int8(paired(made, {"x": (0.3, 5), "y": stored}), inputs(made) * 12)
    assert steps.written.float_left == ("n_y",)
    assert steps.worst <= 1


@pytest.mark.parametrize("kind", _DEMANDED)
def test_int8_before_opset_13(kind: str) -> None:
    made = single(kind, (3, 4), opset=11)
    stored = {"Softmax": (0.005, -128), "LogSoftmax": (0.1, 31)}[kind]
    steps = compare_int8(paired(made, {"x": (0.03, 5), "y": stored}), inputs(made))
    assert steps.integer
    assert steps.worst <= 1


def test_log_softmax_int8_is_within_a_step() -> None:
    made = single("LogSoftmax", (6, 7))
    steps = compare_int8(paired(made, {"x": (0.03, 5), "y": _DEMANDED["LogSoftmax"]}), inputs(made))
    assert "QUANTIZE" not in steps.written.operators
    assert steps.worst <= 1
