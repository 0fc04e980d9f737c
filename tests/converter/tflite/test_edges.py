"""The file's inputs and outputs bear ONNX's names, however they come to be."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from converter.litert import open_session
from converter.tflite import Options, TFLiteError, write
from tests.converter.quantizing import Line, floats, graph
from tests.converter.tflite.harness import check_float, quantized
from wire.tflite_walk import walk

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


def test_a_constant_output_is_real_and_no_integer_edge() -> None:
    anchors = numpy_helper.from_array(floats(3, 4, 2), "anchors")
    made = quantized(graph([_CONV], {"w": floats(1, 4, 3, 3, 3)}, outputs={"c": [None] * 4}))
    made.graph.initializer.append(anchors)
    made.graph.output.append(helper.make_tensor_value_info("anchors", TensorProto.FLOAT, [4, 2]))
    found = open_session(write(made).content).run(
        ["anchors"], {"x": floats(2, 1, 3, 8, 8).transpose(0, 2, 3, 1)}
    )
    np.testing.assert_array_equal(found[0], floats(3, 4, 2))
    with pytest.raises(TFLiteError, match="output anchors is made in float") as caught:
        write(made, Options(edge="int8"))
    assert caught.value.code == "tflite_quantization"
