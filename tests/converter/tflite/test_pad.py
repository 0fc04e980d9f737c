"""Padding: PAD, PADV2, MIRROR_PAD, SLICE and GATHER."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from converter.tflite import TFLiteError, write
from tests.converter.quantizing import floats, graph, inputs, run
from tests.converter.tflite.harness import Session, check_float, compare_int8, steps_of
from tests.converter.tflite.singles import paired

_PADS = [0, 1, 2, 3, 0, 0, 1, 2]


def _model(
    pads: list[int] | None = None, *, mode: str = "constant", value: float | None = None,
    axes: list[int] | None = None, conv: bool = False, opset: int = 19, shape: tuple[int, ...] = (3, 5, 6),
) -> onnx.ModelProto:  # fmt: skip
    constants: dict[str, Any] = {"pads": np.array(_PADS if pads is None else pads, np.int64)}
    line = "c pads" if conv else "x pads"
    if value is not None:
        constants["value"], line = np.array(value, np.float32), f"{line} value"
    if axes is not None:
        constants["axes"] = np.array(axes, np.int64)
        line += " axes" if value is not None else "  axes"
    lines: list[Any] = [("Pad", line, "y", {"mode": mode})]
    if conv:
        constants["w"] = floats(1, shape[0], shape[0], 1, 1)
        lines = [("Conv", "x w", "c"), *lines]
    return graph(lines, constants, outputs={"y": [None] * (len(shape) + 1)}, shape=shape, opset=opset)


_CASES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "zeros": ({}, {"PAD": 1}),
    "a value": ({"value": 0.75}, {"PADV2": 1}),
    "lowest": ({"value": -3.4028234663852886e38}, {"PADV2": 1}),
    "chosen axes": ({"pads": [1, 2, 3, 0], "axes": [-1, 1]}, {"PAD": 1}),
    "negative": ({"pads": [0, -1, 0, 0, 0, 0, -2, -1]}, {"SLICE": 1}),
    "negative and positive": ({"pads": [0, -1, 2, 0, 0, 0, 1, -1], "value": 1.0}, {"SLICE": 1, "PADV2": 1}),
    "reflected": ({"mode": "reflect"}, {"MIRROR_PAD": 1}),
    "reflected and cropped": ({"mode": "reflect", "pads": [0, 0, -1, 2, 0, 0, 1, 1]}, {"GATHER": 2}),
    "edge": ({"mode": "edge"}, {"GATHER": 3}),
    "wrapped": ({"mode": "wrap"}, {"GATHER": 3}),
    "nothing": ({"pads": [0] * 8}, {"RESHAPE": 1}),
}


@pytest.mark.parametrize("case", _CASES)
@pytest.mark.parametrize("conv", [True, False])
def test_float_is_onnx(case: str, *, conv: bool) -> None:
    settings, operators = _CASES[case]
    made = _model(**settings, conv=conv)
    if min(settings.get("pads", [0])) < 0:
        # ONNX's reference evaluator does not crop; ONNX Runtime is the yardstick.
        written, x = write(made), inputs(made)[:1]
        np.testing.assert_allclose(Session(written).run({"x": x})["y"], run(made, x)[0], atol=1e-5)
        found = written.operators
    else:
        found = check_float(made).operators
    if conv:
        operators = {"CONV_2D": 1, **({} if case == "nothing" else operators)}
    assert found == operators


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 2, 3)])
def test_other_ranks(shape: tuple[int, ...]) -> None:
    rank = len(shape) + 1
    assert check_float(_model([0, *[1] * (rank - 1)] * 2, shape=shape)).operators == {"PAD": 1}


def test_pads_and_value_may_be_attributes() -> None:
    made = graph([("Pad", "x", "y", {"pads": _PADS, "value": 2.0})], {}, outputs={"y": [None] * 4}, opset=10)
    found = check_float(made)
    assert found.operators == {"PADV2": 1}


# The quantizer leaves wrapping in float, and has no range for the lowest float.
@pytest.mark.parametrize("case", [case for case in _CASES if case not in {"lowest", "wrapped"}])
@pytest.mark.parametrize("recipe", ["static_wi8_ai8_pc_minmax", "static_wi8_au8_pc_minmax"])
def test_int8_is_equal(case: str, recipe: str) -> None:
    steps = steps_of(_model(**_CASES[case][0], conv=True), recipe)
    assert steps.worst == 0


@pytest.mark.parametrize("case", _CASES)
def test_unequal_pairs_are_requantized(case: str) -> None:
    made = _model(**_CASES[case][0])
    steps = compare_int8(paired(made, {"x": (0.03, 5), "y": (0.02, -3)}), inputs(made))
    assert steps.integer
    assert steps.written.operators["QUANTIZE"] == 1
    # What lies beyond the input's range is stored as its end.
    assert steps.worst <= 1 or case == "lowest"


def test_reflecting_more_than_there_is_goes_to_and_fro() -> None:
    """MIRROR_PAD refuses that; numpy goes on, and so does ONNX's reference evaluator."""
    assert check_float(_model([0, 0, 6, 0, 0, 0, 0, 0], mode="reflect")).operators == {"GATHER": 1}


def test_a_value_that_is_stored_as_0_is_not_zero() -> None:
    made = _model(value=-0.15)
    steps = compare_int8(paired(made, {"x": (0.03, 5), "y": (0.03, 5)}), inputs(made))
    assert steps.written.operators == {"PADV2": 1}
    assert (steps.worst, steps.equal) == (0, 1.0)


def test_infinity_stays() -> None:
    assert check_float(_model(value=float("-inf"))).operators == {"PADV2": 1}


def test_what_cannot_be_said_is_named() -> None:
    with pytest.raises(TFLiteError, match="Pad n_y pads 6 axes") as caught:
        write(_model([1] * 12, shape=(1, 2, 2, 2, 2)))
    assert caught.value.code == "tflite_rank"
    with pytest.raises(TFLiteError, match="Pad n_y crops everything away") as caught:
        write(_model([0, 0, -5, 0, 0, 0, 0, 0]))
    assert caught.value.code == "tflite_shape"
    dynamic = graph(
        [("Cast", "p", "q", {"to": onnx.TensorProto.INT64}), ("Pad", "x q", "y")], {"p": np.zeros(8)},
        outputs={"y": [None] * 4},
    )  # fmt: skip
    assert check_float(dynamic).operators == {"RESHAPE": 1}
