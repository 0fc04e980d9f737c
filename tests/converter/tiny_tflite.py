"""Small .tflite files built by hand through the schema's own classes, independent of `converter.tflite`.

For: tests of what reads such files. Not for: tests of the writer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

FLOAT, INT8, UINT8, INT32 = 0, 9, 3, 2
_NUMPY = {FLOAT: np.float32, INT8: np.int8, UINT8: np.uint8, INT32: np.int32}

CONV_2D, DEQUANTIZE, MUL, QUANTIZE, SOFTMAX = 3, 6, 18, 114, 25


class Sketch:
    """A model in the making; tensors are known by their place."""

    def __init__(self) -> None:
        self.tensors: list[Any] = []
        self.buffers: list[Any] = [schema.BufferT()]
        self.operators: list[Any] = []
        self.codes: list[Any] = []

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        kind: int,
        *,
        scale: Sequence[float] = (),
        zero: int = 0,
        value: NDArray[Any] | None = None,
    ) -> int:
        """Adds a tensor, a constant where it has a value."""
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name.encode(), list(shape), kind, 0
        if scale:
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale = list(scale)
            made.quantization.zeroPoint = [zero] * len(scale)
        if value is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(value, _NUMPY[kind]).tobytes(), np.uint8)
            made.buffer = len(self.buffers)
            self.buffers.append(buffer)
        self.tensors.append(made)
        return len(self.tensors) - 1

    def operator(
        self, code: int, inputs: Sequence[int], outputs: Sequence[int], options: object, version: int = 1
    ) -> None:
        """Adds an operator; its options are the schema's own `...OptionsT`."""
        made, kind = schema.OperatorT(), schema.OperatorCodeT()
        kind.builtinCode, kind.deprecatedBuiltinCode = code, min(code, 127)
        kind.version = version
        self.codes.append(kind)
        made.opcodeIndex = len(self.codes) - 1
        made.inputs, made.outputs = list(inputs), list(outputs)
        made.builtinOptions = options
        made.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.operators.append(made)

    def file(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """The serialized model."""
        graph, model = schema.SubGraphT(), schema.ModelT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs = list(inputs), list(outputs)
        model.version, model.subgraphs, model.buffers = 3, [graph], self.buffers
        model.operatorCodes, model.description = self.codes, b"tiny"
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _mul() -> Any:  # noqa: ANN401 - the schema's classes carry no types
    options = schema.MulOptionsT()
    options.fusedActivationFunction = 0
    return options


def scaled(factors: NDArray[Any], rows: int = 1) -> bytes:
    """Float, `x [rows,2,2,C]` times one factor a channel: `y`."""
    sketch, shape = Sketch(), (rows, 2, 2, len(factors))
    x, y = sketch.tensor("x", shape, FLOAT), sketch.tensor("y", shape, FLOAT)
    by = sketch.tensor("by", (len(factors),), FLOAT, value=factors)
    sketch.operator(MUL, [x, by], [y], _mul())
    return sketch.file([x], [y])


def _conv() -> Any:  # noqa: ANN401 - as above
    options = schema.Conv2DOptionsT()
    options.padding, options.strideW, options.strideH = 1, 1, 1
    options.dilationWFactor = options.dilationHFactor = 1
    options.fusedActivationFunction = 0
    return options


def integer_conv(weight: NDArray[np.int8], *, edge: int = FLOAT, version: int = 1) -> bytes:
    """An int8 pointwise convolution `x [1,2,2,I]` -> `y [1,2,2,O]`; `edge` is the type of both."""
    sketch, scale, zero = Sketch(), 0.05, 3
    outer, inner = weight.shape
    x_shape, y_shape = (1, 2, 2, inner), (1, 2, 2, outer)
    named = ("x_q", "y_q") if edge == FLOAT else ("x", "y")
    x_q = sketch.tensor(named[0], x_shape, INT8, scale=(scale,), zero=zero)
    y_q = sketch.tensor(named[1], y_shape, INT8, scale=(0.1,), zero=-5)
    w = sketch.tensor("w", (outer, 1, 1, inner), INT8, scale=(0.02,), value=weight)
    b = sketch.tensor("b", (outer,), INT32, scale=(scale * 0.02,), value=np.zeros(outer))
    if edge != FLOAT:
        sketch.operator(CONV_2D, [x_q, w, b], [y_q], _conv(), version)
        return sketch.file([x_q], [y_q])
    x, y = sketch.tensor("x", x_shape, FLOAT), sketch.tensor("y", y_shape, FLOAT)
    sketch.operator(QUANTIZE, [x], [x_q], schema.QuantizeOptionsT())
    sketch.operator(CONV_2D, [x_q, w, b], [y_q], _conv())
    sketch.operator(DEQUANTIZE, [y_q], [y], schema.DequantizeOptionsT())
    return sketch.file([x], [y])
