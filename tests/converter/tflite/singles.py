"""Graphs of one operator, and QDQ graphs whose pairs are given by hand.

For: operators' tests.
Not for: running them (`tests.converter.tflite.harness`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from converter.quantize.qparams import QParams, of_range, quantize
from tests.converter.quantizing import Floats, graph

Params = tuple[float, int]
"""Scale and zero point of int8."""


def single(
    kind: str,
    shape: tuple[int, ...],
    settings: Mapping[str, Any] | None = None,
    *,
    opset: int = 17,
    constants: Mapping[str, NDArray[Any]] | None = None,
) -> onnx.ModelProto:
    """One operator from `x` `[N, *shape]` (and constants, in order) to `y`; N is free."""
    constants = dict(constants or {})
    line = (kind, " ".join(["x", *constants]), "y", dict(settings or {}))
    return graph([line], constants, outputs={"y": [None] * (len(shape) + 1)}, shape=shape, opset=opset)


def params_of(array: Floats) -> Params:
    """That hold all these numbers."""
    found = of_range(float(array.min()), float(array.max()), "i8")
    return float(found.scale), int(found.zero_point)


def paired(model: onnx.ModelProto, params: Mapping[str, Params]) -> onnx.ModelProto:
    """The graph with a pair behind each of these tensors; constants are stored as int8, per tensor."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    constants = {t.name: t for t in made.graph.initializer}
    outputs = {value.name for value in made.graph.output}
    nodes = list(made.graph.node)
    before: list[onnx.NodeProto] = []
    behind: dict[str, list[onnx.NodeProto]] = {}
    for name, (scale, zero) in params.items():
        how = QParams(scale=np.array(scale, np.float32), zero_point=np.array(zero, np.int8), dtype="i8")
        made.graph.initializer.append(numpy_helper.from_array(how.scale, f"{name}_scale"))
        made.graph.initializer.append(numpy_helper.from_array(how.zero_point, f"{name}_zero"))
        settings = [f"{name}_scale", f"{name}_zero"]
        real, reads = (f"{name}_float", name) if name in outputs else (name, f"{name}_again")
        unpair = helper.make_node("DequantizeLinear", [f"{name}_stored", *settings], [reads], f"{name}_dq")
        if name in constants:
            stored = quantize(numpy_helper.to_array(constants[name]), how)
            constants[name].CopyFrom(numpy_helper.from_array(stored, f"{name}_stored"))
            added = [unpair]
        else:
            pair = helper.make_node("QuantizeLinear", [real, *settings], [f"{name}_stored"], f"{name}_q")
            added = [pair, unpair]
        for node in nodes:
            node.input[:] = [reads if one == name else one for one in node.input]
            node.output[:] = [real if one == name else one for one in node.output]
        maker = next((n.name for n in nodes if real in n.output), None)
        if maker is None:
            before += added
        else:
            behind.setdefault(maker, []).extend(added)
    del made.graph.node[:]
    made.graph.node.extend([*before, *(one for node in nodes for one in (node, *behind.get(node.name, [])))])
    onnx.checker.check_model(made, full_check=True)
    return made
