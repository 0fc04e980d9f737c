"""Magnitude pruning: `..._prune30` sets the smallest 30% of every weight to zero before anything else.

Han et al. 2015, arXiv:1506.02626, without the training that follows there: what it costs in accuracy is
measured like everything else. It is tried where it is asked for by name (`--candidates`); the file keeps its
size, what a coder could make of it shrinks (`entropy_bytes`).

For: `pruned()`.
Not for: removing whole channels, or sparse kernels: no runtime here has them.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

_READERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_ELEMENTS_MIN = 256
"""Smaller weights gain nothing and are the most sensitive: a depthwise filter has nine elements a channel."""


def pruned(model: onnx.ModelProto, percent: int) -> tuple[onnx.ModelProto, int]:
    """A copy with the smallest weights set to zero, and how many tensors that changed.

    Args:
        model: FP32 graph; not changed.
        percent: of the elements of each weight, 1 to 99.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    weights = {n.input[1] for n in made.graph.node if n.op_type in _READERS and len(n.input) > 1}
    changed = 0
    for tensor in made.graph.initializer:
        if tensor.name not in weights or tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        array = numpy_helper.to_array(tensor).copy()
        if array.size < _ELEMENTS_MIN:
            continue
        count = array.size * percent // 100
        smallest = np.argpartition(np.abs(array), count - 1, axis=None)[:count]
        array.flat[smallest] = 0.0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        changed += 1
    return made, changed
