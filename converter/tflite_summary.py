"""What a `.tflite` file is, for people and programs.

For: `shallop-convert inspect`: operators with their versions, inputs and outputs with their scales, metadata,
and whether LiteRT here takes it.
Not for: ONNX files (`converter.inspect`), or what it answers.
"""

from __future__ import annotations

import hashlib
from collections import Counter

from msgspec import Struct

from converter.candidates import Fusion
from converter.errors import InputError
from converter.opening import require_tflite
from converter.tflite.schema import operator_name
from converter.tflite_audit import audit_tflite, in_integers
from wire.tflite_walk import Graph, Tensor, WalkError, metadata_of, walk


class Used(Struct, frozen=True, kw_only=True):
    """One kind of operator: how often it reads integers and floats, and the versions that it needs."""

    operator: str
    versions: tuple[int, ...]
    integer: int
    float: int


class Edge(Struct, frozen=True, kw_only=True):
    """An input or output; without scale and zero point it is not quantized."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float | None = None
    zero_point: int | None = None


class TFLiteModel(Struct, frozen=True, kw_only=True):
    """One `.tflite` file.

    Attributes:
        description: as its maker wrote it.
        operators: by name.
        fusion: operators on integers and on floats, QUANTIZE and DEQUANTIZE.
        inputs: in the file's order.
        outputs: likewise.
        weight_types: number of constants with scales, by type.
        metadata: sizes of the entries, by name.
        runs: whether LiteRT here opens it.
        runs_note: why it does not; empty where it does.
    """

    path: str
    size_bytes: int
    sha256: str
    description: str
    operators: tuple[Used, ...]
    fusion: Fusion
    inputs: tuple[Edge, ...]
    outputs: tuple[Edge, ...]
    weight_types: dict[str, int]
    metadata: dict[str, int]
    runs: bool
    runs_note: str = ""


def summarize_tflite(content: bytes, path: str) -> TFLiteModel:
    """One file's content, as one that LiteRT did not open yet.

    Args:
        content: the whole file.
        path: that it is called by.

    Raises:
        InputError: `model_not_tflite`.
    """
    try:
        require_tflite(content)
        graph, metadata, audited = walk(content), metadata_of(content), audit_tflite(content)
    except WalkError as error:
        raise InputError(
            "model_not_tflite", f"{path} is no TFLite file ({error.args[0]}); name another file or a bundle"
        ) from error
    weights = Counter(one.dtype for one in graph.tensors if one.constant and one.scales)
    return TFLiteModel(
        path=path, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest(),
        description=graph.description, operators=_used(graph), fusion=audited.fusion,
        inputs=tuple(_edge(graph.tensors[place]) for place in graph.inputs),
        outputs=tuple(_edge(graph.tensors[place]) for place in graph.outputs),
        weight_types=dict(sorted(weights.items())),
        metadata={name: len(value) for name, value in sorted(metadata.items())},
        runs=False,
    )  # fmt: skip


def _used(graph: Graph) -> tuple[Used, ...]:
    counts: dict[str, list[int]] = {}
    versions: dict[str, set[int]] = {}
    for one in graph.operators:
        name = one.custom or operator_name(one.code)
        whole = in_integers(one, [graph.tensors[place] for place in one.inputs if place >= 0])
        counts.setdefault(name, [0, 0])[0 if whole else 1] += 1
        versions.setdefault(name, set()).add(one.version)
    return tuple(
        Used(operator=name, versions=tuple(sorted(versions[name])), integer=integer, float=floating)
        for name, (integer, floating) in sorted(counts.items())
    )


def _edge(one: Tensor) -> Edge:
    quantized = len(one.scales) == 1
    return Edge(
        name=one.name, dtype=one.dtype, shape=one.shape, scale=one.scales[0] if quantized else None,
        zero_point=(one.zero_points or (0,))[0] if quantized else None,
    )  # fmt: skip
