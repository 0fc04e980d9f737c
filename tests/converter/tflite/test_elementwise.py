"""Roots, powers, logarithms and the like, in float."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.tflite import TFLiteError, write
from converter.tflite.ops.elementwise import _ERF_ABOVE, _ERF_BELOW
from tests.converter.quantizing import graph
from tests.converter.tflite.harness import Session, check_float
from tests.converter.tflite.singles import single

_ANY = ("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "Neg", "Round", "Sign", "Sin", "Softplus", "Softsign")
_POSITIVE = ("Log", "Reciprocal", "Sqrt")


@pytest.mark.parametrize("kind", _ANY)
def test_of_any_number(kind: str) -> None:
    check_float(single(kind, (3, 4, 5)))


@pytest.mark.parametrize("kind", _POSITIVE)
def test_of_positive_numbers(kind: str) -> None:
    made = graph([("Abs", "x", "a"), (kind, "a", "y")], {}, outputs={"y": [None] * 4})
    check_float(made)


@pytest.mark.parametrize(
    ("exponent", "kind"),
    [(-1.0, "DIV"), (-0.5, "RSQRT"), (0.5, "SQRT"), (1.0, None), (1.5, "POW"), (2.0, "MUL"), (3.0, "MUL")],
)
def test_powers(exponent: float, kind: str | None) -> None:
    made = graph(
        [("Abs", "x", "a"), ("Pow", "a e", "y")], {"e": np.array(exponent, np.float32)},
        outputs={"y": [None] * 4},
    )  # fmt: skip
    assert set(check_float(made).operators) - {"ABS"} == ({kind} if kind else set())


def test_powers_of_several_exponents() -> None:
    made = graph(
        [("Abs", "x", "a"), ("Pow", "a e", "y")], {"e": np.array([1, 2, 3, 0.5, 1, 2, 3, 4], np.float32)},
        outputs={"y": [None] * 4},
    )  # fmt: skip
    assert check_float(made).operators == {"ABS": 1, "POW": 1}


def test_a_power_that_spreads() -> None:
    made = graph(
        [("Pow", "x e", "y")], {"e": np.full((1, 1, 1, 1, 1), 2, np.float32)}, outputs={"y": [None] * 5}
    )  # fmt: skip
    assert check_float(made).operators["POW"] == 1


def test_erf_to_its_ends() -> None:
    made = single("Erf", (601,))
    x = np.linspace(-6, 6, 601, dtype=np.float32)[None]
    got = Session(write(made)).run({"x": x})["y"][0]
    np.testing.assert_allclose(got, [math.erf(one) for one in x[0]], atol=3e-7, rtol=0)


@given(x=st.floats(-20, 20, width=32))
def test_the_rational_erf_is_within_3e_7(x: float) -> None:
    bounded = np.float32(np.clip(np.float32(x), -4, 4))
    square = np.float32(bounded * bounded)
    above, below = (np.float32(np.polyval(np.array(c, np.float32), square)) for c in (_ERF_ABOVE, _ERF_BELOW))
    assert abs(float(bounded * above / below) - math.erf(x)) < 3e-7


def test_large_numbers_do_not_overflow() -> None:
    made = single("Softplus", (2,))
    got = Session(write(made)).run({"x": np.array([[500.0, -500.0]], np.float32)})["y"]
    np.testing.assert_array_equal(got, [[500.0, 0.0]])


@pytest.mark.parametrize("kind", ["Abs", "Neg", "Pow"])
def test_integers_are_refused(kind: str) -> None:
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.INT32, [1, 4])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [1, 4])
    node = onnx.helper.make_node(kind, ["x", "x"] if kind == "Pow" else ["x"], ["y"], name="n")
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [x], [y]), opset_imports=[onnx.helper.make_opsetid("", 17)]
    )
    with pytest.raises(TFLiteError, match=f"{kind} n") as caught:
        write(model)
    assert caught.value.code == "tflite_type"
