"""From a graph to a .tflite file.

For: the flatbuffer itself: buffers aligned to 16 bytes and shared where two constants are equal, operator
codes with versions, a signature, metadata. Equal graphs give equal bytes.
Not for: what stands in the graph (`converter.tflite.lowering`).

Format: schema.fbs of TensorFlow Lite, version 3. Buffer 0 is empty by convention and stands for "no data".
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import flatbuffers
import numpy as np

from converter.quantize.qparams import QParams
from converter.tflite.errors import TFLiteError
from converter.tflite.schema import (
    FILE_IDENTIFIER,
    SCHEMA_VERSION,
    TYPES,
    operator_code,
    options_type,
    schema,
)
from converter.tflite.tensors import Graph, Operator, Tensor

SIGNATURE = "serving_default"
_ALIGNMENT = 16
_PLACEHOLDER = 127
"""What old readers see of an operator that is newer than a byte."""
_FIRST_SIZE_BYTES = 1 << 20
FILE_BYTES_MAX = 2**31 - 1
"""Offsets of a flatbuffer are 32 bits with sign."""


def serialize(
    graph: Graph, *, name: str = "", description: str = "", metadata: Mapping[str, bytes] | None = None
) -> bytes:
    """The file.

    Args:
        graph: complete; every computed tensor has one maker before its readers.
        name: of the subgraph.
        description: of the model, for people.
        metadata: further entries by name.

    Raises:
        TFLiteError: `tflite_size`: larger than a flatbuffer can be.
    """
    constants = sum(0 if t.values is None else t.values.nbytes for t in tensors_of(graph))
    if constants + len(description) > FILE_BYTES_MAX // 2:
        raise TFLiteError("tflite_size", f"{constants} bytes of constants are more than a .tflite file holds")
    return _Writer(graph).write(name, description, dict(metadata or {}))


def tensors_of(graph: Graph) -> list[Tensor]:
    """Every tensor once: inputs, then in the operators' order, then outputs."""
    found: dict[int, Tensor] = {}
    for tensor in graph.inputs.values():
        found.setdefault(id(tensor), tensor)
    for operator in graph.operators:
        for one in (*operator.inputs, *operator.outputs):
            if one is not None:
                found.setdefault(id(one), one)
    for tensor in graph.outputs.values():
        found.setdefault(id(tensor), tensor)
    return list(found.values())


def names_of(graph: Graph) -> dict[int, str]:
    """Each tensor's name in the file, by the tensor's identity: all are different.

    What the graph takes and gives bears the signature's names, for runtimes are asked by them; the others
    keep their own unless it is taken.
    """
    found: dict[int, str] = {}
    for edges in (graph.inputs, graph.outputs):
        for name, tensor in edges.items():
            found.setdefault(id(tensor), name)
    taken = set(found.values())
    for tensor in tensors_of(graph):
        if id(tensor) not in found:
            name, number = tensor.name, 2
            while name in taken:
                name, number = f"{tensor.name}_{number}", number + 1
            taken.add(name)
            found[id(tensor)] = name
    return found


class _Bytes(schema.BufferT):  # type: ignore[misc]
    """A buffer whose payload is copied once, aligned as schema.fbs asks (force_align: 16)."""

    def __init__(self, payload: bytes) -> None:
        super().__init__()
        self._payload = payload

    def Pack(self, builder: Any) -> Any:  # noqa: N802, ANN401 - flatc's name and types
        size = len(self._payload)
        data = None
        if size:
            builder.StartVector(1, size, _ALIGNMENT)
            builder.head -= size
            builder.Bytes[builder.head : builder.head + size] = self._payload
            data = builder.EndVector()
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


class _Sharing(flatbuffers.Builder):  # type: ignore[misc]
    """A builder that writes equal vectors once.

    A flatbuffer's tables may point to one vector together. The zero points of weights per channel alone,
    zeros of 8 bytes for each channel of a weight and again of its bias, were a tenth of a small INT8 file.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._kept: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: Any) -> int:  # noqa: N802, ANN401 - flatbuffers' name and types
        key = (x.dtype.str, x.tobytes())
        if key not in self._kept:
            self._kept[key] = int(super().CreateNumpyVector(x))
        return self._kept[key]


class _Writer:
    """One file in the making."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._tensors = tensors_of(graph)
        self._index = {id(tensor): i for i, tensor in enumerate(self._tensors)}
        self._buffers: list[Any] = [_Bytes(b"")]
        self._known: dict[tuple[str, bytes], int] = {}
        self._codes: dict[tuple[str, int], int] = {}

    def write(self, name: str, description: str, metadata: dict[str, bytes]) -> bytes:
        """The whole model."""
        subgraph = schema.SubGraphT()
        subgraph.name = name or "main"
        subgraph.tensors = self._packed_tensors()
        subgraph.operators = [self._operator(one) for one in self._graph.operators]
        subgraph.inputs = [self._index[id(t)] for t in self._graph.inputs.values()]
        subgraph.outputs = [self._index[id(t)] for t in self._graph.outputs.values()]
        model = schema.ModelT()
        model.version = SCHEMA_VERSION
        model.description = description
        model.subgraphs = [subgraph]
        model.operatorCodes = [self._code(kind, version) for kind, version in self._codes]
        model.signatureDefs = [self._signature()]
        model.metadata = [self._metadata(key, metadata[key]) for key in sorted(metadata)]
        model.buffers = self._buffers
        builder = _Sharing(_FIRST_SIZE_BYTES)
        builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
        return bytes(builder.Output())

    def _packed_tensors(self) -> list[Any]:
        names = names_of(self._graph)
        return [self._tensor(tensor, names[id(tensor)]) for tensor in self._tensors]

    def _tensor(self, tensor: Tensor, name: str) -> Any:  # noqa: ANN401 - the schema has no types
        made = schema.TensorT()
        made.name, made.type = name, TYPES[tensor.dtype]
        made.shape = np.array(tensor.shape, dtype=np.int32)
        made.buffer = 0 if tensor.values is None else self._buffer(_payload(tensor))
        made.quantization = None if tensor.quant is None else _quantization(tensor.quant)
        made.hasRank = not tensor.shape
        return made

    def _buffer(self, payload: bytes, salt: str = "") -> int:
        """Equal constants share their bytes."""
        if not payload:
            return 0
        key = (salt, payload)
        if key not in self._known:
            self._known[key] = len(self._buffers)
            self._buffers.append(_Bytes(payload))
        return self._known[key]

    def _operator(self, one: Operator) -> Any:  # noqa: ANN401 - the schema has no types
        made = schema.OperatorT()
        key = (one.kind, one.version)
        made.opcodeIndex = self._codes.setdefault(key, len(self._codes))
        made.inputs = [-1 if t is None else self._index[id(t)] for t in one.inputs]
        made.outputs = [self._index[id(t)] for t in one.outputs]
        if one.options is not None:
            made.builtinOptionsType = options_type(one.options)
            made.builtinOptions = one.options
        return made

    def _code(self, kind: str, version: int) -> Any:  # noqa: ANN401 - the schema has no types
        made = schema.OperatorCodeT()
        made.builtinCode = operator_code(kind)
        made.deprecatedBuiltinCode = min(made.builtinCode, _PLACEHOLDER)
        made.version = version
        return made

    def _signature(self) -> Any:  # noqa: ANN401 - the schema has no types
        made = schema.SignatureDefT()
        made.signatureKey, made.subgraphIndex = SIGNATURE, 0
        made.inputs = [self._link(name, t) for name, t in self._graph.inputs.items()]
        made.outputs = [self._link(name, t) for name, t in self._graph.outputs.items()]
        return made

    def _link(self, name: str, tensor: Tensor) -> Any:  # noqa: ANN401 - the schema has no types
        made = schema.TensorMapT()
        made.name, made.tensorIndex = name, self._index[id(tensor)]
        return made

    def _metadata(self, key: str, value: bytes) -> Any:  # noqa: ANN401 - the schema has no types
        made = schema.MetadataT()
        made.name, made.buffer = key, self._buffer(value, "metadata")
        return made


def _payload(tensor: Tensor) -> bytes:
    """Little-endian, as the format wants."""
    values = np.ascontiguousarray(tensor.values).astype(tensor.dtype, copy=False)
    if sys.byteorder == "big":
        values = values.byteswap()
    return values.tobytes()


def _quantization(quant: QParams) -> Any:  # noqa: ANN401 - the schema has no types
    made = schema.QuantizationParametersT()
    made.scale = np.atleast_1d(quant.scale).astype(np.float32)
    made.zeroPoint = np.atleast_1d(quant.zero_point).astype(np.int64)
    made.quantizedDimension = quant.axis or 0
    return made
