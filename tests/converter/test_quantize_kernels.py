"""The table of operators against what the runtime really runs, one graph per operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from converter.quantize import quantize
from converter.quantize.operators import CPU_KERNELS, OPERATORS
from converter.recipe import parse
from tests.converter.quantizing import I8, U8, Line, floats, graph, inputs, kernels, material, run, sqnr_db


def _ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


_TWICE = np.array([1, 1, 2, 2], dtype=np.float32)
# Between `a` (and `b`), outputs of convolutions, and `z`, the input of one: lines and constants.
CASES: dict[str, tuple[list[Line], dict[str, NDArray[Any]]]] = {
    "Add": ([("Add", "a b", "z")], {}),
    "Mul": ([("Mul", "a b", "z")], {}),
    "Concat": ([("Concat", "a b", "z", {"axis": 1})], {}),
    "Where": ([("Where", "m a b", "z")], {"m": np.arange(8) > 3}),
    "MatMul": ([("MatMul", "a b", "z")], {}),
    "Add constant": ([("Add", "a k", "z")], {"k": floats(1, 8, 1, 1)}),
    "Mul constant": ([("Mul", "k a", "z")], {"k": floats(1, 8, 1, 1)}),
    "MatMul constant": ([("MatMul", "a k", "z")], {"k": floats(1, 8, 8)}),
    "AveragePool": ([("AveragePool", "a", "z", {"kernel_shape": [2, 2]})], {}),
    "GlobalAveragePool": ([("GlobalAveragePool", "a", "z")], {}),
    "MaxPool": ([("MaxPool", "a", "z", {"kernel_shape": [2, 2]})], {}),
    "LeakyRelu": ([("LeakyRelu", "a", "z")], {}),
    "Sigmoid": ([("Sigmoid", "a", "z")], {}),
    "Softmax": ([("Softmax", "a", "z", {"axis": -1})], {}),
    "Relu": ([("Relu", "a", "z")], {}),
    "Clip": ([("Clip", "a lo hi", "z")], {"lo": np.array(0, np.float32), "hi": np.array(0.7, np.float32)}),
    "Reshape": ([("Reshape", "a s", "z")], {"s": _ints(0, 8, 4, 16)}),
    "Transpose": ([("Transpose", "a", "z", {"perm": [0, 1, 3, 2]})], {}),
    "Flatten": ([("Flatten", "a", "c"), ("Reshape", "c s", "z")], {"s": _ints(-1, 8, 8, 8)}),
    "Squeeze": ([("Unsqueeze", "a s", "c"), ("Squeeze", "c s", "z")], {"s": _ints(1)}),
    "Slice": ([("Slice", "a s e i", "z")], {"s": _ints(0), "e": _ints(6), "i": _ints(3)}),
    "Gather": ([("Gather", "a s", "z", {"axis": 3})], {"s": _ints(0, 2, 4, 5)}),
    "Split": ([("Split", "a s", "z rest", {"axis": 3})], {"s": _ints(4, 4)}),
    "Resize": ([("Resize", "a  s", "z", {"mode": "nearest"})], {"s": _TWICE}),
    "Expand": ([("Expand", "a s", "z")], {"s": _ints(1, 8, 8, 8)}),
    "Identity": ([("Identity", "a", "z")], {}),
    "DepthToSpace": ([("DepthToSpace", "a", "z", {"blocksize": 2})], {}),
    "Conv grouped": ([("Conv", "a k", "z", {"group": 4})], {"k": floats(1, 8, 2, 3, 3)}),
    "Conv depthwise": ([("Conv", "a k", "z", {"group": 8})], {"k": floats(1, 8, 1, 3, 3)}),
    "Conv 1x1 stride 2": ([("Conv", "a k", "z", {"strides": [2, 2]})], {"k": floats(1, 8, 8, 1, 1)}),
    "Conv dilated": ([("Conv", "a k", "z", {"dilations": [2, 2]})], {"k": floats(1, 8, 8, 3, 3)}),
}
FLOAT_CASES: dict[str, tuple[list[Line], dict[str, NDArray[Any]]]] = {
    "Sub": ([("Sub", "a b", "z")], {}),
    "Div": ([("Div", "a k", "z")], {"k": np.array(3, np.float32)}),
    "ReduceMean": ([("ReduceMean", "a", "z", {"axes": [2, 3], "keepdims": 1})], {}),
    "PRelu": ([("PRelu", "a k", "z")], {"k": floats(1, 8, 1, 1)}),
    "Tanh": ([("Tanh", "a", "z")], {}),
    "HardSigmoid": ([("HardSigmoid", "a", "z")], {}),
    "HardSwish": ([("HardSwish", "a", "z")], {}),
    "LayerNormalization": ([("LayerNormalization", "a k", "z", {"axis": -1})], {"k": floats(1, 8)}),
    "Pad": ([("Pad", "a s", "z")], {"s": _ints(0, 0, 1, 1, 0, 0, 1, 1)}),
    "SpaceToDepth": ([("SpaceToDepth", "a", "z", {"blocksize": 2})], {}),
    "Resize linear": ([("Resize", "a  s", "z", {"mode": "linear"})], {"s": _TWICE}),
    "ConvTranspose": ([("ConvTranspose", "a k", "z")], {"k": floats(1, 8, 8, 2, 2)}),
    "Erf": ([("Erf", "a", "z")], {}),
}
_CHANNELS = {"Concat": 16, "DepthToSpace": 2, "SpaceToDepth": 32}


def _model(name: str, lines: list[Line], constants: dict[str, NDArray[Any]]) -> onnx.ModelProto:
    """Convolution, the case, convolution."""
    read = {word for line in lines for word in line[1].split(" ")}
    before: list[Line] = [("Conv", f"x w{t} v{t}", t, {"pads": [1] * 4}) for t in ("a", "b") if t in read]
    weights = {f"w{t}": floats(i, 8, 3, 3, 3) for i, t in enumerate("ab", 10) if t in read}
    weights |= {f"v{t}": floats(i, 8) for i, t in enumerate("ab", 20) if t in read}
    last = {"w": floats(12, 4, _CHANNELS.get(name, 8), 1, 1)}
    return graph(
        [*before, *lines, ("Conv", "z w", "y")],
        weights | constants | last,
        outputs={"y": ["N", 4, None, None]},
    )


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("recipe", [U8, I8])
def test_these_run_in_integers(name: str, recipe: str, tmp_path: Path) -> None:
    """One QuantizeLinear at the input, one DequantizeLinear at the output, nothing between."""
    made = _model(name, *CASES[name])
    result = quantize(material(made), parse(recipe)).model
    onnx.checker.check_model(result, full_check=True)
    found = kernels(result, tmp_path, {"session.qdqisint8allowed": "1"} if recipe == I8 else None)
    # A second output that nothing reads gets its own pair.
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (1, 2 if name == "Split" else 1), found
    assert found["Conv"] == found["MatMul"] == 0
    array = inputs(made, seed=6)
    assert sqnr_db(run(made, array)[0], run(result, array)[0]) > 20


@pytest.mark.parametrize("name", sorted(FLOAT_CASES))
def test_these_run_in_float_between_integers(name: str, tmp_path: Path) -> None:
    lines, constants = FLOAT_CASES[name]
    made = _model(name, lines, constants)
    built = quantize(material(made), parse(U8))
    onnx.checker.check_model(built.model, full_check=True)
    found = kernels(built.model, tmp_path)
    assert found["QLinearConv"] == 2 + (name == "Sub")
    assert found["QuantizeLinear"] == 2
    array = inputs(made, seed=6)
    assert sqnr_db(run(made, array)[0], run(built.model, array)[0]) > 20


def test_every_kernel_of_the_table_was_tried() -> None:
    tried = {line[0] for lines, _ in CASES.values() for line in lines} | {"Gemm", "Conv"}
    assert tried | {"Unsqueeze"} == CPU_KERNELS
    floating = {line[0] for lines, _ in FLOAT_CASES.values() for line in lines}
    assert set(OPERATORS) - CPU_KERNELS - {"Gelu"} <= floating
