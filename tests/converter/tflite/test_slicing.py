"""Slice and Split."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.tflite import TFLiteError, write
from converter.tflite.ops.slicing import spans_of
from tests.converter.quantizing import floats, graph, inputs
from tests.converter.tflite.harness import Session, check_float, compare_int8, steps_of
from tests.converter.tflite.singles import paired

_FAR = 2**62
# starts, ends, axes, steps, operator
_CASES: dict[str, tuple[list[int], list[int], list[int], list[int], str]] = {
    "plain": ([1, 0], [4, 3], [2, 3], [1, 1], "SLICE"),
    "from the end": ([-3], [_FAR], [-1], [1], "SLICE"),
    "channels": ([1], [3], [1], [1], "SLICE"),
    "every second": ([0, 1], [_FAR, _FAR], [2, 3], [2, 3], "STRIDED_SLICE"),
    "backwards": ([-1], [-_FAR], [3], [-1], "STRIDED_SLICE"),
    "backwards, bounded": ([5], [1], [3], [-2], "STRIDED_SLICE"),
    "backwards to the first": ([4, 0], [-_FAR, 2], [2, 1], [-2, 1], "STRIDED_SLICE"),
}


def _sliced(case: str, *, conv: bool = True) -> onnx.ModelProto:
    numbers = dict(zip(("s", "e", "a", "t"), _CASES[case][:4], strict=True))
    constants: dict[str, Any] = {k: np.array(v, np.int64) for k, v in numbers.items()}
    lines: list[Any] = [("Slice", f"{'c' if conv else 'x'} s e a t", "y")]
    if conv:
        constants["w"] = floats(1, 4, 3, 1, 1)
        lines = [("Conv", "x w", "c"), *lines]
    return graph(lines, constants, outputs={"y": [None] * 4}, shape=(3, 7, 6))


@pytest.mark.parametrize("case", _CASES)
def test_a_slice_is_onnx(case: str) -> None:
    """Behind a convolution, whose output lies with channels last, and in ONNX's own order."""
    assert check_float(_sliced(case)).operators == {"CONV_2D": 1, _CASES[case][4]: 1}
    assert check_float(_sliced(case, conv=False)).operators == {_CASES[case][4]: 1}


@pytest.mark.parametrize("case", _CASES)
@pytest.mark.parametrize("recipe", ["static_wi8_ai8_pc_minmax", "static_wi8_au8_pc_minmax"])
def test_an_int8_slice_is_equal(case: str, recipe: str) -> None:
    steps = steps_of(_sliced(case), recipe)
    assert steps.integer
    assert (steps.worst, steps.equal) == (0, 1.0)


def test_an_unequal_pair_is_requantized() -> None:
    made = _sliced("every second", conv=False)
    steps = compare_int8(paired(made, {"x": (0.03, 5), "y": (0.02, -3)}), inputs(made))
    assert steps.written.operators == {"QUANTIZE": 1, "STRIDED_SLICE": 1}
    assert steps.worst <= 1


def test_before_opset_10_bounds_are_attributes() -> None:
    made = graph(
        [("Slice", "x", "y", {"starts": [1], "ends": [-1], "axes": [2]})],
        {},
        outputs={"y": [None] * 4},
        opset=9,
    )
    assert check_float(made).operators == {"SLICE": 1}


def test_all_of_it_is_nothing() -> None:
    constants = {"s": np.array([0]), "e": np.array([99])}
    made = graph([("Slice", "x s e", "c"), ("Relu", "c", "y")], constants, outputs={"y": [None] * 4})
    assert check_float(made).operators == {"RELU": 1}


@pytest.mark.parametrize(
    ("shape", "end", "code"), [((2, 2, 2, 2, 2), 1, "tflite_rank"), ((3,), 0, "tflite_shape")]
)
def test_what_cannot_be_said_is_named(shape: tuple[int, ...], end: int, code: str) -> None:
    constants = {"s": np.array([0]), "e": np.array([end]), "a": np.array([1])}
    made = graph(
        [("Slice", "x s e a", "y")], constants, outputs={"y": [None] * (len(shape) + 1)}, shape=shape
    )
    with pytest.raises(TFLiteError, match="Slice n_y") as caught:
        write(made)
    assert caught.value.code == code


_BOUND = st.one_of(st.integers(-20, 20), st.just(_FAR), st.just(-_FAR))


@given(length=st.integers(1, 9), start=_BOUND, end=_BOUND, step=st.integers(-4, 4).filter(bool))
def test_spans_are_onnx(length: int, start: int, end: int, step: int) -> None:
    """By the operator's text: clamped to [0, n] forwards, to [0, n - 1] and [-1, n - 1] backwards."""
    first = start + length if start < 0 else start
    last = end + length if end < 0 else end
    if step > 0:
        first, last = min(max(first, 0), length), min(max(last, 0), length)
    else:
        first, last = min(max(first, 0), length - 1), min(max(last, -1), length - 1)
    wanted = list(range(first, last, step))
    (span,) = spans_of((length,), [start], [end], [0], [step])
    assert [span.start + span.step * i for i in range(span.length)] == wanted


def _split(axis: int, sizes: list[int] | None, outputs: int, *, conv: bool = True) -> onnx.ModelProto:
    names = [f"y{i}" for i in range(outputs)]
    constants: dict[str, Any] = {"w": floats(1, 6, 3, 1, 1)} if conv else {}
    line = "c" if conv else "x"
    if sizes is not None:
        constants["sizes"], line = np.array(sizes, np.int64), f"{line} sizes"
    lines: list[Any] = [("Split", line, " ".join(names), {"axis": axis})]
    lines = [("Conv", "x w", "c"), *lines] if conv else lines
    return graph(lines, constants, outputs={n: [None] * 4 for n in names}, shape=(3, 4, 6))


@pytest.mark.parametrize(
    ("axis", "sizes", "outputs", "kind"),
    [(1, None, 2, "SPLIT"), (-1, None, 3, "SPLIT"), (1, [1, 2, 3], 3, "SPLIT_V"), (2, [3, 1], 2, "SPLIT_V")],
)
def test_a_split_is_onnx(axis: int, sizes: list[int] | None, outputs: int, kind: str) -> None:
    made = _split(axis, sizes, outputs)
    assert check_float(made).operators == {"CONV_2D": 1, kind: 1}
    for recipe in ("static_wi8_ai8_pc_minmax", "static_wi8_au8_pc_minmax"):
        steps = steps_of(made, recipe)
        assert steps.integer
        assert (steps.worst, steps.equal) == (0, 1.0)


@pytest.mark.parametrize("sizes", [None, [1, 2]])
def test_an_unequal_pair_behind_a_split_is_requantized(sizes: list[int] | None) -> None:
    made = _split(2 if sizes is None else 1, sizes, 2, conv=False)
    params = {"x": (0.03, 5), "y0": (0.02, -3), "y1": (0.03, 5)}
    steps = compare_int8(paired(made, params), inputs(made))
    assert steps.written.operators["QUANTIZE"] == 1
    assert steps.worst <= 1


def test_a_split_of_integers() -> None:
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.INT32, [1, 4])
    outputs = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.INT32, [1, 2]) for n in ("a", "b")]
    node = onnx.helper.make_node("Split", ["x"], ["a", "b"], name="n", axis=1)
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [x], outputs), opset_imports=[onnx.helper.make_opsetid("", 13)]
    )
    found = Session(write(model)).run({"x": np.array([[1, 2, 3, 4]], np.int32)})
    assert (found["a"].tolist(), found["b"].tolist()) == ([[1, 2]], [[3, 4]])
