"""Comparisons, logic and Where."""

from __future__ import annotations

import numpy as np
import pytest

from converter.tflite import TFLiteError, write
from tests.converter.quantizing import Line, floats, graph, inputs
from tests.converter.tflite.harness import check_float, compare_int8
from tests.converter.tflite.singles import paired
from tests.converter.tflite.test_linear import fixed

_COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")


@pytest.mark.parametrize("kind", _COMPARISONS)
@pytest.mark.parametrize("other", [(), (8,), (3, 1, 1), (3, 8, 8)])
def test_comparisons(kind: str, other: tuple[int, ...]) -> None:
    made = graph(
        [("Round", "x", "r"), (kind, "r k", "t"), ("Where", "t x k", "y")],
        {"k": np.rint(floats(2, *other, scale=1.0)).astype(np.float32)}, outputs={"y": [None] * 4},
    )  # fmt: skip
    check_float(made)


@pytest.mark.parametrize("kind", ["And", "Or", "Xor"])
def test_logic(kind: str) -> None:
    made = graph(
        [("Greater", "x a", "s"), ("Less", "x b", "t"), (kind, "s t", "u"), ("Not", "u", "v"),
         ("Where", "v x a", "y")],
        {"a": np.array(-0.5, np.float32), "b": np.array(0.5, np.float32)}, outputs={"y": [None] * 4},
    )  # fmt: skip
    check_float(made)


def test_a_choice_in_an_images_layout_moves_nothing() -> None:
    made = graph(
        [("Conv", "x w", "c"), ("Greater", "c k", "t"), ("Where", "t c k", "y")],
        {"w": floats(1, 4, 3, 3, 3), "k": floats(2, 4, 1, 1)}, outputs={"y": [None] * 4},
    )  # fmt: skip
    assert check_float(made).operators == {"CONV_2D": 1, "GREATER": 1, "SELECT_V2": 1}


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 4, 5)])
def test_a_choice_spreads(shape: tuple[int, ...]) -> None:
    lines: list[Line] = [("Greater", "x z", "t", {}), ("Where", "t u k", "y", {})]
    made = fixed(
        lines, {"x": (*shape[:-1], 1), "u": shape[1:]},
        {"z": np.zeros((), np.float32), "k": floats(1, shape[-1])}, len(shape),
    )  # fmt: skip
    check_float(made)


def test_a_constant_mask() -> None:
    made = graph(
        [("Where", "m x k", "y")], {"m": np.tril(np.ones((8, 8), bool)), "k": np.array(-10000, np.float32)},
        outputs={"y": [None] * 4},
    )  # fmt: skip
    assert check_float(made).operators == {"SELECT_V2": 1}


def test_int8_choice_is_within_a_step() -> None:
    made = graph(
        [("Where", "m x k", "y")], {"m": np.tril(np.ones((8, 8), bool)), "k": floats(1, 8)},
        outputs={"y": [None] * 4},
    )  # fmt: skip
    steps = compare_int8(paired(made, {"x": (0.03, 5), "k": (0.01, 0), "y": (0.025, -3)}), inputs(made))
    assert steps.integer
    assert steps.worst <= 1


def test_a_comparison_that_spreads_over_five_axes_is_refused() -> None:
    made = fixed(
        [("Greater", "x k", "t", {}), ("Where", "t x k", "y", {})], {"x": (1, 2, 3, 4, 5)},
        {"k": floats(1, 4, 5)}, 5,
    )  # fmt: skip
    with pytest.raises(TFLiteError, match="n_t") as caught:
        write(made)
    assert caught.value.code == "tflite_rank"
