"""HardSigmoid, which TFLite has not: max(0, min(1, alpha * x + beta)).

For: HardSigmoid as ADD with a fused RELU6 and MUL, in float as relu6(6 * alpha * x + 6 * beta) / 6.
Not for: HardSwish, which TFLite has.

In INT8, ADD writes t = x + beta / alpha with scale = scale_out / alpha and the output's zero point, so that
the product with alpha keeps every stored integer as it is.
"""

from __future__ import annotations

import numpy as np

from converter.quantize.qparams import QParams
from converter.tflite.errors import TFLiteError
from converter.tflite.lowering import Lowering
from converter.tflite.ops.bounds import between_stored, stored_bound
from converter.tflite.ops.entry import Entry
from converter.tflite.ops.pieces import binary, scalar
from converter.tflite.reading import Op, Traits
from converter.tflite.tensors import Tensor

_MOST = 127


def hard_sigmoid(b: Lowering, op: Op) -> None:
    """Writes one HardSigmoid."""
    alpha, beta = float(op.attributes.get("alpha", 0.2)), float(op.attributes.get("beta", 0.5))
    value = b.value(op.inputs[0])
    wanted = b.quant(op.outputs[0])
    made = b.output(op, value.axes)
    if wanted is None:
        _in_float(b, value.tensor, made, alpha, beta)
        return
    if alpha <= 0.0 or beta <= 0.0:
        raise TFLiteError("tflite_attribute", f"{op.where} has alpha {alpha} and beta {beta} on integers")
    _in_integers(b, value.tensor, made, alpha, beta, wanted)


def _in_float(b: Lowering, tensor: Tensor, made: Tensor, alpha: float, beta: float) -> None:
    factor = np.float32(6.0 * alpha)
    if factor != 1.0:
        tensor = binary(
            b, "MUL", [tensor, scalar(b, float(factor), f"{made.name}_slope")], f"{made.name}_steep"
        )
    offset = scalar(b, 6.0 * beta, f"{made.name}_offset")
    bounded = binary(b, "ADD", [tensor, offset], f"{made.name}_times_6", "RELU6")
    binary(b, "MUL", [bounded, scalar(b, 1.0 / 6.0, f"{made.name}_sixth")], made)


def _in_integers(
    b: Lowering, tensor: Tensor, made: Tensor, alpha: float, beta: float, wanted: QParams
) -> None:
    name = made.name
    scale = np.asarray(wanted.scale / np.float32(alpha), dtype=np.float32)
    params = QParams(scale=scale, zero_point=wanted.zero_point, dtype="i8")
    low, high = stored_bound(0.0, wanted), stored_bound(1.0, wanted)
    is_relu6 = np.float32(6.0 * alpha) == 1.0
    free = is_relu6 or (low, high) == (-128, 127)
    offset = _positive(b, beta / alpha, f"{name}_offset")
    shifted = b.new(f"{name}_shifted", made.shape, "int8", params)
    binary(b, "ADD", [tensor, offset], shifted, "RELU6" if is_relu6 else "NONE")
    if not free:
        bounded = b.new(f"{name}_bounded", made.shape, "int8", params)
        between_stored(b, shifted, low, high, bounded)
        shifted = bounded
    binary(b, "MUL", [shifted, _positive(b, alpha, f"{name}_slope")], made)


def _positive(b: Lowering, real: float, name: str) -> Tensor:
    """A stored constant that stands for just this number."""
    scale = np.array(real / _MOST, dtype=np.float32)
    params = QParams(scale=scale, zero_point=np.array(0, dtype=np.int8), dtype="i8")
    return b.new_constant(np.array([_MOST], np.int8), name, params)


ENTRIES = {"HardSigmoid": Entry(lower=hard_sigmoid, traits=Traits(integer=True))}
