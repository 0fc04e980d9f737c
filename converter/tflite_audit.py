"""What LiteRT is given to run, counted in the file itself.

For: `audit_tflite()`: integer and float operators, multiplications in integers, QUANTIZE and DEQUANTIZE.
LiteRT fuses nothing that changes the arithmetic, so the file says what runs; XNNPACK takes operators over as
they are.
Not for: timing, or ONNX graphs (`converter.fusion`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from converter.candidates import Fusion
from converter.fusion import Audit
from converter.tflite.schema import operator_code
from wire.tflite_walk import Graph, Operator, Tensor, WalkError, walk

_INTEGERS = frozenset({"int8", "uint8", "int16"})
_QUANTIZE, _DEQUANTIZE = operator_code("QUANTIZE"), operator_code("DEQUANTIZE")
_MOVES = frozenset(
    operator_code(kind)
    for kind in (
        "BROADCAST_TO", "CAST", "CONCATENATION", "EXPAND_DIMS", "GATHER", "GATHER_ND", "PACK", "RESHAPE",
        "SHAPE", "SLICE", "SPLIT", "SPLIT_V", "SQUEEZE", "STRIDED_SLICE", "TILE", "TRANSPOSE", "UNPACK",
    )
)  # fmt: skip
"""Moves data and computes nothing: not counted on either side, as in ONNX graphs."""
_CONV, _DEPTHWISE = operator_code("CONV_2D"), operator_code("DEPTHWISE_CONV_2D")
_DENSE, _BATCH, _TRANSPOSED = (
    operator_code(kind) for kind in ("FULLY_CONNECTED", "BATCH_MATMUL", "TRANSPOSE_CONV")
)
_MULTIPLIES = frozenset({_CONV, _DEPTHWISE, _DENSE, _BATCH, _TRANSPOSED})


def audit_tflite(content: bytes, names: Sequence[str] = ()) -> Audit:
    """Counts of one file.

    An operator computes in integers where its data are 8 or 16 bits wide, or where float data meet 8-bit
    weights: those are quantized while it runs ("hybrid").

    Args:
        content: the file.
        names: of nodes that were left in float in a quantized graph, for people.

    Raises:
        WalkError: it is no TFLite file, or an operator lacks what it works on.
    """
    graph = walk(content)
    counts = {True: 0, False: 0}
    work = {True: 0, False: 0}
    left = float_multiplies = 0
    for one in graph.operators:
        inputs = [graph.tensors[place] for place in one.inputs if place >= 0]
        if one.code in {_QUANTIZE, _DEQUANTIZE}:
            left += not all(tensor.constant for tensor in inputs)
            continue
        if one.code in _MOVES:
            continue
        whole = in_integers(one, inputs)
        counts[whole] += 1
        if one.code in _MULTIPLIES:
            try:
                work[whole] += multiplications_of(graph, one)
            except IndexError:
                raise WalkError(
                    "not_tflite", f"an operator of code {one.code} lacks inputs or axes"
                ) from None
            float_multiplies += not whole
    total = work[True] + work[False]
    return Audit(
        fusion=Fusion(integer=counts[True], float=counts[False], qdq_left=left),
        int8_fraction=work[True] / total if total else None,
        float_multiplies=float_multiplies,
        left_float=tuple(f"{name}: computes in float in the file too" for name in names),
    )


def in_integers(one: Operator, inputs: Sequence[Tensor]) -> bool:
    """Whether its data, or the weights that float data are multiplied by, are integers of 8 or 16 bits."""
    data = [tensor for tensor in inputs if not tensor.constant]
    if any(tensor.dtype in _INTEGERS for tensor in data):
        return True
    weight = inputs[1] if one.code in _MULTIPLIES and len(inputs) > 1 else None
    return weight is not None and weight.constant and weight.dtype in {"int8", "uint8", "int4"}


def multiplications_of(graph: Graph, one: Operator) -> int:
    """Of one operator for the file's batch.

    Convolutions: elements of the output times those of one filter; transposed ones: elements of the input
    times what each spreads over; matrices: elements of the output times the shared axis.
    """
    output = graph.tensors[one.outputs[0]].shape
    first, weight = graph.tensors[one.inputs[0]].shape, graph.tensors[one.inputs[1]].shape
    if one.code == _CONV:
        return prod(output) * prod(weight[1:])
    if one.code == _DEPTHWISE:
        return prod(output) * prod(weight[1:3])
    if one.code == _TRANSPOSED:
        data = graph.tensors[one.inputs[2]].shape
        return prod(data) * prod(weight[:3])
    if one.code == _DENSE:
        return prod(output) * weight[-1]
    return prod(output) * first[-1]
