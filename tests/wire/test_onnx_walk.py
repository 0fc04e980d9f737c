"""Cutting an ONNX file at its tensors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from converter.pack import file_of
from tests.converter.builders import conv_net
from wire import onnx_walk
from wire.chunks import CHUNK_BYTES_MAX, digest
from wire.onnx_walk import Edge, Header, WalkError, boundaries, header, tensor_spans


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


_NAMES = {"float32": TensorProto.FLOAT, "int8": TensorProto.INT8, "int64": TensorProto.INT64}
_edges = st.lists(
    st.builds(
        Edge,
        st.text(min_size=1, max_size=8),
        st.sampled_from(sorted(_NAMES)),
        st.lists(st.none() | st.integers(0, 2**40), max_size=4).map(tuple),
    ),
    max_size=4,
    unique_by=lambda edge: edge.name,
)


def _values(edges: list[Edge]) -> list[object]:
    return [
        helper.make_tensor_value_info(edge.name, _NAMES[edge.dtype], edge.shape) for edge in edges
    ]  # fmt: skip


@settings(max_examples=60)
@given(_edges, _edges)
def test_the_header_says_what_the_graph_takes_and_gives(inputs: list[Edge], outputs: list[Edge]) -> None:
    constant = numpy_helper.from_array(np.zeros(3, np.float32), "a constant that is an input, too")
    listed = [*_values(inputs), helper.make_tensor_value_info(constant.name, TensorProto.FLOAT, [3])]
    graph = helper.make_graph([], "g", listed, _values(outputs), [constant])
    model = helper.make_model(graph, ir_version=9)
    expected = Header(ir_version=9, inputs=tuple(inputs), outputs=tuple(outputs))
    assert header(model.SerializeToString()) == expected


def test_the_header_of_a_value_without_type_or_shape_says_so() -> None:
    bare, strange = helper.make_empty_tensor_value_info("bare"), helper.make_empty_tensor_value_info("odd")
    strange.type.tensor_type.elem_type = 77
    model = helper.make_model(helper.make_graph([], "g", [bare], [strange]))
    found = header(model.SerializeToString())
    assert (found.inputs, found.outputs) == ((Edge("bare", "type 0", ()),), (Edge("odd", "type 77", ()),))


@pytest.mark.parametrize("content", [b"", b"\x08\x09", b"\x3a\x00", b"\x08\x09\x3a\x00\x3a\x00"])
def test_what_is_no_model_has_no_header(content: bytes) -> None:
    with pytest.raises(WalkError, match="graphs and") as refused:
        header(content)
    assert refused.value.code == "no_graph"


def test_a_header_of_very_many_fields_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_walk, "HEADER_FIELDS_MAX", 10)
    model = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])] * 11, "g", [], []))
    with pytest.raises(WalkError, match="more than 10 fields") as refused:
        header(model.SerializeToString())
    assert refused.value.code == "too_many_fields"


@settings(max_examples=150)
@given(st.binary(max_size=60), st.integers(0, 200))
def test_a_damaged_header_is_refused_or_read(junk: bytes, place: int) -> None:
    model = helper.make_model(helper.make_graph([], "g", _values([Edge("x", "int8", (1, 2))]), []))
    content = bytearray(model.SerializeToString())
    content[place % len(content) : place % len(content)] = junk
    for damaged in (bytes(content), junk):
        try:
            header(damaged)
        except WalkError:
            continue
