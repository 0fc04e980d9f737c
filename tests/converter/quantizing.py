"""Small graphs for the quantizer's tests, made of lines like `("Add", "a b", "c")`.

For: a model, its material and its answers, whatever the graph's inputs and outputs are.
Not for: whole conversions (`tests.converter.builders.Workshop`).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from converter.calibrate import calibrate
from converter.dataset import Samples
from converter.model import Signature
from converter.quantize import Material
from converter.runtime import open_session
from converter.targets.loader import find_target
from wire.bundle import TensorSpec

Floats = NDArray[np.float32]
Line = tuple[Any, ...]
U8, I8 = "static_wi8_au8_pc_minmax", "static_wi8_ai8_pc_minmax"


def floats(seed: int, *shape: int, scale: float = 0.3) -> Floats:
    return (np.random.default_rng(seed).normal(0, 1, shape) * scale).astype(np.float32)


def graph(
    lines: list[Line],
    constants: dict[str, NDArray[Any]],
    *,
    outputs: dict[str, list[Any]],
    shape: tuple[int, ...] = (3, 8, 8),
    opset: int = 17,
) -> onnx.ModelProto:
    """A checked model of one input `x` `[N, *shape]`; a line is operator, inputs, outputs, attributes."""
    nodes = [
        helper.make_node(line[0], line[1].split(" "), line[2].split(" "), name=f"n_{line[2].split(' ')[0]}",
                         **(line[3] if len(line) > 3 else {}))
        for line in lines
    ]  # fmt: skip
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()]
    tensors = [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()]
    made = helper.make_model(
        helper.make_graph(nodes, "g", [x], results, tensors),
        opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 21 else 10,
    )  # fmt: skip
    onnx.checker.check_model(made, full_check=True)
    return made


def inputs(made: onnx.ModelProto, n: int = 16, seed: int = 5) -> Floats:
    dims = made.graph.input[0].type.tensor_type.shape.dim
    return floats(seed, n, *(dim.dim_value for dim in dims[1:]), scale=1.0)


def material(made: onnx.ModelProto, target: str = "x86_vnni") -> Material:
    """Calibrated on `inputs(made)`."""
    array = inputs(made)
    samples = Samples(path="here", sha256="0" * 64, arrays={"x": array}, data={}, n=len(array))
    spec = TensorSpec(name="x", dtype="float32", shape=(None, *array.shape[1:]))
    answers = tuple(TensorSpec(name=o.name, dtype="float32", shape=(None,)) for o in made.graph.output)
    signature = Signature(inputs=(spec,), outputs=answers, classes=None, batch_free=True)
    return Material(
        model=made, calibration=calibrate(made, samples, signature), samples=samples, signature=signature,
        rules=find_target(target).rules,
    )  # fmt: skip


def run(made: onnx.ModelProto, array: Floats) -> list[Floats]:
    return [np.asarray(one) for one in open_session(made.SerializeToString()).run(None, {"x": array})]


def sqnr_db(exact: Floats, near: Floats) -> float:
    """Signal over quantization noise."""
    noise = float(((exact - near) ** 2).sum())
    return float(10 * np.log10(float((exact**2).sum()) / max(noise, 1e-30)))


def kernels(made: onnx.ModelProto, folder: Path, config: dict[str, str] | None = None) -> Counter[str]:
    """Operators of the graph that the runtime makes of it."""
    path = folder / "optimized.onnx"
    open_session(made.SerializeToString(), config=config, optimized_path=path, optimization="EXTENDED")
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def operators(made: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in made.graph.node)
