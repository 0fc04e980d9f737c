"""Gemm and MatMul by a constant matrix: FULLY_CONNECTED."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from converter.tflite import TFLiteError, write
from tests.converter.quantizing import floats, graph, inputs
from tests.converter.tflite.harness import check_float, compare_int8, steps_of
from tests.converter.tflite.singles import paired, params_of

_BIASES = {"none": None, "row": (6,), "one row": (1, 6), "number": (), "one": (1,), "column": (1, 1)}
_SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {}, "transposed": {"transB": 1}, "scaled": {"alpha": 0.5, "beta": -2.0},
    "no bias": {"beta": 0.0},
}  # fmt: skip


def _gemm(settings: dict[str, Any], bias: tuple[int, ...] | None, relu: bool = False) -> onnx.ModelProto:
    weight = floats(1, 6, 9) if settings.get("transB") else floats(1, 9, 6)
    constants = {"w": weight} | ({} if bias is None else {"b": floats(2, *bias)})
    line = ("Gemm", "x w" + ("" if bias is None else " b"), "c" if relu else "y", settings)
    lines = [line, ("Relu", "c", "y")] if relu else [line]
    return graph(lines, constants, outputs={"y": [None, 6]}, shape=(9,))


@pytest.mark.parametrize("case", _SETTINGS)
@pytest.mark.parametrize("bias", _BIASES)
def test_a_gemm_in_float_is_one_operator(case: str, bias: str) -> None:
    written = check_float(_gemm(_SETTINGS[case], _BIASES[bias], relu=True))
    assert written.operators == {"FULLY_CONNECTED": 1}


@pytest.mark.parametrize("case", ["plain", "transposed"])
@pytest.mark.parametrize("bias", ["none", "row"])
@pytest.mark.parametrize("recipe", ["static_wi8_ai8_pc_minmax", "static_wi8_au8_pt_minmax"])
def test_a_gemm_in_int8_is_equal(case: str, bias: str, recipe: str) -> None:
    steps = steps_of(_gemm(_SETTINGS[case], _BIASES[bias]), recipe)
    assert steps.integer
    assert steps.written.operators == {"FULLY_CONNECTED": 1}
    assert (steps.worst, steps.equal) == (0, 1.0)


def fixed(
    lines: list[Any], shapes: dict[str, tuple[int, ...]], constants: dict[str, NDArray[Any]], rank: int
) -> onnx.ModelProto:
    """A graph of several inputs with fixed shapes."""
    nodes = [
        onnx.helper.make_node(kind, reads.split(" "), [made], name=f"n_{made}", **settings)
        for kind, reads, made, settings in lines
    ]
    kind = onnx.TensorProto.FLOAT
    given = [onnx.helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
    result = onnx.helper.make_tensor_value_info("y", kind, [None] * rank)
    tensors = [onnx.numpy_helper.from_array(v, name) for name, v in constants.items()]
    made = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", given, [result], tensors),
        opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    onnx.checker.check_model(made, full_check=True)
    return made


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("scaled", [{}, {"alpha": 0.5, "beta": 2.0}])
@pytest.mark.parametrize("addend", ["none", "computed", "constant", "row"])
def test_a_gemm_of_two_computed_matrices(
    trans_a: int, trans_b: int, scaled: dict[str, float], addend: str
) -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "x": (7, 4) if trans_a else (4, 7),
        "w": (5, 7) if trans_b else (7, 5),
    }
    constants = {}
    if addend == "computed":
        shapes["b"] = (4, 5)
    elif addend != "none":
        constants["b"] = floats(2, *((4, 5) if addend == "constant" else (5,)))
    settings = {"transA": trans_a, "transB": trans_b, **scaled}
    line = ("Gemm", "x w" if addend == "none" else "x w b", "y", settings)
    assert "TRANSPOSE" not in check_float(fixed([line], shapes, constants, 2)).operators


@pytest.mark.parametrize("addend", [(4, 6), (4, 1)])
def test_what_is_no_row_is_added_behind(addend: tuple[int, ...]) -> None:
    line = ("Gemm", "x w b", "y", {"alpha": 0.5})
    made = fixed([line], {"x": (4, 9)}, {"w": floats(1, 9, 6), "b": floats(2, *addend)}, 2)
    assert check_float(made).operators == {"ADD": 1, "FULLY_CONNECTED": 1}


def test_a_transposed_left_operand_is_moved() -> None:
    line = ("Gemm", "x w", "y", {"transA": 1})
    made = fixed([line], {"x": (9, 4)}, {"w": floats(1, 9, 6)}, 2)
    assert check_float(made).operators == {"FULLY_CONNECTED": 1, "TRANSPOSE": 1}


_LEFT: dict[str, tuple[int, ...]] = {"matrix": (9,), "three": (5, 9), "four": (2, 5, 9)}
_RIGHT: dict[str, tuple[int, ...]] = {
    "matrix": (9, 6), "vector": (9,), "one of a stack": (1, 9, 6), "deep": (1, 1, 1, 9, 6),
}  # fmt: skip


@pytest.mark.parametrize("left", _LEFT)
@pytest.mark.parametrize("right", _RIGHT)
def test_a_matmul_by_one_constant_matrix(left: str, right: str) -> None:
    weight = floats(1, *_RIGHT[right])
    shape = np.matmul(np.zeros((1, *_LEFT[left])), weight).shape
    made = graph(
        [("MatMul", "x w", "y")], {"w": weight}, outputs={"y": [None] * len(shape)}, shape=_LEFT[left]
    )  # fmt: skip
    operators = check_float(made).operators
    assert operators.pop("RESHAPE", 0) <= 1
    assert operators == {"FULLY_CONNECTED": 1}


@pytest.mark.parametrize("left", _LEFT)
@pytest.mark.parametrize("recipe", ["static_wi8_ai8_pc_minmax", "static_wi8_au8_pt_minmax"])
def test_a_matmul_in_int8_is_equal(left: str, recipe: str) -> None:
    made = graph(
        [("MatMul", "x w", "y")], {"w": floats(1, 9, 6)}, outputs={"y": [None] * (1 + len(_LEFT[left]))},
        shape=_LEFT[left],
    )  # fmt: skip
    steps = steps_of(made, recipe)
    assert steps.integer
    assert steps.written.operators == {"FULLY_CONNECTED": 1}
    assert (steps.worst, steps.equal) == (0, 1.0)


def test_a_vector_times_a_constant_matrix() -> None:
    made = fixed([("MatMul", "x w", "y", {})], {"x": (9,)}, {"w": floats(1, 9, 6)}, 1)
    assert check_float(made).operators["FULLY_CONNECTED"] == 1


@pytest.mark.parametrize("row", [(6,), (1, 6), (), (1,)])
@pytest.mark.parametrize("first", [True, False])
def test_a_row_behind_a_matmul_is_its_bias(row: tuple[int, ...], *, first: bool) -> None:
    add = ("Add", "b m" if first else "m b", "a")
    made = graph(
        [("MatMul", "x w", "m"), add, ("Relu", "a", "y")], {"w": floats(1, 9, 6), "b": floats(2, *row)},
        outputs={"y": [None, 5, 6]}, shape=(5, 9),
    )  # fmt: skip
    assert check_float(made).operators == {"FULLY_CONNECTED": 1}


@pytest.mark.parametrize(
    ("lines", "outputs"),
    [
        ([("MatMul", "x w", "m"), ("Add", "m c", "y")], ["y"]),
        ([("MatMul", "x w", "m"), ("Add", "m b", "y")], ["y", "m"]),
        ([("MatMul", "x w", "m"), ("Add", "m b", "a"), ("Mul", "m a", "y")], ["y"]),
        ([("MatMul", "x w", "m"), ("Add", "m m", "y")], ["y"]),
        ([("MatMul", "x w", "m"), ("Add", "m t", "y")], ["y"]),
    ],
)
def test_what_is_no_bias_stays_an_add(lines: list[Any], outputs: list[str]) -> None:
    """A column, a product that others read, no constant at all, and a sum of more axes than the product."""
    constants = {"w": floats(1, 9, 6), "b": floats(2, 6), "c": floats(2, 5, 1), "t": floats(2, 1, 1, 1, 6)}
    rank = 4 if lines[-1][1] == "m t" else 3
    made = graph(
        lines, {k: v for k, v in constants.items() if any(k in line[1].split(" ") for line in lines)},
        outputs={name: [None] * rank for name in outputs}, shape=(5, 9),
    )  # fmt: skip
    assert check_float(made).operators["ADD"] == 1


def test_stored_products_round_before_the_sum() -> None:
    """MatMul and Add with a pair between them stay two operators."""
    made = graph(
        [("MatMul", "x w", "m"), ("Add", "m b", "y")], {"w": floats(1, 9, 6), "b": floats(2, 6)},
        outputs={"y": [None, 5, 6]}, shape=(5, 9),
    )  # fmt: skip
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in made.graph.initializer}
    found = {"x": (0.03, 2), "w": (0.01, 0), "m": (0.05, -3), "b": params_of(constants["b"]), "y": (0.05, 1)}
    steps = compare_int8(paired(made, found), inputs(made))
    assert steps.integer
    assert steps.written.operators == {"ADD": 1, "FULLY_CONNECTED": 1}
    assert (steps.worst, steps.equal) == (0, 1.0)


def test_an_image_flattened_in_the_files_order_is_multiplied_so() -> None:
    made = graph(
        [("Conv", "x w", "c"), ("Flatten", "c", "f"), ("MatMul", "f v", "y")],
        {"w": floats(1, 4, 3, 3, 3), "v": floats(2, 144, 5)}, outputs={"y": [None, 5]},
    )  # fmt: skip
    assert "TRANSPOSE" not in check_float(made).operators


def _refused(made: onnx.ModelProto, code: str, words: str) -> None:
    with pytest.raises(TFLiteError, match=words) as caught:
        write(made)
    assert caught.value.code == code
    assert "n_y" in str(caught.value)


def test_scaled_integers_are_refused() -> None:
    made = paired(_gemm({"alpha": 0.5}, None), {"x": (0.03, 2), "w": (0.01, 0), "y": (0.05, 1)})
    _refused(made, "tflite_attribute", "alpha")


def test_a_weight_with_a_zero_point_is_refused() -> None:
    made = paired(_gemm({}, None), {"x": (0.03, 2), "w": (0.01, 3), "y": (0.05, 1)})
    _refused(made, "tflite_quantization", "zero point")


@pytest.mark.parametrize("stack", [False, True])
def test_a_weight_stored_per_input_is_refused(*, stack: bool) -> None:
    float_graph = _gemm({}, None)
    if stack:
        line, constants = ("MatMul", "x w", "y"), {"w": floats(1, 1, 9, 6)}
        float_graph = graph([line], constants, outputs={"y": [None] * 3}, shape=(5, 9))
    made = paired(float_graph, {"x": (0.03, 2), "w": (0.01, 0), "y": (0.05, 1)})
    tensors = {t.name: t for t in made.graph.initializer}
    for name, values in (("w_scale", np.full(9, 0.01, np.float32)), ("w_zero", np.zeros(9, np.int8))):
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(values, name))
    pair = next(n for n in made.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == "w_stored")
    pair.attribute.append(onnx.helper.make_attribute("axis", int(stack)))
    _refused(made, "tflite_quantization", "per output channel")
