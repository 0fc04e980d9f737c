"""Small models of many shapes, seeded and made on the spot, with data that fits them.

For: showing that nothing crashes the converter, and that clean-ups keep answers on graphs of every kind.
Not for: trained accuracy. The models themselves stand in `zoo_layers` (ordinary networks) and `zoo_odd`
(exporters' habits, old versions, what must be refused).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from msgspec import Struct
from numpy import typing as npt
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
Build = Callable[[], onnx.ModelProto]

CLASSES = 4
FREE_AXIS = 8
"""What a free axis other than the first is given as samples."""
IDS = 16
"""Integer inputs lie below this."""


class Net:
    """A graph that is written down operator by operator; every tensor gets a name of its own."""

    def __init__(self, opset: int = 17, ir_version: int = 8, seed: int = 3) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset, self.ir_version = opset, ir_version
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.domains: list[str] = []

    def input(self, name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def image(self, channels: int = 3, side: int | str = 8, batch: int | str = "N") -> str:
        return self.input("image", batch, channels, side, side)

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32, name: str = "") -> str:
        name = name or f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def weight(self, *shape: int, scale: float = 0.4, name: str = "") -> str:
        return self.constant(self.rng.normal(0, scale, shape), name=name)

    def op(self, op_type: str, *inputs: str, **attributes: object) -> str:
        return self.ops(op_type, 1, *inputs, **attributes)[0]

    def ops(self, op_type: str, n_outputs: int, *inputs: str, **attributes: object) -> list[str]:
        outputs = [f"t{len(self.nodes)}_{i}" for i in range(n_outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, outputs, **attributes))
        return outputs

    def conv(
        self,
        x: str,
        before: int,
        after: int,
        *,
        side: int = 3,
        bias: bool = True,
        group: int = 1,
        **more: object,
    ) -> str:
        parts = [x, self.weight(after, before // group, side, side)]
        parts += [self.weight(after)] if bias else []
        return self.op("Conv", *parts, **({"pads": [side // 2] * 4, "group": group} | more))

    def norm(self, x: str, channels: int) -> str:
        gain, offset, mean = self.weight(channels), self.weight(channels), self.weight(channels)
        variance = self.constant(self.rng.uniform(0.5, 2, channels))
        return self.op("BatchNormalization", x, gain, offset, mean, variance)

    def head(self, x: str, channels: int) -> str:
        """Global average and a classifier."""
        return self.classify(self.op("Flatten", self.op("GlobalAveragePool", x)), channels)

    def classify(self, x: str, features: int) -> str:
        """`[N, features]` to `logits`, and the model's answer."""
        return self.answer(self.op("Gemm", x, self.weight(CLASSES, features), self.weight(CLASSES), transB=1))

    def answer(self, x: str, name: str = "logits", shape: tuple[int | str, ...] = ("N", CLASSES)) -> str:
        """Makes tensor `x` an output called `name`."""
        for node in self.nodes:
            for i, output in enumerate(node.output):
                if output == x:
                    node.output[i] = name
            for i, given in enumerate(node.input):
                if given == x:
                    node.input[i] = name
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def graph(self, name: str = "net") -> onnx.GraphProto:
        return helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.constants)

    def model(self, *, check: bool = True) -> onnx.ModelProto:
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(d, 1) for d in self.domains)]
        made = helper.make_model(self.graph(), opset_imports=opsets, ir_version=self.ir_version)
        if check:
            onnx.checker.check_model(made, full_check=True)
        return made


class Exhibit(Struct, frozen=True, kw_only=True):
    """A model of the zoo.

    Attributes:
        build: makes it.
        refused: the error code that it must get; None where it must be converted.
        external: its weights are saved in a file beside it.
    """

    build: Build
    refused: str | None = None
    external: bool = False

    def save(self, path: Path) -> onnx.ModelProto:
        """Writes the model to `path` and gives it."""
        proto = self.build()
        if self.external:
            copy = onnx.ModelProto()
            copy.CopyFrom(proto)
            onnx.save(copy, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
        else:
            path.write_bytes(proto.SerializeToString())
        return proto


def samples_of(proto: onnx.ModelProto, n: int, seed: int = 11) -> dict[str, Array]:
    """Random arrays, first axis `n`, one for each input that is no initializer."""
    rng = np.random.default_rng(seed)
    constants = {tensor.name for tensor in proto.graph.initializer}
    arrays = {}
    for value in proto.graph.input:
        if value.name in constants:
            continue
        tensor = value.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else FREE_AXIS for d in tensor.shape.dim]
        arrays[value.name] = _random(rng, (n, *shape[1:]), tensor.elem_type)
    return arrays


def _random(rng: np.random.Generator, shape: tuple[int, ...], kind: int) -> Array:
    if kind in {TensorProto.STRING, TensorProto.UNDEFINED}:
        return np.zeros(shape, np.float32)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    if dtype.kind in "iu":
        return rng.integers(0, IDS, shape).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    # Whatever float a model was exported in, it is float32 once it has been read.
    return rng.normal(0, 1, shape).astype(np.float32)
