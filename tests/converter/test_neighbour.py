"""A TFLite runtime in another environment, asked over pipes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from converter.errors import InputError, RecipeError
from converter.litert import LitertSession
from converter.neighbour import Neighbour
from converter.tflite import Written, write
from tests.converter.quantizing import floats, graph
from tests.converter.tflite.harness import Session


@pytest.fixture(scope="module")
def written() -> Written:
    """A small product; this environment's own runtime plays the neighbour, for the pipes are the same."""
    made = graph([("Gemm", "x w b", "y")], {"w": floats(1, 6, 4), "b": floats(2, 4)}, outputs={"y": ["N", 4]},
                 shape=(6,))  # fmt: skip
    return write(made)


def test_it_answers_as_the_runtime_here(written: Written) -> None:
    x = floats(3, 1, 6)
    with Neighbour(sys.executable, written.content) as neighbour:
        session = LitertSession(neighbour, written.axes)
        assert (session.input_names, session.output_names) == (("x",), ("y",))
        found = session.run(["y"], {"x": x})[0]
    np.testing.assert_array_equal(found, Session(written).run({"x": x})["y"])


def test_it_loads_one_file_after_another(written: Written) -> None:
    other = write(graph([("Relu", "x", "y")], {}, outputs={"y": ["N", 3]}, shape=(3,)))
    with Neighbour(sys.executable, written.content) as neighbour:
        neighbour.load(other.content)
        assert [list(one["shape"]) for one in neighbour.get_input_details()] == [[1, 3]]
        assert [one["dtype"] for one in neighbour.get_output_details()] == [np.float32]


def test_a_file_that_it_refuses_is_a_failed_recipe(written: Written) -> None:
    with pytest.raises(RecipeError, match="ValueError") as caught:
        Neighbour(sys.executable, b"hello" + written.content)
    assert caught.value.code == "neighbour_failed"


def test_what_the_runtime_raises_is_told_and_does_not_end_it(written: Written) -> None:
    with Neighbour(sys.executable, written.content) as neighbour:
        with pytest.raises(RecipeError, match="ValueError"):
            neighbour.set_tensor(0, np.zeros((3, 3), dtype=np.float32))
        assert neighbour.get_input_details()


@pytest.mark.parametrize("python", ["/no/such/python", "/bin/true"])
def test_no_runtime_there_is_bad_input(python: str, written: Written) -> None:
    with pytest.raises(InputError) as caught:
        Neighbour(python, written.content)
    assert caught.value.code == "neighbour_missing"


def test_an_environment_without_the_runtime_says_what_is_missing(tmp_path: Path, written: Written) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n', encoding="utf-8")
    bare.chmod(0o755)
    with pytest.raises(InputError, match="No module named 'numpy'"):
        Neighbour(str(bare), written.content)


def test_a_process_that_dies_is_named(written: Written) -> None:
    with Neighbour(sys.executable, written.content) as neighbour:
        neighbour._process.kill()
        neighbour._process.wait()
        with pytest.raises(RecipeError, match=r"ended|failed") as caught:
            neighbour.invoke()
    assert caught.value.code == "neighbour_failed"


@pytest.mark.parametrize(
    "line",
    [
        "hello there",
        "[" * 200_000,
        "7",
        '{"arrays": [["O", [1]]]}',
        '{"arrays": [["float32", [-1]]]}',
        '{"arrays": [["float32", [4000000000, 4]]]}',
        '{"arrays": [["float32", [8]]]}',
        '{"arrays": [["no type", [8]]]}',
        '{"arrays": [7]}',
    ],
)
def test_what_is_no_frame_is_a_failed_recipe_and_takes_no_memory(tmp_path: Path, line: str) -> None:
    """The other runtime printed between the frames, or was taken over by the file that it opened."""
    (tmp_path / "said").write_text('{"version": "1", "arrays": []}\n' + line + "\nabc")
    liar = tmp_path / "python"
    liar.write_text(f"#!/bin/sh\ncat {tmp_path}/said\nexec sleep 20\n")
    if '"float32", [8]' in line:
        liar.write_text(f"#!/bin/sh\ncat {tmp_path}/said\n")
    liar.chmod(0o755)
    with Neighbour(str(liar)) as neighbour, pytest.raises(RecipeError) as caught:
        neighbour.get_signature_list()
    assert caught.value.code == "neighbour_failed"
