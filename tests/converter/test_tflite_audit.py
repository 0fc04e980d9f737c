"""What LiteRT is given to run, counted by hand for small files."""

from __future__ import annotations

import numpy as np
import pytest

from converter.candidates import Fusion
from converter.fusion import multiplications
from converter.lossless import entropy_bytes, tflite_entropy_bytes
from converter.passes import clean
from converter.tflite import Options, write
from converter.tflite.schema import operator_code
from converter.tflite_audit import audit_tflite, multiplications_of
from tests.converter.builders import conv_net
from tests.converter.tiny_tflite import INT8, integer_conv, scaled
from wire.tflite_walk import Graph, Operator, Tensor

_WEIGHT = np.arange(-6, 6, dtype=np.int8).reshape(4, 3)


def test_an_integer_convolution_between_float_edges() -> None:
    found = audit_tflite(integer_conv(_WEIGHT))
    assert found.fusion == Fusion(integer=1, float=0, qdq_left=2)
    assert (found.int8_fraction, found.float_multiplies, found.left_float) == (1.0, 0, ())


def test_integer_edges_leave_nothing_between() -> None:
    assert audit_tflite(integer_conv(_WEIGHT, edge=INT8)).fusion == Fusion(integer=1, float=0, qdq_left=0)


def test_a_float_file_has_no_integer_operator_and_says_what_was_left() -> None:
    found = audit_tflite(scaled(np.ones(3, np.float32)), ["Mul_7"])
    assert found.fusion == Fusion(integer=0, float=1, qdq_left=0)
    assert found.int8_fraction is None
    assert found.left_float == ("Mul_7: computes in float in the file too",)


@pytest.mark.parametrize(
    ("kind", "shapes", "output", "wanted"),
    [
        ("CONV_2D", [(1, 8, 8, 3), (16, 3, 3, 3), (16,)], (1, 8, 8, 16), 8 * 8 * 16 * 3 * 3 * 3),
        ("DEPTHWISE_CONV_2D", [(1, 8, 8, 6), (1, 3, 5, 6), (6,)], (1, 8, 8, 6), 8 * 8 * 6 * 3 * 5),
        ("FULLY_CONNECTED", [(1, 20), (7, 20)], (1, 7), 7 * 20),
        ("TRANSPOSE_CONV", [(4,), (6, 2, 3, 5), (1, 4, 4, 5)], (1, 8, 8, 6), 4 * 4 * 5 * 6 * 2 * 3),
        ("BATCH_MATMUL", [(2, 3, 10), (2, 10, 4)], (2, 3, 4), 2 * 3 * 4 * 10),
    ],
)
def test_multiplications_are_those_of_the_textbook(
    kind: str, shapes: list[tuple[int, ...]], output: tuple[int, ...], wanted: int
) -> None:
    tensors = tuple(
        Tensor(name=f"t{i}", shape=shape, dtype="int8", constant=False)
        for i, shape in enumerate([*shapes, output])
    )
    places = tuple(range(len(shapes)))
    one = Operator(code=operator_code(kind), custom="", version=1, inputs=places, outputs=(len(shapes),))
    graph = Graph(operators=(one,), tensors=tensors, inputs=(), outputs=(), description="", subgraphs=1)
    assert multiplications_of(graph, one) == wanted


def test_dynamic_and_half_weights_of_a_real_graph() -> None:
    made, _ = clean(conv_net())
    plain, half, dynamic = (
        audit_tflite(write(made, Options(weights=weights)).content)
        for weights in ("as_is", "float16", "dynamic_int8")
    )
    assert plain.fusion == half.fusion
    assert (plain.int8_fraction, half.int8_fraction) == (0.0, 0.0)
    assert plain.float_multiplies == 3
    assert dynamic.float_multiplies == 0
    assert dynamic.int8_fraction == 1.0
    # One integer operator for each of the FP32 graph's multiplying ones.
    assert dynamic.fusion.integer == len(multiplications(made) or {})


def test_the_entropy_of_a_file_counts_its_constants_as_the_graph_s() -> None:
    """Equal weights save equally many bytes, whatever file they stand in."""
    made, _ = clean(conv_net())
    content = write(made).content
    saved = int(made.ByteSize()) - entropy_bytes(made)
    assert saved > 0
    assert abs((len(content) - tflite_entropy_bytes(content)) - saved) <= 0.1 * saved
    noise = np.random.default_rng(1).bytes(4096)
    flat = scaled(np.frombuffer(noise, np.float32).copy())
    even = scaled(np.ones(1024, np.float32))
    assert tflite_entropy_bytes(flat) > 0.95 * len(flat)
    assert tflite_entropy_bytes(even) < len(even) - 4000
