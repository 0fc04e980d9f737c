"""LSTM, GRU and RNN, unrolled."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from converter.runtime import open_session
from converter.tflite import Options, TFLiteError, write
from converter.tflite.ops.recurrent import STEPS_MAX
from tests.converter.quantizing import floats
from tests.converter.tflite.harness import Session, feeds_of

_GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
_N, _I, _H = 2, 5, 4
_WAYS = ("forward", "reverse", "bidirectional")


def _model(
    kind: str, steps: int, settings: dict[str, Any] | None = None, *, states: str = "", bias: bool = True,
    lengths: list[int] | None = None, outputs: tuple[int, ...] = (0, 1, 2),
) -> onnx.ModelProto:  # fmt: skip
    """Of inputs `x` and, where `states` is "computed", the first states; all its outputs are the graph's."""
    settings = dict(settings or {})
    d = 2 if settings.get("direction") == "bidirectional" else 1
    first, rows, count = bool(settings.get("layout")), _GATES[kind] * _H, 2 if kind == "LSTM" else 1
    constants: dict[str, NDArray[Any]] = {
        "w": floats(1, d, rows, _I), "r": floats(2, d, rows, _H), "b": floats(3, d, 2 * rows),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"x": (_N, steps, _I) if first else (steps, _N, _I)}
    names = ["x", "w", "r", "b" if bias else "", "", *(["h", "c"][:count] if states else [])]
    for name in names[5:]:
        shapes[name] = (_N, d, _H) if first else (d, _N, _H)
    if states == "constant":
        constants |= {name: floats(4, *shapes.pop(name)) for name in names[5:]}
    if lengths is not None:
        names[4], constants["l"] = "l", np.array(lengths, np.int32)
    made = ["y", "y_h", "y_c"][: 1 + count]
    made = [name if i in outputs else "" for i, name in enumerate(made)]
    node = onnx.helper.make_node(kind, names, made, name="n_y", hidden_size=_H, **settings)
    ranks = {"y": 4, "y_h": 3, "y_c": 3}
    one = onnx.TensorProto.FLOAT
    used = {name for name in names if name}
    result = onnx.helper.make_model(
        onnx.helper.make_graph(
            [node], "g", [onnx.helper.make_tensor_value_info(k, one, s) for k, s in shapes.items()],
            [onnx.helper.make_tensor_value_info(k, one, [None] * ranks[k]) for k in made if k],
            [onnx.numpy_helper.from_array(v, k) for k, v in constants.items() if k in used],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    onnx.checker.check_model(result, full_check=True)
    return result


def _check(made: onnx.ModelProto, atol: float = 1e-5, options: Options | None = None) -> dict[str, int]:
    """ONNX Runtime is the yardstick: the reference evaluator knows forward with its default layout only."""
    feeds, written = feeds_of(made), write(made, options)
    names = [output.name for output in made.graph.output]
    wanted = open_session(made.SerializeToString()).run(names, feeds)
    got = Session(written).run(feeds)
    for name, expected in zip(names, wanted, strict=True):
        assert got[name].shape == expected.shape
        np.testing.assert_allclose(got[name], expected, atol=atol, rtol=atol)
    return written.operators


@pytest.mark.parametrize("kind", _GATES)
@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize("states", ["", "constant", "computed"])
@pytest.mark.parametrize("steps", [1, 3])
def test_float_is_onnx(kind: str, way: str, states: str, steps: int) -> None:
    operators = _check(_model(kind, steps, {"direction": way}, states=states))
    assert "TRANSPOSE" not in operators


@pytest.mark.parametrize("way", _WAYS)
def test_a_gru_that_is_linear_before_the_reset(way: str) -> None:
    _check(_model("GRU", 4, {"direction": way, "linear_before_reset": 1}, states="computed"))


@pytest.mark.parametrize("kind", _GATES)
def test_no_bias(kind: str) -> None:
    _check(_model(kind, 3, bias=False))


@pytest.mark.parametrize("kind", _GATES)
@pytest.mark.parametrize("outputs", [(0,), (1,)])
def test_outputs_may_be_left_out(kind: str, outputs: tuple[int, ...]) -> None:
    operators = _check(_model(kind, 3, outputs=outputs))
    assert operators["PACK"] == 1


@pytest.mark.parametrize("kind", _GATES)
def test_full_lengths(kind: str) -> None:
    _check(_model(kind, 3, lengths=[3, 3]))


@pytest.mark.parametrize("kind", _GATES)
@pytest.mark.parametrize("way", _WAYS)
def test_the_batch_may_stand_first(kind: str, way: str) -> None:
    """Against the same network with the batch second: ONNX Runtime refuses this layout."""
    first = _model(kind, 3, {"direction": way, "layout": 1}, states="computed")
    second = _model(kind, 3, {"direction": way}, states="computed")
    feeds = feeds_of(first)
    got = Session(write(first)).run(feeds)
    wanted = Session(write(second)).run(
        {name: np.ascontiguousarray(array.transpose(1, 0, 2)) for name, array in feeds.items()}
    )
    for name, array in got.items():
        moved = array.transpose((1, 2, 0, 3) if array.ndim == 4 else (1, 0, 2))
        np.testing.assert_allclose(moved, wanted[name], atol=1e-6)


def test_one_product_for_all_inputs_and_one_for_every_state() -> None:
    operators = _check(_model("LSTM", 6, outputs=(0,)))
    assert operators["FULLY_CONNECTED"] == 7
    assert sum(operators.values()) == 1 + 1 + 1 + 1 + 6 * 11 + 2


def test_float16_weights_are_stored_once() -> None:
    operators = _check(_model("LSTM", 3), 2e-3, Options(weights="float16"))
    assert operators["DEQUANTIZE"] == 2


@pytest.mark.parametrize(
    ("settings", "more", "code", "words"),
    [
        ({"clip": 0.5}, {}, "tflite_attribute", "clip"),
        ({"input_forget": 1}, {}, "tflite_attribute", "input_forget"),
        ({"activations": ["Relu", "Tanh", "Tanh"]}, {}, "tflite_attribute", "relu, tanh, tanh"),
        ({}, {"lengths": [3, 2]}, "tflite_shape", "shorter"),
    ],
)
def test_what_is_not_unrolled_is_refused(
    settings: dict[str, Any], more: dict[str, Any], code: str, words: str
) -> None:
    with pytest.raises(TFLiteError, match=f"n_y .*{words}") as caught:
        write(_model("LSTM", 3, settings, **more))
    assert caught.value.code == code


def test_activations_may_be_said() -> None:
    _check(_model("GRU", 2, {"activations": ["Sigmoid", "Tanh"]}))


def test_too_many_steps_are_refused() -> None:
    with pytest.raises(TFLiteError, match=f"n_y unrolls to {STEPS_MAX + 2} steps") as caught:
        write(_model("GRU", STEPS_MAX // 2 + 1, {"direction": "bidirectional"}))
    assert caught.value.code == "tflite_size"


def test_dynamic_int8_weights_are_near_float() -> None:
    operators = _check(_model("GRU", 3), 3e-2, Options(weights="dynamic_int8"))
    assert "FULLY_CONNECTED" not in operators
