"""Places where one scale cannot serve, recognised by their shape.

For: attention masks (an Add of about -10000 before a Softmax; FACTS.md, trap 6) and mixed-range heads (a
Concat of pixels and probabilities into one tensor). Both stay in float, and are named.
Not for: outlier channels within one tensor; those are found by measuring (`converter.repair`).
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from converter.quantize.operators import OPERATORS
from converter.quantize.view import View
from wire.figures import Interval

_MASK_LOW = -1000.0
"""exp() of less is 0 in float32 beside any score: what adds it is a mask and no signal."""
_MASK_FACTOR = 16.0
_MIXED_FACTOR = 16.0
"""A branch this many times smaller keeps 4 of 8 bits under the other's scale."""
_PASSES_ON = frozenset({"Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze", "Cast"})


def mask_adds(view: View, ranges: Mapping[str, Interval]) -> dict[str, str]:
    """Reason by name of each Add or Sub of a mask that a Softmax reads."""
    found = {}
    for node in view.nodes:
        if node.op_type not in {"Add", "Sub"} or not _before_softmax(view, node.output[0]):
            continue
        lows = [(_size(view, ranges, name), name) for name in node.input]
        known = sorted((size, name) for size, name in lows if size is not None)
        if len(known) == 2 and known[1][0] >= max(-_MASK_LOW, _MASK_FACTOR * known[0][0]):
            found[node.name] = (
                f"it adds the attention mask {known[1][1]} (up to {known[1][0]:.0f}) to scores of up to "
                f"{known[0][0]:.3g}, and one 8-bit scale cannot hold both"
            )
    return found


def _before_softmax(view: View, tensor: str) -> bool:
    for reader in view.readers.get(tensor, []):
        if reader.op_type == "Softmax":
            return True
        if reader.op_type in _PASSES_ON and _before_softmax(view, reader.output[0]):
            return True
    return False


def _size(view: View, ranges: Mapping[str, Interval], name: str) -> float | None:
    """Largest absolute value of a tensor or constant."""
    values = view.constant(name)
    if values is not None:
        return float(abs(values).max(initial=0.0))
    span = ranges.get(name)
    return None if span is None else max(abs(span.low), abs(span.high))


def mixed_heads(view: View, ranges: Mapping[str, Interval]) -> dict[str, str]:
    """Reason by name of each Concat of unlike ranges from which no further multiplication reads."""
    found = {}
    for node in view.nodes:
        if node.op_type != "Concat" or _reaches_work(view, node):
            continue
        sizes = [(_size(view, ranges, name), name) for name in node.input]
        known = sorted((size, name) for size, name in sizes if size)
        if len(known) > 1 and known[-1][0] > _MIXED_FACTOR * known[0][0]:
            found[node.name] = (
                f"a head of mixed ranges: {known[-1][1]} reaches {known[-1][0]:.4g} and {known[0][1]} "
                f"{known[0][0]:.4g}; under one 8-bit scale the smaller would be lost"
            )
    return found


def _reaches_work(view: View, start: onnx.NodeProto) -> bool:
    """Whether a convolution or matrix product stands behind a node."""
    waiting, seen = list(start.output), set(start.output)
    while waiting:
        for reader in view.readers.get(waiting.pop(), []):
            operator = OPERATORS.get(reader.op_type)
            if operator is not None and operator.asks:
                return True
            fresh = [name for name in reader.output if name not in seen]
            seen.update(fresh)
            waiting += fresh
    return False
