"""What INT8 kernels demand of their outputs, and when other parameters will do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from converter.quantize.qparams import QParams, dequantize, quantize
from converter.tflite import TFLiteError, write
from converter.tflite.ops.pieces import DEMANDED, fits

_RANGES = {"LOGISTIC": (0.0, 1.0), "LOG_SOFTMAX": (-60.0, 0.0), "SOFTMAX": (0.0, 1.0), "TANH": (-1.0, 1.0)}
"""Of the functions."""


def _params(scale: float, zero_point: int) -> QParams:
    zero = np.array(zero_point, np.int8)
    return QParams(scale=np.array(scale, np.float32), zero_point=zero, dtype="i8")


@pytest.mark.parametrize("kind", DEMANDED)
@given(factor=st.floats(0.1, 8), zero_point=st.integers(-128, 127), share=st.floats(0, 1))
def test_what_fits_is_within_a_step_although_it_is_rounded_twice(
    kind: str, factor: float, zero_point: int, share: float
) -> None:
    wanted = _params(float(DEMANDED[kind].scale) * factor, zero_point)
    assume(fits(kind)(wanted))
    low, high = _RANGES[kind]
    x = np.array([low + share * (high - low)], np.float32)
    twice = quantize(dequantize(quantize(x, DEMANDED[kind]), DEMANDED[kind]), wanted)
    assert abs(int(twice[0]) - int(quantize(x, wanted)[0])) <= 1


@pytest.mark.parametrize("kind", ["Add", "Clip", "Equal", "Less", "Max", "Mul", "ReduceMax", "Sub"])
@pytest.mark.parametrize("element", [TensorProto.INT8, TensorProto.UINT8])
def test_bytes_that_stand_for_no_reals_are_refused(kind: str, element: int) -> None:
    """LiteRT 2.3 ends the process on many of them."""
    x, out = (
        helper.make_tensor_value_info(name, one, [2, 4])
        for name, one in (("x", element), ("y", TensorProto.BOOL if kind in {"Equal", "Less"} else element))
    )
    reads = ["x"] if kind in {"Clip", "ReduceMax"} else ["x", "x"]
    node = helper.make_node(kind, reads, ["y"], name="n_y")
    made = helper.make_model(
        helper.make_graph([node], "g", [x], [out]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    with pytest.raises(TFLiteError, match=r"n_y computes with plain u?int8") as caught:
        write(made)
    assert caught.value.code == "tflite_type"


@pytest.mark.parametrize("kind", DEMANDED)
def test_what_is_demanded_fits(kind: str) -> None:
    assert fits(kind)(DEMANDED[kind])
    assert not fits(kind)(_params(float(DEMANDED[kind].scale) / 2.5, 0))
