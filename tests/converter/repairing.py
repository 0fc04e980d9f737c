"""Small models with a disease, for the tests of the repairs.

For: channels that stretch a tensor's range, made on purpose and seeded.
Not for: models without one (`tests.converter.builders`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converter.dataset import Samples
from converter.repair.switchboard import Assignment, FakeQuant
from tests.converter.builders import CLASSES, Floats, answers, images, model, weights


def samples_of(array: Floats) -> Samples:
    """A calibration set of `image`."""
    return Samples(path="here", sha256="0" * 64, arrays={"image": array}, data={}, n=len(array))


def outlier_net(seed: int, factor: float, wild: tuple[str, ...] = ("w1", "w3")) -> onnx.ModelProto:
    """Conv, Relu, depthwise, LeakyRelu, grouped Conv, Relu, Conv, mean, Gemm; a wild channel in some layers.

    The function is the same for every `factor`: what one layer multiplies, the next divides.
    """
    rng = np.random.default_rng(seed)
    constants = {
        "w1": rng.normal(0, 0.5, (8, 1, 3, 3)), "b1": rng.normal(0, 0.5, 8),
        "w2": rng.normal(0, 0.5, (8, 1, 3, 3)), "b2": rng.normal(0, 0.5, 8),
        "w3": rng.normal(0, 0.5, (12, 4, 1, 1)), "b3": rng.normal(0, 0.5, 12),
        "w4": rng.normal(0, 0.5, (6, 12, 3, 3)),
    }  # fmt: skip
    for writer, reader, channel in (("w1", "w2", 3), ("w3", "w4", 5)):
        if writer not in wild:
            continue
        bias = writer.replace("w", "b")
        constants[writer][channel] *= factor
        constants[bias][channel] *= factor
        if reader == "w2":
            constants[reader][channel] /= factor
        else:
            constants[reader][:, channel] /= factor
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1], name="conv_1"),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu_1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], pads=[1, 1, 1, 1], group=8, name="conv_2"),
        helper.make_node("LeakyRelu", ["c2"], ["r2"], alpha=0.1, name="leaky"),
        helper.make_node("Conv", ["r2", "w3", "b3"], ["c3"], group=2, name="conv_3"),
        helper.make_node("Relu", ["c3"], ["r3"], name="relu_3"),
        helper.make_node("Conv", ["r3", "w4"], ["c4"], name="conv_4"),
        helper.make_node("ReduceMean", ["c4"], ["g"], axes=[2, 3], keepdims=0, name="mean"),
        helper.make_node("Gemm", ["g", "w5", "b5"], ["logits"], transB=1, name="head"),
    ]
    tensors = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in constants.items()]
    tensors += [weights(rng, "w5", CLASSES, 6), numpy_helper.from_array(np.zeros(CLASSES, np.float32), "b5")]
    made = model(nodes, tensors, 17)
    # Without its mean, what differs between images decides the class, and no class is always the answer.
    mean = answers(made, images(32, seed=99)).mean(axis=0)
    made.graph.initializer[-1].CopyFrom(numpy_helper.from_array(-mean, "b5"))
    return made


def read_assignment(emitted: onnx.ModelProto, plain: onnx.ModelProto) -> Assignment:
    """What an emitted QDQ graph does to the tensors and weights of the FP32 graph, read from it alone."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in emitted.graph.initializer}
    names = {tensor.name for tensor in plain.graph.initializer}
    tensors = {name for node in plain.graph.node for name in (*node.input, *node.output)}
    activations, found = {}, {}
    for node in emitted.graph.node:
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
            continue
        scale, zero = (constants[name] for name in node.input[1:3])
        if node.op_type == "QuantizeLinear":
            kind = np.iinfo(zero.dtype)
            stems = (node.input[0], node.input[0].removesuffix("_exact"))
            name = next(stem for stem in stems if stem in tensors)
            low, high = float(kind.min - int(zero)), float(kind.max - int(zero))
            activations[name] = FakeQuant(step=float(scale), low=low, high=high)
        elif node.input[0] in constants and (name := node.input[0].removesuffix("_quantized")) in names:
            values = constants[node.input[0]]
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            shape = [1] * values.ndim
            if scale.size > 1:
                shape[axis] = -1
            steps, zeros = (
                one.astype(np.float32).reshape(shape if one.size > 1 else ()) for one in (scale, zero)
            )
            found[name] = ((values.astype(np.float32) - zeros) * steps).astype(np.float32)
    return Assignment(activations=activations, weights=found)


def island_planner(full: Assignment, plain: onnx.ModelProto) -> Callable[[frozenset[str]], Assignment]:
    """Islands as in FACTS.md, trap 5: the tensor, its producer's weights and its readers' weights."""

    def planner(islands: frozenset[str]) -> Assignment:
        beside = {
            name for node in plain.graph.node for name in node.input if islands & {*node.input, *node.output}
        }
        return Assignment(
            activations={k: v for k, v in full.activations.items() if k not in islands},
            weights={k: v for k, v in full.weights.items() if k not in beside},
        )

    return planner
