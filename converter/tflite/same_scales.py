"""Whether a written file has the scales and zero points of the ONNX graph, tensor by tensor.

For: `compare_scales()`: the file's bytes beside the graph's Q and DQ nodes. This is what *equal* means for a
twin: scales bit-equal as float32, zero points equal after the shift of 128 between uint8 and int8.
Not for: what the two files compute (`converter.tflite.parity`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from msgspec import Struct
from numpy.typing import NDArray
from onnx import numpy_helper

from converter.tflite import Written
from converter.tflite.proof import ScaleProof
from wire import tflite_walk

Floats = NDArray[np.float32]


class _Params(Struct, frozen=True, kw_only=True, eq=False):
    """Of one stored tensor; zero points as signed integers."""

    scale: Floats
    zero: NDArray[np.int64]


def compare_scales(model: onnx.ModelProto, written: Written) -> ScaleProof:
    """Every stored tensor of the graph that the file holds too.

    Args:
        model: the QDQ graph.
        written: the file that was made of it.

    Raises:
        WalkError: the file's bytes are no TFLite file.
    """
    file = {one.name: one for one in tflite_walk.walk(written.content).tensors}
    activations, constants = _params_of(model)
    compared, exceptions, seen = 0, [], set()
    for name, params in activations.items():
        placed = written.tensors.get(name)
        if placed is not None:
            compared += 1
            seen.add(placed.name)
            exceptions += _differences(name, params, file[placed.name])
    for one in file.values():
        found = constants.get(_base(one.name, constants)) if one.constant and one.scales else None
        if found is not None:
            compared += 1
            seen.add(one.name)
            exceptions += _differences(one.name, found, one)
    added = sum(bool(one.scales) and one.name not in seen for one in file.values())
    return ScaleProof(
        tensors=compared, equal=compared - len(exceptions), exceptions=tuple(exceptions), added=added
    )


def _params_of(model: onnx.ModelProto) -> tuple[dict[str, _Params], dict[str, _Params]]:
    """Of stored activations by the stored name, and of constants by the name behind DequantizeLinear."""
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    activations: dict[str, _Params] = {}
    constants: dict[str, _Params] = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            activations[node.output[0]] = _params(node, values)
        elif node.op_type == "DequantizeLinear" and node.input[0] in values:
            constants[node.output[0]] = _params(node, values)
        elif node.op_type == "DequantizeLinear":
            activations.setdefault(node.input[0], _params(node, values))
    return activations, constants


def _params(node: onnx.NodeProto, values: Mapping[str, onnx.TensorProto]) -> _Params:
    scale = numpy_helper.to_array(values[node.input[1]])
    if len(node.input) > 2 and node.input[2]:
        stored = numpy_helper.to_array(values[node.input[2]])
    else:
        stored = np.zeros(scale.shape, dtype=np.uint8)
    shift = 128 if stored.dtype == np.uint8 else 0
    return _Params(scale=scale.reshape(-1), zero=stored.astype(np.int64).reshape(-1) - shift)


def _base(name: str, known: Mapping[str, Any]) -> str:
    """The ONNX name behind one that the file made unique or laid out anew."""
    while name not in known and "_" in name:
        name = name.rpartition("_")[0]
    return name


def _differences(name: str, wanted: _Params, found: tflite_walk.Tensor) -> list[str]:
    """At most one line: what differs first."""
    scale = np.array(found.scales, dtype=np.float32)
    zero = np.array(found.zero_points, dtype=np.int64)
    shift = 128 if found.dtype == "uint8" else 0
    if scale.size != wanted.scale.size and 1 not in {scale.size, wanted.scale.size}:
        return [f"{name} has {scale.size} scales, ONNX {wanted.scale.size}"]
    scale, asked = np.broadcast_arrays(scale, wanted.scale)
    if scale.tobytes() != asked.tobytes():
        i = int(np.argmax(scale != asked))
        return [f"{name} has scale {scale[i]!r}, ONNX {asked[i]!r}"]
    zero, meant = np.broadcast_arrays(zero - shift, wanted.zero)
    if not np.array_equal(zero, meant):
        i = int(np.argmax(zero != meant))
        return [f"{name} has zero point {zero[i]}, ONNX {meant[i]}"]
    return []
