"""Takes out what is for people and other tools.

Requires: nothing. Ensures: no metadata_props and no doc_string in model, graph, nodes, values and
initializers, so that a quantizer does not trip over them and equal graphs give equal bytes.
Not for: value_info, which shape inference owns.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx


def strip(model: onnx.ModelProto) -> int:
    """Strips in place; returns how many entries went."""
    changes = 0
    for part in _parts(model):
        properties = getattr(part, "metadata_props", None)
        if properties:
            changes += len(properties)
            del properties[:]
        if part.doc_string:
            changes += 1
            part.ClearField("doc_string")
    return changes


def _parts(model: onnx.ModelProto) -> Iterator[onnx.ModelProto | onnx.GraphProto | onnx.NodeProto]:
    graph = model.graph
    yield model
    yield graph
    yield from graph.node
    yield from graph.initializer
    yield from graph.input
    yield from graph.output
    yield from graph.value_info
