"""Order-0 entropy against a coder that really codes, and the patterns of zeros."""

from __future__ import annotations

import zlib

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from converter.lossless import entropy_bytes, sparsity


def _holding(array: np.ndarray) -> onnx.ModelProto:
    return helper.make_model(
        helper.make_graph([], "g", [], [], initializer=[numpy_helper.from_array(array, "w")])
    )


def test_uniform_bytes_cannot_shrink_and_equal_ones_vanish() -> None:
    every = np.tile(np.arange(-128, 128, dtype=np.int8), 64).reshape(128, 128)
    assert entropy_bytes(_holding(every)) == _holding(every).ByteSize()
    alike = np.full((128, 128), 7, dtype=np.int8)
    assert entropy_bytes(_holding(alike)) == _holding(alike).ByteSize() - alike.size


def test_four_equally_frequent_values_take_two_bits() -> None:
    array = np.tile(np.array([1, 2, 3, 4], dtype=np.int8), 1024).reshape(64, 64)
    assert entropy_bytes(_holding(array)) == _holding(array).ByteSize() - 4096 + 1024


@given(st.integers(0, 1000), st.floats(1.0, 40.0))
def test_no_huffman_coder_beats_it(seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    array = np.clip(np.rint(rng.normal(0, spread, (64, 64))), -128, 127).astype(np.int8)
    glue = _holding(array).ByteSize() - array.size
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    coded = len(coder.compress(array.tobytes()) + coder.flush())
    assert entropy_bytes(_holding(array)) - glue <= coded
    assert entropy_bytes(_holding(array)) - glue > coded * 0.8


def test_float32_is_coded_plane_by_plane() -> None:
    array = np.random.default_rng(1).normal(0, 1, (64, 64)).astype(np.float32)
    saved = _holding(array).ByteSize() - entropy_bytes(_holding(array))
    assert 0.1 * array.nbytes < saved < 0.25 * array.nbytes


def test_zeros_are_counted_with_their_pattern() -> None:
    array = np.ones((8, 16), dtype=np.float32)
    array[:, 0::2] = 0.0
    array[3] = 0.0
    (found,) = sparsity(_holding(array))
    assert found.zeros == pytest.approx((7 * 8 + 16) / 128)
    assert (found.channels, found.channels_zero, found.two_of_four) == (8, 1, True)
    array[0, 0] = 1.0
    (found,) = sparsity(_holding(array))
    assert not found.two_of_four


def test_convolutions_neighbour_along_input_channels() -> None:
    array = np.ones((4, 8, 3, 3), dtype=np.float32)
    array[:, 0::2] = 0.0
    (found,) = sparsity(_holding(array))
    assert found.two_of_four
    turned = np.ones((4, 8, 3, 4), dtype=np.float32)
    turned[..., 0::2] = 0.0
    (found,) = sparsity(_holding(turned))
    assert not found.two_of_four


def test_small_tensors_and_text_are_left_out() -> None:
    model = _holding(np.zeros((3, 3), dtype=np.float32))
    model.graph.initializer.append(numpy_helper.from_array(np.array([b"a"] * 100, dtype=object), "names"))
    assert sparsity(model) == ()
    assert entropy_bytes(model) == model.ByteSize()
