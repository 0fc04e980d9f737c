"""How each ONNX operator is quantized: a table.

For: the roles of operators, which of their inputs are activations, and which of them a class of target
really runs in integers.
Not for: deciding about one node of one graph (`converter.quantize.plan`).

What a runtime fuses decides what is worth quantizing (FACTS.md, trap 11): an operator without an integer
kernel runs in float between DequantizeLinear and QuantizeLinear, which costs time and precision. The set
for ONNX Runtime's CPU provider is measured: one graph per operator, quantized, and the optimized graph read
(`tests/converter/test_quantize_kernels.py`).
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class Role(StrEnum):
    """What an operator does with quantized values."""

    WEIGHTED = "weighted"
    """Multiplies by a constant weight; carries the work, so it asks for integers around it."""
    COMPUTE = "compute"
    """Computes; each of its tensors has a scale of its own."""
    SAME_SCALE = "same_scale"
    """Moves or picks values: the output has the input's scale, and no precision is lost."""
    ABSORBED = "absorbed"
    """Bounds values; dropped where the range of its output says the same."""
    JOINED = "joined"
    """Puts the values of several tensors into one: all inputs and the output have one scale."""


class Fixed(Struct, frozen=True, kw_only=True):
    """An output's scale and zero point that a runtime's kernel prescribes.

    Attributes:
        scale: exact in float32.
        zero_point: of int8; 128 more of uint8.
    """

    scale: float
    zero_point: int


class Operator(Struct, frozen=True, kw_only=True):
    """One operator.

    Attributes:
        role: what it does.
        activations: places of the inputs that hold activations; None for all of them.
        weight: place of the constant weight, for WEIGHTED.
        bias: place of the bias.
        asks: whether it asks for quantized inputs; others join only where their neighbours do.
        gives: whether its integer kernel needs a quantized output too.
        opset_min: from which on it takes 8-bit integers.
        modes: values of the attribute `mode` that it runs in integers; None where that does not matter.
        fixed: what its output must have; None where that is free.
        alone: whether it runs in integers where nothing absorbs it; for ABSORBED.
    """

    role: Role
    activations: tuple[int, ...] | None = (0,)
    weight: int | None = None
    bias: int | None = None
    asks: bool = False
    gives: bool = True
    opset_min: int = 10
    modes: frozenset[str] | None = None
    fixed: Fixed | None = None
    alone: bool = False


def weighted(*, gives: bool) -> Operator:
    """A layer with constant weight and bias; `gives` as in `Operator`."""
    return Operator(role=Role.WEIGHTED, weight=1, bias=2, asks=True, gives=gives)


_COMPUTE = Operator(role=Role.COMPUTE)
_COMPUTE_ALL = Operator(role=Role.COMPUTE, activations=None)
_SAME = Operator(role=Role.SAME_SCALE)
_ABSORBED = Operator(role=Role.ABSORBED)

OPERATORS: dict[str, Operator] = {
    "Conv": weighted(gives=True),
    "ConvTranspose": weighted(gives=True),
    "Gemm": weighted(gives=False),
    "MatMul": Operator(role=Role.WEIGHTED, activations=None, weight=1, asks=True, gives=False),
    **dict.fromkeys(("Add", "Concat", "Div", "Mul", "Sub"), _COMPUTE_ALL),
    **dict.fromkeys(
        (
            "AveragePool", "Gelu", "GlobalAveragePool", "HardSigmoid", "HardSwish", "LayerNormalization",
            "LeakyRelu", "PRelu", "ReduceMean", "Sigmoid", "Softmax", "Tanh",
        ),
        _COMPUTE,
    ),
    "Where": Operator(role=Role.COMPUTE, activations=(1, 2)),
    **dict.fromkeys(
        (
            "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice",
            "SpaceToDepth", "Split", "Squeeze", "Transpose", "Unsqueeze",
        ),
        _SAME,
    ),
    "Resize": Operator(role=Role.SAME_SCALE, modes=frozenset({"nearest"})),
    "MaxPool": Operator(role=Role.SAME_SCALE, opset_min=12),
    "Clip": _ABSORBED,
    "Relu": _ABSORBED,
}  # fmt: skip
"""What is not listed stays in float."""

CPU_KERNELS = frozenset(
    {
        "Add", "AveragePool", "Clip", "Concat", "Conv", "Gemm", "GlobalAveragePool", "LeakyRelu", "MatMul",
        "Mul", "Relu", "Sigmoid", "Softmax", "Where",
        "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Resize", "Slice",
        "Split", "Squeeze", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Operators that ONNX Runtime's CPU provider runs in integers."""


class Placement(Struct, frozen=True, kw_only=True):
    """Where a class of target wants integers.

    Attributes:
        operators: that it runs in integers.
        whole: everything that can be quantized is (accelerators that take quantized graphs only); else what
            carries the work, and what its neighbours make worthwhile.
        biases: stored as 32-bit integers; else left in float.
        fused_activations: whether Relu and Clip run within the operator before them although the type does
            not bound them (symmetric types on TensorRT): then no pair stands between the two.
    """

    operators: frozenset[str]
    whole: bool = False
    biases: bool = True
    fused_activations: bool = False


CPU = Placement(operators=CPU_KERNELS)
"""ONNX Runtime's CPU provider."""
ACCELERATOR = Placement(operators=frozenset(OPERATORS), whole=True)
"""An accelerator's compiler that takes every operator of the table; `Placement` narrows it."""
