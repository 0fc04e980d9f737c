"""Small real models and data sets, made on the spot.

For: tests that need an ONNX file and its `.npz` files; everything is seeded.
Not for: trained accuracy; labels are the model's own FP32 answers, some of them turned.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from converter.calibrate import calibrate
from converter.dataset import Samples
from converter.inputs import Options
from converter.model import signature
from converter.quantize import Material
from converter.runtime import open_session
from converter.targets.loader import find_target

Floats = NDArray[np.float32]

CLASSES = 4
SIDE = 8


def weights(rng: np.random.Generator, name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(rng.normal(0, 0.5, shape).astype(np.float32), name)


def conv_net(seed: int = 1, opset: int = 17, *, batch: int | str = "N") -> onnx.ModelProto:
    """Conv, Relu, depthwise Conv, Relu, global average, Gemm: `[N,1,8,8]` to `[N,4]`."""
    rng = np.random.default_rng(seed)
    constants = [
        weights(rng, "w1", 8, 1, 3, 3), weights(rng, "b1", 8),
        weights(rng, "w2", 8, 1, 3, 3), weights(rng, "b2", 8),
        weights(rng, "w3", CLASSES, 8), weights(rng, "b3", CLASSES),
    ]  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], pads=[1, 1, 1, 1], group=8),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"], transB=1),
    ]
    return model(nodes, constants, opset, batch=batch)


def batch_norm_net(seed: int = 2) -> onnx.ModelProto:
    """Conv without bias, BatchNormalization, Relu, global average, Gemm; a Constant and metadata too."""
    rng = np.random.default_rng(seed)
    constants = [weights(rng, "w1", 6, 1, 3, 3), weights(rng, "w3", CLASSES, 6), weights(rng, "b3", CLASSES)]
    constants += [weights(rng, name, 6) for name in ("gain", "offset", "mean")]
    constants.append(numpy_helper.from_array(rng.uniform(0.5, 2, 6).astype(np.float32), "variance"))
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c1"], doc_string="a note"),
        helper.make_node("BatchNormalization", ["c1", "gain", "offset", "mean", "variance"], ["n1"]),
        helper.make_node("Relu", ["n1"], ["r1"]),
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Mul", ["r1", "two"], ["m1"]),
        helper.make_node("GlobalAveragePool", ["m1"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"], transB=1),
    ]
    made = model(nodes, constants, 17)
    helper.set_model_props(made, {"author": "someone"})
    return made


def model(
    nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], opset: int, *, batch: int | str = "N"
) -> onnx.ModelProto:
    """A checked model from `image` `[batch,1,8,8]` to `logits` `[batch,4]`."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, SIDE, SIDE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, CLASSES])
    graph = helper.make_graph(nodes, "net", [image], [logits], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def images(n: int, seed: int = 7) -> Floats:
    return np.random.default_rng(seed).normal(0, 1, (n, 1, SIDE, SIDE)).astype(np.float32)


def answers(made: onnx.ModelProto, samples: Floats) -> Floats:
    """Outputs of the model, one sample at a time."""
    session = open_session(made.SerializeToString())
    return np.concatenate(
        [session.run(["logits"], {"image": samples[i : i + 1]})[0] for i in range(len(samples))]
    )


def few_candidates(target: str) -> tuple[str, ...]:
    """Three of a CPU's recipes that need no search, its first choices among them; tests of all say so."""
    activation = "ai8" if target.startswith(("arm", "rpi")) else "au8"
    range_of = "minmax_rr" if target in {"x86_avx2", "x86-64"} else "minmax"
    named = [f"static_wi8_{activation}_{grain}_{range_of}" for grain in ("pc", "pt")]
    return (*named, "dynamic_wi8_af32")


class Workshop:
    """A folder with a model, its data sets and an SLA, ready to be converted or spoilt."""

    def __init__(self, folder: Path, made: onnx.ModelProto | None = None, n: int = 120) -> None:
        self.folder = folder
        self.model = folder / "Tiny Net.onnx"
        self.calibration = folder / "calibration.npz"
        self.validation = folder / "validation.npz"
        self.sla = folder / "sla.yaml"
        self.output = folder / "bundle"
        proto = conv_net() if made is None else made
        self.model.write_bytes(proto.SerializeToString())
        samples = images(n)
        labels = answers(proto, samples).argmax(axis=1).astype(np.int64)
        labels[::10] = (labels[::10] + 1) % CLASSES
        np.savez(self.calibration, image=images(40, seed=8))
        np.savez(self.validation, image=samples, labels=labels)
        self.sla.write_text("accuracy: {min_fraction_of_baseline: 0.9}\n")

    def options(self, target: str = "x86_vnni") -> Options:
        return Options(
            model=self.model, calibration=self.calibration, validation=self.validation, target=target,
            sla=self.sla, output=self.output, latency_samples=30, candidates=few_candidates(target),
        )  # fmt: skip

    def arguments(self, target: str = "x86_vnni") -> list[str]:
        """The same as a command line."""
        return [
            str(self.model), "--calibration", str(self.calibration), "--validation", str(self.validation),
            "--target", target, "--sla", str(self.sla), "--output", str(self.output),
            "--latency-samples", "30", "--quiet", "--candidates", ",".join(few_candidates(target)),
        ]  # fmt: skip


def material_of(made: onnx.ModelProto, samples: Samples, target: str = "x86_vnni") -> Material:
    """What a scheme is given for this model and this calibration set, all of it real."""
    spec = signature(made)
    return Material(
        model=made, calibration=calibrate(made, samples, spec), samples=samples, signature=spec,
        rules=find_target(target).rules,
    )  # fmt: skip
