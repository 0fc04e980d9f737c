"""The file's inputs and outputs bear ONNX's names, however they come to be."""

from __future__ import annotations

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from converter.litert import open_session
from converter.tflite import Options, write
from converter.tflite_walk import walk
from tests.converter.quantizing import Line, floats, graph
from tests.converter.tflite.harness import check_float, quantized

_CONV = ("Conv", "x w", "c", {"pads": [1, 1, 1, 1]})
_CASES: dict[str, tuple[list[Line], list[str]]] = {
    "the input itself": ([("Identity", "x", "y")], ["y"]),
    "an input with other axes": ([("Transpose", "x", "y", {"perm": [0, 2, 3, 1]})], ["y"]),
    "other axes": ([_CONV, ("Transpose", "c", "y", {"perm": [0, 3, 1, 2]})], ["y"]),
    "axes that are moved": ([("Relu", "x", "r"), ("Transpose", "r", "y", {"perm": [0, 3, 1, 2]})], ["y"]),
    "one tensor twice": ([_CONV, ("Identity", "c", "y"), ("Identity", "c", "z")], ["y", "z", "c"]),
    "a tensor and its image": ([_CONV, ("Transpose", "c", "y", {"perm": [0, 2, 3, 1]})], ["c", "y"]),
    "flat": ([_CONV, ("Flatten", "c", "y")], ["y"]),
}


@pytest.mark.parametrize("case", _CASES)
def test_float(case: str) -> None:
    lines, outputs = _CASES[case]
    made = graph(
        lines, {"w": floats(1, 4, 3, 3, 3)} if _CONV in lines else {},
        outputs={name: [None] * (2 if case == "flat" else 4) for name in outputs},
    )  # fmt: skip
    written = check_float(made)
    session = open_session(written.content, axes=written.axes)
    assert list(session.output_names) == outputs
    feeds = {"x": floats(2, 1, 3, 8, 8, scale=1.0)}
    for mine, wanted in zip(
        session.run(outputs, feeds), ReferenceEvaluator(made).run(None, feeds), strict=True
    ):
        np.testing.assert_allclose(mine, wanted, atol=1e-5)


@pytest.mark.parametrize("edge", ["float32", "int8", "uint8"])
def test_quantized(edge: str) -> None:
    made = graph(
        [_CONV, ("Transpose", "c", "y", {"perm": [0, 3, 1, 2]})], {"w": floats(1, 4, 3, 3, 3)},
        outputs={"y": [None] * 4},
    )  # fmt: skip
    written = write(quantized(made), Options(edge=edge))  # type: ignore[arg-type]
    file = walk(written.content)
    assert [file.tensors[place].name for place in (*file.inputs, *file.outputs)] == ["x", "y"]
    assert len({one.name for one in file.tensors}) == len(file.tensors)
    named = {one.name for one in file.tensors}
    assert {placed.name for placed in written.tensors.values()} <= named
