"""Matrix products with a constant matrix: FULLY_CONNECTED.

For: Gemm and MatMul; its weight is [O, I] with scales along axis 0. Products of two computed operands, or
with a stack of constant matrices, are BATCH_MATMUL (`batch_matmul`), whose channel-wise INT8 form is broken
(FACTS.md section 1, TFLite).
Not for: alpha and beta other than 1 on stored integers, whose scales would have to say it.

Dynamic INT8 weights are multiplied by CONV_2D of 1 x 1, every row an image of one pixel with a scale of its
own. FULLY_CONNECTED takes weights per channel from version 12 on only, which tflite-runtime 2.14 refuses;
one scale for all channels costs 7 to 11 dB. Trial of 2026-11-21, 32 x 384 x 1536: in LiteRT both have 40.2
dB, in 110 and 103 us; in tflite-runtime the convolution 40.2 dB in 0.5 ms, FULLY_CONNECTED per tensor 28.9
dB in 5 ms.
"""

from __future__ import annotations

from math import prod

import numpy as np

from converter.quantize.qparams import QParams
from converter.tflite.errors import TFLiteError
from converter.tflite.layout import Axes, Shape, identity
from converter.tflite.lowering import Lowering
from converter.tflite.ops.batch_matmul import batch_matmul, multiply
from converter.tflite.ops.conv import Filter, bias_of, filter_tensor
from converter.tflite.ops.entry import Entry
from converter.tflite.ops.pieces import binary, scalar
from converter.tflite.reading import Array, Constant, Op, Traits
from converter.tflite.schema import ACTIVATIONS, schema
from converter.tflite.tensors import Tensor

_KEEPS_AXES = 5
"""Version of FULLY_CONNECTED that gives back all axes of its input."""
_HYBRID_CONV = 5
"""Version of CONV_2D that multiplies floats by int8 weights per channel."""


def gemm(b: Lowering, op: Op) -> None:
    """Writes one Gemm."""
    alpha, beta = float(op.attributes.get("alpha", 1.0)), float(op.attributes.get("beta", 1.0))
    if op.integer and (alpha, beta) != (1.0, 1.0):
        raise TFLiteError("tflite_attribute", f"{op.where} has alpha {alpha} and beta {beta} on integers")
    weight = b.constant(op.inputs[1])
    if weight is None or b.constant(op.inputs[0]) is not None:
        _gemm_of_two(b, op, alpha, beta)
        return
    filters = _filter(op, weight, transposed=bool(op.attributes.get("transB", 0)))
    tensor, filters = _operand(b, op, filters, (1, 0) if op.attributes.get("transA", 0) else (0, 1))
    made = b.output(op)
    if op.integer:
        fully_connected(b, op, tensor, filters, bias_of(b, op, tensor, filters, made.shape[1]), made)
        return
    filters = Filter(values=filters.values * np.float32(alpha), quant=None, axis=0)
    row, rest = _addend(b, op, made.shape, beta)
    bias = b.new_constant(row, f"{made.name}_bias")
    if rest is None:
        fully_connected(b, op, tensor, filters, bias, made)
        return
    product = b.new(f"{made.name}_product", made.shape, "float32")
    fully_connected(b, op, tensor, filters, bias, product, "NONE")
    binary(b, "ADD", [product, rest], made, op.activation)


def _gemm_of_two(b: Lowering, op: Op, alpha: float, beta: float) -> None:
    """A Gemm whose second matrix is computed."""
    made = b.output(op)
    row, rest = _addend(b, op, made.shape, beta)
    if row.any() or rest is not None or op.activation != "NONE":
        if op.integer:
            raise TFLiteError("tflite_quantization", f"{op.where} adds to a product of two computed matrices")
        if rest is None:
            rest = b.new_constant(row, f"{made.name}_bias")
    adj = bool(op.attributes.get("transA", 0)), bool(op.attributes.get("transB", 0))
    steps = 1 + (alpha != 1.0) + (rest is not None)
    targets = [b.new(f"{made.name}_product_{i}", made.shape, made.dtype) for i in range(steps - 1)] + [made]
    product = multiply(b, op, adj, targets.pop(0))
    if alpha != 1.0:
        product = binary(b, "MUL", [product, scalar(b, alpha, f"{made.name}_alpha")], targets.pop(0))
    if rest is not None:
        binary(b, "ADD", [product, rest], made, op.activation)


def _addend(b: Lowering, op: Op, shape: Shape, beta: float) -> tuple[Array, Tensor | None]:
    """What a Gemm in float adds: a row for every output channel, and a tensor where that does not say it."""
    zeros = np.zeros(shape[1], dtype=np.float32)
    name = op.inputs[2] if len(op.inputs) > 2 else ""
    if not name or beta == 0.0:
        return zeros, None
    found = b.constant(name)
    if found is None:
        tensor = b.take(name)
        rest = tensor if beta == 1.0 else binary(
            b, "MUL", [tensor, scalar(b, beta, f"{name}_beta")], f"{name}_times_beta"
        )  # fmt: skip
        return zeros, rest
    values = np.asarray(found.values * np.float32(beta), dtype=np.float32)
    if values.size == 1 or values.ndim == 1 or values.shape[0] == 1:
        return np.array(np.broadcast_to(values.reshape(-1), zeros.shape)), None
    return zeros, b.new_constant(values, f"{name}_addend")


def matmul(b: Lowering, op: Op) -> None:
    """Writes one MatMul, with the bias that `converter.tflite.fusing` may have given it."""
    weight = b.constant(op.inputs[1])
    matrix = None if weight is None else _matrix(op, weight)
    if matrix is None or b.constant(op.inputs[0]) is not None:
        batch_matmul(b, op)
        return
    filters = _filter(op, matrix, transposed=False)
    tensor, filters = _operand(b, op, filters, identity(len(b.shape(op.inputs[0]))))
    made = b.output(op)
    bias = bias_of(b, op, tensor, filters, filters.values.shape[0])
    fully_connected(b, op, tensor, filters, bias, made)


def _matrix(op: Op, weight: Constant) -> Constant | None:
    """A constant right operand as one matrix [I, O]; None where it is a stack of several."""
    values, quant = weight.values, weight.quant
    if values.ndim == 1:
        values = values[:, None]
    if any(n != 1 for n in values.shape[:-2]):
        return None
    if quant is not None and quant.axis is not None:
        if quant.axis != weight.values.ndim - 1 or weight.values.ndim < 2:
            raise _not_per_output(op)
        quant = QParams(scale=quant.scale, zero_point=quant.zero_point, dtype=quant.dtype, axis=1)
    return Constant(values=values.reshape(values.shape[-2:]), quant=quant)


def _operand(b: Lowering, op: Op, filters: Filter, axes: Axes) -> tuple[Tensor, Filter]:
    """The left operand, and the weight in the order of features in which that lies."""
    value = b.value(op.inputs[0])
    if value.order is None:
        return b.take(op.inputs[0], axes), filters
    return value.tensor, Filter(values=filters.values[:, value.order], quant=filters.quant, axis=0)


def fully_connected(
    b: Lowering, op: Op, tensor: Tensor, filters: Filter, bias: Tensor, made: Tensor,
    activation: str | None = None,
) -> None:  # fmt: skip
    """A product with a constant matrix `[O, I]`.

    Args:
        b: the builder.
        op: with the weight's name as input 1.
        tensor: `[..., I]`.
        filters: the weight.
        bias: `[O]`.
        made: what is written; where its shape is not the product's own, a RESHAPE follows.
        activation: fused; the operator's by default.
    """
    stored = matrix(b, op.inputs[1], filters)
    kept = (*tensor.shape[:-1], filters.values.shape[0])
    target = made if made.shape == kept else b.new(f"{made.name}_product", kept, made.dtype, made.quant)
    dense(b, tensor, stored, bias, target, op.activation if activation is None else activation)
    if target is not made:
        b.reshape_into(target, made)


def dense(
    b: Lowering, tensor: Tensor, weight: Tensor, bias: Tensor | None, made: Tensor, activation: str = "NONE"
) -> Tensor:
    """A product with a matrix that `matrix` made: one FULLY_CONNECTED, of the lowest version that will do."""
    if len(weight.shape) == 4:
        return _convolved(b, tensor, weight, bias, made, activation)
    options = schema.FullyConnectedOptionsT()
    options.fusedActivationFunction = ACTIVATIONS[activation]
    options.keepNumDims = len(made.shape) != 2
    options.asymmetricQuantizeInputs = False
    version = _KEEPS_AXES if options.keepNumDims else None
    b.add("FULLY_CONNECTED", [tensor, weight, bias], [made], options, version=version)
    return made


def matrix(b: Lowering, name: str, filters: Filter) -> Tensor:
    """A weight `[O, I]` as a tensor of the file; under dynamic INT8 `[O, 1, 1, I]`."""
    if filters.quant is not None or b.options.weights != "dynamic_int8":
        return filter_tensor(b, name, filters)
    o, i = filters.values.shape
    return b.weight(filters.values.reshape(o, 1, 1, i), name, 0)


def _convolved(
    b: Lowering, tensor: Tensor, weight: Tensor, bias: Tensor | None, made: Tensor, activation: str
) -> Tensor:
    """The product as a convolution of images of one pixel."""
    pixels = (prod(tensor.shape[:-1]), 1, 1)
    image = b.reshape(tensor, (*pixels, tensor.shape[-1]), f"{made.name}_pixels")
    target = b.new(f"{made.name}_image", (*pixels, weight.shape[0]), made.dtype)
    options = schema.Conv2DOptionsT()
    options.padding = schema.Padding.VALID
    options.strideH = options.strideW = options.dilationHFactor = options.dilationWFactor = 1
    options.fusedActivationFunction = ACTIVATIONS[activation]
    b.add("CONV_2D", [image, weight, bias], [target], options, version=_HYBRID_CONV)
    b.reshape_into(target, made)
    return made


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
            raise _not_per_output(op)
        axis = None if quant.axis is None else 0
        quant = QParams(scale=quant.scale, zero_point=quant.zero_point, dtype="i8", axis=axis)
    return Filter(values=np.ascontiguousarray(values), quant=quant, axis=0)


def _not_per_output(op: Op) -> TFLiteError:
    return TFLiteError("tflite_quantization", f"the weight of {op.where} is not stored per output channel")


ENTRIES = {
    "Gemm": Entry(lower=gemm, traits=Traits(integer=True, constants=(0, 1, 2), fuses=True)),
    "MatMul": Entry(lower=matmul, traits=Traits(integer=True, constants=(0, 1))),
}
