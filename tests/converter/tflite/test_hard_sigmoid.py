"""HardSigmoid as ADD, RELU6 and MUL."""

from __future__ import annotations

import pytest

from converter.tflite import TFLiteError
from tests.converter.quantizing import inputs
from tests.converter.tflite.harness import check_float, compare_int8, steps_of
from tests.converter.tflite.singles import paired, single

_SETTINGS = {
    "onnx": {},
    "mobilenet": {"alpha": 1 / 6, "beta": 0.5},
    "steep": {"alpha": 0.9, "beta": 0.25},
    "falling": {"alpha": -0.3, "beta": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("case", _SETTINGS)
def test_float_is_onnx(case: str) -> None:
    check_float(single("HardSigmoid", (4, 5, 3), _SETTINGS[case]), atol=1e-6)


def test_the_form_of_mobilenet_is_two_operators() -> None:
    assert check_float(single("HardSigmoid", (7,), _SETTINGS["mobilenet"])).operators == {
        "ADD": 1,
        "MUL": 1,
    }


@pytest.mark.parametrize("case", ["onnx", "mobilenet", "steep"])
@pytest.mark.parametrize("recipe", ["static_wi8_ai8_pc_minmax", "static_wi8_au8_pc_minmax"])
def test_int8_is_within_a_step(case: str, recipe: str) -> None:
    steps = steps_of(single("HardSigmoid", (4, 8, 8), _SETTINGS[case]), recipe)
    assert steps.integer
    assert steps.worst <= 1
    assert steps.equal > 0.99


@pytest.mark.parametrize("case", ["onnx", "mobilenet", "steep"])
def test_int8_is_bounded_where_the_type_is_not(case: str) -> None:
    """Stored from -1 to 1.5, so that neither 0 nor 1 is an end of int8."""
    made = single("HardSigmoid", (4, 8, 8), _SETTINGS[case])
    steps = compare_int8(paired(made, {"x": (0.04, 5), "y": (0.01, -28)}), inputs(made) * 4)
    assert steps.integer
    assert steps.worst <= 1


def test_a_falling_one_on_integers_is_refused() -> None:
    with pytest.raises(TFLiteError, match="n_y") as caught:
        steps_of(single("HardSigmoid", (4, 8, 8), _SETTINGS["falling"]))
    assert caught.value.code == "tflite_attribute"
