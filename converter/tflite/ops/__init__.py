"""The operators that can be written, one module for each group.

For: `ENTRIES`, by ONNX's operator type.
Not for: anything else; a module's table is its own.
"""

from __future__ import annotations

from converter.tflite.ops import (
    activations,
    arithmetic,
    blocks,
    bounds,
    cast,
    concat,
    conv,
    conv_transpose,
    elementwise,
    extremes,
    gather,
    gelu,
    hard_sigmoid,
    linear,
    logic,
    normalization,
    pad,
    pooling,
    quantize,
    recurrent,
    reduce,
    repeating,
    reshapes,
    resize,
    slicing,
    softmax,
)
from converter.tflite.ops.entry import Entry

_MODULES = (
    activations,
    arithmetic,
    blocks,
    bounds,
    cast,
    concat,
    conv,
    conv_transpose,
    elementwise,
    extremes,
    gather,
    gelu,
    hard_sigmoid,
    linear,
    logic,
    normalization,
    pad,
    pooling,
    quantize,
    recurrent,
    reduce,
    repeating,
    reshapes,
    resize,
    slicing,
    softmax,
)

ENTRIES: dict[str, Entry] = {kind: entry for module in _MODULES for kind, entry in module.ENTRIES.items()}
"""What is not listed cannot be written (`tflite_operator`)."""
