"""Two models with seeded random weights, for what the real ones do not have.

For: operators, size and speed of a U-Net-like (transposed convolution, resize, concatenation) and of an
attention block (MatMul of two activations, Softmax, LayerNormalization, GELU).
Not for: accuracy; there is nothing to be right about, only the distance from FP32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SYNTHETIC = ("unet_like", "attention")

_SEED = 20261121
_SAMPLES = 64
_SIDE = 64
_TOKENS, _WIDTH, _HEADS = 64, 96, 4


class _Graph:
    """A graph being written, node by node."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(_SEED)

    def weight(self, *shape: int, fan_in: int) -> str:
        """Normal, of the variance that keeps the signal's."""
        return self.constant(self._random.normal(0, (2 / fan_in) ** 0.5, shape).astype(np.float32))

    def bias(self, wide: int) -> str:
        """A tenth of the signal."""
        return self.constant(self._random.normal(0, 0.1, wide).astype(np.float32))

    def constant(self, array: NDArray[Any]) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def conv(self, x: str, wide: tuple[int, int], kernel: int, *, relu: bool = True) -> str:
        weight = self.weight(wide[1], wide[0], kernel, kernel, fan_in=wide[0] * kernel**2)
        bias = self.bias(wide[1])
        out = self.op("Conv", x, weight, bias, pads=[kernel // 2] * 4, kernel_shape=[kernel, kernel])
        return self.op("Relu", out) if relu else out

    def linear(self, x: str, wide: tuple[int, int]) -> str:
        out = self.op("MatMul", x, self.weight(*wide, fan_in=wide[0]))
        return self.op("Add", out, self.bias(wide[1]))

    def norm(self, x: str) -> str:
        scale, bias = np.ones(_WIDTH, np.float32), np.zeros(_WIDTH, np.float32)
        return self.op("LayerNormalization", x, self.constant(scale), self.constant(bias), axis=-1)

    def finished(self, last: str, shapes: tuple[Sequence[int], Sequence[int]]) -> onnx.ModelProto:
        self.nodes[-1].output[0] = "answer"
        if self.nodes[-1].name != last:
            raise ValueError(f"{last} is not the last node")
        given, answer = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in zip(("input", "answer"), shapes, strict=True)
        )
        graph = helper.make_graph(self.nodes, "synthetic", [given], [answer], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        return model


def unet_like() -> onnx.ModelProto:
    """`[1,3,64,64]` to `[1,4,64,64]`; one way up by ConvTranspose, the other by Resize."""
    graph = _Graph()
    first = graph.conv("input", (3, 16), 3)
    second = graph.conv(graph.op("MaxPool", first, kernel_shape=[2, 2], strides=[2, 2]), (16, 32), 3)
    deepest = graph.conv(graph.op("MaxPool", second, kernel_shape=[2, 2], strides=[2, 2]), (32, 64), 3)
    bias = graph.bias(32)
    up = graph.op(
        "ConvTranspose", deepest, graph.weight(64, 32, 2, 2, fan_in=64), bias,
        kernel_shape=[2, 2], strides=[2, 2],
    )  # fmt: skip
    joined = graph.conv(graph.op("Concat", up, second, axis=1), (64, 32), 3)
    scales = graph.constant(np.array([1, 1, 2, 2], np.float32))
    up = graph.op("Resize", joined, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
    joined = graph.conv(graph.op("Concat", up, first, axis=1), (48, 16), 3)
    last = graph.conv(joined, (16, 4), 1, relu=False)
    return graph.finished(last, ((1, 3, _SIDE, _SIDE), (1, 4, _SIDE, _SIDE)))


def attention() -> onnx.ModelProto:
    """`[1,64,96]` to the same: one pre-norm transformer block of four heads."""
    graph = _Graph()
    size = _WIDTH // _HEADS
    normed = graph.norm("input")
    split = graph.constant(np.array([1, _TOKENS, _HEADS, size], np.int64))

    def head(perm: Sequence[int]) -> str:
        return graph.op(
            "Transpose", graph.op("Reshape", graph.linear(normed, (_WIDTH, _WIDTH)), split), perm=perm
        )

    query, key, value = head((0, 2, 1, 3)), head((0, 2, 3, 1)), head((0, 2, 1, 3))
    scores = graph.op("Mul", graph.op("MatMul", query, key), graph.constant(np.array(size**-0.5, np.float32)))
    mixed = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), value)
    whole = graph.constant(np.array([1, _TOKENS, _WIDTH], np.int64))
    merged = graph.op("Reshape", graph.op("Transpose", mixed, perm=(0, 2, 1, 3)), whole)
    middle = graph.op("Add", "input", graph.linear(merged, (_WIDTH, _WIDTH)))
    wide = graph.op("Gelu", graph.linear(graph.norm(middle), (_WIDTH, 4 * _WIDTH)))
    last = graph.op("Add", middle, graph.linear(wide, (4 * _WIDTH, _WIDTH)))
    return graph.finished(last, ((1, _TOKENS, _WIDTH), (1, _TOKENS, _WIDTH)))


_MODELS: dict[str, Callable[[], onnx.ModelProto]] = {"unet_like": unet_like, "attention": attention}


def lay_out(out: Path) -> None:
    """Writes both as subjects, as `bench/converter/prepare.py` writes the real ones."""
    for name in SYNTHETIC:
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        model = _MODELS[name]()
        onnx.save(model, folder / "model.onnx")
        shape = [one.dim_value for one in model.graph.input[0].type.tensor_type.shape.dim][1:]
        random = np.random.default_rng(_SEED)
        for part in ("calibration", "validation", "test"):
            samples = random.normal(size=(_SAMPLES, *shape)).astype(np.float32)
            np.savez(folder / f"{part}.npz", allow_pickle=False, input=samples)
        (folder / "sla.yaml").write_text("agreement: {min: 0.9}\n", encoding="utf-8")
        (folder / "dataset.yaml").write_text("task: embedding\n", encoding="utf-8")
