"""One ONNX operator's part of a TFLite file, as a file of its own.

For: `piece_of()`: the operators that lead from an ONNX operator's stored inputs to its stored outputs, cut
out of the whole graph, so that a runtime computes them with the very kernels, layouts and parameters of the
whole file.
Not for: running them (`converter.tflite.parity`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from converter.tflite import Lowered
from converter.tflite.lowering import Value
from converter.tflite.reading import Op
from converter.tflite.serialize import serialize
from converter.tflite.tensors import Graph, Operator, Tensor

Array = NDArray[Any]


class Piece(Struct, frozen=True, kw_only=True, eq=False):
    """A part of a file.

    Attributes:
        inputs: ONNX tensors that it reads, each from another place of the file.
        outputs: ONNX tensors that it makes.
        operators: of the file, in their order.
        content: a file that takes `inputs` and gives `outputs` in these orders; None where nothing is
            computed.
    """

    inputs: dict[str, Value]
    outputs: dict[str, Value]
    operators: tuple[str, ...]
    content: bytes | None


def makers(graph: Graph) -> dict[int, Operator]:
    """Who writes each tensor, by the tensor's identity."""
    return {id(made): operator for operator in graph.operators for made in operator.outputs}


def piece_of(lowered: Lowered, op: Op, maker: dict[int, Operator]) -> Piece | None:
    """The part of one operator; None where the file does not hold all of its tensors."""
    read = [name for name in dict.fromkeys(op.inputs) if name and name not in lowered.source.constants]
    written = [name for name in op.outputs if name]
    if any(name not in lowered.made for name in (*read, *written)):
        return None
    starts: dict[int, str] = {}
    for name in read:
        starts.setdefault(id(lowered.made[name].tensor), name)
    ends = {id(lowered.made[name].tensor): lowered.made[name].tensor for name in written}
    needed = _between(ends, starts, maker)
    if needed is None:
        return None
    inputs = {name: lowered.made[name] for name in starts.values()}
    outputs = {name: lowered.made[name] for name in written}
    content = None
    operators = [one for one in lowered.graph.operators if id(one) in needed]
    if operators:
        graph = Graph(
            operators=operators, inputs={name: value.tensor for name, value in inputs.items()},
            outputs={name: value.tensor for name, value in outputs.items()},
        )  # fmt: skip
        content = serialize(graph)
    return Piece(
        inputs=inputs, outputs=outputs, operators=tuple(one.kind for one in operators), content=content
    )


def _between(ends: dict[int, Tensor], starts: dict[int, str], maker: dict[int, Operator]) -> set[int] | None:
    """Identities of the operators on the way; None if the way leads past the starts."""
    needed: set[int] = set()
    waiting = list(ends.values())
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in starts or tensor.values is not None:
            continue
        operator = maker.get(id(tensor))
        if operator is None:
            return None
        if id(operator) not in needed:
            needed.add(id(operator))
            waiting += [one for one in operator.inputs if one is not None]
    return needed


def laid_out(value: Value, array: Array) -> Array:
    """An ONNX tensor as the file holds it."""
    if value.order is not None:
        array = array[..., value.order]
    return np.ascontiguousarray(array.transpose(value.axes)).reshape(value.tensor.shape)
