"""Pairs of model files for the tests of deltas: small, of every kind of element, and seeded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from agent.worker.delta import apply
from fleet.deltas.encoder import encode

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "fashion"


def round_trip(folder: Path, base: bytes, new: bytes) -> tuple[bytes | None, bytes]:
    """The delta, and what the device makes of it; the new file itself where there is no delta."""
    delta = encode(base, new)
    return delta, new if delta is None else applied(folder, base, delta, len(new))


def applied(folder: Path, base: bytes, delta: bytes, size_bytes: int) -> bytes:
    """What the device makes of a delta."""
    (folder / "base").write_bytes(base)
    (folder / "delta").write_bytes(delta)
    apply(folder / "base", folder / "delta", folder / "new", size_bytes)
    return (folder / "new").read_bytes()


class Weights:
    """Real weights of one layer, quantized per channel as a converter does, and some others beside them."""

    def __init__(self, seed: int = 1, channels: int = 48, inputs: int = 40) -> None:
        random = np.random.default_rng(seed)
        self.real = random.normal(0, 0.05, (channels, inputs, 3, 3))
        self.bias = random.normal(0, 0.5, channels)
        self.input_scale = 0.02
        self.float32 = random.normal(0, 1, (60, 30)).astype(np.float32)

    def moved(self, by: float, seed: int = 2) -> Weights:
        """The same after some training."""
        random, found = np.random.default_rng(seed), Weights()
        found.real = self.real + random.normal(0, by, self.real.shape)
        found.bias = self.bias + random.normal(0, by, self.bias.shape)
        found.float32 = (self.float32 + random.normal(0, by, self.float32.shape)).astype(np.float32)
        found.input_scale = self.input_scale
        return found

    def arrays(self) -> dict[str, NDArray[Any]]:
        """As they stand in the file."""
        scales = (np.abs(self.real).max(axis=(1, 2, 3)) / 127).astype(np.float32)
        weights = np.rint(self.real / scales[:, None, None, None]).clip(-127, 127).astype(np.int8)
        bias_scales = (scales * np.float32(self.input_scale)).astype(np.float32)
        return {
            "scales": scales,
            "weights": weights,
            "unsigned": (weights[:9].astype(np.int16) + 128).astype(np.uint8),
            "bias_scales": bias_scales,
            "bias": np.rint(self.bias / bias_scales).astype(np.int32),
            "float32": self.float32,
            "float16": self.float32.astype(np.float16),
            "int16": (self.float32 * 1000).clip(-32768, 32767).astype(np.int16),
            "shape": np.array([1, -1], dtype=np.int64),
        }

    def onnx(self) -> bytes:
        """A file; its graph is of no use."""
        return onnx_of(self.arrays())


def onnx_of(arrays: dict[str, NDArray[Any]]) -> bytes:
    """A file of these initializers."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    node = helper.make_node("Identity", ["x"], ["y"])
    held = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([node], "g", [value], [result], held)
    return bytes(helper.make_model(graph).SerializeToString())
