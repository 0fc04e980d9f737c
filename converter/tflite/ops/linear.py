"""Matrix products: FULLY_CONNECTED and BATCH_MATMUL.

For: Gemm and MatMul. A product with a constant matrix is FULLY_CONNECTED, whose weight is [O, I] with scales
along axis 0; channel-wise BATCH_MATMUL in INT8 is broken (FACTS.md section 1, TFLite).
Not for: products that TFLite cannot say: alpha and beta other than 1 on computed operands.
"""

from __future__ import annotations

import numpy as np

from converter.quantize.qparams import QParams
from converter.tflite.errors import TFLiteError
from converter.tflite.layout import identity
from converter.tflite.lowering import Lowering
from converter.tflite.ops.conv import Filter, bias_of, filter_tensor
from converter.tflite.ops.entry import Entry
from converter.tflite.reading import Constant, Op, Traits
from converter.tflite.schema import ACTIVATIONS, schema
from converter.tflite.tensors import Tensor


def gemm(b: Lowering, op: Op) -> None:
    """Writes one Gemm."""
    weight = b.constant(op.inputs[1])
    if weight is None or op.attributes.get("transA", 0):
        raise TFLiteError(
            "tflite_attribute", f"{op.where} multiplies two computed matrices or a transposed one"
        )
    alpha, beta = op.attributes.get("alpha", 1.0), op.attributes.get("beta", 1.0)
    if (alpha, beta) != (1.0, 1.0):
        raise TFLiteError("tflite_attribute", f"{op.where} has alpha {alpha} and beta {beta}")
    fully_connected(b, op, weight, transposed=bool(op.attributes.get("transB", 0)))


def matmul(b: Lowering, op: Op) -> None:
    """Writes one MatMul: by a constant matrix, or batched."""
    weight = b.constant(op.inputs[1])
    if weight is not None and weight.values.ndim == 2:
        fully_connected(b, op, weight, transposed=False)
        return
    batch_matmul(b, op)


def fully_connected(b: Lowering, op: Op, weight: Constant, *, transposed: bool) -> None:
    """A product with a constant matrix `[I, O]`, or `[O, I]` where it is transposed."""
    filters = _filter(op, weight, transposed=transposed)
    value = b.value(op.inputs[0])
    if value.order is None:
        tensor = b.take(op.inputs[0])
    else:
        tensor = value.tensor
        filters = Filter(values=filters.values[:, value.order], quant=filters.quant, axis=0)
    shape = b.shape(op.outputs[0])
    bias = bias_of(b, op, tensor, filters, filters.values.shape[0])
    made = b.output(op)
    stored = filter_tensor(b, op.inputs[1], filters)
    options = schema.FullyConnectedOptionsT()
    options.fusedActivationFunction = ACTIVATIONS[op.activation]
    options.keepNumDims = len(shape) != 2
    options.asymmetricQuantizeInputs = False
    hybrid = tensor.dtype == "float32" and stored.dtype == "int8"
    version = None
    if hybrid:
        version = 12
    elif options.keepNumDims:
        version = 5
    b.add("FULLY_CONNECTED", [tensor, stored, bias], [made], options, version=version)


def _filter(op: Op, weight: Constant, *, transposed: bool) -> Filter:
    """The matrix as [O, I]."""
    values = weight.values if transposed else weight.values.T
    quant, channels = weight.quant, 0 if transposed else 1
    if quant is not None:
        if quant.zero_point.any():
            raise TFLiteError(
                "tflite_quantization", f"the weight of {op.where} has a zero point other than 0"
            )
        if quant.axis not in {None, channels}:
            raise TFLiteError(
                "tflite_quantization", f"the weight of {op.where} is not stored per output channel"
            )
        axis = None if quant.axis is None else 0
        quant = QParams(scale=quant.scale, zero_point=quant.zero_point, dtype="i8", axis=axis)
    return Filter(values=np.ascontiguousarray(values), quant=quant, axis=0)


def batch_matmul(b: Lowering, op: Op) -> None:
    """A product of two stacks of matrices; what lies transposed in the file is read so."""
    left, adj_x = _matrices(b, op.inputs[0])
    right, adj_y = _matrices(b, op.inputs[1])
    if min(len(left.shape), len(right.shape)) < 2:
        raise TFLiteError("tflite_rank", f"{op.where} multiplies by a vector")
    for tensor in (left, right):
        if tensor.quant is not None and tensor.quant.axis is not None:
            raise TFLiteError(
                "tflite_quantization",
                f"{op.where} multiplies by matrices stored per channel, TFLite per tensor",
            )
    options = schema.BatchMatMulOptionsT()
    options.adjX, options.adjY, options.asymmetricQuantizeInputs = adj_x, adj_y, False
    b.add("BATCH_MATMUL", [left, right], [b.output(op)], options)


def _matrices(b: Lowering, name: str) -> tuple[Tensor, bool]:
    """The operand with its last two axes in either order, and whether they are swapped."""
    value = b.value(name)
    rank = len(value.shape)
    swapped = (*range(rank - 2), rank - 1, rank - 2)
    if rank > 1 and value.tensor.values is None and value.axes == swapped != identity(rank):
        return value.tensor, True
    return b.take(name), False


ENTRIES = {
    "Gemm": Entry(lower=gemm, traits=Traits(integer=True, constants=(1, 2), fuses=True)),
    "MatMul": Entry(lower=matmul, traits=Traits(integer=True, constants=(0, 1))),
}
