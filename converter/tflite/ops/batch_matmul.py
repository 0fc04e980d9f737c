"""Products of stacks of matrices: BATCH_MATMUL.

For: MatMul of two computed operands, or with a stack of constant matrices; Gemm of two computed matrices.
Not for: one constant matrix (`linear`).
"""

from __future__ import annotations

import numpy as np

from converter.tflite.errors import TFLiteError
from converter.tflite.layout import Axes, Shape, identity
from converter.tflite.lowering import Lowering
from converter.tflite.reading import Op
from converter.tflite.schema import schema
from converter.tflite.tensors import Tensor

_RANK_MAX = 5
"""Of what BATCH_MATMUL takes."""


def batch_matmul(b: Lowering, op: Op) -> None:
    """Writes one MatMul; vectors become matrices of one row or column."""
    multiply(b, op, (False, False), b.output(op))


def multiply(b: Lowering, op: Op, transposed: tuple[bool, bool], made: Tensor) -> Tensor:
    """Writes the product of the operator's first two inputs.

    Args:
        b: the builder.
        op: for its inputs.
        transposed: whether each means its last two axes swapped.
        made: what is written; where a vector makes its shape another one, by a RESHAPE.

    Raises:
        TFLiteError: `tflite_rank`, or `tflite_quantization` of a constant stored per channel.
    """
    left, adj_x = _matrices(b, op.inputs[0], flip=transposed[0], column=False)
    right, adj_y = _matrices(b, op.inputs[1], flip=transposed[1], column=True)
    for tensor in (left, right):
        if len(tensor.shape) > _RANK_MAX:
            raise TFLiteError(
                "tflite_rank", f"{op.where} has {len(tensor.shape)} axes, BATCH_MATMUL at most {_RANK_MAX}"
            )
        if tensor.quant is not None and tensor.quant.axis is not None:
            raise TFLiteError(
                "tflite_quantization",
                f"{op.where} multiplies by matrices stored per channel, TFLite per tensor",
            )
    options = schema.BatchMatMulOptionsT()
    options.adjX, options.adjY, options.asymmetricQuantizeInputs = adj_x, adj_y, False
    stack = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    shape = (*stack, left.shape[-1 if adj_x else -2], right.shape[-2 if adj_y else -1])
    target = made if shape == made.shape else b.new(f"{made.name}_product", shape, made.dtype, made.quant)
    b.add("BATCH_MATMUL", [left, right], [target], options)
    if target is not made:
        b.reshape_into(target, made)
    return made


def _matrices(b: Lowering, name: str, *, flip: bool, column: bool) -> tuple[Tensor, bool]:
    """The operand as it lies best, and whether the kernel must swap its last two axes."""
    value = b.value(name)
    rank = len(value.shape)
    if rank < 2:
        shape: Shape = (value.shape[0], 1) if column else (1, value.shape[0])
        return b.reshape(b.take(name), shape, f"{name}_matrix"), False
    swapped: Axes = (*range(rank - 2), rank - 1, rank - 2)
    computed = value.tensor.values is None
    if computed and (value.axes == swapped or (column and value.axes != identity(rank))):
        # The kernel reads the right operand by its columns: where it must be moved anyway, move it so.
        return b.take(name, swapped), not flip
    constant = b.constant(name)
    if constant is not None and constant.quant is None:
        return b.weight(np.asarray(constant.values, np.float32), name, None), flip
    return b.take(name), flip
