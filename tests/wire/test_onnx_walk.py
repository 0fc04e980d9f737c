"""Cutting an ONNX file at its tensors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from converter.pack import file_of
from tests.converter.builders import conv_net
from wire.chunks import CHUNK_BYTES_MAX, digest
from wire.onnx_walk import WalkError, boundaries, tensor_spans


def _file(sizes: list[int]) -> tuple[bytes, list[bytes]]:
    """A model whose initializers hold these numbers of random float32 values."""
    rng = np.random.default_rng(len(sizes))
    arrays = [rng.normal(size=size).astype(np.float32) for size in sizes]
    tensors = [numpy_helper.from_array(array, f"t{i}") for i, array in enumerate(arrays)]
    model = helper.make_model(helper.make_graph([], "g", [], [], tensors), producer_name="x" * 300)
    return model.SerializeToString(), [array.tobytes() for array in arrays]


@settings(max_examples=40)
@given(st.lists(st.integers(0, 40_000), max_size=8))
def test_every_payload_is_found_where_it_lies(sizes: list[int]) -> None:
    content, payloads = _file(sizes)
    found = [content[span.offset : span.offset + span.size_bytes] for span in tensor_spans(content)]
    assert found == [payload for payload in payloads if payload]


@settings(max_examples=40)
@given(st.lists(st.integers(0, 40_000), max_size=8))
def test_chunks_add_up_and_large_tensors_begin_one(sizes: list[int]) -> None:
    content, _ = _file(sizes)
    file = file_of("model.onnx", content, boundaries(content))
    starts, here = set(), 0
    for chunk in file.chunks:
        assert chunk.size_bytes <= CHUNK_BYTES_MAX
        assert digest(content[here : here + chunk.size_bytes]) == chunk.sha256
        starts.add(here)
        here += chunk.size_bytes
    assert here == len(content) == file.size_bytes
    large = [span.offset for span in tensor_spans(content) if span.size_bytes > CHUNK_BYTES_MAX]
    assert set(large) <= starts


def test_a_change_in_one_tensor_leaves_the_other_tensors_chunks_alone() -> None:
    content, _ = _file([40_000, 40_000, 40_000])
    changed = bytearray(content)
    middle = tensor_spans(content)[1]
    changed[middle.offset + 5] ^= 0xFF
    before = {chunk.sha256 for chunk in file_of("m", content, boundaries(content)).chunks}
    after = {chunk.sha256 for chunk in file_of("m", bytes(changed), boundaries(bytes(changed))).chunks}
    assert len(after - before) == 1


def test_a_real_model_gives_all_its_weights() -> None:
    model = conv_net()
    sizes = sorted(len(tensor.raw_data) for tensor in model.graph.initializer)
    assert sorted(span.size_bytes for span in tensor_spans(model.SerializeToString())) == sizes


@settings(max_examples=60)
@given(st.integers(0, 2_000), st.binary(max_size=8))
def test_damaged_bytes_are_refused_or_stay_inside_the_file(cut: int, tail: bytes) -> None:
    content = conv_net().SerializeToString()[:cut] + tail
    try:
        spans = tensor_spans(content)
    except WalkError:
        spans = ()
    assert all(span.offset >= 0 and span.offset + span.size_bytes <= len(content) for span in spans)


@pytest.mark.parametrize("content", [b"\x3a\xff", b"\x3a\x05\x00", b"\x0b", b"\x80" * 11])
def test_bytes_that_are_no_protobuf_are_refused(content: bytes) -> None:
    with pytest.raises(WalkError):
        tensor_spans(content)
