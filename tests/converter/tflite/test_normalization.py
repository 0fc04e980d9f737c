"""Normalizations, written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from converter.tflite import TFLiteError, write
from tests.converter.quantizing import floats, graph, inputs, run
from tests.converter.tflite.harness import Session, check_float
from tests.converter.tflite.singles import single

_LAYER = {"ADD": 2, "MEAN": 2, "MUL": 2, "RSQRT": 1, "SQUARED_DIFFERENCE": 1, "SUB": 1}


@pytest.mark.parametrize("axis", [-1, 1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_layer(axis: int, *, bias: bool) -> None:
    shape = (6, 5, 7)
    size = (None, *shape)[axis:] if axis > 0 else (7,)
    constants = {"s": floats(1, *size) + 1} | ({"b": floats(2, *size)} if bias else {})  # type: ignore[arg-type]
    settings = {"axis": axis, "epsilon": 1e-3}
    written = check_float(single("LayerNormalization", shape, settings, constants=constants))
    assert written.operators == (_LAYER if bias else _LAYER | {"ADD": 1})


def test_layer_over_the_channels_of_an_image_needs_no_transpose() -> None:
    """As ConvNeXt has it: to channels last, LayerNormalization, and back."""
    made = graph(
        [
            ("Conv", "x w", "c"), ("Transpose", "c", "t", {"perm": [0, 2, 3, 1]}),
            ("LayerNormalization", "t s b", "l"), ("Transpose", "l", "u", {"perm": [0, 3, 1, 2]}),
            ("Conv", "u v", "y"),
        ],
        {"w": floats(1, 4, 3, 3, 3), "s": floats(2, 4) + 1, "b": floats(3, 4), "v": floats(4, 5, 4, 1, 1)},
        outputs={"y": [None] * 4},
    )  # fmt: skip
    assert check_float(made).operators == {"CONV_2D": 2, **_LAYER}


@pytest.mark.parametrize("image", [False, True])
def test_instance(*, image: bool) -> None:
    constants: dict[str, Any] = {"s": floats(2, 4) + 1, "b": floats(3, 4)}
    lines: list[Any] = [("InstanceNormalization", "c s b" if image else "x s b", "y")]
    if image:
        constants["w"] = floats(1, 4, 4, 3, 3)
        lines.insert(0, ("Conv", "x w", "c"))
    made = graph(lines, constants, outputs={"y": [None] * 4}, shape=(4, 6, 5))
    assert check_float(made).operators == _LAYER | ({"CONV_2D": 1} if image else {})


@pytest.mark.parametrize("image", [False, True])
def test_batch(*, image: bool) -> None:
    constants = {"s": floats(1, 4) + 1, "b": floats(2, 4), "m": floats(3, 4), "v": floats(4, 4) ** 2 + 0.5}
    lines: list[Any] = [("BatchNormalization", "c s b m v" if image else "x s b m v", "y")]
    if image:
        constants["w"] = floats(1, 4, 4, 3, 3)
        lines.insert(0, ("Conv", "x w", "c"))
    made = graph(lines, constants, outputs={"y": [None] * 4}, shape=(4, 6, 5))
    assert check_float(made).operators == {"ADD": 1, "MUL": 1} | ({"CONV_2D": 1} if image else {})


@pytest.mark.parametrize("p", [1, 2])
def test_lp(p: int) -> None:
    """ONNX Runtime is the yardstick: the reference evaluator sums numbers, not magnitudes."""
    made = single("LpNormalization", (6, 5), {"axis": 1, "p": p})
    x = inputs(made)[:1]
    x[0, :, 2] = 0
    np.testing.assert_allclose(Session(write(made)).run({"x": x})["y"], run(made, x)[0], atol=1e-5)


def test_layer_with_its_statistics() -> None:
    made = graph(
        [("LayerNormalization", "x s b", "y m v"), ("Add", "m v", "z")],
        {"s": floats(1, 8), "b": floats(2, 8)},
        outputs={"y": [None] * 4, "z": [None] * 4},
    )  # fmt: skip
    check_float(made)


def test_statistics_of_a_batch_are_refused() -> None:
    constants = {"s": floats(1, 4), "b": floats(2, 4), "m": floats(3, 4), "v": floats(4, 4) ** 2}
    made = graph(
        [("BatchNormalization", "x s b m v", "y n w", {"training_mode": 1}), ("Add", "n w", "z")], constants,
        outputs={"y": [None] * 3, "z": [None]}, shape=(4, 6),
    )  # fmt: skip
    with pytest.raises(TFLiteError, match="n_y") as caught:
        write(made)
    assert caught.value.code == "tflite_attribute"
