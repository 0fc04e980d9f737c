"""What TFLite's INT8 kernels ask of scales, as a table.

For: which operators a twin runs in integers, and which of their tensors must have equal or fixed parameters,
so that a plan (`converter.quantize.twin_scales`) and a check (`converter.quantize.twin`) go by the same data.
Not for: what ONNX Runtime fuses (`converter.quantize.operators`): between Q/DQ pairs it computes the rest in
float, within a step of the integer kernel.

Sources: LiteRT 8-bit quantization specification
(https://ai.google.dev/edge/litert/models/quantization_spec), where equal scale and zero point of input and
output is a *restriction* of an operator, and Softmax, Logistic, Tanh and LogSoftmax have fixed outputs; for
operators that it does not list, what their kernels check when they are prepared (tensorflow/lite/kernels:
`maximum_minimum.cc`, `select.cc`, `reduce.cc`, `pad.cc`, `activations.cc`). Mean and Sum rescale; so do Relu,
LeakyRelu, PRelu, Elu, HardSwish and Gelu.
"""

from __future__ import annotations

from collections.abc import Mapping

from converter.quantize.operators import Fixed, Operator, Role, weighted

_UNIT = Fixed(scale=1 / 256, zero_point=-128)
_COMPUTE = Operator(role=Role.COMPUTE)
_COMPUTE_ALL = Operator(role=Role.COMPUTE, activations=None)
_SAME = Operator(role=Role.SAME_SCALE)
_JOINED = Operator(role=Role.JOINED, activations=None)
_ABSORBED = Operator(role=Role.ABSORBED, alone=True)

TWIN_OPERATORS: Mapping[str, Operator] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm"), weighted(gives=True)),
    "MatMul": Operator(role=Role.WEIGHTED, activations=None, weight=1, asks=True),
    **dict.fromkeys(("Add", "Mul", "PRelu", "Sub"), _COMPUTE_ALL),
    **dict.fromkeys(
        ("Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Pow", "ReduceMean", "ReduceSum"), _COMPUTE
    ),
    **dict.fromkeys(("Sigmoid", "Softmax"), Operator(role=Role.COMPUTE, fixed=_UNIT)),
    "LogSoftmax": Operator(role=Role.COMPUTE, fixed=Fixed(scale=16 / 256, zero_point=127)),
    "Tanh": Operator(role=Role.COMPUTE, fixed=Fixed(scale=1 / 128, zero_point=0)),
    **dict.fromkeys(
        (
            "AveragePool", "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalAveragePool",
            "GlobalMaxPool", "Identity", "MaxPool", "ReduceMax", "ReduceMin", "Reshape", "Slice",
            "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
        ),
        _SAME,
    ),
    "Pad": Operator(role=Role.SAME_SCALE, modes=frozenset({"constant", "reflect"})),
    "Resize": Operator(role=Role.SAME_SCALE, modes=frozenset({"nearest", "linear"})),
    **dict.fromkeys(("Concat", "Max", "Min"), _JOINED),
    "Where": Operator(role=Role.JOINED, activations=(1, 2)),
    **dict.fromkeys(("Clip", "Relu"), _ABSORBED),
}  # fmt: skip
"""What is not listed (Div, LayerNormalization, LSTM, GRU, ...) is a float island, the same in both files.
HardSigmoid and a Clip with bounds of its own are several of LiteRT's operators."""

STEP_FACTOR_MAX = 2.0
"""How much coarser a tensor's step may become for the sake of an operator that joins it with others, where
more reads it than that operator: one bit. Beyond, it keeps its own parameters and the edge is requantized."""

PADDING_FACTOR_MAX = 16.0
"""How many times wider a range may become to hold what a Pad puts around: 4 of 8 bits stay. What lies further
out (the lowest float before a maximum) is stored as the range's end, as without a twin."""

RESCALED = frozenset({"GlobalAveragePool"})
"""Written as Mean, which rescales: a graph that was given need not have equal scales there. Plans keep them
equal, which costs 0.01 to 0.16 dB on the trial models and no accuracy: accelerators run AVERAGE_POOL_2D."""

MOVES = frozenset({Role.SAME_SCALE, Role.JOINED})
"""Roles whose inputs and outputs have one scale and zero point."""
