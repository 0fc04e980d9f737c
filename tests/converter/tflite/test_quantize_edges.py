"""The file's edges and what is left of pairs: QUANTIZE and DEQUANTIZE."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from converter.runtime import open_session
from converter.tflite import Options, TFLiteError, write
from converter.tflite.options import Edge
from tests.converter.quantizing import floats, graph, inputs
from tests.converter.tflite.harness import Session, compare_int8, quantized
from tests.converter.tflite.singles import paired, single

_CONV = graph(
    [("Conv", "x w b", "c"), ("Relu", "c", "y")], {"w": floats(1, 4, 3, 3, 3), "b": floats(2, 4)},
    outputs={"y": [None] * 4},
)  # fmt: skip


def _stored(made: onnx.ModelProto, x: np.ndarray[tuple[int, ...], np.dtype[np.float32]], zero: int) -> object:
    node = next(n for n in made.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "x")
    values = {t.name: onnx.numpy_helper.to_array(t) for t in made.graph.initializer}
    signed = np.rint(x / values[node.input[1]]) + values[node.input[2]].astype(np.int32)
    shift = zero - (128 if values[node.input[2]].dtype == np.uint8 else 0)
    return signed + shift


@pytest.mark.parametrize("recipe", ["static_wi8_ai8_pc_minmax", "static_wi8_au8_pc_minmax"])
@pytest.mark.parametrize(("edge", "low", "zero"), [("int8", -128, 0), ("uint8", 0, 128)])
def test_stored_edges_say_what_float_ones_say(recipe: str, edge: Edge, low: int, zero: int) -> None:
    made, x = quantized(_CONV, recipe), inputs(_CONV)[:1]
    theirs = open_session(made.SerializeToString()).run(None, {"x": x})[0]
    plain = Session(write(made)).run({"x": x})["y"]
    session = Session(write(made, Options(edge=edge)))
    given = np.clip(np.asarray(_stored(made, x, zero)), low, low + 255).astype(edge)
    got = session.run({"x": given})["y"]
    assert got.dtype == np.dtype(edge)
    scale, offset = session.scale_of("y")
    reals = (got.astype(np.float32) - offset) * np.float32(scale)
    np.testing.assert_allclose(reals, plain, atol=1e-6)
    np.testing.assert_allclose(plain, theirs, atol=1e-6)


def test_edges_cost_what_they_must() -> None:
    made = quantized(_CONV)
    assert write(made).operators == {"CONV_2D": 1, "DEQUANTIZE": 1, "QUANTIZE": 1}
    assert write(made, Options(edge="int8")).operators == {"CONV_2D": 1}
    assert write(made, Options(edge="uint8")).operators == {"CONV_2D": 1, "QUANTIZE": 2}


@pytest.mark.parametrize(
    ("before", "behind"), [((0.03, 5), (0.021, -3)), ((0.01, -128), (0.03, 127)), ((0.5, 0), (0.5, 1))]
)
def test_a_change_of_scale_is_within_a_step(before: tuple[float, int], behind: tuple[float, int]) -> None:
    """XNNPACK multiplies by a ratio of 8 fractional bits, so ratios such as 10/7 are off by a step often."""
    made = single("Identity", (3, 8, 8))
    steps = compare_int8(paired(made, {"x": before, "y": behind}), inputs(made) * 3)
    assert steps.written.operators == {"QUANTIZE": 1}
    assert steps.worst <= 1
    assert steps.equal > 0.5


def test_the_same_scale_again_is_nothing() -> None:
    made = graph([("Identity", "x", "i"), ("Tanh", "i", "y")], {}, outputs={"y": [None] * 4})
    pairs = {"x": (0.03, 5), "i": (0.03, 5), "y": (1 / 128, 0)}
    assert compare_int8(paired(made, pairs), inputs(made)).written.operators == {"TANH": 1}


def test_a_float_island_has_both_borders() -> None:
    made = graph([("Relu", "x", "r"), ("Elu", "r", "e"), ("Neg", "e", "y")], {}, outputs={"y": [None] * 4})
    model = paired(made, {"x": (0.03, 5), "r": (0.02, -128)})
    written, x = write(model), inputs(made)[:1]
    assert written.operators["DEQUANTIZE"] == 1
    theirs = open_session(model.SerializeToString()).run(None, {"x": x})[0]
    np.testing.assert_allclose(Session(written).run({"x": x})["y"], theirs, atol=0.021)


@pytest.mark.parametrize("edge", ["int8", "uint8"])
def test_float_edges_cannot_be_stored(edge: Edge) -> None:
    with pytest.raises(TFLiteError, match="x is not quantized") as caught:
        write(_CONV, Options(edge=edge))
    assert caught.value.code == "tflite_quantization"
    made = graph([("Relu", "x", "r"), ("Neg", "r", "y")], {}, outputs={"y": [None] * 4})
    with pytest.raises(TFLiteError, match="y is made in float") as caught:
        write(paired(made, {"x": (0.03, 5), "r": (0.02, -128)}), Options(edge=edge))
    assert caught.value.code == "tflite_quantization"
