"""X^T X of the inputs of every matrix product, in one pass and bounded memory.

For: what GPTQ and AWQ need to know of the activations: for each input tensor the Gram matrix over all its
rows, `[K, K]` whatever the number of samples.
Not for: ranges (`converter.calibrate`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from msgspec import Struct
from numpy.typing import NDArray

from converter.dataset import Samples
from converter.errors import RecipeError
from converter.limits import GRAM_BYTES_MAX
from converter.model import Signature
from converter.runtime import open_session

Matrix = NDArray[np.float32]

_BATCH = 8


class Gram(Struct, frozen=True, kw_only=True):
    """Of one tensor.

    Attributes:
        matrix: float32 `[K, K]`, the sum of x x^T.
        n: rows that it sums.
    """

    matrix: Matrix
    n: int

    def error(self, delta: Matrix) -> float:
        """Squared error of the outputs that a change of the weights causes: tr(D H D^T), `delta` `[N, K]`."""
        return float(np.einsum("nk,kl,nl->", delta, self.matrix, delta, optimize=True))

    def root_mean_square(self) -> Matrix:
        """Of each of the K inputs."""
        rms: Matrix = np.sqrt(np.maximum(np.diag(self.matrix), 0.0) / max(self.n, 1)).astype(np.float32)
        return rms


def collect_grams(
    model: onnx.ModelProto, widths: Mapping[str, int], samples: Samples, signature: Signature
) -> dict[str, Gram]:
    """Runs the calibration set once for each group of tensors that fits the memory.

    Args:
        model: FP32 graph.
        widths: K by tensor name.
        samples: the calibration set.
        signature: of the model.

    Raises:
        RecipeError: `gram_too_large`: one matrix alone is larger than the limit.
    """
    found: dict[str, Gram] = {}
    for group in _groups(widths):
        graph = onnx.ModelProto()
        graph.CopyFrom(model)
        del graph.graph.output[:]
        for name in group:
            graph.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        session = open_session(graph.SerializeToString(), threads=2, optimization="BASIC")
        sums = {name: np.zeros((widths[name], widths[name]), dtype=np.float32) for name in group}
        rows = dict.fromkeys(group, 0)
        for feeds in samples.batches(_BATCH if signature.batch_free else 1):
            for name, tensor in zip(group, session.run(list(group), feeds), strict=True):
                flat = tensor.reshape(-1, widths[name])
                sums[name] += flat.T @ flat
                rows[name] += len(flat)
        found |= {name: Gram(matrix=sums[name], n=rows[name]) for name in group}
    return found


def _groups(widths: Mapping[str, int]) -> Iterable[tuple[str, ...]]:
    group: list[str] = []
    held = 0
    for name, width in widths.items():
        size = 4 * width * width
        if size > GRAM_BYTES_MAX:
            raise RecipeError(
                "gram_too_large",
                f"{name} has {width} columns; its Gram matrix of {size} bytes is above {GRAM_BYTES_MAX}; "
                "choose a recipe without calibration (rtn or hqq)",
            )
        if held + size > GRAM_BYTES_MAX:
            yield tuple(group)
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield tuple(group)
