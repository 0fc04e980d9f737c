"""Sigmoid, Tanh, HardSwish, LeakyRelu, PRelu, Elu and Gelu."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from converter.tflite import TFLiteError, lower, write
from tests.converter.quantizing import Line, floats, graph, inputs
from tests.converter.tflite.harness import check_float, compare_int8
from tests.converter.tflite.singles import paired, params_of, single

_KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "Sigmoid": ({}, 17), "Tanh": ({}, 17), "HardSwish": ({}, 17), "LeakyRelu": ({"alpha": 0.2}, 17),
    "Elu": ({}, 17), "Gelu": ({}, 20),
}  # fmt: skip
_DEMANDED = {"Sigmoid": (1 / 256, -128), "Tanh": (1 / 128, 0)}
_EQUAL = ("Sigmoid", "Tanh", "Gelu", "Elu")
"""What LiteRT reads from a table."""


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("shape", [(5,), (3, 4, 5), (2, 3, 4, 5)])
def test_float_is_onnx(kind: str, shape: tuple[int, ...]) -> None:
    settings, opset = _KINDS[kind]
    assert sum(check_float(single(kind, shape, settings, opset=opset)).operators.values()) == 1


def test_gelu_by_tanh() -> None:
    check_float(single("Gelu", (3, 4), {"approximate": "tanh"}, opset=20))


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("scale", [0.03, 0.11])
def test_int8(kind: str, scale: float) -> None:
    settings, opset = _KINDS[kind]
    made = single(kind, (8, 8, 8), settings, opset=opset)
    stored = {"x": (scale, 5), "y": _DEMANDED.get(kind, (0.025, -30))}
    steps = compare_int8(paired(made, stored), inputs(made) * 3)
    assert steps.integer
    assert sum(steps.written.operators.values()) == 1
    if kind in _EQUAL:
        assert (steps.worst, steps.equal) == (0, 1.0)
    assert steps.worst <= 1


@pytest.mark.parametrize("kind", _DEMANDED)
def test_finer_steps_than_the_kernels_are_made_in_float(kind: str) -> None:
    made = single(kind, (8, 8, 8))
    steps = compare_int8(paired(made, {"x": (0.03, 5), "y": (_DEMANDED[kind][0] / 2.1, -7)}), inputs(made))
    assert steps.written.float_left == ("n_y",)
    assert steps.worst <= 1


@pytest.mark.parametrize("kind", _DEMANDED)
def test_a_bit_more_within_the_kernels_range_is_requantized(kind: str) -> None:
    made = single(kind, (8, 8, 8))
    scale, zero_point = _DEMANDED[kind]
    steps = compare_int8(paired(made, {"x": (0.03, 5), "y": (scale / 1.9, zero_point)}), inputs(made))
    assert steps.integer
    assert steps.worst <= 1


@pytest.mark.parametrize(("kind", "zero_point"), [("Sigmoid", -100), ("Tanh", -27), ("Tanh", 20)])
def test_finer_steps_beyond_the_kernels_range_are_made_in_float(kind: str, zero_point: int) -> None:
    made = single(kind, (8, 8, 8))
    stored = {"x": (0.3, 5), "y": (_DEMANDED[kind][0] / 1.05, zero_point)}
    steps = compare_int8(paired(made, stored), inputs(made) * 9)
    assert steps.written.float_left == ("n_y",)
    assert steps.worst <= 1


@pytest.mark.parametrize("kind", _DEMANDED)
def test_other_parameters_than_demanded_are_requantized_behind(kind: str) -> None:
    made = single(kind, (8, 8, 8))
    steps = compare_int8(paired(made, {"x": (0.03, 5), "y": (0.0113, -7)}), inputs(made))
    assert steps.written.operators["QUANTIZE"] == 1
    assert steps.integer
    assert steps.worst <= 1


@pytest.mark.parametrize("slope", [(4, 1, 1), (1,), (4, 8, 8), (8,)])
@pytest.mark.parametrize("image", [False, True])
def test_p_relu(slope: tuple[int, ...], *, image: bool) -> None:
    lines: list[Line] = [("PRelu", "c k" if image else "x k", "y")]
    constants = {"k": floats(2, *slope)}
    if image:
        lines.insert(0, ("Conv", "x w", "c"))
        constants["w"] = floats(1, 4, 4, 1, 1)
    made = graph(lines, constants, outputs={"y": [None] * 4}, shape=(4, 8, 8))
    assert check_float(made).operators == {"PRELU": 1} | ({"CONV_2D": 1} if image else {})


def test_a_slope_of_one_element_is_written_for_every_channel() -> None:
    """For tflite-runtime 2.14, which reads beyond it."""
    (operator,) = lower(single("PRelu", (4, 8, 8), constants={"k": floats(2, 1)})).graph.operators
    slope = operator.inputs[1]
    assert slope is not None
    assert slope.shape == (1, 1, 1, 8)


@pytest.mark.parametrize("slope", [(4, 1, 1), (1,)])
def test_p_relu_in_int8_is_within_a_step(slope: tuple[int, ...]) -> None:
    values = floats(2, *slope)
    made = single("PRelu", (4, 8, 8), constants={"k": values})
    steps = compare_int8(
        paired(made, {"x": (0.03, 5), "k": params_of(values), "y": (0.02, -9)}), inputs(made)
    )
    assert steps.integer
    assert steps.worst <= 1


def _erf_form(case: str) -> list[Line]:
    erf: list[Line] = [("Div", "x root", "d"), ("Erf", "d", "e"), ("Add", "e one", "p")]
    if case == "multiplied":
        erf[0] = ("Mul", "inverse x", "d")
    if case == "halved first":
        return [("Mul", "x half", "h"), *erf, ("Mul", "h p", "y")]
    if case == "halved sum":
        return [*erf, ("Mul", "half p", "q"), ("Mul", "x q", "y")]
    return [*erf, ("Mul", "x p", "q"), ("Mul", "q half", "y")]


_CONSTANTS = {"root": 2**0.5, "inverse": 0.5**0.5, "one": 1.0, "half": 0.5, "two": 2.0}


def _with_constants(lines: list[Line], outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    read = {name for line in lines for name in line[1].split(" ")}
    constants = {k: np.array(v, np.float32) for k, v in _CONSTANTS.items() if k in read}
    return graph(lines, constants, outputs={name: [None] * 4 for name in outputs})


@pytest.mark.parametrize("case", ["plain", "multiplied", "halved first", "halved sum"])
def test_the_erf_form_is_gelu(case: str) -> None:
    made = _with_constants([*_erf_form(case), ("Neg", "y", "z")], ("z",))
    assert check_float(made).operators == {"GELU": 1, "NEG": 1}


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (0, ("Div", "x two", "d")),
        (2, ("Add", "e half", "p")),
        (4, ("Mul", "q one", "y")),
        (3, ("Mul", "d p", "q")),
    ],
)
def test_what_only_looks_like_it_is_not(number: int, line: Line) -> None:
    lines = _erf_form("plain")
    lines[number] = line
    assert "GELU" not in check_float(_with_constants(lines)).operators


def test_a_form_of_which_another_reads_a_part_is_not_gelu() -> None:
    made = _with_constants([*_erf_form("plain"), ("Relu", "p", "z")], ("y", "z"))
    assert "GELU" not in check_float(made).operators


@pytest.mark.parametrize(("case", "part"), [("plain", "d"), ("halved first", "h")])
def test_a_part_that_another_reads_stays(case: str, part: str) -> None:
    """What stands before the sum: the form is Gelu all the same."""
    made = _with_constants([*_erf_form(case), ("Neg", part, "z")], ("y", "z"))
    operators = check_float(made).operators
    assert operators["GELU"] == operators["NEG"] == 1


def test_an_elu_with_another_alpha() -> None:
    check_float(single("Elu", (4, 5), {"alpha": 0.5}))


def test_an_elu_with_another_alpha_on_integers_is_refused() -> None:
    made = paired(single("Elu", (4,), {"alpha": 0.5}), {"x": (0.03, 5), "y": (0.03, 5)})
    with pytest.raises(TFLiteError, match=r"n_y has alpha 0\.5") as caught:
        write(made)
    assert caught.value.code == "tflite_attribute"
