"""PURE. The lowest version of each TFLite operator that does what is written.

For: a file that old runtimes load too. A runtime refuses a version above what it knows, and a higher number
buys nothing (FACTS.md section 1: tflite-runtime 2.14 refuses FULLY_CONNECTED 12 and computes 4 exactly).
Not for: which kernels exist.

Source: tensorflow/lite/tools/versioning/op_version.cc, whose answers for what this writer writes are the
table.
"""

from __future__ import annotations

_INT8: dict[str, int] = {
    "CAST": 3, "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "TILE": 3, "TRANSPOSE_CONV": 2,
    **dict.fromkeys(
        (
            "ADD", "ARG_MAX", "ARG_MIN", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CONCATENATION", "DEPTH_TO_SPACE",
            "DEQUANTIZE", "GATHER", "GELU", "LOGISTIC", "LOG_SOFTMAX", "MAXIMUM", "MAX_POOL_2D",
            "MEAN", "MINIMUM", "MIRROR_PAD", "MUL", "PAD", "PADV2", "REDUCE_MAX", "REDUCE_MIN", "RELU",
            "RELU6", "RESIZE_BILINEAR", "RSQRT", "RESIZE_NEAREST_NEIGHBOR", "SLICE", "SOFTMAX",
            "SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQUARED_DIFFERENCE", "STRIDED_SLICE", "SUB", "SUM", "TANH",
            "TRANSPOSE",
        ),
        2,
    ),
}  # fmt: skip


_BOOL: dict[str, int] = {"GATHER": 3, "STRIDED_SLICE": 3, "TRANSPOSE": 3}
_WIDE: dict[str, int] = {"PAD": 4, "PADV2": 4, "SLICE": 5, "STRIDED_SLICE": 4, "TRANSPOSE": 4}
"""Of five axes."""
_WIDER: dict[str, int] = {"TRANSPOSE": 6}
"""Of six."""
_RANK_PLAIN = 4


def version_of(kind: str, dtype: str, rank: int = _RANK_PLAIN) -> int:
    """By type and rank of its first data operand; what depends on more is said where it is written.

    >>> version_of("CONV_2D", "int8"), version_of("CONV_2D", "float32"), version_of("PAD", "int8", 5)
    (3, 1, 4)
    """
    by_type = {"int8": _INT8, "bool": _BOOL}.get(dtype, {}).get(kind, 1)
    by_rank = 1
    if rank > _RANK_PLAIN:
        by_rank = (_WIDER if rank > _RANK_PLAIN + 1 and kind in _WIDER else _WIDE).get(kind, 1)
    return max(by_type, by_rank)
