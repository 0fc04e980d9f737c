"""Small models with a disease, for the tests of the repairs.

For: channels that stretch a tensor's range, made on purpose and seeded.
Not for: models without one (`tests.converter.builders`).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converter.dataset import Samples
from tests.converter.builders import CLASSES, Floats, model, weights


def samples_of(array: Floats) -> Samples:
    """A calibration set of `image`."""
    return Samples(path="here", sha256="0" * 64, arrays={"image": array}, data={}, n=len(array))


def outlier_net(seed: int, factor: float) -> onnx.ModelProto:
    """Conv, Relu, depthwise, LeakyRelu, grouped Conv, Relu, Conv, mean, Gemm; two layers with a wild channel.

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
    return model(nodes, [*tensors, weights(rng, "w5", CLASSES, 6), weights(rng, "b5", CLASSES)], 17)
