"""Concat under any layout and with any scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from converter.tflite import write
from tests.converter.quantizing import floats, graph, inputs
from tests.converter.tflite.harness import check_float, compare_int8, steps_of
from tests.converter.tflite.singles import paired


def _model(axis: int, *, constant: bool = False) -> onnx.ModelProto:
    lines: list[Any] = [("Conv", "x w", "c"), ("Conv", "x v", "d")]
    constants = {"w": floats(1, 4, 3, 1, 1), "v": floats(2, 4, 3, 1, 1, scale=0.9)}
    names = "c d"
    if constant:
        shape = [1, 4, 8, 8]
        shape[axis] = 2
        constants["k"] = floats(3, *shape)
        names += " k"
    lines.append(("Concat", names, "y", {"axis": axis}))
    return graph(lines, constants, outputs={"y": [None] * 4})


@pytest.mark.parametrize("axis", [1, 2, -1])
@pytest.mark.parametrize("constant", [True, False])
def test_float_is_onnx(axis: int, *, constant: bool) -> None:
    made = _model(axis, constant=constant)
    assert check_float(made).operators == {"CONCATENATION": 1, "CONV_2D": 2}


def test_layouts_that_differ_meet_in_the_first_that_is_not_onnxs() -> None:
    made = graph(
        [("Conv", "x w", "c"), ("Transpose", "c", "t", {"perm": [0, 1, 3, 2]}),
         ("Concat", "t x", "y", {"axis": 1})],
        {"w": floats(1, 3, 3, 1, 1)}, outputs={"y": [None] * 4},
    )  # fmt: skip
    assert check_float(made).operators["CONCATENATION"] == 1


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize(
    "recipe", ["static_wi8_ai8_pc_minmax", "static_wi8_au8_pc_minmax", "static_wi8_ai8_pt_minmax"]
)
def test_int8_is_within_a_step(axis: int, recipe: str) -> None:
    """Operands have scales of their own here; each is requantized to the output's."""
    steps = steps_of(_model(axis), recipe)
    assert steps.integer
    assert steps.worst <= 1


@pytest.mark.parametrize(("k", "quantizes"), [((0.03, 5), 0), ((0.008, 1), 1)])
def test_what_is_stored_alike_is_equal(k: tuple[float, int], quantizes: int) -> None:
    made = graph(
        [("Relu", "x", "r"), ("Concat", "x r", "y", {"axis": 2})], {}, outputs={"y": [None] * 4}
    )  # fmt: skip
    steps = compare_int8(paired(made, {"x": (0.03, 5), "r": k, "y": (0.03, 5)}), inputs(made))
    assert steps.integer
    assert steps.written.operators.get("QUANTIZE", 0) == quantizes
    assert steps.worst <= quantizes


def test_a_stored_constant_is_an_operand() -> None:
    made = graph(
        [("Concat", "x k", "y", {"axis": 1})], {"k": floats(1, 1, 2, 8, 8)}, outputs={"y": [None] * 4}
    )
    assert made.graph.initializer[0].dims == [1, 2, 8, 8]
    pairs = {"x": (0.03, 5), "k": (0.01, 0), "y": (0.03, 5)}
    steps = compare_int8(paired(made, pairs), np.asarray(inputs(made)))
    assert steps.integer
    assert steps.worst <= 1


def test_what_is_empty_is_left_out() -> None:
    none = np.zeros((1, 0, 8, 8), dtype=np.float32)
    one = graph([("Concat", "x none", "y", {"axis": 1})], {"none": none}, outputs={"y": [None] * 4})
    assert check_float(graph([("Relu", "x", "r"), ("Concat", "r none", "y", {"axis": 1})], {"none": none},
                             outputs={"y": [None] * 4})).operators == {"RELU": 1}  # fmt: skip
    assert "CONCATENATION" not in check_float(one).operators
    more = graph([("Concat", "x none x", "y", {"axis": 1})], {"none": none}, outputs={"y": [None] * 4})
    assert check_float(more).operators == {"CONCATENATION": 1}


def test_a_plain_constant_between_pairs_keeps_it_in_float() -> None:
    made = graph(
        [("Concat", "x k", "y", {"axis": 1})], {"k": floats(1, 1, 2, 8, 8)}, outputs={"y": [None] * 4}
    )
    written = write(paired(made, {"x": (0.03, 5), "y": (0.03, 5)}))
    assert written.float_left == ("n_y",)
