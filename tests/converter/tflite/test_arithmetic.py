"""Add, Sub, Mul, Div, Max, Min, Sum and Mean, with broadcasting."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from converter.tflite import Options, TFLiteError, lower, write
from tests.converter.quantizing import Line, floats, graph, inputs
from tests.converter.tflite.harness import check_float, compare_int8
from tests.converter.tflite.singles import paired, params_of, single
from tests.converter.tflite.test_linear import fixed

_FOUR = ("Add", "Sub", "Mul", "Div")
_SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "equal": ((2, 3, 4, 5), (2, 3, 4, 5)),
    "channel": ((2, 3, 4, 5), (3, 1, 1)),
    "row": ((2, 3, 4, 5), (5,)),
    "number": ((2, 3, 4, 5), ()),
    "one": ((2, 3, 4, 5), (1,)),
    "both ways": ((2, 1, 4, 1), (3, 1, 5)),
    "larger right": ((4, 5), (2, 3, 4, 5)),
    "rank 5": ((2, 3, 2, 4, 5), (3, 1, 4, 5)),
    "rank 6": ((2, 1, 3, 2, 4, 5), (2, 1, 2, 1, 5)),
}  # fmt: skip


@pytest.mark.parametrize("kind", _FOUR)
@pytest.mark.parametrize("case", _SHAPES)
@pytest.mark.parametrize("constant", [True, False])
def test_float_is_onnx(kind: str, case: str, *, constant: bool) -> None:
    left, right = _SHAPES[case]
    rank = max(len(left), len(right))
    shapes = {"x": left} if constant else {"x": left, "w": right}
    line: Line = (kind, "x w", "y", {})
    check_float(fixed([line], shapes, {"w": floats(3, *right) + 1} if constant else {}, rank), atol=1e-4)


@pytest.mark.parametrize("kind", _FOUR)
@pytest.mark.parametrize("case", ["channel", "row", "number", "larger right"])
def test_a_constant_may_stand_first(kind: str, case: str) -> None:
    left, right = _SHAPES[case]
    made = fixed([(kind, "w x", "y", {})], {"x": left}, {"w": floats(3, *right)}, max(len(left), len(right)))
    check_float(made, atol=1e-4)


@pytest.mark.parametrize("kind", _FOUR)
@pytest.mark.parametrize("other", [(4, 1, 1), (1,), (6,), (1, 4, 6, 6), (6, 1), ()])
def test_constants_follow_an_images_layout(kind: str, other: tuple[int, ...]) -> None:
    made = graph(
        [("Conv", "x w", "c"), (kind, "c k", "y")], {"w": floats(1, 4, 3, 3, 3), "k": floats(2, *other) + 1},
        outputs={"y": [None] * 4},
    )  # fmt: skip
    assert check_float(made, atol=1e-4).operators == {"CONV_2D": 1, kind.upper(): 1}


def test_computed_operands_follow_an_images_layout() -> None:
    """A gate [N, C, 1, 1] made by matrix products moves, the image does not."""
    made = graph(
        [
            ("Conv", "x w", "c"), ("GlobalAveragePool", "c", "p"), ("Flatten", "p", "f"),
            ("Gemm", "f v", "g"), ("Reshape", "g s", "r"), ("Mul", "c r", "y"),
        ],
        {"w": floats(1, 4, 3, 3, 3), "v": floats(2, 4, 4), "s": np.array([-1, 4, 1, 1])},
        outputs={"y": [None] * 4},
    )  # fmt: skip
    assert "TRANSPOSE" not in check_float(made).operators


def test_the_larger_operand_stays_where_it_lies() -> None:
    made = graph(
        [("Transpose", "x", "t", {"perm": [0, 2, 3, 1]}), ("ReduceMean", "t", "m", {"axes": [1]}),
         ("Mul", "m x", "y")],
        {}, outputs={"y": [None] * 4}, shape=(4, 4, 4),
    )  # fmt: skip
    written = check_float(made)
    assert written.operators["TRANSPOSE"] == 1
    assert written.axes == {}


def test_a_relu_is_fused() -> None:
    made = graph([("Mul", "x x", "m"), ("Relu", "m", "y")], {}, outputs={"y": [None] * 4})
    assert check_float(made).operators == {"MUL": 1}


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Max", "Min"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_integers(kind: str, dtype: type[np.generic]) -> None:
    _check_integers(kind, dtype)


def _check_integers(kind: str, dtype: type[np.generic]) -> None:
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x, y = (onnx.helper.make_tensor_value_info(name, element, [2, 4]) for name in "xy")
    other = onnx.numpy_helper.from_array(np.arange(1, 5, dtype=dtype), "w")
    node = onnx.helper.make_node(kind, ["x", "w"], ["y"], name="n_y")
    check_float(
        onnx.helper.make_model(
            onnx.helper.make_graph([node], "g", [x], [y], [other]),
            opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8,
        )
    )  # fmt: skip


def test_a_type_without_a_kernel_is_refused() -> None:
    with pytest.raises(TFLiteError, match="n_y computes with int64") as caught:
        _check_integers("Div", np.int64)
    assert caught.value.code == "tflite_type"


@pytest.mark.parametrize("kind", ["Max", "Min", "Sum", "Mean"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_of_any_number_of_operands(kind: str, number: int) -> None:
    made = graph(
        [(kind, " ".join(["x", "k", "l"][:number]), "y")],
        {k: v for k, v in {"k": floats(1, 8), "l": floats(2, 3, 8, 1)}.items() if k in "kl"[: number - 1]},
        outputs={"y": [None] * 4},
    )  # fmt: skip
    check_float(made)


_STORED = {"x": (0.03, 5), "y": (0.07, -20)}
_EQUAL = frozenset({"Add", "Mul"})


@pytest.mark.parametrize("kind", ["Add", "Mul", "Sub", "Max", "Min"])
@pytest.mark.parametrize("other", [(3, 8, 8), (3, 1, 1), (8,), ()])
def test_int8_by_a_constant(kind: str, other: tuple[int, ...]) -> None:
    constant = floats(2, *other, scale=1.0)
    made = single(kind, (3, 8, 8), constants={"k": constant})
    stored = params_of(constant) if constant.size > 1 else (0.011, 3)
    steps = compare_int8(paired(made, {**_STORED, "k": stored}), inputs(made))
    assert steps.integer
    assert steps.worst <= (kind not in _EQUAL)
    assert steps.equal > 0.999 or kind not in _EQUAL


@pytest.mark.parametrize("kind", ["Add", "Mul", "Sub", "Max", "Min"])
@pytest.mark.parametrize("scale", [0.004, 0.05])
def test_int8_of_two_computed(kind: str, scale: float) -> None:
    made = graph([("Sigmoid", "x", "s"), (kind, "x s", "y")], {}, outputs={"y": [None] * 4})
    steps = compare_int8(
        paired(made, {"x": (0.03, 5), "s": (1 / 256, -128), "y": (scale, -20)}), inputs(made)
    )  # fmt: skip
    assert steps.integer
    assert steps.worst <= (kind not in _EQUAL)


def test_int8_that_makes_numbers_larger() -> None:
    """Scales whose product is above the output's."""
    made = single("Mul", (3, 8, 8), constants={"k": np.array(40.0, np.float32)})
    steps = compare_int8(paired(made, {"x": (0.03, 5), "k": (0.5, 0), "y": (0.004, 3)}), inputs(made))
    assert (steps.worst, steps.integer) == (0, True)


@pytest.mark.parametrize(("scale", "version"), [(0.014, 3), (0.016, 2)])
def test_a_mul_that_makes_steps_finer_has_version_3(scale: float, version: int) -> None:
    made = single("Mul", (3, 8, 8), constants={"k": np.array(40.0, np.float32)})
    graph_int8 = paired(made, {"x": (0.03, 5), "k": (0.5, 0), "y": (scale, 3)})
    (operator,) = lower(graph_int8, Options(edge="int8")).graph.operators
    assert operator.version == version


def test_div_on_stored_numbers_is_float() -> None:
    made = single("Div", (3, 8, 8), constants={"k": np.array(40.0, np.float32)})
    steps = compare_int8(paired(made, {"x": (0.03, 5), "y": (0.001, 3)}), inputs(made))
    assert steps.written.float_left == ("n_y",)
    assert steps.worst <= 1


def test_a_constant_stored_per_channel_is_refused() -> None:
    made = paired(single("Add", (3, 8, 8), constants={"k": floats(1, 3, 1, 1)}), {**_STORED, "k": (0.01, 0)})
    tensors = {t.name: t for t in made.graph.initializer}
    for name, values in (("k_scale", np.full(3, 0.01, np.float32)), ("k_zero", np.zeros(3, np.int8))):
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(values, name))
    pair = next(n for n in made.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == "k_stored")
    pair.attribute.append(onnx.helper.make_attribute("axis", 0))
    with pytest.raises(TFLiteError, match="per channel") as caught:
        write(made)
    assert caught.value.code in {"tflite_quantization", "tflite_layout"}
