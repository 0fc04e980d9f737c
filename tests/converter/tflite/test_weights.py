"""Float weights stored as float16, or as int8 with inputs that are quantized while the model runs."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx
import pytest

from converter.tflite import Options, lower, write
from converter.tflite.schema import schema
from tests.converter.quantizing import Floats, floats, graph, inputs, run, sqnr_db
from tests.converter.tflite.harness import Session

Stored = Literal["float16", "dynamic_int8"]
_DB_MIN = {"float16": 60.0, "dynamic_int8": 36.0}
_LOADED_BY_2_14 = {"CONV_2D": 5, "DEPTHWISE_CONV_2D": 6, "DEQUANTIZE": 3, "FULLY_CONNECTED": 5, "RESHAPE": 1}
"""Versions that tflite-runtime 2.14 was seen to load and to compute right, on 2026-11-21."""


def _uneven(seed: int, *shape: int, axis: int) -> Floats:
    """A weight whose output channels differ as they do in trained layers."""
    size = [1] * len(shape)
    size[axis] = -1
    factors = np.exp(np.random.default_rng(9).normal(0, 1, shape[axis])).reshape(size)
    return (floats(seed, *shape) * factors).astype(np.float32)


def _model(case: str) -> onnx.ModelProto:
    bias = {"b": floats(2, 32)}
    if case == "fully connected":
        constants = {"w": _uneven(1, 64, 32, axis=1), **bias}
        return graph([("Gemm", "x w b", "y")], constants, outputs={"y": [None] * 2}, shape=(64,))
    if case == "three axes":
        lines = [("MatMul", "x w", "m"), ("Add", "m b", "a"), ("Relu", "a", "y")]
        constants = {"w": _uneven(1, 64, 32, axis=1), **bias}
        return graph(lines, constants, outputs={"y": [None] * 3}, shape=(7, 64))
    if case == "stack":
        constants = {"w": floats(1, 3, 64, 32)}
        return graph([("MatMul", "x w", "y")], constants, outputs={"y": [None] * 4}, shape=(3, 7, 64))
    group = {"plain": 1, "grouped": 2, "depthwise": 32}[case]
    constants = {"w": _uneven(1, 32, 32 // group, 3, 3, axis=0), **bias}
    line = ("Conv", "x w b", "y", {"group": group, "pads": [1, 1, 1, 1]})
    return graph([line], constants, outputs={"y": [None] * 4}, shape=(32, 9, 9))


def _versions(content: bytes) -> dict[str, int]:
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    return {names[code.builtinCode]: code.version for code in model.operatorCodes}


_CASES = ("fully connected", "three axes", "plain", "grouped", "depthwise")


@pytest.mark.parametrize("case", _CASES)
@pytest.mark.parametrize("weights", _DB_MIN)
def test_is_near_float(case: str, weights: Stored) -> None:
    made = _model(case)
    x = inputs(made)[:1]
    written = write(made, Options(weights=weights))
    assert sqnr_db(run(made, x)[0], Session(written).run({"x": x})["y"]) > _DB_MIN[weights]
    if case != "depthwise":
        whole = len(write(made).content)
        assert len(written.content) < {"float16": 0.65, "dynamic_int8": 0.5}[weights] * whole


@pytest.mark.parametrize("case", _CASES)
@pytest.mark.parametrize("weights", _DB_MIN)
def test_old_runtimes_load_it(case: str, weights: Stored) -> None:
    versions = _versions(write(_model(case), Options(weights=weights)).content)
    assert all(version <= _LOADED_BY_2_14[kind] for kind, version in versions.items())


def test_a_dynamic_product_is_a_convolution() -> None:
    made = _model("three axes")
    assert write(made, Options(weights="dynamic_int8")).operators == {"CONV_2D": 1, "RESHAPE": 2}


def test_every_row_has_a_scale_of_its_own() -> None:
    made = _model("three axes")
    x = inputs(made)[:1]
    x[0, 0] *= 1000.0
    options = Options(weights="dynamic_int8")
    exact, near = run(made, x)[0], Session(write(made, options)).run({"x": x})["y"]
    # LiteRT takes a scale per pixel anyway, tflite-runtime one per image.
    images = [one.inputs[0] for one in lower(made, options).graph.operators if one.kind == "CONV_2D"]
    assert [image.shape for image in images if image is not None] == [(7, 1, 1, 64)]
    assert sqnr_db(exact[0, 1:], near[0, 1:]) > _DB_MIN["dynamic_int8"]


def test_stacks_are_halved_and_never_int8() -> None:
    made = _model("stack")
    x = inputs(made)[:1]
    exact = run(made, x)[0]
    for weights, least_db in (("float16", 60.0), ("dynamic_int8", 100.0)):
        written = write(made, Options(weights=weights))  # type: ignore[arg-type]
        assert sqnr_db(exact, Session(written).run({"x": x})["y"]) > least_db
    assert write(made, Options(weights="float16")).operators == {"BATCH_MATMUL": 1, "DEQUANTIZE": 1}
