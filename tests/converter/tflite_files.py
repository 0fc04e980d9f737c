"""Small `.tflite` files of one operator, built through the writer's own flatbuffer layer.

For: tests of what reads, lints and compiles such files.
Not for: tests of the writer's lowering.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.quantize.qparams import QParams
from converter.tflite.schema import ACTIVATIONS, schema
from converter.tflite.serialize import serialize
from converter.tflite.tensors import Graph, Operator, Tensor

Array = NDArray[Any]
_PADDINGS = {"SAME": schema.Padding.SAME, "VALID": schema.Padding.VALID}
_OPTIONS = {
    "CONV_2D": "Conv2DOptions", "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "TRANSPOSE_CONV": "TransposeConvOptions", "AVERAGE_POOL_2D": "Pool2DOptions",
    "MAX_POOL_2D": "Pool2DOptions", "FULLY_CONNECTED": "FullyConnectedOptions", "MEAN": "ReducerOptions",
    "SUM": "ReducerOptions", "REDUCE_MAX": "ReducerOptions", "SOFTMAX": "SoftmaxOptions",
    "CONCATENATION": "ConcatenationOptions", "ADD": "AddOptions", "MUL": "MulOptions",
    "BATCH_MATMUL": "BatchMatMulOptions", "RESIZE_BILINEAR": "ResizeBilinearOptions",
    "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighborOptions", "STRIDED_SLICE": "StridedSliceOptions",
    "PACK": "PackOptions", "SPLIT": "SplitOptions", "RESHAPE": "ReshapeOptions", "GATHER": "GatherOptions",
    "ARG_MAX": "ArgMaxOptions", "LEAKY_RELU": "LeakyReluOptions", "DEPTH_TO_SPACE": "DepthToSpaceOptions",
    "SUB": "SubOptions", "DIV": "DivOptions", "TRANSPOSE": "TransposeOptions", "PAD": "PadOptions",
}  # fmt: skip


_numbers = count()


def _name() -> str:
    return f"t{next(_numbers)}"


def _quant(dtype: str, scales: int, axis: int | None, scale: float) -> QParams | None:
    if dtype not in {"int8", "uint8", "int16", "int32"}:
        return None
    zero = np.zeros(scales if axis is not None else (), np.int32)
    values = np.full(scales if axis is not None else (), scale, np.float32)
    return QParams(scale=values, zero_point=zero, dtype=f"{dtype[0]}{dtype.removeprefix('u')[3:]}", axis=axis)


def tensor(
    shape: tuple[int, ...], dtype: str = "int8", *, scale: float | None = 0.05, axis: int | None = None
) -> Tensor:  # fmt: skip
    """One that is given or computed; `axis` for a scale per channel, `scale` None for no scale."""
    quant = None if scale is None else _quant(dtype, shape[axis] if axis is not None else 1, axis, scale)
    return Tensor(name=_name(), shape=shape, dtype=dtype, quant=quant)


def weights(shape: tuple[int, ...], dtype: str = "int8", *, axis: int | None = None, fill: int = 3) -> Tensor:
    """Constant weights with scales."""
    quant = _quant(dtype, shape[axis] if axis is not None else 1, axis, 0.01)
    return Tensor(name=_name(), shape=shape, dtype=dtype, values=np.full(shape, fill, dtype), quant=quant)


def bias(size: int, dtype: str = "int32") -> Tensor:
    """A constant bias."""
    return Tensor(
        name=_name(),
        shape=(size,),
        dtype=dtype,
        values=np.zeros(size, dtype),
        quant=_quant(dtype, 1, None, 5e-4),
    )


def plain(values: Any, dtype: str = "int32") -> Tensor:  # noqa: ANN401 - whatever numpy takes
    """A parameter, such as axes."""
    array = np.asarray(values, dtype)
    return Tensor(name=_name(), shape=array.shape, dtype=dtype, values=array)


def options_of(kind: str, given: dict[str, Any]) -> Any:  # noqa: ANN401 - the schema has no types
    """The schema's options, strides and dilations 1 where they are not said."""
    if kind not in _OPTIONS:
        return None
    made = getattr(schema, f"{_OPTIONS[kind]}T")()
    steps = ("strideW", "strideH", "dilationWFactor", "dilationHFactor", "depthMultiplier", "beta")
    plain_case = {name: 1 for name in steps if hasattr(made, name)}
    for name, value in (plain_case | given).items():
        assert hasattr(made, name), f"{kind} has no {name}"
        named = {"padding": _PADDINGS, "fusedActivationFunction": ACTIVATIONS}.get(name)
        setattr(made, name, value if named is None else named[value])
    return made


def operator(kind: str, given: list[Tensor | None], made: list[Tensor], **options: Any) -> Operator:  # noqa: ANN401
    """One operator."""
    return Operator(
        kind=kind, inputs=tuple(given), outputs=tuple(made), options=options_of(kind, options), version=2
    )


def file_of(*operators: Operator) -> bytes:
    """A file whose inputs are what nothing makes, and whose outputs are what nothing reads."""
    made = [one for op in operators for one in op.outputs]
    read = [one for op in operators for one in op.inputs if one is not None]
    known = {id(one) for one in made}
    inputs = {one.name: one for one in read if one.values is None and id(one) not in known}
    taken = {id(one) for one in read}
    outputs = {one.name: one for one in made if id(one) not in taken}
    return serialize(Graph(operators=list(operators), inputs=inputs, outputs=outputs))


def single(kind: str, given: list[Tensor | None], made: list[Tensor], **options: Any) -> bytes:  # noqa: ANN401
    """A file of one operator."""
    return file_of(operator(kind, given, made, **options))
