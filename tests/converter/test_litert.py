"""The one door to LiteRT: asked as ONNX Runtime is, by the ONNX model's names and axes."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from converter.errors import RecipeError
from converter.litert import open_session
from converter.tflite import write
from tests.converter.tiny_tflite import FLOAT, INT8, integer_conv, scaled

_FACTORS = np.array([1.0, 2.0, 3.0], np.float32)
_TO_FILE = {"x": (0, 2, 3, 1), "y": (0, 2, 3, 1)}
_ROOT = Path(__file__).parent.parent.parent


def _image() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)


def test_images_go_in_and_come_out_in_the_onnx_models_axes() -> None:
    session = open_session(scaled(_FACTORS), axes=_TO_FILE)
    (found,) = session.run(None, {"x": _image()})
    np.testing.assert_array_equal(found, _image() * _FACTORS[None, :, None, None])


def test_without_axes_the_file_is_asked_as_it_is() -> None:
    session = open_session(scaled(_FACTORS))
    image = _image().transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(session.run(["y"], {"x": image})[0], image * _FACTORS)
    assert session.output_names == ("y",)


@pytest.mark.parametrize("edge", [FLOAT, INT8])
def test_an_integer_edge_answers_as_a_float_edge_does(edge: int) -> None:
    weight = np.arange(-6, 6, dtype=np.int8).reshape(4, 3)
    feeds = {"x": np.linspace(-9, 9, 12, dtype=np.float32).reshape(1, 2, 2, 3)}
    (found,) = open_session(integer_conv(weight, edge=edge)).run(None, feeds)
    assert found.dtype == np.float32
    steps = np.clip(np.rint(feeds["x"] / 0.05) + 3, -128, 127) - 3
    wanted = np.rint((steps * 0.05) @ (weight.T * 0.02) / 0.1) * 0.1
    np.testing.assert_allclose(found, wanted, atol=0.101)
    assert np.abs(found - wanted).mean() < 0.05


def test_one_sample_fills_a_larger_batch_and_one_answer_comes_back() -> None:
    session = open_session(scaled(_FACTORS, rows=4))
    image = _image().transpose(0, 2, 3, 1)
    assert session.prepare({"x": image})[0][1].shape == (4, 2, 2, 3)
    np.testing.assert_array_equal(session.run(None, {"x": image})[0], image * _FACTORS)
    four = np.concatenate([image, image + 1, image + 2, image + 3])
    np.testing.assert_array_equal(session.run(None, {"x": four})[0], four * _FACTORS)


def test_the_timed_call_gives_the_same_without_the_layout() -> None:
    session = open_session(scaled(_FACTORS), axes=_TO_FILE)
    prepared = session.prepare({"x": _image()})
    assert [array.flags["C_CONTIGUOUS"] for _, array in prepared] == [True]
    (raw,) = session.invoke(prepared)
    np.testing.assert_array_equal(raw.transpose(0, 3, 1, 2), session.run(None, {"x": _image()})[0])


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({"z": np.zeros((1, 2, 2, 3), np.float32)}, "takes x, given were z"),
        ({"x": np.zeros((1, 2, 2, 4), np.float32)}, r"\[1, 2, 2, 4\]"),
        ({"x": np.zeros((2, 2, 2, 3), np.float32)}, r"\[2, 2, 2, 3\]"),
        ({"x": np.zeros((1, 2, 2, 3), np.int64)}, "int64"),
    ],
)
def test_what_does_not_fit_is_named(feeds: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        open_session(scaled(_FACTORS)).run(None, feeds)
    assert caught.value.code == "tflite_inputs"


def test_an_output_that_is_not_there_is_named() -> None:
    with pytest.raises(RecipeError, match="no output q"):
        open_session(scaled(_FACTORS)).run(["q"], {"x": np.zeros((1, 2, 2, 3), np.float32)})


def test_an_integer_edge_is_fed_the_nearest_step() -> None:
    session = open_session(integer_conv(np.ones((2, 3), np.int8), edge=INT8))
    given = np.array([0.0, 0.1, 0.074, 0.076, -0.04, -0.16, 1.0, -1.0, 0.02, 0.03, 0.2, 0.3], np.float32)
    ((_, fed),) = session.prepare({"x": given.reshape(1, 2, 2, 3)})
    # Scale 0.05, zero point 3.
    assert fed.ravel().tolist() == [3, 5, 4, 5, 2, 0, 23, -17, 3, 4, 7, 9]


def test_values_beyond_the_edges_range_are_clipped_not_wrapped() -> None:
    session = open_session(integer_conv(np.ones((2, 3), np.int8), edge=INT8))
    far = {"x": np.full((1, 2, 2, 3), 1e6, np.float32)}
    assert session.prepare(far)[0][1].max() == 127
    assert session.prepare({"x": -far["x"]})[0][1].min() == -128


def test_each_thread_with_its_own_session_gets_its_own_answers() -> None:
    content = scaled(_FACTORS)

    def ask(value: int) -> bool:
        session = open_session(content)
        image = np.full((1, 2, 2, 3), value, np.float32)
        return all((session.run(None, {"x": image})[0] == image * _FACTORS).all() for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(8)))


def test_a_file_that_is_none_is_refused_by_the_runtime() -> None:
    with pytest.raises(ValueError, match="Flatbuffer"):
        open_session(b"no model")


def test_the_runtimes_greeting_reaches_nobody() -> None:
    """In a process of its own, for it is printed once; what the process says afterwards is seen."""
    code = (
        "import sys, numpy as np\n"
        "from converter.litert import open_session\n"
        "from tests.converter.tiny_tflite import scaled\n"
        "try:\n    open_session(b'bad')\nexcept ValueError:\n    pass\n"
        "for _ in range(2):\n    open_session(scaled(np.ones(3, np.float32)))\n"
        "print('after', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=_ROOT, capture_output=True, check=True)
    assert done.stdout == b""
    assert done.stderr == b"after\n"


def test_inputs_and_outputs_stand_in_the_files_order_by_the_signatures_names() -> None:
    """A file with a signature: its names are ONNX's, in whichever order the signature lists them."""
    names = ["z", "a", "m"]
    nodes = [helper.make_node("Mul", [name, name], [f"{name}_out"]) for name in names]
    kinds = ([helper.make_tensor_value_info(f"{name}{end}", TensorProto.FLOAT, [1, 3]) for name in names]
             for end in ("", "_out"))  # fmt: skip
    made = helper.make_model(
        helper.make_graph(nodes, "net", *kinds), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    session = open_session(write(made).content)
    assert session.input_names == tuple(names)
    assert session.output_names == tuple(f"{name}_out" for name in names)
    feeds = {name: np.full((1, 3), i, np.float32) for i, name in enumerate(names)}
    assert [float(found[0, 0]) for found in session.run(None, feeds)] == [0.0, 1.0, 4.0]


def test_a_scalar_input_stays_a_scalar() -> None:
    x, k, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in
               (("x", [2, 3]), ("k", []), ("y", [2, 3])))  # fmt: skip
    graph = helper.make_graph([helper.make_node("Mul", ["x", "k"], ["y"])], "g", [x, k], [y])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = {"x": np.ones((2, 3), dtype=np.float32), "k": np.array(2.5, dtype=np.float32)}
    found = open_session(write(made).content).run(["y"], feeds)
    np.testing.assert_array_equal(found[0], np.full((2, 3), 2.5, dtype=np.float32))
