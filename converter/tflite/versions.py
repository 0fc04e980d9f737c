"""PURE. The lowest version of each TFLite operator that does what is written.

For: a file that old runtimes load too. A runtime refuses a version above what it knows, and a higher number
buys nothing (FACTS.md section 1: tflite-runtime 2.14 refuses FULLY_CONNECTED 12 and computes 4 exactly).
Not for: which kernels exist.

Source: tensorflow/lite/tools/versioning/op_version.cc, whose answers for what this writer writes are the
table.
"""

from __future__ import annotations

_INT8: dict[str, int] = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "TRANSPOSE_CONV": 2,
    **dict.fromkeys(
        (
            "ADD", "ARG_MAX", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CONCATENATION", "DEPTH_TO_SPACE",
            "DEQUANTIZE", "GATHER", "GELU", "LEAKY_RELU", "LOGISTIC", "LOG_SOFTMAX", "MAXIMUM", "MAX_POOL_2D",
            "MEAN", "MINIMUM", "MIRROR_PAD", "MUL", "PAD", "PADV2", "REDUCE_MAX", "REDUCE_MIN", "RELU",
            "RELU6", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "SLICE", "SOFTMAX",
            "SPACE_TO_DEPTH", "SPLIT", "SQUARED_DIFFERENCE", "STRIDED_SLICE", "SUB", "SUM", "TANH", "TILE",
            "TRANSPOSE",
        ),
        2,
    ),
}  # fmt: skip


def version_of(kind: str, dtype: str) -> int:
    """By the type of its first data operand; what depends on more is said where it is written.

    >>> version_of("CONV_2D", "int8"), version_of("CONV_2D", "float32")
    (3, 1)
    """
    return _INT8.get(kind, 1) if dtype == "int8" else 1
