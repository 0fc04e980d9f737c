"""Cast."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from converter.tflite import TFLiteError, write
from tests.converter.tflite.harness import Session

_TYPES = ["FLOAT", "INT8", "UINT8", "INT32", "INT64", "BOOL"]


def _model(source: str, wanted: str) -> onnx.ModelProto:
    kinds = onnx.TensorProto.DataType
    x = onnx.helper.make_tensor_value_info("x", kinds.Value(source), [1, 6])
    y = onnx.helper.make_tensor_value_info("y", kinds.Value(wanted), [1, 6])
    node = onnx.helper.make_node("Cast", ["x"], ["y"], name="n_y", to=kinds.Value(wanted))
    return onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [x], [y]), opset_imports=[onnx.helper.make_opsetid("", 17)]
    )


@pytest.mark.parametrize("source", _TYPES)
@pytest.mark.parametrize("wanted", _TYPES)
def test_every_pair_is_onnx(source: str, wanted: str) -> None:
    """Numbers that both types hold; reals lose their fraction."""
    made = _model(source, wanted)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(made.graph.input[0].type.tensor_type.elem_type)
    x = np.array([[0, 1, 2.75, 3, 99.5, 127]]).astype(dtype)
    expected = onnx.reference.ReferenceEvaluator(made).run(None, {"x": x})[0]
    written = write(made)
    got = Session(written).run({"x": x})["y"]
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)
    assert ("CAST" in written.operators) == (source != wanted)


@pytest.mark.parametrize("wanted", ["FLOAT16", "DOUBLE", "STRING"])
def test_other_types_are_refused(wanted: str) -> None:
    with pytest.raises(TFLiteError) as caught:
        write(_model("FLOAT", wanted))
    assert caught.value.code == "tflite_type"
