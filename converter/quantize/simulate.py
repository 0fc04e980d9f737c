"""A plan as the switchboard's assignment.

For: trying plans without emitting them (`converter.repair.switchboard`).
Not for: deciding anything.

Where the assignment is coarser than the emitted graph: a tensor made in float is quantized for all its
readers, the graph quantizes it for integer readers only; a tensor that one node reads requantized has its own
parameters for all; and biases stay in float, whose steps in 32 bits
are far below what they are added to.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from converter.quantize.plan import Plan
from converter.quantize.qparams import DTYPES, QParams, dequantize, quantize
from converter.repair.switchboard import Array, Assignment, FakeQuant


def assignment_of(model: onnx.ModelProto, plan: Plan) -> Assignment:
    """What the plan makes of each tensor and constant of the FP32 graph."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    edges = {name: one for (_, name), one in plan.edges.items() if name in constants}
    params = {weight.initializer: weight.params for weight in plan.weights.values()}
    params = edges | params | dict(plan.constants)
    return Assignment(
        activations={name: _fake(one) for name, one in plan.activations.items()},
        weights={name: _stored(constants[name], one) for name, one in params.items()},
    )


def _fake(params: QParams) -> FakeQuant:
    limits = np.iinfo(DTYPES[params.dtype])
    zero = int(params.zero_point)
    return FakeQuant(
        step=float(params.scale), low=float(int(limits.min) - zero), high=float(int(limits.max) - zero)
    )


def _stored(tensor: onnx.TensorProto, params: QParams) -> Array:
    """The constant as it comes back from integers."""
    return dequantize(quantize(numpy_helper.to_array(tensor), params), params)
