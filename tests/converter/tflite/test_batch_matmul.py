"""Products of two computed operands, or with stacks: BATCH_MATMUL."""

from __future__ import annotations

import pytest

from converter.tflite import TFLiteError, lower, write
from tests.converter.quantizing import floats, graph, inputs
from tests.converter.tflite.harness import check_float, compare_int8
from tests.converter.tflite.singles import paired
from tests.converter.tflite.test_linear import fixed

_COMPUTED: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "matrices": ((4, 7), (7, 5)),
    "stacks": ((2, 4, 7), (2, 7, 5)),
    "rank 4": ((2, 3, 4, 7), (2, 3, 7, 5)),
    "rank 5": ((2, 1, 3, 4, 7), (2, 1, 3, 7, 5)),
    "a stack by one": ((2, 3, 4, 7), (7, 5)),
    "one by a stack": ((4, 7), (2, 3, 7, 5)),
    "spread": ((2, 1, 4, 7), (1, 3, 7, 5)),
    "vector left": ((7,), (2, 7, 5)),
    "vector right": ((2, 4, 7), (7,)),
    "vectors": ((7,), (7,)),
}


@pytest.mark.parametrize("case", _COMPUTED)
def test_two_computed_operands(case: str) -> None:
    left, right = _COMPUTED[case]
    vectors = (len(left) == 1) + (len(right) == 1)
    made = fixed(
        [("MatMul", "x w", "y", {})], {"x": left, "w": right}, {}, max(len(left), len(right), 2) - vectors
    )
    operators = check_float(made).operators
    assert operators["BATCH_MATMUL"] == 1
    assert "TRANSPOSE" not in operators


@pytest.mark.parametrize("case", ["stacks", "rank 4", "a stack by one", "spread"])
def test_a_stack_of_constants(case: str) -> None:
    left, right = _COMPUTED[case]
    made = fixed([("MatMul", "x w", "y", {})], {"x": left}, {"w": floats(1, *right)}, len(left))
    kind = "FULLY_CONNECTED" if case == "a stack by one" else "BATCH_MATMUL"
    assert check_float(made).operators == {kind: 1}


@pytest.mark.parametrize("case", ["matrices", "stacks", "one by a stack", "vector left"])
def test_a_constant_on_the_left(case: str) -> None:
    left, right = _COMPUTED[case]
    rank = len(right) - (len(left) == 1)
    made = fixed([("MatMul", "w x", "y", {})], {"x": right}, {"w": floats(1, *left)}, rank)
    assert check_float(made).operators["BATCH_MATMUL"] == 1


def test_a_transposed_operand_is_read_so() -> None:
    lines = [
        ("Transpose", "x", "xt", {"perm": [0, 2, 1]}), ("Transpose", "w", "wt", {"perm": [0, 2, 1]}),
        ("MatMul", "xt wt", "y", {}),
    ]  # fmt: skip
    made = fixed(lines, {"x": (2, 7, 4), "w": (2, 5, 7)}, {}, 3)
    assert check_float(made).operators == {"BATCH_MATMUL": 1}


def test_a_right_operand_that_must_be_moved_is_moved_to_rows() -> None:
    lines = [("Transpose", "w", "wt", {"perm": [1, 2, 0]}), ("MatMul", "x wt", "y", {})]
    made = fixed(lines, {"x": (2, 4, 7), "w": (5, 2, 7)}, {}, 3)
    assert check_float(made).operators == {"BATCH_MATMUL": 1, "TRANSPOSE": 1}
    assert lower(made).graph.operators[-1].options.adjY


def test_int8_is_within_a_step() -> None:
    made = graph(
        [("Transpose", "x", "t", {"perm": [0, 2, 1]}), ("MatMul", "x t", "y")], {},
        outputs={"y": [None] * 3}, shape=(6, 9),
    )  # fmt: skip
    steps = compare_int8(paired(made, {"x": (0.03, 2), "t": (0.03, 2), "y": (0.1, -20)}), inputs(made))
    assert steps.integer
    assert steps.written.operators == {"BATCH_MATMUL": 1}
    assert steps.worst <= 1


def test_int8_by_a_stack_stored_per_tensor_is_within_a_step() -> None:
    made = graph(
        [("MatMul", "x w", "y")], {"w": floats(1, 3, 9, 6)}, outputs={"y": [None] * 4}, shape=(3, 6, 9)
    )  # fmt: skip
    steps = compare_int8(paired(made, {"x": (0.03, 2), "w": (0.01, 0), "y": (0.05, -20)}), inputs(made))
    assert steps.integer
    assert steps.worst <= 1


def test_too_many_axes_are_refused() -> None:
    made = fixed([("MatMul", "x w", "y", {})], {"x": (1, 1, 1, 2, 3, 4), "w": (1, 1, 1, 2, 4, 3)}, {}, 6)
    with pytest.raises(TFLiteError, match="n_y has 6 axes") as caught:
        write(made)
    assert caught.value.code == "tflite_rank"
