"""Gather: rows by number, embedding tables among them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.runtime import open_session
from converter.tflite import Options, write
from converter.tflite.layout import laid
from converter.tflite.ops.gather import gathered
from tests.converter.quantizing import floats, graph, inputs
from tests.converter.tflite.harness import Session, check_float, compare_int8, steps_of
from tests.converter.tflite.singles import paired

_INT64 = onnx.TensorProto.INT64


def _picked(axis: int, indices: list[int] | list[list[int]] | int, *, conv: bool = True) -> onnx.ModelProto:
    constants: dict[str, Any] = {"w": floats(1, 4, 3, 1, 1), "i": np.array(indices, np.int64)}
    lines = [("Conv", "x w", "c"), ("Gather", "c i", "y", {"axis": axis})]
    if not conv:
        constants.pop("w")
        lines = [("Gather", "x i", "y", {"axis": axis})]
    rank = 3 + np.array(indices).ndim
    return graph(lines, constants, outputs={"y": [None] * rank}, shape=(3, 5, 6))


_CASES: dict[str, tuple[int, list[int] | list[list[int]] | int]] = {
    "channels": (1, [2, 0, 0]), "rows": (2, [4, -1, -5]), "columns": (-1, [[0, 1], [5, -2]]),
    "one channel": (1, 2), "one column": (3, -1),
}  # fmt: skip


@pytest.mark.parametrize("case", _CASES)
@pytest.mark.parametrize("conv", [True, False])
def test_constant_indices_are_onnx(case: str, *, conv: bool) -> None:
    found = check_float(_picked(*_CASES[case], conv=conv)).operators
    assert found["GATHER"] == 1


@pytest.mark.parametrize("case", _CASES)
@pytest.mark.parametrize("recipe", ["static_wi8_ai8_pc_minmax", "static_wi8_au8_pc_minmax"])
def test_int8_is_equal(case: str, recipe: str) -> None:
    steps = steps_of(_picked(*_CASES[case]), recipe)
    assert steps.integer
    assert (steps.worst, steps.equal) == (0, 1.0)


def test_an_unequal_pair_is_requantized() -> None:
    made = _picked(1, [2, 0], conv=False)
    steps = compare_int8(paired(made, {"x": (0.03, 5), "y": (0.02, -3)}), inputs(made))
    assert steps.written.operators == {"GATHER": 1, "QUANTIZE": 1}
    assert steps.worst <= 1


def _table(kind: int = _INT64, *, behind: str = "") -> onnx.ModelProto:
    """Rows of a table by the input `i` `[1, 4]`."""
    i = onnx.helper.make_tensor_value_info("i", kind, [1, 4])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4, 5])
    table = onnx.numpy_helper.from_array(floats(3, 9, 5, scale=1.0), "t")
    nodes = [onnx.helper.make_node("Gather", ["t", "i"], ["g" if behind else "y"], name="n_g")]
    if behind:
        nodes.append(onnx.helper.make_node(behind, ["g"], ["y"], name="n_y"))
    made = onnx.helper.make_graph(nodes, "g", [i], [y], [table])
    return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("kind", [_INT64, onnx.TensorProto.INT32])
def test_computed_indices_may_be_negative(kind: int) -> None:
    made = _table(kind)
    written = write(made)
    assert written.operators == {"FLOOR_MOD": 1, "GATHER": 1}
    indices = np.array([[0, -1, 8, -9]]).astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    table = onnx.numpy_helper.to_array(made.graph.initializer[0])
    np.testing.assert_array_equal(Session(written).run({"i": indices})["y"], table[indices])


def test_indices_that_an_arg_max_made_are_not_negative() -> None:
    made = graph(
        [("ArgMax", "x", "i", {"axis": 1, "keepdims": 0}), ("Gather", "t i", "y")], {"t": floats(3, 8, 5)},
        outputs={"y": [None, 5]}, shape=(8,),
    )  # fmt: skip
    assert check_float(made).operators == {"ARG_MAX": 1, "GATHER": 1}


def test_a_stored_table_stays_stored() -> None:
    """Between pairs, and where what is picked of it is computed with in float."""
    indices = np.array([[0, 1, 8, -9]])
    both = paired(_table(behind="Tanh"), {"t": (0.03, 0), "g": (0.03, 0)})
    alone = paired(_table(), {"t": (0.03, 2)})
    for made in (both, alone):
        written = write(made)
        wanted = open_session(made.SerializeToString()).run(None, {"i": indices})[0]
        got = Session(written).run({"i": indices})["y"]
        np.testing.assert_allclose(got, wanted, atol=1e-6 if made is alone else 1e-2)
        assert written.operators["DEQUANTIZE"] == 1
        stored = onnx.numpy_helper.to_array(next(t for t in made.graph.initializer if "stored" in t.name))
        assert stored.tobytes() in written.content


@pytest.mark.parametrize(("options", "atol"), [("as_is", 0), ("float16", 2e-3), ("dynamic_int8", 0.02)])
def test_tables_are_stored_as_asked(options: str, atol: float) -> None:
    made, indices = _table(), np.array([[0, 1, 8, 3]])
    written = write(made, Options(weights=options))  # type: ignore[arg-type]
    table = onnx.numpy_helper.to_array(made.graph.initializer[0])
    np.testing.assert_allclose(Session(written).run({"i": indices})["y"], table[indices], atol=atol)
    assert (table.tobytes() in written.content) == (options == "as_is")


@given(axes=st.permutations(range(4)), axis=st.integers(0, 3), count=st.integers(0, 2))
def test_the_layout_behind_is_numpys(axes: list[int], axis: int, count: int) -> None:
    """Taking along the file's axis gives ONNX's answer in the layout that `gathered` says."""
    real = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    indices = np.arange([1, 2, 4][count]).reshape([(), (2,), (2, 2)][count]) % 2
    logical = real.take(indices, axis)
    file = real.transpose(axes).take(indices, axes.index(axis))
    layout = gathered(tuple(axes), axis, count)
    assert file.shape == laid(logical.shape, layout)
    assert np.array_equal(file, logical.transpose(layout))
