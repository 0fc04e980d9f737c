"""Reshapes and transpositions: what moves no data, and what must."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.tflite import write
from tests.converter.quantizing import floats, graph
from tests.converter.tflite.harness import Session, check_float, steps_of

RECIPES = ["static_wi8_ai8_pc_minmax", "static_wi8_au8_pc_minmax", "static_wi8_ai8_pt_minmax"]
_CONV = {"w": floats(1, 8, 3, 3, 3)}


def _behind(lines: list[Any], constants: dict[str, Any] | None = None, rank: int = 4) -> onnx.ModelProto:
    """Operators behind a convolution `c`, whose output lies with channels last."""
    given_ = {**_CONV, **{k: np.asarray(v) for k, v in (constants or {}).items()}}
    return graph([("Conv", "x w", "c"), *lines], given_, outputs={"y": [None] * rank}, shape=(3, 6, 6))


@pytest.mark.parametrize("weights", ["Gemm", "Gemm, transB", "MatMul"])
@pytest.mark.parametrize("reshape", ["Flatten", "Reshape"])
def test_a_flattened_images_order_goes_into_the_weights(weights: str, reshape: str) -> None:
    flat = ("Flatten", "c", "f") if reshape == "Flatten" else ("Reshape", "c s", "f")
    shape = (10, 128) if "transB" in weights else (128, 10)
    constants: dict[str, Any] = {"g": floats(3, *shape, scale=0.1)}
    if reshape == "Reshape":
        constants["s"] = np.array([-1, 128])
    attributes = {"transB": 1} if "transB" in weights else {}
    made = _behind([flat, (weights.partition(",")[0], "f g", "y", attributes)], constants, rank=2)
    found = check_float(made).operators
    assert "TRANSPOSE" not in found
    assert found["FULLY_CONNECTED"] == 1
    for recipe in RECIPES:
        steps = steps_of(made, recipe)
        assert steps.integer
        assert (steps.worst, steps.equal) == (0, 1.0)
        assert "TRANSPOSE" not in steps.written.operators


def test_a_flattened_image_that_others_read_is_put_in_order() -> None:
    made = _behind([("Flatten", "c", "f"), ("Relu", "f", "y")], rank=2)
    assert check_float(made).operators["TRANSPOSE"] == 1


_CASES: dict[str, tuple[list[Any], dict[str, Any], int, set[str]]] = {
    "to NHWC": ([("Transpose", "c", "y", {"perm": [0, 2, 3, 1]})], {}, 4, set()),
    "there and back": (
        [("Transpose", "c", "t", {"perm": [0, 2, 3, 1]}), ("Tanh", "t", "u"),
         ("Transpose", "u", "y", {"perm": [0, 3, 1, 2]})], {}, 4, {"TANH"},
    ),
    "to sequences": (
        [("Reshape", "c s", "r"), ("Transpose", "r", "y", {"perm": [0, 2, 1]})], {"s": [0, 8, 16]}, 3,
        {"RESHAPE"},
    ),
    "squeezed": ([("GlobalAveragePool", "c", "g"), ("Squeeze", "g a", "y")], {"a": [2, 3]}, 2, {"MEAN"}),
    "unsqueezed": ([("Unsqueeze", "c a", "y")], {"a": [1]}, 5, {"RESHAPE", "TRANSPOSE"}),
    "identity": ([("Identity", "c", "i"), ("Dropout", "i", "y")], {}, 4, set()),
    "pixels shuffled": (
        [("Reshape", "c s", "r"), ("Transpose", "r", "t", {"perm": [0, 1, 4, 2, 5, 3]}),
         ("Reshape", "t u", "y")],
        {"s": [-1, 2, 2, 2, 4, 4], "u": [-1, 2, 8, 8]}, 4, {"RESHAPE", "TRANSPOSE"},
    ),
}  # fmt: skip


_NOT_COMPARED = {"there and back", "squeezed", "identity"}
"""Other kernels than those that move, or operators that the quantizer leaves in float (Dropout)."""


@pytest.mark.parametrize("case", _CASES)
def test_float_is_onnx(case: str) -> None:
    lines, constants, rank, operators = _CASES[case]
    assert set(check_float(_behind(lines, constants, rank)).operators) <= {"CONV_2D", *operators}


@pytest.mark.parametrize("case", [case for case in _CASES if case not in _NOT_COMPARED])
@pytest.mark.parametrize("recipe", RECIPES)
def test_int8_is_equal(case: str, recipe: str) -> None:
    lines, constants, rank, _ = _CASES[case]
    steps = steps_of(_behind(lines, constants, rank), recipe)
    assert steps.integer
    assert (steps.worst, steps.equal) == (0, 1.0)


@st.composite
def moves(draw: st.DrawFn) -> list[tuple[str, list[int]]]:
    """Transposes and reshapes in a row, from an image of [1, 4, 6, 2]."""
    shape, found = [1, 4, 6, 2], []
    for _ in range(draw(st.integers(1, 5))):
        if draw(st.booleans()):
            permutation = draw(st.permutations(range(len(shape))))
            found.append(("Transpose", list(permutation)))
            shape = [shape[i] for i in permutation]
        else:
            factors = [f for n in shape for f in {1: [], 2: [2], 3: [3], 4: [2, 2], 6: [2, 3]}.get(n, [n])]
            count = draw(st.integers(1, 5))
            cuts = sorted(draw(st.lists(st.integers(0, len(factors)), min_size=count, max_size=count)))
            parts = zip([0, *cuts], [*cuts, len(factors)], strict=True)
            shape = [prod(factors[i:j]) for i, j in parts]
            found.append(("Reshape", list(shape)))
    return found


@settings(max_examples=60, deadline=None)
@given(moves())
def test_any_row_of_moves_is_onnx(row: list[tuple[str, list[int]]]) -> None:
    """Bit for bit, whatever was renamed on the way."""
    lines: list[Any] = [("MaxPool", "x", "t0", {"kernel_shape": [1, 1]})]
    constants: dict[str, Any] = {}
    for i, (kind, numbers) in enumerate(row):
        if kind == "Transpose":
            lines.append(("Transpose", f"t{i}", f"t{i + 1}", {"perm": numbers}))
        else:
            constants[f"s{i}"] = np.array(numbers)
            lines.append(("Reshape", f"t{i} s{i}", f"t{i + 1}"))
    lines.append(("Relu", f"t{len(row)}", "y"))
    rank = len(row[-1][1])
    made = graph(lines, constants, outputs={"y": [None] * rank}, shape=(4, 6, 2))
    x = np.arange(48, dtype=np.float32).reshape(1, 4, 6, 2)
    wanted = onnx.reference.ReferenceEvaluator(made).run(None, {"x": x})[0]
    assert np.array_equal(Session(write(made)).run({"x": x})["y"], wanted)
