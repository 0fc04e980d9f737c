"""Whole networks as twins: a residual one, a U-Net, an attention block and the demo's model.

Float files answer as ONNX does; INT8 ones have every scale of the QDQ graph, no operator further off than its
kind allows, and stand as near to FP32 as the ONNX graph does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from converter.passes import clean
from converter.quantize import quantize
from converter.recipe import parse
from converter.runtime import open_session
from converter.tflite import write
from converter.tflite.parity import prove
from tests.conftest import ROOT
from tests.converter.quantizing import floats, graph, inputs, material
from tests.converter.tflite.harness import Session, check_float
from tests.converter.twins import attention, unet

_RECIPES = ("static_wi8_ai8_pc_minmax_twin", "static_wi8_au8_pc_minmax_twin")


def _residual() -> onnx.ModelProto:
    return graph(
        [
            ("Conv", "x w1 b1", "c1", {"pads": [1, 1, 1, 1]}), ("Relu", "c1", "r1"),
            ("Conv", "r1 w2 b2", "c2", {"pads": [1, 1, 1, 1]}), ("Add", "r1 c2", "s"), ("Relu", "s", "r2"),
            ("Conv", "r2 w3 b3", "c3", {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
            ("Conv", "r2 w4", "c4", {"strides": [2, 2]}), ("Add", "c3 c4", "s2"), ("Relu", "s2", "r3"),
            ("GlobalAveragePool", "r3", "p"), ("Flatten", "p", "f"), ("Gemm", "f w5 b5", "y"),
        ],
        {
            "w1": floats(1, 8, 3, 3, 3), "b1": floats(2, 8), "w2": floats(3, 8, 8, 3, 3, scale=0.1),
            "b2": floats(4, 8), "w3": floats(5, 12, 8, 3, 3, scale=0.1), "b3": floats(6, 12),
            "w4": floats(7, 12, 8, 1, 1), "w5": floats(8, 12, 5), "b5": floats(9, 5),
        },
        outputs={"y": ["N", 5]},
    )  # fmt: skip


_NETWORKS: dict[str, tuple[Callable[[], onnx.ModelProto], int]] = {
    "residual": (_residual, 0), "unet": (unet, 0), "attention": (attention, 4),
}  # fmt: skip
"""With the TRANSPOSEs that it needs: of queries, keys and values into heads, and of heads back."""


@pytest.mark.parametrize("name", _NETWORKS)
def test_the_float_file_answers_as_onnx(name: str) -> None:
    build, transposes = _NETWORKS[name]
    written = check_float(clean(build())[0], atol=1e-4)
    assert written.operators.get("TRANSPOSE", 0) == transposes


@pytest.mark.parametrize("name", _NETWORKS)
@pytest.mark.parametrize("recipe", _RECIPES)
def test_the_int8_file_is_the_twin(name: str, recipe: str) -> None:
    build, transposes = _NETWORKS[name]
    known = material(clean(build())[0])
    twin = quantize(known, parse(recipe)).model
    proof = prove(twin, [{"x": one[None]} for one in inputs(known.model, 6)])
    assert proof.is_twin
    assert proof.beyond == ()
    written = write(twin)
    assert written.operators.get("TRANSPOSE", 0) == transposes
    x = inputs(known.model, 24, seed=11)
    wanted = _answers(known.model, x)
    mine = np.concatenate([next(iter(Session(written).run({"x": one[None]}).values())) for one in x])
    assert _decibels(wanted, mine) > _decibels(wanted, _answers(twin, x)) - 1.0


def _answers(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = open_session(model.SerializeToString())
    return np.concatenate([session.run(None, {"x": one[None]})[0] for one in x])


def _decibels(wanted: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    return float(10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum()))


def test_the_demos_model_is_written_without_a_transpose_in_float() -> None:
    model = clean(onnx.load(ROOT / "examples/fashion/fashion_v2.onnx"))[0]
    written = check_float(model, atol=1e-4)
    assert set(written.operators) == {"ADD", "CONV_2D", "FULLY_CONNECTED", "MEAN", "PAD"}
    assert written.axes == {"image": (0, 2, 3, 1)}
