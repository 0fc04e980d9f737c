"""The walk over a `.tflite` file's bytes, beside the schema's own classes, and on broken bytes."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.converter.tiny_tflite import CONV_2D, DEQUANTIZE, INT8, QUANTIZE, integer_conv, scaled
from wire.tflite_walk import WalkError, boundaries, metadata_of, tensor_spans, walk

_WEIGHT = np.arange(-6, 6, dtype=np.int8).reshape(4, 3)


def test_operators_and_tensors_are_those_of_the_schemas_classes() -> None:
    content = integer_conv(_WEIGHT)
    graph = walk(content)
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    assert [one.code for one in graph.operators] == [QUANTIZE, CONV_2D, DEQUANTIZE]
    assert [one.inputs for one in graph.operators] == [
        tuple(one.inputs) for one in model.subgraphs[0].operators
    ]
    assert [one.outputs for one in graph.operators] == [
        tuple(one.outputs) for one in model.subgraphs[0].operators
    ]
    names = [one.name.decode() for one in model.subgraphs[0].tensors]
    assert [one.name for one in graph.tensors] == names
    assert [one.shape for one in graph.tensors] == [tuple(one.shape) for one in model.subgraphs[0].tensors]
    assert {one.name: one.dtype for one in graph.tensors} == {
        "x_q": "int8", "y_q": "int8", "w": "int8", "b": "int32", "x": "float32", "y": "float32",
    }  # fmt: skip
    assert [one.name for one in graph.tensors if one.constant] == ["w", "b"]
    by_name = {one.name: one for one in graph.tensors}
    assert by_name["x_q"].scales == (float(np.float32(0.05)),)
    assert by_name["x_q"].zero_points == (3,)
    assert by_name["x"].scales == ()
    assert [graph.tensors[place].name for place in (*graph.inputs, *graph.outputs)] == ["x", "y"]
    assert (graph.description, graph.subgraphs) == ("tiny", 1)
    assert {one.version for one in graph.operators} == {1}


def test_payloads_lie_where_the_walk_says() -> None:
    content = integer_conv(_WEIGHT, edge=INT8)
    spans = tensor_spans(content)
    assert sorted(span.size_bytes for span in spans) == [12, 16]
    payloads = {content[span.offset : span.offset + span.size_bytes] for span in spans}
    assert payloads == {_WEIGHT.tobytes(), bytes(16)}
    assert set(boundaries(content)) == {
        edge for span in spans for edge in (span.offset, span.offset + span.size_bytes)
    }
    assert metadata_of(content) == {}


def test_what_is_no_tflite_file_is_refused_by_name() -> None:
    for content in (b"", b"TFL3", b"\x08\x00\x00\x00TFL3", b"PK\x03\x04 an archive of something else"):
        with pytest.raises(WalkError) as caught:
            walk(content)
        assert caught.value.code == "not_tflite"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_end_in_a_named_error_or_a_graph(data: st.DataObject) -> None:
    """Whatever a byte is changed to: no other exception, nothing beyond the file is read."""
    content = bytearray(scaled(np.ones(3, np.float32)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(content[: data.draw(st.integers(0, len(content)))])
    for damaged in (bytes(content), cut):
        for look in (walk, boundaries, metadata_of):
            try:
                look(damaged)
            except WalkError as error:
                assert error.code == "not_tflite"  # noqa: PT017 - both ends are right
