"""Single TFLite operators by name, for what ONNX says in one word and TFLite in several.

For: `unary`, `binary`, `scalar`; the parameters that some INT8 kernels demand, and `fixed_output`.
Not for: reading ONNX, or layouts.

Demanded parameters: LOGISTIC and SOFTMAX write scale 1/256 and zero point -128, LOG_SOFTMAX 1/16 and 127,
TANH 1/128 and 0 (https://ai.google.dev/edge/litert/models/quantization_spec).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from converter.quantize.qparams import QParams, dequantize, quantize
from converter.tflite.errors import TFLiteError
from converter.tflite.layout import Axes
from converter.tflite.lowering import Lowering
from converter.tflite.reading import Array, Op
from converter.tflite.schema import ACTIVATIONS, schema
from converter.tflite.tensors import Tensor

_OPTIONS = {
    "ABS": "AbsOptionsT", "ADD": "AddOptionsT", "CAST": "CastOptionsT", "DIV": "DivOptionsT",
    "EXP": "ExpOptionsT",
    "GELU": "GeluOptionsT", "HARD_SWISH": "HardSwishOptionsT", "LEAKY_RELU": "LeakyReluOptionsT",
    "LOG_SOFTMAX": "LogSoftmaxOptionsT", "MAXIMUM": "MaximumMinimumOptionsT",
    "MINIMUM": "MaximumMinimumOptionsT", "MUL": "MulOptionsT", "NEG": "NegOptionsT", "POW": "PowOptionsT",
    "QUANTIZE": "QuantizeOptionsT", "SOFTMAX": "SoftmaxOptionsT",
    "SQUARED_DIFFERENCE": "SquaredDifferenceOptionsT", "SUB": "SubOptionsT",
}  # fmt: skip
"""Class of the options object; what is not listed has none."""


def _fixed(scale: float, zero_point: int) -> QParams:
    return QParams(
        scale=np.array(scale, np.float32), zero_point=np.array(zero_point, np.int8), dtype="i8", axis=None
    )


DEMANDED: dict[str, QParams] = {
    "LOGISTIC": _fixed(1 / 256, -128), "LOG_SOFTMAX": _fixed(16 / 256, 127), "SOFTMAX": _fixed(1 / 256, -128),
    "TANH": _fixed(1 / 128, 0),
}  # fmt: skip
"""How the INT8 kernel's output is stored, whatever the model says."""
_FINER_MAX = 2.0


def fixed_output(b: Lowering, op: Op, kind: str, axes: Axes) -> Tensor:
    """The tensor that `kind` writes for output 0; a QUANTIZE follows where ONNX stores it otherwise."""
    demanded = DEMANDED.get(kind)
    like = None if demanded is None else b.new(kind, (), "int8", demanded)
    return b.output(op, axes, like=like)


def fits(kind: str) -> Callable[[QParams], bool]:
    """Whether what the kernel has rounded its own way is within a step of ONNX's under other parameters.

    Rounding twice moves a number by no more than ceil(r / 2) steps, where r is how many times finer the other
    step is; but by up to r where the kernel's range ends and the other one goes on. Below its range
    LOG_SOFTMAX loses everything, and above it there is nothing.
    """
    demanded = DEMANDED[kind]
    low, high = demanded.interval

    def decide(wanted: QParams) -> bool:
        finer = float(demanded.scale) / float(wanted.scale)
        below, above = wanted.interval[0] < low, wanted.interval[1] > high
        if kind == "LOG_SOFTMAX":
            return finer <= _FINER_MAX and not below
        return finer <= (1.0 if below or above else _FINER_MAX)

    return decide


def check_types(op: Op, tensors: Sequence[Tensor], known: Collection[str]) -> None:
    """Refuses element types without a kernel; bytes that stand for no reals are among them.

    LiteRT does not only fail on such bytes: it ends the process.

    Raises:
        TFLiteError: `tflite_type`.
    """
    for tensor in tensors:
        plain = tensor.dtype in {"int8", "uint8"} and tensor.quant is None
        if tensor.dtype not in known or plain:
            kind = f"plain {tensor.dtype}" if plain else tensor.dtype
            raise TFLiteError(
                "tflite_type", f"{op.where} computes with {kind}, which TFLite's kernel does not"
            )


def options_of(kind: str) -> Any:  # noqa: ANN401 - the schema has no types
    """A fresh options object of an operator, or None."""
    name = _OPTIONS.get(kind)
    return None if name is None else getattr(schema, name)()


def requantized(b: Lowering, tensor: Tensor, made: Tensor) -> Tensor:
    """The numbers as `made` stores them, for kernels whose inputs and outputs must have one scale."""
    if made.quant is None or tensor.quant is None or tensor.quant.same_as(made.quant):
        return tensor
    name = f"{tensor.name}_rescaled"
    if tensor.values is not None:
        return b.new_constant(rescaled(tensor.values, tensor.quant, made.quant), name, made.quant)
    again = b.new(name, tensor.shape, "int8", made.quant)
    b.add("QUANTIZE", [tensor], [again], options_of("QUANTIZE"))
    return again


def rescaled(values: Array, have: QParams, want: QParams) -> Array:
    """Stored integers under other per-tensor parameters."""
    return quantize(dequantize(values, have), want)


def scalar(b: Lowering, value: float, name: str) -> Tensor:
    """A float constant of one element, which broadcasts with everything."""
    return b.new_constant(np.array([value], dtype=np.float32), name)


def unary(b: Lowering, kind: str, tensor: Tensor, made: Tensor | str) -> Tensor:
    """One operator of one input and one output of the same shape and type.

    Args:
        b: the builder.
        kind: the schema's name.
        tensor: the input.
        made: the output, or a name for a fresh one.
    """
    if isinstance(made, str):
        made = b.new(made, tensor.shape, tensor.dtype)
    b.add(kind, [tensor], [made], options_of(kind))
    return made


def binary(
    b: Lowering, kind: str, pair: Sequence[Tensor], made: Tensor | str, activation: str = "NONE"
) -> Tensor:
    """One operator of two inputs that broadcast.

    Args:
        b: the builder.
        kind: the schema's name.
        pair: the inputs, in the file's order of axes.
        made: the output, or a name for a fresh one.
        activation: fused.
    """
    left, right = pair
    if isinstance(made, str):
        made = b.new(made, np.broadcast_shapes(left.shape, right.shape), left.dtype)
    options = options_of(kind)
    if activation != "NONE":
        options.fusedActivationFunction = ACTIVATIONS[activation]
    b.add(kind, [left, right], [made], options)
    return made
