"""Fewer operators and fewer bytes that say the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from converter.tflite import write
from converter.tflite.schema import schema
from tests.converter.quantizing import floats, graph
from tests.converter.tflite.harness import check_float, quantized, steps_of

_SHAPES = {"shape": np.array([0, -1]), "both": np.array([2, 3]), "one": np.array([2])}
_POOL = ("GlobalAveragePool", "x", "p")


def _pooled(*lines: Any, rank: int = 2) -> onnx.ModelProto:  # noqa: ANN401 - lines of `graph`
    return graph([_POOL, *lines], _SHAPES, outputs={"y": [None] * rank})


@pytest.mark.parametrize(
    "line", [("Flatten", "p", "y"), ("Squeeze", "p both", "y"), ("Reshape", "p shape", "y")]
)
def test_a_pool_that_is_flattened_does_not_keep_its_axes(line: Any) -> None:  # noqa: ANN401 - a line of `graph`
    assert check_float(_pooled(line)).operators == {"MEAN": 1}
    steps = steps_of(_pooled(line))
    assert steps.written.operators == {"MEAN": 1}
    assert steps.worst <= 1


def test_a_pool_that_others_read_keeps_them() -> None:
    made = graph(
        [_POOL, ("Flatten", "p", "y"), ("Mul", "x p", "z")], {}, outputs={"y": [None] * 2, "z": [None] * 4}
    )
    assert check_float(made).operators == {"MEAN": 1, "MUL": 1, "RESHAPE": 1}


def test_a_pool_that_is_an_output_itself_keeps_them() -> None:
    made = graph([_POOL, ("Flatten", "p", "y")], {}, outputs={"y": [None] * 2, "p": [None] * 4})
    assert check_float(made).operators == {"MEAN": 1, "RESHAPE": 1}


def test_another_shape_than_the_reduced_one_is_reshaped_to() -> None:
    assert check_float(_pooled(("Squeeze", "p one", "y"), rank=3)).operators == {
        "MEAN": 1, "RESHAPE": 1,
    }  # fmt: skip


def test_of_two_reshapes_the_second_is_enough() -> None:
    made = graph(
        [("Relu", "x", "r"), ("Reshape", "r a", "s"), ("Reshape", "s b", "y")],
        {"a": np.array([1, 16, 12]), "b": np.array([1, 24, 8])}, outputs={"y": [1, 24, 8]},
    )  # fmt: skip
    # The Relu's image lies as in ONNX here: nothing behind it asks for channels last.
    assert check_float(made).operators == {"RELU": 1, "RESHAPE": 1}


def test_equal_vectors_are_written_once() -> None:
    """Zero points of 64 channels: 512 bytes for a weight and as many for its bias, were they not shared."""
    made = quantized(
        graph([("Conv", "x w b", "y")], {"w": floats(1, 64, 3, 1, 1), "b": floats(2, 64)},
              outputs={"y": [None] * 4})
    )  # fmt: skip
    content = write(made).content
    assert content.count(bytes(512)) == 1
    read = schema.ModelT.InitFromPackedBuf(content)
    stored = [t.quantization for t in read.subgraphs[0].tensors if t.quantization is not None]
    many = [one for one in stored if one.scale is not None and len(one.scale) == 64]
    assert [len(one.zeroPoint) for one in many] == [64, 64]
    assert not np.array_equal(many[0].scale, many[1].scale)


def test_equal_graphs_give_equal_bytes() -> None:
    made = _pooled(("Flatten", "p", "y"))
    assert write(made).content == write(made).content
