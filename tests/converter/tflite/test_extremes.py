"""Max, Min, ArgMax and ArgMin."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from converter.tflite import TFLiteError, write
from tests.converter.quantizing import floats, graph, inputs, run
from tests.converter.tflite.harness import Session, check_float, compare_int8
from tests.converter.tflite.singles import paired, single

_KINDS = {"Max": "MAXIMUM", "Min": "MINIMUM"}
_PLACES = {"ArgMax": "ARG_MAX", "ArgMin": "ARG_MIN"}


def _model(kind: str, shapes: list[tuple[int, ...]]) -> onnx.ModelProto:
    constants: dict[str, Any] = {f"k{i}": floats(i, *shape) for i, shape in enumerate(shapes)}
    constants["w"] = floats(9, 3, 3, 1, 1)
    lines = [("Conv", "x w", "c"), (kind, " ".join(["c", "x", *list(constants)[:-1]]), "y")]
    return graph(lines, constants, outputs={"y": [None] * 4}, shape=(3, 4, 5))


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("shapes", [[], [(1, 3, 1, 1)], [(5,), (3, 1, 1)], [()]])
def test_extremes_are_onnx(kind: str, shapes: list[tuple[int, ...]]) -> None:
    found = check_float(_model(kind, shapes)).operators
    assert found == {"CONV_2D": 1, _KINDS[kind]: 1 + len(shapes)}


def test_one_operand_is_nothing() -> None:
    made = graph([("Max", "x", "m"), ("Relu", "m", "y")], {}, outputs={"y": [None] * 4})
    assert check_float(made).operators == {"RELU": 1}


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("k", [(0.03, 5), (0.008, 1)])
def test_int8_is_within_a_step(kind: str, k: tuple[float, int]) -> None:
    """Equal where all are stored alike; else operands are requantized to the output's parameters."""
    made = single(kind, (3, 4, 5), constants={"k": floats(1, 3, 1, 1)})
    steps = compare_int8(paired(made, {"x": (0.03, 5), "k": k, "y": (0.03, 5)}), inputs(made))
    assert steps.integer
    assert steps.worst <= (0 if k == (0.03, 5) else 1)
    other = compare_int8(paired(made, {"x": (0.03, 5), "k": k, "y": (0.02, -8)}), inputs(made))
    assert other.worst <= 1


@pytest.mark.parametrize("kind", _PLACES)
@pytest.mark.parametrize("axis", [1, -1, 2])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_places_are_onnx(kind: str, axis: int, keepdims: int) -> None:
    made = _place(kind, {"axis": axis, "keepdims": keepdims})
    found = check_float(made).operators
    assert found[_PLACES[kind]] == 1


def _place(kind: str, attributes: dict[str, int]) -> onnx.ModelProto:
    w = onnx.numpy_helper.from_array(floats(1, 4, 3, 1, 1), "w")
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, 5, 6])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT64, None)
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["c"], name="n_c"),
        onnx.helper.make_node(kind, ["c"], ["y"], name="n_y", **attributes),
    ]
    return onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", [x], [y], [w]), ir_version=8,
        opset_imports=[onnx.helper.make_opsetid("", 17)],
    )  # fmt: skip


@pytest.mark.parametrize("kind", _PLACES)
def test_the_first_of_equal_places_is_given(kind: str) -> None:
    made = graph(
        [(kind, "x", "i", {"axis": 1}), ("Cast", "i", "y", {"to": 1})], {}, outputs={"y": [None] * 2},
        shape=(6,),
    )  # fmt: skip
    got = Session(write(made)).run({"x": np.array([[1, 2, 2, 1, 1, 2]], np.float32)})["y"]
    assert got.tolist() == [[1.0 if kind == "ArgMax" else 0.0]]


@pytest.mark.parametrize("kind", _PLACES)
def test_places_among_stored_integers_are_equal(kind: str) -> None:
    made = graph(
        [(kind, "x", "i", {"axis": 1}), ("Cast", "i", "y", {"to": 1})], {}, outputs={"y": [None] * 4}
    )
    model, x = paired(made, {"x": (0.2, 5)}), inputs(made)[:1]
    written = write(model)
    assert written.operators == {_PLACES[kind]: 1, "CAST": 1, "QUANTIZE": 1, "RESHAPE": 1}
    wanted = run(model, x)[0]
    assert np.array_equal(Session(written).run({"x": x})["y"], wanted)


def test_the_last_of_equal_places_is_refused() -> None:
    with pytest.raises(TFLiteError, match="ArgMax n_y gives the last") as caught:
        write(_place("ArgMax", {"axis": 1, "select_last_index": 1}))
    assert caught.value.code == "tflite_attribute"
